"""Runs of several folds: what they test together, and what does not belong together."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest

from wbc_keras.config import Config, DataConfig, ModelConfig, SplitConfig
from wbc_keras.errors import DataError
from wbc_keras.folds import select_folds
from wbc_keras.manifest import read_manifest
from wbc_keras.runs import Run
from wbc_keras.splits import make_splits, write_splits

CLASSES = ("lymphocyte", "monocyte")


@pytest.fixture
def cells(tmp_path):
    """Thirty files in two class folders, looked for and never decoded."""
    for label in CLASSES:
        (tmp_path / "cells" / label).mkdir(parents=True)
        for number in range(15):
            (tmp_path / "cells" / label / f"{number}.png").write_bytes(b"picture")
    return tmp_path / "cells"


def make_run(cells, fold, *, folds=5, seed=0, classes=CLASSES):
    """Make what `select_folds` reads of a run: its settings and its splits."""
    config = Config(
        data=DataConfig(source=str(cells)), split=SplitConfig(fold=f"{fold} of {folds}", seed=seed)
    )
    run = Run(cells.parent / f"{cells.name}_{fold}_of_{folds}_seed{seed}", config, classes)
    table = read_manifest(cells).table
    splits = make_splits(table, validation=0.1, test=0.2, folds=folds, fold=fold, seed=seed)
    write_splits(run.splits_path, table, splits.assignment.tolist())
    return run


@pytest.fixture
def runs(cells):
    return [make_run(cells, fold) for fold in range(1, 6)]


def refuse(runs, match, **options):
    with pytest.raises(DataError, match=match) as caught:
        select_folds(runs, **options)
    assert "\n" not in str(caught.value)


def test_each_cell_is_tested_once_by_a_run_that_did_not_train_on_it(runs, cells):
    selections = select_folds(runs)
    files = [file for one in selections for file in one.manifest.table["file"]]
    assert sorted(files) == sorted(read_manifest(cells).table["file"])
    assert [len(one.manifest.table) for one in selections] == [6] * 5


def test_order_of_the_runs_does_not_matter(runs):
    forth, back = select_folds(runs), select_folds(runs[::-1])
    for one, other in zip(forth, back[::-1], strict=True):
        assert list(one.manifest.table["file"]) == list(other.manifest.table["file"])


def test_cells_that_were_moved(runs, cells):
    moved = shutil.move(cells, cells.parent / "moved")
    selections = select_folds(runs, data=moved)
    assert all(path.is_file() for one in selections for path in one.manifest.paths())


def test_missing_fold(runs):
    refuse(
        runs[:2] + runs[3:],
        r"6 of 30 cells are tested by none of the 4 runs, first .*; give every fold\. "
        "Received: 1 of 5, 2 of 5, 4 of 5, 5 of 5",
    )


def test_run_given_twice(runs):
    name = re.escape(str(runs[1].folder))
    refuse([*runs, runs[1]], f"{name} and {name}: both test 6 of the cells, .* each fold once")


def test_folds_of_another_seed(runs, cells):
    refuse([*runs[:4], make_run(cells, 5, seed=1)], "both test .* all of one split.seed")


def test_other_classes(runs, cells):
    other = dataclasses.replace(runs[2], class_names=("lymphocyte", "blast"))
    refuse([*runs[:2], other], r"not trained on the classes of .*: blast, monocyte\)")


def test_other_cells(runs, cells):
    (cells / "monocyte" / "3.png").rename(cells / "monocyte" / "new.png")
    refuse(
        [*runs[:4], make_run(cells, 5)],
        r"not trained on the cells of .*\(2 differ, first monocyte/3\.png\)",
    )


def test_data_without_the_runs_cells(runs, cells, tmp_path):
    other = shutil.copytree(cells, tmp_path / "fewer")
    (other / "monocyte" / "3.png").unlink()
    refuse(runs, "fewer: does not hold the test cells of .* other cells by one run", data=other)
    for path in sorted(other.rglob("*.png")):
        path.rename(path.with_name(f"other_{path.name}"))
    refuse(runs, "fewer: has no cell in the split 'test'", data=other)


def test_other_settings_are_named(runs, caplog):
    config = dataclasses.replace(runs[1].config, name="b", model=ModelConfig(backbone="resnet50"))
    runs[1] = dataclasses.replace(runs[1], config=config)
    assert len(select_folds(runs)) == 5
    assert caplog.text.count("other settings") == 1
    assert f"no single recipe: model.backbone{chr(10)}" in caplog.text


def test_one_fold_alone_is_refused(runs):
    refuse(runs[:1], "24 of 30 cells are tested by none of the 1 runs")
    assert Path(runs[0].folder).name == "cells_1_of_5_seed0"
