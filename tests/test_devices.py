"""One host, several devices, under TensorFlow: the processor in parts stands for the GPUs."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from wbc_keras.config import TrainConfig
from wbc_keras.errors import ConfigError
from wbc_keras.evaluate import evaluate
from wbc_keras.training.devices import Devices, find_devices

# Normalisation by each device's share of a batch, and its dropout, are not one device's.
CONFIG = """\
name: tiny
data: {{image_size: [32, 32]}}
split: {{validation: 0.2}}
model: {{backbone: mobilenetv2, attention: none, weights: {weights}, dropout: 0}}
train: {{seed: 7, batch_size: 6, head_epochs: 1, epochs: 2, learning_rate: 1.0e-2, ema_decay: 0.9}}
"""


@pytest.fixture(scope="module")
def train(tmp_path_factory, drawn_cells, root):
    """Train in a process with so many devices; return its run folder, weights and what it said."""
    tmp = tmp_path_factory.mktemp("devices")
    (tmp / "start.keras").write_bytes(b"PK\x03\x04")  # the tiny network takes none
    (tmp / "tiny.yaml").write_text(CONFIG.format(weights=tmp / "start.keras"))

    def run(name, *, devices, options=(), code=0):
        (tmp / name).mkdir()
        arguments = ["--config", tmp / "tiny.yaml", "--data", drawn_cells, *options]
        environ = {"TINY_CPUS": str(devices), "TINY_DUMP": str(tmp / name)}
        done = subprocess.run(
            [sys.executable, "tests/tiny_train.py", *arguments, "--output", tmp / name / "run"],
            env=os.environ | environ | {"PYTHONPATH": str(root)},
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        end = dict(np.load(tmp / name / "0.npz")) if code == 0 else {}
        return tmp / name / "run", end, done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_three_devices_train_as_one(train):
    _, expected, said = train("one", devices=3, options=["--set", "train.devices=1"])
    assert "device CPU, float32" in said
    folder, end, said = train("three", devices=3)
    assert "device 3 CPU, float32" in said
    for name in expected.keys() - {"seconds"}:
        np.testing.assert_allclose(end[name], expected[name], atol=1e-4, err_msg=name)
    splits = pd.read_csv(folder / "splits.csv")
    # The last batch of validation cells has no even shares.
    assert (splits["split"] == "validation").sum() % 6 % 3
    written, _ = evaluate(folder)
    tested = splits.loc[splits["split"] == "test", "file"]
    predicted = pd.read_csv(written / "predictions.csv")["file"]
    assert sorted(predicted) == sorted(tested)


@pytest.mark.slow
def test_devices_that_do_not_divide_the_batch(train):
    folder, _, said = train("four", devices=4, code=2)
    assert "error: train.batch_size: a batch of 6 cannot be shared by 4 devices" in said
    assert not folder.exists()


def test_more_devices_than_there_are():
    with pytest.raises(ConfigError, match=r"train\.devices: 64 are asked for.* has \d+ [CG]PU"):
        find_devices(TrainConfig(devices=64))


def test_one_device_needs_no_strategy():
    devices = find_devices(TrainConfig(devices=1))
    assert (devices.count, devices.strategy) == (1, None)


@pytest.mark.parametrize(
    ("batch_size", "cells", "words"),
    [
        (30, 100, r"a batch of 30 cannot be shared by 4 devices; choose a multiple of 4"),
        (32, 10, r"a batch of 10 \(there are but 10 cells to train on\) cannot"),
    ],
)
def test_batches_must_be_shared_evenly(batch_size, cells, words):
    four = Devices("GPU", 4, "float32", jit_compile=True)
    with pytest.raises(ConfigError, match=words):
        four.require_shares(batch_size, cells)
    four.require_shares(32, 100)
    Devices("GPU", 1, "float32", jit_compile=True).require_shares(batch_size, cells)
