"""The command on run folders as `train` and `evaluate` leave them, without TensorFlow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score

from wbc_keras.compare import main
from wbc_keras.prediction.predictions import prediction_table, write_predictions
from wbc_keras.splits import write_splits

NAMES = ["blast", "lymphocyte", "monocyte"]
FILES = {"comparison.json", "differences.csv", "per_class.csv", "comparison.png"}


def make_run(folder, skill, *, seed=0, names=NAMES, patients=True, order=None):
    """Write what compare reads of a run: predictions of 120 test cells, and the splits."""
    rng = np.random.default_rng(seed)
    labels = np.array(NAMES)[np.arange(120) % 3]
    files = np.array([f"{label}/{cell:03}.png" for cell, label in enumerate(labels)])
    right = labels[:, np.newaxis] == np.array(names)
    logits = rng.normal(size=right.shape) + skill * right
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    order = np.arange(120) if order is None else order
    table = prediction_table(
        files[order], labels[order], shares[order], names, np.tile([0, 0, 1, 1], (120, 1))
    )
    write_predictions(folder / "evaluation" / "test" / "predictions.csv", table)
    groups = [f"patient {cell % 12}" if patients else "" for cell in range(120)]
    cells = pd.DataFrame({"file": files, "label": labels, "group": groups, "split": ""})
    write_splits(folder / "splits.csv", cells, ["test"] * 120)
    return folder


@pytest.fixture
def runs(tmp_path):
    return [make_run(tmp_path / "weak", 1.0), make_run(tmp_path / "strong", 2.5, seed=1)]


def read_table(run):
    return pd.read_csv(run / "evaluation" / "test" / "predictions.csv")


def summary_in(folder):
    return json.loads((folder / "comparison.json").read_text())


def refused(capsys, arguments, *words):
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


def test_folder_and_summary(runs, capsys):
    assert main([str(run) for run in runs]) == 0
    folder = runs[0].parent / "comparison_weak_strong"
    assert {path.name for path in folder.iterdir()} == FILES
    assert cv2.imread(str(folder / "comparison.png")) is not None
    summary = summary_in(folder)
    assert (summary["samples"], summary["patients"]) == (120, 12)
    assert summary["runs"] == {"weak": str(runs[0]), "strong": str(runs[1])}
    (pair,) = summary["comparisons"]
    weak, strong = map(read_table, runs)
    expected = [accuracy_score(table["label"], table["predicted"]) for table in (weak, strong)]
    accuracy = pair["figures"]["accuracy"]
    assert [accuracy["first"], accuracy["second"]] == pytest.approx(expected, abs=1e-12)
    assert accuracy["difference"] == pytest.approx(expected[1] - expected[0], abs=1e-12)
    out = capsys.readouterr().out
    assert "strong minus weak" in out
    assert f"{expected[0]:.4f} -> {expected[1]:.4f}" in out
    assert str(folder / "comparison.json") in out


def test_order_of_cells_and_of_classes_makes_no_difference(tmp_path):
    order = np.random.default_rng(3).permutation(120)
    first = make_run(tmp_path / "a", 1.0)
    make_run(tmp_path / "b", 2.0, seed=5)
    turned = tmp_path / "other" / "b"
    shutil.copytree(tmp_path / "b", turned)
    table = read_table(turned).iloc[order]
    columns = list(table)
    columns[4:7] = columns[6], columns[4], columns[5]
    write_predictions(turned / "evaluation" / "test" / "predictions.csv", table[columns])
    for second, output in ((tmp_path / "b", "plain"), (turned, "turned")):
        assert main([str(first), str(second), "--output", str(tmp_path / output)]) == 0
    plain, mixed = (summary_in(tmp_path / name) for name in ("plain", "turned"))
    assert plain["comparisons"] == mixed["comparisons"]


def test_three_runs_are_compared_two_by_two(runs, tmp_path):
    third = make_run(tmp_path / "third", 1.5, seed=2)
    assert main([*map(str, runs), str(third), "--output", str(tmp_path / "all")]) == 0
    pairs = summary_in(tmp_path / "all")["comparisons"]
    names = [(pair["first"], pair["second"]) for pair in pairs]
    assert names == [("weak", "strong"), ("weak", "third"), ("strong", "third")]
    p = [(pair["mcnemar"]["p"], pair["mcnemar"]["p_holm"]) for pair in pairs]
    assert min(p)[1] == pytest.approx(3 * min(p)[0])
    table = pd.read_csv(tmp_path / "all" / "per_class.csv")
    assert len(table) == 9


def test_runs_of_one_name_are_told_apart_by_the_folders_above(tmp_path):
    folders = [make_run(tmp_path / place / "run", 1, seed=rank) for rank, place in enumerate("ab")]
    assert main([*map(str, folders), "--output", str(tmp_path / "out")]) == 0
    expected = {"a/run": str(folders[0]), "b/run": str(folders[1])}
    assert summary_in(tmp_path / "out")["runs"] == expected


def test_without_patients_cells_are_drawn(tmp_path):
    folders = [make_run(tmp_path / name, 1, seed=ord(name), patients=False) for name in "ab"]
    assert main([*map(str, folders), "--output", str(tmp_path / "out")]) == 0
    assert summary_in(tmp_path / "out")["patients"] is None


def test_earlier_comparison_is_replaced_and_other_files_are_kept(runs, tmp_path, capsys):
    arguments = [*map(str, runs), "--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    assert main(arguments) == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    refused(capsys, arguments, "notes.txt")


def test_tensorflow_is_not_loaded(runs):
    code = (
        "import sys; from wbc_keras.compare import main\n"
        "code = main(sys.argv[1:])\n"
        "sys.exit(code or 'tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, runs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_folders_of_all_folds_together(runs, tmp_path, capsys):
    """What evaluate writes of folds: the tables at the top, and patients in its splits.csv."""
    pooled = []
    for run in runs:
        folder = tmp_path / f"all_{run.name}"
        shutil.copytree(run / "evaluation" / "test", folder)
        shutil.copy(run / "splits.csv", folder)
        pooled.append(folder)
    for arguments, name in ((runs, "single"), (pooled, "pooled")):
        assert main([*map(str, arguments), "--output", str(tmp_path / name)]) == 0
    single, together = (summary_in(tmp_path / name) for name in ("single", "pooled"))
    assert together["patients"] == 12
    figures = [one["comparisons"][0]["figures"] for one in (single, together)]
    assert figures[0] == figures[1]
    (pooled[1] / "splits.csv").unlink()
    refused(capsys, pooled, str(pooled[1]), "score the run first")


# Bad input.


def test_fewer_than_two_runs(runs, capsys):
    refused(capsys, runs[:1], "two different run folders or more")
    refused(capsys, [runs[0], runs[0]], "two different run folders or more")


def test_no_run_and_no_evaluation(runs, tmp_path, capsys):
    refused(capsys, [runs[0], tmp_path / "nowhere"], "nowhere", "no such run folder")
    (runs[1] / "evaluation" / "test" / "predictions.csv").unlink()
    refused(capsys, runs, "wbc_keras.evaluate --run", str(runs[1]))
    assert not (tmp_path / "comparison_weak_strong").exists()


def test_other_test_cells(runs, capsys):
    path = runs[1] / "evaluation" / "test" / "predictions.csv"
    table = read_table(runs[1])
    write_predictions(path, table[1:])
    refused(capsys, runs, "other test cells", "1 differ", "blast/000.png", "split.seed")
    table.loc[4, "label"] = "monocyte"
    write_predictions(path, table)
    refused(capsys, runs, "other test cells", "2 differ")


def test_other_classes(runs, tmp_path, capsys):
    other = make_run(tmp_path / "other", 1, names=[*NAMES, "basophil"])
    refused(capsys, [runs[0], other], "other classes", "basophil")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda table: table.drop(columns=NAMES), ["holds no probabilities"]),
        (lambda table: table[:0], ["holds no cells"]),
        (lambda table: table.assign(blast=np.nan), ["not a number"]),
        (lambda table: table.assign(blast="nan"), ["row 2 (blast/000.png)", "sum to one", "120"]),
        (lambda table: table.assign(blast=table["blast"] * 2), ["sum to one"]),
        (lambda table: table.assign(blast=-table["blast"]), ["0 to 1"]),
        (lambda table: table.assign(label=""), ["row 2", "none of the classes"]),
        (lambda table: pd.concat([table, table[3:4]]), ["row 122", "earlier row"]),
        (lambda table: table.drop(columns="roi_x1"), ["not a predictions table"]),
    ],
)
def test_predictions_that_cannot_be_compared(runs, tmp_path, capsys, change, words):
    path = runs[1] / "evaluation" / "test" / "predictions.csv"
    write_predictions(path, change(read_table(runs[1])))
    refused(capsys, runs, str(path), *words)
    assert not (tmp_path / "comparison_weak_strong").exists()


def test_cells_that_the_splits_do_not_name(runs, capsys):
    cells = pd.read_csv(runs[0] / "splits.csv", keep_default_na=False)
    cells[5:].to_csv(runs[0] / "splits.csv", index=False)
    refused(capsys, runs, "5 cells are not in the run's splits.csv", "run evaluate again")


def test_runs_as_evaluate_leaves_them(trained_run, run_copy, evaluation, tmp_path, capsys):
    """A real evaluation, in two copies of the run: figures are those of metrics.json."""
    first = shutil.copytree(trained_run, tmp_path / "first")
    for run in (first, run_copy):
        shutil.copytree(evaluation, run / "evaluation" / "test", dirs_exist_ok=True)
    figures = json.loads((evaluation / "metrics.json").read_text())
    assert main([str(first), str(run_copy), "--output", str(tmp_path / "out")]) == 0
    (pair,) = summary_in(tmp_path / "out")["comparisons"]
    for name in ("accuracy", "macro_f1", "brier", "ece", "macro_auroc"):
        assert pair["figures"][name]["first"] == pytest.approx(figures[name], abs=1e-9)
        assert pair["figures"][name]["difference"] == 0
