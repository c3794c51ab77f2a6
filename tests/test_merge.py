"""The mean of several runs as one run: its answers, its cells, and what goes no further."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest

from wbc_keras.classifier import build_classifier
from wbc_keras.config import dump_config
from wbc_keras.errors import RunError
from wbc_keras.evaluate import evaluate
from wbc_keras.merge import main, merge
from wbc_keras.prediction.networks import load_model
from wbc_keras.prediction.predictor import Predictor
from wbc_keras.runs import open_run


@pytest.fixture(scope="module")
def pair(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The trained run, and one of other weights that averages over two views."""
    other = Path(shutil.copytree(trained_run, tmp_path_factory.mktemp("merge") / "other"))
    model = keras.models.load_model(other / "model.keras", compile=False)
    rng = np.random.default_rng(0)
    model.set_weights([w * rng.uniform(0.9, 1.1, w.shape) for w in model.get_weights()])
    model.save(other / "model.keras")
    text = (other / "config.yaml").read_text()
    assert "symmetries: 1" in text
    (other / "config.yaml").write_text(text.replace("symmetries: 1", "symmetries: 2"))
    return trained_run, other


@pytest.fixture(scope="module")
def merged(pair: tuple[Path, Path]) -> Path:
    return merge(pair, output=pair[1].parent / "merged")


def test_logits_are_the_mean_and_so_is_the_way_to_them(pair, merged):
    images = np.random.default_rng(1).uniform(0, 255, (5, 48, 48, 3)).astype(np.float32)
    logits = [load_model(open_run(one)).predict(images, verbose=0) for one in (*pair, merged)]
    assert np.abs(logits[0] - logits[1]).max() > 0.01
    np.testing.assert_allclose(logits[2], (logits[0] + logits[1]) / 2, atol=1e-5)
    model = load_model(open_run(merged))
    assert model.get_layer("features").output.shape[-1] == 2 * 1280


def test_it_is_a_run_like_any_other(pair, merged, drawn_cells):
    assert open_run(merged).averaged == (
        f"mean of the logits of {pair[0].name} (mobilenetv2, attention cbam) "
        "and other (mobilenetv2, attention cbam)"
    )
    before, after = (pd.read_csv(one / "splits.csv") for one in (pair[0], merged))
    pd.testing.assert_frame_equal(before, after)
    assert (merged / "decision.json").exists()
    assert (merged / "novelty.npz").exists()
    evaluate(merged)
    scored = pd.read_csv(merged / "evaluation" / "test" / "predictions.csv")
    assert len(scored) == (before["split"] == "test").sum()
    explained = Predictor.load(merged, heatmaps=True)
    file = scored["file"].iloc[0]
    answer = explained.predict([(drawn_cells / file).read_bytes()])
    shares = scored[list(explained.class_names)].iloc[0].to_numpy(np.float32)
    np.testing.assert_allclose(answer.probabilities[0], shares, atol=1e-4)
    assert answer.overlays[0].startswith(b"\x89PNG")


def test_mean_of_weights_is_one_network_of_them(pair, tmp_path):
    # The other run first: its two views are the new run's, and no weight of the network.
    command = [str(pair[1]), str(pair[0]), "--weights", "1", "3"]
    assert main([*command, "--output", str(tmp_path / "made")]) == 0
    made = open_run(tmp_path / "made")
    files = [one / "model.keras" for one in (*pair, made.folder)]
    weights = [keras.models.load_model(one, compile=False).get_weights() for one in files]
    for mine, theirs, mean in zip(*weights, strict=True):
        np.testing.assert_allclose(mean, (3 * mine + theirs) / 4, rtol=1e-5, atol=1e-7)
    assert made.config.model.symmetries == 2
    assert made.averaged.startswith("mean of the weights of 0.25 other")
    assert (made.folder / "decision.json").exists()


def test_weights_of_other_networks_are_refused(pair, tmp_path, capsys):
    other = Path(shutil.copytree(pair[0], tmp_path / "other"))
    config = dataclasses.replace(open_run(other).config.model, attention="none")
    model = build_classifier(config, num_classes=6, image_size=(48, 48))
    model.save(other / "model.keras")
    command = [str(pair[0]), str(other), "--weights", "1", "1", "--output", str(tmp_path / "made")]
    assert main(command) == 2
    assert "other architectures cannot be averaged" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_cell_that_one_was_trained_on_is_neither_tested_nor_validated(pair, tmp_path, caplog):
    other = Path(shutil.copytree(pair[1], tmp_path / "other"))
    splits = pd.read_csv(other / "splits.csv")
    turned = {"train": "test", "validation": "train", "test": "train"}
    splits.assign(split=splits["split"].map(turned)).to_csv(other / "splits.csv", index=False)
    made = merge([pair[0], other], output=tmp_path / "made")
    assert set(pd.read_csv(made / "splits.csv")["split"]) == {"train"}
    assert not (made / "decision.json").exists()
    assert "score it on others" in caplog.text


def test_cells_tested_by_one_and_validated_by_the_other_are_for_validation(pair, tmp_path):
    other = Path(shutil.copytree(pair[1], tmp_path / "other"))
    splits = pd.read_csv(other / "splits.csv")
    turned = {"train": "train", "validation": "test", "test": "test"}
    splits.assign(split=splits["split"].map(turned)).to_csv(other / "splits.csv", index=False)
    made = merge([pair[0], other], output=tmp_path / "made")
    assert pd.read_csv(made / "splits.csv").equals(pd.read_csv(pair[0] / "splits.csv"))


def _rename_classes(run: Path) -> None:
    classes = json.loads((run / "classes.json").read_text())
    classes["classes"][0] = "another"
    (run / "classes.json").write_text(json.dumps(classes))


def _other_size(run: Path) -> None:
    opened = open_run(run)
    text = dump_config(opened.config).replace("- 48\n", "- 64\n")
    (run / "config.yaml").write_text(text)


def _other_cells(run: Path) -> None:
    pd.read_csv(run / "splits.csv").iloc[1:].to_csv(run / "splits.csv", index=False)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_rename_classes, "their classes differ"),
        (_other_size, "their data.image_size differ"),
        (_other_cells, "its cells are not those of"),
    ],
)
def test_runs_that_do_not_go_together_are_named(pair, tmp_path, change, told, capsys):
    other = Path(shutil.copytree(pair[1], tmp_path / "other"))
    change(other)
    assert main([str(pair[0]), str(other), "--output", str(tmp_path / "made")]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert said.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_one_run_alone_or_twice_is_refused(pair, tmp_path):
    with pytest.raises(RunError, match="two runs or more"):
        merge(pair[:1], output=tmp_path / "made")
    for shares in ([1.0], [1.0, 0.0], [1.0, np.nan], [1.0, np.inf]):
        with pytest.raises(RunError, match="takes 2 shares above 0"):
            merge(pair, output=tmp_path / "made", weights=shares)
    with pytest.raises(RunError, match="given twice"):
        merge([pair[0], pair[0]], output=tmp_path / "made")


def test_nothing_is_overwritten(pair, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        merge(pair, output=tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"members": [{"name": "one"}]}'])
def test_damaged_list_of_members_is_told(pair, tmp_path, text):
    run = Path(shutil.copytree(pair[0], tmp_path / "run"))
    (run / "merged.json").write_text(text)
    with pytest.raises(RunError, match=r"merged\.json: is damaged"):
        print(open_run(run).averaged)
