"""Training by JAX alone: without TensorFlow, on several devices, in several processes."""

from __future__ import annotations

import importlib.util
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
from jax_processes import environment, free_port, make_site, places, start

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed"),
    pytest.mark.skipif(os.name != "posix", reason="links and signals"),
]

TINY = ["tests/tiny_train.py"]
CONFIG = """\
name: tiny
data: {image_size: [32, 32]}
split: {validation: 0.2}
augment: {mixup: 0.2}
model: {backbone: mobilenetv2, attention: none, weights: none, dropout: 0.3}
train:
  seed: 7
  batch_size: 8
  head_epochs: 0
  epochs: 3
  learning_rate: 1.0e-2
  ema_decay: 0.9
  freeze_batch_norm: false
  hosts_timeout: 60
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return make_site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    path = tmp_path_factory.mktemp("settings") / "tiny.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def pack(tmp_path_factory, settings, drawn_cells):
    from wbc_keras.prepare import main

    folder = tmp_path_factory.mktemp("packed") / "cells"
    arguments = ["--config", str(settings), "--data", str(drawn_cells), "--output", str(folder)]
    assert main(arguments) == 0
    return folder


class Training:
    """Processes that train together; each has its log."""

    def __init__(self, tmp, site, settings, data, *, count=1, devices=1, options=(), each=None):
        self.folder, self.dumps = tmp / "run", tmp / f"dumps_{time.monotonic_ns()}"
        self.dumps.mkdir(parents=True)
        around = places(count) if count > 1 else [{}]
        self.logs = [self.dumps / f"{index}.log" for index in range(count)]
        self.processes = []
        for index, place in enumerate(around):
            environ = environment(site, devices=devices, TINY_DUMP=str(self.dumps), **place)
            own = each(index) if each else ["--data", str(data)]
            arguments = ["--config", str(settings), *own, "--output", str(self.folder), *options]
            self.processes.append(start(environ, TINY, arguments, self.logs[index]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.wait()

    def said(self, index=0):
        return self.logs[index].read_text()

    def wait(self, timeout=240):
        """Return the exit codes of all."""
        until = time.monotonic() + timeout
        return [process.wait(max(0.1, until - time.monotonic())) for process in self.processes]

    def finish(self):
        codes = self.wait()
        assert not any(codes), "\n".join(log.read_text()[-3000:] for log in self.logs)
        return [dict(np.load(self.dumps / f"{index}.npz")) for index in range(len(codes))]


@pytest.fixture
def train(tmp_path, site, settings, pack):
    def begin(name="one", **options):
        return Training(tmp_path / name, site, settings, pack, **options)

    return begin


@pytest.fixture(scope="module")
def alone(tmp_path_factory, site, settings, pack):
    """What one process on one device ends with."""
    folder = tmp_path_factory.mktemp("alone")
    with Training(folder, site, settings, pack) as training:
        (end,) = training.finish()
    return end, training.folder, training.said()


def assert_same_end(end, expected):
    assert end.keys() == expected.keys()
    for name in expected.keys() - {"seconds"}:
        np.testing.assert_allclose(end[name], expected[name], atol=1e-4, err_msg=name)


def test_one_process_writes_the_whole_run(alone):
    end, folder, said = alone
    names = {"config.yaml", "environment.json", "classes.json", "splits.csv", "history.csv"}
    names |= {"model.keras", "decision.json", "novelty.npz"}
    assert {path.name for path in folder.iterdir()} == names
    assert end["epoch"].tolist() == [0, 1, 2]
    assert "device CPU, float32, XLA on" in said
    assert '"tensorflow": null' in (folder / "environment.json").read_text()


def test_two_devices_train_as_one(alone, train):
    with train(devices=2) as training:
        (end,) = training.finish()
    assert "device 2 CPU, float32" in training.said()
    assert_same_end(end, alone[0])


@pytest.mark.parametrize("count", [2, 4])
def test_processes_train_as_one(alone, train, count):
    with train(count=count) as training:
        ends = training.finish()
    for end in ends:
        assert_same_end(end, alone[0])
        for name in ("loss", "val_loss", "val_macro_f1"):
            np.testing.assert_array_equal(end[name], ends[0][name])
    assert "Epoch 3/3" in training.said()
    assert not any("Epoch" in training.said(index) for index in range(1, count))
    assert {p.name for p in training.folder.iterdir()} == {p.name for p in alone[1].iterdir()}


LONG = ["--set", "train.epochs=30", "--set", "train.patience=30"]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others_and_resume_goes_on(train, victim):
    with train("cut", count=2, options=LONG) as training:
        history = training.folder / "history.csv"
        while not history.exists() or len(pd.read_csv(history)) < 3:
            assert all(process.poll() is None for process in training.processes), training.said()
            time.sleep(0.02)
        training.processes[victim].kill()
        killed = time.monotonic()
        left = 1 - victim
        # 75, or JAX aborts it: that is a matter of milliseconds.
        assert training.processes[left].wait(60) in (75, -signal.SIGABRT)
        assert time.monotonic() - killed < 60
        time.sleep(0.5)
        lines = [line for line in training.said(left).splitlines() if line.startswith("error: ")]
        assert len(lines) == 1, training.said(left)
        assert "another of the 2 processes has ended" in lines[0]
        done = len(pd.read_csv(history))
    assert (training.folder / "training_state.npz").exists()
    if victim == 0:
        return
    # On with another number of processes; and the same without a break.
    with (
        train("cut", options=[*LONG, "--resume"]) as resumed,
        train("whole", options=LONG) as whole,
    ):
        (end,), (expected,) = resumed.finish(), whole.finish()
    assert done < 30
    np.testing.assert_array_equal(end["epoch"], range(30))
    for name in ("loss", "val_loss", *(name for name in expected if name.startswith("w"))):
        # Last bits that differ grow with the steps; a lost or doubled epoch would be far off.
        np.testing.assert_allclose(end[name], expected[name], atol=1e-2, err_msg=name)


def test_a_process_that_fails_keeps_no_other_waiting(train, monkeypatch):
    monkeypatch.setenv("TINY_FAIL", "1")
    with train(count=2) as training:
        first, second = training.wait(120)
        assert second == 2
        assert "error: images.bin: Resource temporarily unavailable" in training.said(1)
        assert first in (75, -signal.SIGABRT), training.said()
        assert "another of the 2 processes has ended" in training.said()


# Mistakes: one line on the first process


def refused(training, *words):
    codes = training.wait(120)
    assert set(codes) == {2}, training.said()
    lines = [line for line in training.said().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, training.said()
    for word in words:
        assert word in lines[0]
    assert not training.folder.exists()


def test_processes_that_disagree_on_the_config(train, pack):
    def each(index):
        return ["--data", str(pack), "--set", f"train.learning_rate={0.01 * (1 + index)}"]

    with train(count=2, each=each) as training:
        refused(training, "disagree with the first on config (process 1)")


def test_processes_that_disagree_on_the_cells(train, pack, tmp_path, settings, drawn_cells):
    import shutil

    from wbc_keras.prepare import main

    fewer = shutil.copytree(drawn_cells, tmp_path / "fewer")
    next((fewer / "monocyte").iterdir()).unlink()
    other = tmp_path / "other"
    assert main(["--config", str(settings), "--data", str(fewer), "--output", str(other)]) == 0
    with train(count=2, each=lambda index: ["--data", str(other if index else pack)]) as training:
        refused(training, "disagree with the first on cells (process 1)")


def test_cells_that_one_process_lacks(train, pack, tmp_path):
    nowhere = tmp_path / "nowhere"
    with train(count=2, each=lambda index: ["--data", str(nowhere if index else pack)]) as training:
        refused(training, "process 1: ", "nowhere: no such file or folder")


def test_more_devices_than_each_process_has(train):
    with train(count=2, options=["--set", "train.devices=2"]) as training:
        refused(training, "error: train.devices: 2 are asked for, and this host has 1 CPU")


MEET = """
import os
from wbc_keras.errors import RunError
from wbc_keras.training.hosts import find_place, join

try:
    with join(find_place(os.environ), timeout=60) as hosts:
        hosts.everywhere(lambda: os.listdir("nowhere" if hosts.index else "."))
except RunError as error:
    print(f"error: {error}")
"""


def meet(site, folder, *, devices=(1, 1)):
    """Return what two processes say that train nothing, where the second lacks a folder."""
    logs = [folder / "0.log", folder / "1.log"]
    processes = [
        start(environment(site, devices=number, **place), ["-c", MEET], [], log)
        for number, place, log in zip(devices, places(2), logs, strict=True)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    return [log.read_text() for log in logs]


def test_a_fault_of_one_machine_is_told_by_all(site, tmp_path):
    for said in meet(site, tmp_path):
        assert "error: process 1: nowhere: No such file or directory;" in said


def test_processes_that_have_not_equally_many_devices(site, tmp_path):
    for said in meet(site, tmp_path, devices=(2, 1)):
        assert "error: the 2 processes have 2, 1 devices" in said


def test_devices_that_do_not_divide_the_batch(train):
    with train(devices=3) as training:
        refused(training, "train.batch_size: a batch of 8 cannot be shared by 3 devices")


def test_more_devices_than_there_are(train):
    with train(options=["--set", "train.devices=2"]) as training:
        refused(training, "train.devices: 2 are asked for, and this host has 1 CPU")


def test_an_address_that_nobody_answers(tmp_path, site, settings, pack):
    place = places(2)[1] | {"KERAS_DISTRIBUTION_JOB_ADDRESSES": f"127.0.0.1:{free_port()}"}
    environ, log = environment(site, **place), tmp_path / "log.txt"
    arguments = ["--config", str(settings), "--data", str(pack), "--output", str(tmp_path / "run")]
    process = start(environ, TINY, [*arguments, "--set", "train.hosts_timeout=3"], log)
    assert process.wait(60) == 75
    assert "nobody answers there since 3 s" in log.read_text()


def test_a_process_that_never_comes(tmp_path, site, settings, pack):
    environ, log = environment(site, **places(2)[0]), tmp_path / "log.txt"
    arguments = ["--config", str(settings), "--data", str(pack), "--output", str(tmp_path / "run")]
    process = start(environ, TINY, [*arguments, "--set", "train.hosts_timeout=5"], log)
    assert process.wait(60) in (75, -signal.SIGABRT), log.read_text()
    time.sleep(0.5)
    lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert "did not come in time (train.hosts_timeout)" in lines[0]


def test_pictures_cannot_be_cropped_without_tensorflow(tmp_path, site, settings, drawn_cells):
    log = tmp_path / "log.txt"
    arguments = ["--config", str(settings), "--data", str(drawn_cells)]
    arguments += ["--output", str(tmp_path / "run")]
    process = start(environment(site), ["-m", "wbc_keras.train"], arguments, log)
    assert process.wait(120) == 2
    assert "needs TensorFlow" in log.read_text()
    assert "--data" in log.read_text()
