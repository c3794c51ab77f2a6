"""Models that come with the project: found by name, half the size, and as good as they say."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

import wbc_keras
from wbc_keras import runs
from wbc_keras.config import ModelConfig
from wbc_keras.errors import ConfigError, RunError
from wbc_keras.evaluate import evaluate
from wbc_keras.predict import main as predict_main
from wbc_keras.ship import halve, ship

FOLDER = runs.SHIPPED  # the project's own; the fixture names another
SHIPPED = runs.shipped_models()
KEPT = {"config.yaml", "environment.json", "classes.json", "splits.csv", "history.csv"}
KEPT |= {"decision.json", "novelty.npz", "model.keras", "model_card.md", "tables", "evaluation"}


@pytest.fixture(scope="module")
def shipped(trained_run, tmp_path_factory):
    """The tiny run, shipped as ``drawn``; its name is known while the module is tested."""
    patch = pytest.MonkeyPatch()
    patch.setattr(runs, "SHIPPED", tmp_path_factory.mktemp("models"))
    yield ship(trained_run, name="drawn")
    patch.undo()


def test_shipped_run_holds_what_a_run_holds_and_no_picture_of_a_cell(shipped):
    assert {path.name for path in shipped.iterdir()} == KEPT
    assert runs.shipped_models() == ["drawn"]
    pictures = {path.name for path in shipped.rglob("*.png")}
    assert "confusion_matrix.png" in pictures
    assert not [name for name in pictures if "mistakes" in name or "second_look" in name]


def test_weights_are_rounded_to_16_bits_and_nothing_else_changes(trained_run, shipped):
    whole = keras.models.load_model(trained_run / "model.keras", compile=False)
    half = wbc_keras.load_pretrained("drawn")
    assert half.get_config() == whole.get_config()
    for a, b in zip(whole.weights, half.weights, strict=True):
        rounded = np.asarray(a).astype(np.float16) if a.dtype == "float32" else np.asarray(a)
        assert b.dtype == a.dtype
        np.testing.assert_array_equal(np.asarray(b), rounded)
    assert (shipped / "model.keras").stat().st_size < 0.6 * sum(
        np.asarray(weight).nbytes for weight in whole.weights
    )


def test_figures_are_those_of_the_rounded_weights(shipped, tmp_path):
    evaluate("drawn", output=tmp_path / "again")
    again, card = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "again", shipped / "evaluation" / "test")
    )
    assert again["samples"] == card["samples"] > 0
    assert again["accuracy"] == card["accuracy"]
    assert again["macro_f1"] == pytest.approx(card["macro_f1"], abs=1e-9)


def test_predict_takes_the_name(shipped, drawn_cells, tmp_path, capsys):
    output = tmp_path / "predictions.csv"
    arguments = ["--model", "drawn", "--data", str(drawn_cells), "--output", str(output)]
    assert predict_main(arguments) == 0
    assert len(pd.read_csv(output)) == 96


def test_training_starts_from_the_name(shipped):
    from wbc_keras.classifier import build_classifier

    settings = ModelConfig(backbone="mobilenetv2", weights="drawn")
    model = build_classifier(settings, num_classes=7, image_size=(64, 64))
    source = wbc_keras.load_pretrained("drawn")
    for name in ("Conv1", "cbam"):
        for a, b in zip(
            model.get_layer(name).get_weights(), source.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(a, b)
    assert model.output_shape == (None, 7)


def test_unknown_name_lists_those_known(shipped):
    with pytest.raises(RunError, match=r"drwn: no such run.*shipped model: drawn"):
        wbc_keras.load_pretrained("drwn")
    from wbc_keras.backbones import check_weights

    with pytest.raises(ConfigError, match=r"no such file: drwn.*shipped model: drawn"):
        check_weights(ModelConfig(backbone="mobilenetv2", weights="drwn"))


def test_a_folder_of_that_name_goes_before_the_shipped_model(shipped, tmp_path, monkeypatch):
    (tmp_path / "drawn").mkdir()
    monkeypatch.chdir(tmp_path)
    assert runs.find_folder("drawn").resolve() == tmp_path / "drawn"


def test_taken_name_is_refused_and_nothing_is_lost(shipped, trained_run):
    before = (shipped / "model.keras").read_bytes()
    with pytest.raises(RunError, match="not empty and is never overwritten"):
        ship(trained_run, name="drawn")
    assert (shipped / "model.keras").read_bytes() == before


def test_weight_beyond_16_bits_is_named(trained_run, tmp_path):
    model = keras.models.load_model(trained_run / "model.keras", compile=False)
    model.get_layer("logits").bias.assign([1e5, 0, 0, 0])
    model.save(tmp_path / "model.keras")
    with pytest.raises(RunError, match="does not fit"):
        halve(tmp_path / "model.keras", tmp_path / "half.keras")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_is_small_and_whole(name):
    folder = FOLDER / name
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 20e6
    with zipfile.ZipFile(folder / "model.keras") as file:
        assert file.testzip() is None
    assert wbc_keras.load_pretrained(folder).output_shape[-1] == len(
        runs.open_run(folder).class_names
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("pbc")])
def test_shipped_model_scores_what_its_card_says(name, pbc, tmp_path):
    card = json.loads((FOLDER / name / "evaluation" / "test" / "metrics.json").read_text())
    evaluate(FOLDER / name, data=pbc, split="test", output=tmp_path / "test")
    found = json.loads((tmp_path / "test" / "metrics.json").read_text())
    assert found["samples"] == card["samples"]
    # Another processor may turn one cell in a thousand.
    for figure in ("accuracy", "macro_f1", "balanced_accuracy"):
        assert found[figure] == pytest.approx(card[figure], abs=0.001)
    assert found["ece"] == pytest.approx(card["ece"], abs=0.002)


@pytest.mark.slow
@pytest.mark.skipif(not SHIPPED, reason="no model is shipped")
def test_an_installed_package_brings_the_models_along(tmp_path):
    root = Path(__file__).parents[1]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    links = {"symlinks": True, "ignore": shutil.ignore_patterns("__pycache__")}
    shutil.copytree(root / "wbc_keras", source / "wbc_keras", **links)
    shutil.copytree(FOLDER, source / "artifacts" / "models")
    site = tmp_path / "site"
    install = ["pip", "install", "--quiet", "--no-deps", "--target", str(site), str(source)]
    subprocess.run([sys.executable, "-m", *install], check=True)
    ask = "from wbc_keras import runs; print(*runs.shipped_models(), runs.SHIPPED)"
    found = subprocess.run(
        [sys.executable, "-c", ask],
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
    )
    assert found.stdout.split() == [*SHIPPED, str(site / "wbc_keras" / "models")]
