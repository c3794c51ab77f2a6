"""A run of JAX alone, whose Python has no TensorFlow, read by TensorFlow."""

from __future__ import annotations

import importlib.util
import os

import numpy as np
import pandas as pd
import pytest
from jax_processes import environment, make_site, start

from wbc_keras.prediction.predictions import class_columns

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed"),
    pytest.mark.skipif(os.name != "posix", reason="links"),
]

# What JAX itself makes of the run's test cells.
ASK = """
import sys
from wbc_keras.commands import load_backend
load_backend()
import keras, numpy as np
assert keras.backend.backend() == "jax" and "tensorflow" not in sys.modules
from wbc_keras.config import load_config
from wbc_keras.training.data_plan import plan_data
from wbc_keras.prediction.decisions import read_decisions
from wbc_keras.prediction.networks import ask, load_network
from wbc_keras.statistics.probabilities import softmax
from wbc_keras.runs import open_run
run = open_run(sys.argv[1])
plan = plan_data(run.config)
logits = ask(load_network(run), plan.load("test").cells).logits
temperature = read_decisions(run.folder).temperature
files = plan.manifest.table["file"][plan.assignment == "test"]
np.savez(sys.argv[2], files=files.to_numpy(str), shares=softmax(logits, temperature=temperature))
"""


def run(environ, script, arguments, log):
    process = start(environ, script, [str(argument) for argument in arguments], log)
    assert process.wait(600) == 0, log.read_text()[-3000:]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, train_arguments, drawn_cells):
    """A run folder of JAX, and its probabilities of the test cells."""
    from wbc_keras.prepare import main

    tmp = tmp_path_factory.mktemp("without_tensorflow")
    config, folder = train_arguments[1], tmp / "run"
    pack = ["--config", config, "--data", str(drawn_cells), "--output", str(tmp / "pack")]
    assert main(pack) == 0
    (tmp / "site").mkdir()
    environ = environment(make_site(tmp / "site"))
    arguments = ["--config", config, "--data", tmp / "pack", "--output", folder]
    # As on a GPU; what is kept computes in float32 all the same.
    arguments += ["--set", "train.epochs=1", "--set", "train.precision=mixed_bfloat16"]
    run(environ, ["-m", "wbc_keras.train"], arguments, tmp / "train.log")
    run(environ, ["-c", ASK], [folder, tmp / "answers.npz"], tmp / "ask.log")
    return folder, np.load(tmp / "answers.npz")


def test_tensorflow_evaluates_explains_and_exports_it(trained, drawn_cells, tmp_path):
    from wbc_keras.evaluate import evaluate
    from wbc_keras.explain import main as explain
    from wbc_keras.export import main as export
    from wbc_keras.predict import predict

    folder, answers = trained
    written, _ = evaluate(folder, data=drawn_cells, output=tmp_path / "test")
    table = pd.read_csv(written / "predictions.csv").set_index("file").loc[answers["files"]]
    shares = table[class_columns(table.reset_index())].to_numpy()
    assert np.ptp(shares) > 0.1  # not one answer for all
    np.testing.assert_allclose(shares, answers["shares"], atol=1e-4)

    data = ["--run", str(folder), "--data", str(drawn_cells)]
    assert explain([*data, "--samples", "4", "--output", str(tmp_path / "seen")]) == 0
    assert (tmp_path / "seen" / "cells.png").is_file()

    assert export(["--run", str(folder), "--output", str(tmp_path / "saved_model")]) == 0
    files = [drawn_cells / file for file in answers["files"]]
    served = predict(tmp_path / "saved_model" / "1", files)
    served = served[class_columns(served)].to_numpy()
    np.testing.assert_allclose(served, answers["shares"], atol=1e-4)
