"""Mistakes: the surest of each class first, pictures only of the run's own cells."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from wbc_keras.errors import DataError, RunError
from wbc_keras.reporting import gallery
from wbc_keras.reporting.gallery import choose_mistakes, show_mistakes
from wbc_keras.reporting.record import read_record


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


def test_heat_lies_where_the_crop_was_cut(scored_run):
    """The crop is 0.1 to 0.9 of the picture, and hot in its upper left quarter alone."""
    first = show_mistakes(read_record(scored_run)).cells[0]
    picture, heat = (
        cv2.imdecode(np.frombuffer(base64.b64decode(one.partition(",")[2]), np.uint8), 1)
        for one in (first.picture, first.heat)
    )
    assert picture.shape == heat.shape
    moved = np.abs(heat.astype(int) - picture).max(axis=2) > 40
    side = len(moved)
    hot, cold = (slice(int(low * side), int(high * side)) for low, high in ((0.2, 0.4), (0.6, 0.8)))
    assert moved[hot, hot].mean() > 0.9
    assert moved[cold, cold].mean() < 0.05
    assert moved[hot, cold].mean() < 0.05
    assert moved[: int(0.06 * side)].mean() < 0.05


def test_crop_over_the_edge_is_laid_where_it_was():
    heat = np.zeros((10, 10), np.uint8)
    heat[5:, 5:] = 255  # the only part inside the picture
    drawn = gallery._under_heat(np.zeros((40, 40, 3), np.uint8), heat, [-0.5, -0.5, 0.5, 0.5])
    lit = drawn.sum(axis=2) > 100
    assert lit[3:17, 3:17].all()
    assert not lit[23:, 23:].any()


def test_heatmaps_are_read_as_written_and_damage_is_told(tmp_path):
    assert gallery.read_heatmaps(tmp_path) == {}
    for heatmaps in ({}, {"a/é.png": np.arange(6, dtype=np.uint8).reshape(2, 3)}):
        gallery.write_heatmaps(tmp_path, heatmaps)
        again = gallery.read_heatmaps(tmp_path)
        assert again.keys() == heatmaps.keys()
        assert all((again[file] == heatmaps[file]).all() for file in heatmaps)
    path = tmp_path / "mistakes.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match="evaluate again"):
        gallery.read_heatmaps(tmp_path)


def test_without_heatmaps_the_pictures_stand_alone(scored_run, tmp_path):
    run = Path(shutil.copytree(scored_run, tmp_path / "run"))
    (run / "evaluation/test/mistakes.npz").unlink()
    record = read_record(run)
    assert "no heatmaps" in " ".join(record.missing)
    cells = show_mistakes(record).cells
    assert all(cell.picture and not cell.heat for cell in cells)
