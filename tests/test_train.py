"""The train command: what it writes, what it refuses, and a real run killed and resumed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time

import cv2
import keras
import numpy as np
import pandas as pd
import pytest

from wbc_keras.config import load_config
from wbc_keras.predict import predict
from wbc_keras.prediction.decisions import fit_decisions, read_decisions
from wbc_keras.prediction.predictions import class_columns
from wbc_keras.train import main
from wbc_keras.training.data_plan import plan_data

NAMES = {"config.yaml", "environment.json", "classes.json", "splits.csv", "history.csv"}


def read_png(size):
    _, png = cv2.imencode(".png", np.full((size, size, 3), 128, np.uint8))
    return png.tobytes()


GOOD = read_png(8)


def make_cells(folder, pictures):
    """Write ``{"a/1.png": bytes}`` and return the folder."""
    for name, encoded in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded)
    return folder


@pytest.fixture
def cells(tmp_path):
    """Two classes of ten tiny pictures: enough for splits, not for learning."""
    names = [f"{label}/{number}.png" for label in "ab" for number in range(10)]
    return make_cells(tmp_path / "cells", dict.fromkeys(names, GOOD))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("model: {weights: none}\ntrain: {head_epochs: 0, freeze_batch_norm: false}\n")
    return path


@pytest.fixture
def refuse(tmp_path, config, capsys):
    """Call train, expect one line that holds all words, exit code 2 and nothing written."""

    def call(*words, data=None, output=None, settings=(), options=()):
        folder = output or tmp_path / "new" / "run"
        before = sorted(tmp_path.rglob("*"))
        arguments = ["--config", str(config), "--output", str(folder), *options]
        arguments += ["--data", str(data)] if data else []
        for setting in settings:
            arguments += ["--set", setting]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        for word in words:
            assert word in error
        assert sorted(tmp_path.rglob("*")) == before
        return error

    return call


# A finished run


def test_run_folder_holds_what_the_design_says(trained_run):
    names = {path.name for path in trained_run.iterdir()}
    assert names == NAMES | {"model.keras", "decision.json", "novelty.npz", "tensorboard"}
    classes = ["eosinophil", "lymphocyte", "monocyte", "neutrophil_segmented"]
    assert f'"{classes[0]}"' in (trained_run / "classes.json").read_text()
    splits = pd.read_csv(trained_run / "splits.csv")
    counts = pd.crosstab(splits["label"], splits["split"])
    assert counts.index.tolist() == classes
    assert (counts.sum(axis=1) == 24).all()
    assert (counts > 0).all(axis=None)


def test_config_of_the_run_is_whole_and_reads_back(trained_run, train_arguments):
    written = load_config(trained_run / "config.yaml")
    given = load_config(train_arguments[1], overrides=[f"data.source={train_arguments[3]}"])
    assert written == given
    assert "patience" in (trained_run / "config.yaml").read_text()  # defaults too


def test_both_phases_are_trained_and_the_loss_falls(trained_run):
    history = pd.read_csv(trained_run / "history.csv")
    assert history["phase"].tolist() == ["head", "fine_tune", "fine_tune"]
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_model_gives_logits_for_each_class(trained_run):
    model = keras.models.load_model(trained_run / "model.keras", compile=False)
    assert model.input_shape == (None, 48, 48, 3)
    assert model.output_shape == (None, 4)


def assert_same_decisions(one, other, *, rel):
    ours, theirs = dataclasses.asdict(one), dataclasses.asdict(other)
    missing = {name for name, value in theirs.items() if value is None}
    assert {name for name, value in ours.items() if value is None} == missing
    numbers = theirs.keys() - missing
    assert [ours[n] for n in numbers] == pytest.approx([theirs[n] for n in numbers], rel=rel)


def test_decisions_are_those_of_the_validation_cells(trained_run, drawn_cells):
    """From `predict`'s own way through the model: its calibrated logarithms are logits too."""
    decisions = read_decisions(trained_run)
    splits = pd.read_csv(trained_run / "splits.csv")
    cells = splits[splits["split"] == "validation"]
    table = predict(trained_run, [drawn_cells / file for file in cells["file"]])
    classes = class_columns(table)
    logits = np.log(table[classes].to_numpy(float)) * decisions.temperature
    again = fit_decisions([classes.index(label) for label in cells["label"]], logits, classes)
    assert_same_decisions(again, decisions, rel=1e-3)
    assert decisions.validation_cells == 8
    assert decisions.temperature != 1


# Bad input


def test_missing_data(refuse, tmp_path):
    refuse("nowhere", "no such file or folder", data=tmp_path / "nowhere")


def test_no_data_named(refuse):
    refuse("--data PATH")


def test_empty_folder(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    refuse("empty", "holds no picture", data=tmp_path / "empty")


def test_one_class(refuse, tmp_path):
    data = make_cells(tmp_path / "one", {"a/1.png": GOOD, "a/2.png": GOOD})
    refuse("one", "one class only", "add pictures of another class", data=data)


def test_class_left_alone_by_exclusion(refuse, cells):
    refuse("two classes", "data.exclude_labels", data=cells, settings=["data.exclude_labels=[a]"])


def test_excluded_label_that_is_not_there(refuse, cells):
    refuse("data.exclude_labels: c ", "a, b", data=cells, settings=["data.exclude_labels=[c]"])


def test_class_that_is_tested_but_not_trained(refuse, cells):
    rows = [f"a/{n}.png,a,{'test' if n > 6 else 'train'}" for n in range(10)]
    rows += [f"b/{n}.png,b,{'test' if n > 6 else 'train'}" for n in range(8)]
    rows += ["b/8.png,c,test", "b/9.png,c,test"]
    (cells / "manifest.csv").write_text("\n".join(["file,label,split", *rows]))
    refuse("c", "split", data=cells)


def test_row_without_a_picture(refuse, cells):
    (cells / "manifest.csv").write_text("file,label\na/1.png,a\nb/77.png,b\n")
    refuse("manifest.csv", "row 3", "b/77.png", "no such file", data=cells)


@pytest.mark.parametrize("file", ["../secret.png", "/etc/secret.png", "a/../../secret.png"])
def test_row_that_leaves_the_data_folder(refuse, cells, file):
    make_cells(cells.parent, {"secret.png": GOOD})
    (cells / "manifest.csv").write_text(f"file,label\na/1.png,a\n{file},b\n")
    refuse("row 3", "secret.png", "leaves the data folder", data=cells)


BAD = {
    "a/truncated.png": GOOD[:-20],
    "a/text.jpg": b"this is no picture",
    "b/empty.png": b"",
    "b/pixel.png": read_png(1),
}


def test_bad_pictures_are_all_named_before_training(refuse, cells):
    make_cells(cells, BAD)
    error = refuse("4 pictures", *BAD, "data.bad_images=skip", data=cells)
    assert "1x1 pixels" in error


def test_bad_pictures_are_left_out_and_counted_if_asked(cells, config, tmp_path, capsys):
    make_cells(cells, BAD)
    settings = ["data.bad_images=skip", f"data.source={cells}"]
    plan = plan_data(load_config(config, overrides=settings))
    assert sorted(image.path.name for image in plan.bad) == sorted(
        name.split("/")[1] for name in BAD
    )
    assert len(plan.manifest.table) == len(plan.assignment) == len(plan.labels()) == 20
    arguments = ["--config", str(config), "--data", str(cells), "--output", str(tmp_path / "run")]
    options = ["--set", "data.bad_images=skip", "--set", "model.backbone=mobilenetv2", "--dry-run"]
    assert main([*arguments, *options]) == 0
    assert "bad pictures left out 4" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_class_codes_taken_for_patients(refuse, cells):
    rows = [f"{label}/{n}.png,{label},{label.upper()}" for label in "ab" for n in range(10)]
    (cells / "manifest.csv").write_text("\n".join(["file,label,patient", *rows]))
    refuse("group: the 2 groups stand for the 2 classes", "drop the patient", data=cells)


@pytest.fixture
def plan_of(config):
    def plan(data, **settings):
        overrides = [f"data.{key}={value}" for key, value in settings.items()]
        return plan_data(load_config(config, overrides=[*overrides, f"data.source={data}"]))

    return plan


def test_copies_stay_in_one_split_unless_asked(drawn_cells, tmp_path, plan_of):
    """Every cell twice, the second turned by a quarter."""
    for path in drawn_cells.rglob("*.png"):
        image = cv2.imread(str(path))
        for name, turns in (("one", 0), ("two", 1)):
            folder = tmp_path / "twice" / path.parent.name
            folder.mkdir(parents=True, exist_ok=True)
            turned = np.ascontiguousarray(np.rot90(image, turns))
            cv2.imwrite(str(folder / f"{name}_{path.name}"), turned)
    plans = [
        plan_of(tmp_path / "twice", near_duplicates=choice)
        for choice in ("keep_together", "ignore")
    ]
    torn = []
    for plan in plans:
        table = plan.manifest.table.assign(split=plan.assignment)
        cell = table["file"].str.replace(r"(one|two)_", "", regex=True)
        torn.append(int((table.groupby(cell)["split"].nunique() > 1).sum()))
    assert torn[0] == 0
    assert torn[1] > 20
    assert "192 pictures are copies of 96, each kept in one split" in plans[0].notes


def test_config_with_several_faults_names_them_all(refuse, cells, config):
    config.write_text("train: {epochs: many, batch_size: 0}\nmodle: {backbone: vgg}\nname: a b\n")
    words = ["settings.yaml", "train.epochs", "train.batch_size", "modle", "did you mean model?"]
    refuse(*words, data=cells)


def test_missing_config(refuse, config, cells):
    config.unlink()
    refuse("settings.yaml", "--config", data=cells)


@pytest.mark.parametrize("setting", ["train.epochs", "=3", "train.seed.x=1", "train.epochs=[1"])
def test_malformed_override(refuse, cells, setting):
    refuse("train" if setting.startswith("train") else "--set", data=cells, settings=[setting])


def test_output_folder_that_is_not_empty(refuse, cells, tmp_path):
    output = make_cells(tmp_path / "old", {"notes.txt": b"mine"})
    refuse("old", "not empty", "--output", data=cells, output=output)
    refuse("old", "no run to go on", data=cells, output=output, options=["--resume"])


def test_weights_that_are_not_there(refuse, cells):
    refuse("model.weights", "nowhere.h5", data=cells, settings=["model.weights=nowhere.h5"])


def test_alpha_that_does_not_fit_the_classes(refuse, cells):
    settings = ["loss.alpha=[1, 2, 3]", "model.backbone=mobilenetv2"]
    refuse("loss.alpha", "2 classes", data=cells, settings=settings)


# Resuming


def names_and_contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_resuming_a_finished_run_does_nothing(run_copy, train_arguments):
    before = names_and_contents(run_copy)
    assert main([*train_arguments, "--output", str(run_copy), "--resume"]) == 0
    assert names_and_contents(run_copy) == before


def test_a_finished_run_is_not_overwritten(run_copy, train_arguments, capsys):
    before = names_and_contents(run_copy)
    assert main([*train_arguments, "--output", str(run_copy)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert names_and_contents(run_copy) == before


@pytest.fixture
def unfinished(run_copy):
    """As after a kill; what the state holds does not matter to who is refused."""
    (run_copy / "training_state.npz").write_bytes(b"")
    return run_copy


def test_other_settings_are_refused(unfinished, train_arguments, capsys):
    before = names_and_contents(unfinished)
    options = ["--output", str(unfinished), "--resume", "--set", "train.epochs=3"]
    assert main([*train_arguments, *options]) == 2
    error = capsys.readouterr().err
    assert "config.yaml: differs from the settings given" in error
    assert names_and_contents(unfinished) == before


def test_other_data_are_refused(unfinished, train_arguments, capsys):
    path = unfinished / "splits.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    before = names_and_contents(unfinished)
    assert main([*train_arguments, "--output", str(unfinished), "--resume"]) == 2
    error = capsys.readouterr().err
    assert "splits.csv: the data has changed since the run was started" in error
    assert names_and_contents(unfinished) == before


class TrainProcess:
    """A real ``python -m wbc_keras.train``."""

    def __init__(self, arguments, folder, log):
        self.log = log
        self.command = [sys.executable, "-m", "wbc_keras.train", *arguments, "--resume"]
        self.command += ["--output", str(folder)]

    def __enter__(self):
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def kill_when(self, seen):
        """Send SIGKILL as soon as ``seen`` says so."""
        while not seen():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.003)
        self.process.kill()
        assert self.process.wait() == -9


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="SIGKILL")
def test_run_killed_four_times_ends_bit_identical(
    trained_run, train_arguments, tmp_path, root, monkeypatch
):
    """While a model is written, while a state is, in an epoch, and before the decisions."""
    monkeypatch.chdir(root)
    folder, log = tmp_path / "run", tmp_path / "log.txt"
    state = folder / "training_state.npz"

    def run():
        return TrainProcess(train_arguments, folder, log)

    with run() as process:
        process.kill_when(lambda: any(folder.glob(".model.keras.*")))
    assert not state.exists()
    assert any(folder.glob(".model.keras.*"))

    with run() as process:
        process.kill_when(lambda: state.exists() and any(folder.glob(".training_state.npz.*")))
    assert state.exists()

    with run() as process:
        process.kill_when(lambda: "Epoch 3/3" in log.read_text())  # said as it begins
    assert len(pd.read_csv(folder / "history.csv")) == 2

    with run() as process:
        process.kill_when(lambda: len(pd.read_csv(folder / "history.csv")) == 3)
    assert state.exists()
    assert not (folder / "decision.json").exists()

    with run() as process:
        assert process.process.wait() == 0, log.read_text()
    assert {path.name for path in folder.iterdir()} == {path.name for path in trained_run.iterdir()}
    histories = (pd.read_csv(path / "history.csv") for path in (folder, trained_run))
    resumed, whole = (history.drop(columns="seconds") for history in histories)
    pd.testing.assert_frame_equal(resumed, whole, check_exact=True)
    models = (
        keras.models.load_model(p / "model.keras", compile=False) for p in (folder, trained_run)
    )
    for a, b in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same_decisions(read_decisions(folder), read_decisions(trained_run), rel=1e-5)


def test_leftovers_of_a_kill_before_the_first_file_do_not_stop_the_run(
    cells, config, tmp_path, monkeypatch
):
    """A folder that holds nothing but a half-written config is as good as empty."""
    folder = make_cells(tmp_path / "run", {".config.yaml.a1b2c3d4.yaml": b"name: ha"})
    monkeypatch.setattr("wbc_keras.train.train_planned", lambda *_, folder, **__: folder)
    arguments = ["--config", str(config), "--data", str(cells), "--output", str(folder)]
    assert main([*arguments, "--resume"]) == 0
    assert not any(folder.iterdir())
