"""Mistakes: the surest of each class first, pictures only of the run's own cells."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from wbc_keras.errors import DataError
from wbc_keras.gallery import choose_mistakes, show_mistakes
from wbc_keras.record import read_record


def _table(*rows) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["file", "label", "predicted", "confidence"])


def test_classes_take_turns_the_surest_first():
    table = _table(
        ("1", "a", "b", 0.5),
        ("2", "a", "b", 0.9),
        ("3", "a", "b", 0.7),
        ("4", "b", "a", 0.6),
        ("5", "b", "b", 0.99),
        ("6", "", "a", 0.99),
    )
    assert list(choose_mistakes(table, most=3)["file"]) == ["2", "3", "4"]
    assert list(choose_mistakes(table, most=9)["file"]) == ["2", "3", "1", "4"]


def test_pictures_are_those_of_the_cells(scored_run):
    mistakes = show_mistakes(read_record(scored_run))
    assert mistakes.cells
    assert mistakes.no_pictures == ""
    first = mistakes.cells[0]
    jpeg = base64.b64decode(first.picture.partition(",")[2])
    shown = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    cell = cv2.imread(str(scored_run.parent / "cells" / first.file))
    larger = cv2.resize(cell, shown.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    assert np.abs(shown.astype(int) - larger).mean() < 6


@pytest.fixture
def moved(scored_run: Path, tmp_path: Path) -> Path:
    """The run, and its cells at another place than its config says."""
    shutil.copytree(scored_run.parent / "cells", tmp_path / "elsewhere")
    run = Path(shutil.copytree(scored_run, tmp_path / "run"))
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(scored_run.parent), str(tmp_path / "gone")))
    return run


def test_moved_cells_are_told_and_found_with_data(moved):
    record = read_record(moved)
    lost = show_mistakes(record)
    assert "--data" in lost.no_pictures
    assert {one.picture for one in lost.cells} == {None}
    found = show_mistakes(record, data=moved.parent / "elsewhere")
    assert all(one.picture for one in found.cells)


def test_wrong_data_is_the_users_mistake(scored_run, tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        show_mistakes(read_record(scored_run), data=tmp_path / "nowhere")


def test_a_file_that_is_no_cell_of_the_source_is_not_opened(moved):
    path = moved / "evaluation/test/predictions.csv"
    secret = moved.parent / "elsewhere" / "secret.png"
    (moved.parent / "elsewhere" / "monocyte" / "00.png").rename(secret)
    files = pd.read_csv(path, dtype=str)
    files["file"] = "../elsewhere/secret.png"
    files.to_csv(path, index=False)
    mistakes = show_mistakes(read_record(moved), data=moved.parent / "elsewhere")
    assert {one.picture for one in mistakes.cells} == {None}
    assert "none of these cells" in mistakes.no_pictures
