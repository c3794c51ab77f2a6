"""Which cells a command looks at: the run's own splits hold wherever the run's cells appear."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wbc_keras.config import Config, DataConfig
from wbc_keras.errors import DataError
from wbc_keras.manifest import read_manifest
from wbc_keras.runs import Run
from wbc_keras.selection import select_cells
from wbc_keras.splits import write_splits

CLASSES = ("lymphocyte", "monocyte")
SPLIT_OF = {"0": "train", "1": "train", "2": "validation", "3": "test"}


def make_cells(folder, names, labels=CLASSES):
    """Make class folders of files that are only looked for, never decoded."""
    for label in labels:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for name in names:
            (folder / label / f"{name}.png").write_bytes(b"picture")
    return folder


@pytest.fixture
def own(tmp_path):
    return make_cells(tmp_path / "own", SPLIT_OF)


@pytest.fixture
def run(tmp_path, own):
    run = Run(tmp_path / "run", Config(data=DataConfig(source=str(own))), CLASSES)
    table = read_manifest(own).table
    write_splits(run.splits_path, table, [SPLIT_OF[Path(file).stem] for file in table["file"]])
    return run


def files(selection):
    return sorted(selection.manifest.table["file"])


def test_default_is_the_test_split_of_the_runs_own_cells(run):
    selection = select_cells(run)
    assert (selection.name, selection.left_out) == ("test", {})
    assert files(selection) == ["lymphocyte/3.png", "monocyte/3.png"]
    assert selection.labels() == [0, 1]
    assert selection.class_names == CLASSES


@pytest.mark.parametrize(
    ("split", "count"), [("train", 4), ("validation", 2), ("test", 2), ("all", 8)]
)
def test_splits_of_the_runs_own_cells(run, split, count):
    selection = select_cells(run, split=split)
    assert selection.name == split
    assert len(files(selection)) == count


@pytest.mark.parametrize("moved", [False, True])
def test_splits_hold_for_data_that_contains_the_runs_cells(run, own, tmp_path, moved):
    data = shutil.copytree(own, tmp_path / "moved") if moved else own
    make_cells(data, ["4"])  # more cells than the run has
    make_cells(data, ["0"], labels=["basophil"])
    selection = select_cells(run, data=data)
    assert selection.name == "test"
    assert files(selection) == ["lymphocyte/3.png", "monocyte/3.png"]
    assert all(path.is_file() for path in selection.manifest.paths())


def test_splits_hold_when_only_the_test_cells_are_asked_of_a_csv(run, own):
    table = pd.DataFrame({"file": [f"monocyte/{n}.png" for n in SPLIT_OF]})
    table = pd.concat([table, table.replace("monocyte", "lymphocyte", regex=True)])
    table["label"] = table["file"].str.split("/").str[0]
    table.to_csv(own / "cells.csv", index=False)
    assert len(files(select_cells(run, data=own / "cells.csv"))) == 2


def test_own_cells_that_are_gone_are_named(run, own):
    (own / "monocyte" / "3.png").unlink()
    with pytest.raises(DataError, match=r"own: no longer holds the cells of .*--data"):
        select_cells(run)


def test_other_cells_are_all_taken(run, tmp_path):
    other = make_cells(tmp_path / "elsewhere", ["a", "b"])
    selection = select_cells(run, data=other)
    assert (selection.name, len(files(selection)), selection.left_out) == ("elsewhere", 4, {})


def test_other_labels_are_left_out_and_counted(run, tmp_path):
    other = make_cells(tmp_path / "elsewhere", ["a", "b", "c"])
    make_cells(other, ["a", "b"], labels=["basophil"])
    make_cells(other, ["a"], labels=["artefact"])
    selection = select_cells(run, data=other)
    assert selection.left_out == {"basophil": 2, "artefact": 1}
    assert Counter(selection.manifest.table["label"]) == {"lymphocyte": 3, "monocyte": 3}


def test_labels_of_another_vocabulary_are_translated(run, tmp_path):
    """The Munich set's MON is a monocyte, LYT and LYA are two codes of one kind or not ours."""
    other = make_cells(tmp_path / "munich", ["a"], labels=["MON", "LYT", "BAS"])
    selection = select_cells(run, data=other)
    assert dict(zip(files(selection), selection.labels(), strict=True)) == {
        "LYT/a.png": 0,
        "MON/a.png": 1,
    }
    assert selection.left_out == {"BAS": 1}


def test_classes_finer_than_the_labels_are_merged(run, tmp_path, caplog):
    classes = ("NGB", "LYT", "NGS", "MON")
    other = make_cells(tmp_path / "other", ["a", "b"], labels=["neutrophil", "LYT", "platelet"])
    with caplog.at_level(logging.INFO):
        selection = select_cells(dataclasses.replace(run, class_names=classes), data=other)
    assert selection.class_names == ("neutrophil", "LYT", "MON")
    assert selection.labels() == [1, 1, 0, 0]
    assert selection.columns().tolist() == [0, 1, 0, 2]
    assert selection.shared.merged == {"neutrophil": ["NGB", "NGS"]}
    assert "other: scored as neutrophil: the model's NGB, NGS" in caplog.text
    assert "other: left out, as the model has no such class: platelet (2)" in caplog.text
    assert "other: has no cell of these, which stay possible answers: MON" in caplog.text
    shares = np.array([[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 0]], np.float32)
    merged = selection.merge(shares)
    assert merged.dtype == np.float32
    np.testing.assert_allclose(merged, [[0.4, 0.2, 0.4], [1, 0, 0]])


def test_nothing_is_merged_for_the_runs_own_cells(run):
    """Also where its labels lie within each other, as PBC's finer ones do."""
    classes = ("neutrophil", "neutrophil_band")
    selection = select_cells(dataclasses.replace(run, class_names=classes))
    shares = np.random.default_rng(0).random((5, 2), np.float32)
    np.testing.assert_array_equal(selection.merge(shares), shares)
    assert (selection.class_names, selection.shared.merged) == (classes, {})


def test_split_of_other_cells_is_their_columns(run, tmp_path):
    other = make_cells(tmp_path / "elsewhere", ["a", "b"])
    rows = ["file,label,split", "lymphocyte/a.png,lymphocyte,test", "monocyte/a.png,monocyte,train"]
    (other / "manifest.csv").write_text("\n".join(rows))
    selection = select_cells(run, data=other, split="test")
    assert (selection.name, files(selection)) == ("elsewhere_test", ["lymphocyte/a.png"])
    with pytest.raises(DataError, match=r"elsewhere: has no cell in the split 'validation'"):
        select_cells(run, data=other, split="validation")


def test_no_shared_label_is_refused_with_both_lists(run, tmp_path):
    other = make_cells(tmp_path / "fruit", ["a"], labels=["apple", "pear"])
    with pytest.raises(DataError, match=r"shares no label.*apple, pear.*lymphocyte, monocyte"):
        select_cells(run, data=other)


def test_label_column_of_the_run_is_used_where_other_data_have_it(run, own, tmp_path):
    run = Run(run.folder, Config(data=DataConfig(source=str(own), label_column="fine")), CLASSES)
    other = make_cells(tmp_path / "other", ["a"])
    rows = [f"{label}/a.png,{label}" for label in CLASSES]
    (other / "manifest.csv").write_text("\n".join(["file,label", *rows]))
    assert len(files(select_cells(run, data=other))) == 2
    swapped = [f"{row},{label}" for row, label in zip(rows, CLASSES[::-1], strict=True)]
    (other / "manifest.csv").write_text("\n".join(["file,label,fine", *swapped]))
    table = select_cells(run, data=other).manifest.table
    assert dict(zip(table["file"], table["label"], strict=True))["monocyte/a.png"] == "lymphocyte"
