"""The command: files in, table, masks and preview out."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import cv2
import numpy as np
import pytest

from wbc_keras.errors import DataError
from wbc_keras.roi import COLUMNS, main, write_boxes


def _draw(size=(120, 120)):
    image = np.full((*size, 3), (250, 232, 215), np.uint8)
    center = (size[1] // 2, size[0] // 2)
    cv2.circle(image, center, 30, (205, 185, 222), -1)
    cv2.circle(image, center, 18, (85, 45, 130), -1)
    return image


def _write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return path


@pytest.fixture
def cells(tmp_path):
    """Return a flat folder of a cell, a wide cell and a blank picture, the first with a mask."""
    folder = tmp_path / "cells"
    _write(folder / "cell.png", _draw())
    _write(folder / "wide.jpg", _draw((100, 180)))
    _write(folder / "blank.png", np.full((90, 90, 3), 250, np.uint8))
    _write(folder / "cell.mask.png", np.zeros((120, 120, 3), np.uint8))
    return folder


def _rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_reaches_the_bars_on_expert_masks(root, roi_jtsc, tmp_path):
    output, masks = tmp_path / "roi.csv", tmp_path / "masks"
    command = ["-m", "wbc_keras.roi", "--data", roi_jtsc, "--output", output, "--masks", masks]
    subprocess.run([sys.executable, *map(str, command)], cwd=root, check=True)
    score = roi_jtsc.parent.parent / "acceptance" / "roi_score.py"
    done = subprocess.run(
        [sys.executable, str(score), str(roi_jtsc), str(output), str(masks)],
        capture_output=True,
        text=True,
        check=True,
    )
    figures = json.loads(done.stdout)
    assert figures["n"] == 300
    assert figures["nucleus_iou"] >= 0.91
    assert figures["nucleus_found"] >= 0.99
    assert figures["cell_kept"] >= 0.99
    assert figures["cell_kept_p05"] >= 0.97
    assert figures["box_area_ratio"] <= 1.5


def test_writes_table_masks_and_preview(cells, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--data", cells, "--output", out / "roi.csv"]
    arguments += ["--masks", out / "masks", "--preview", out / "sheet.png"]
    assert main([str(argument) for argument in arguments]) == 0
    rows = {row["file"]: row for row in _rows(out / "roi.csv")}
    assert sorted(rows) == ["blank.png", "cell.png", "wide.jpg"]
    assert tuple(rows["cell.png"]) == COLUMNS
    assert {name: row["found"] for name, row in rows.items()} == {
        "blank.png": "false",
        "cell.png": "true",
        "wide.jpg": "true",
    }
    assert sorted(path.name for path in (out / "masks").iterdir()) == [
        "blank.png",
        "cell.png",
        "wide.png",
    ]
    shown = capsys.readouterr().out
    assert "3 cells, 2 found (66.7%), the others boxed at the centre" in shown
    assert str(out / "sheet.png") in shown
    sheet = cv2.imread(str(out / "sheet.png"))
    assert sheet.shape[1] == 3 * 160
    assert not list(out.glob(".*"))


def test_masks_have_the_pictures_size_and_mark_the_nucleus(cells, tmp_path):
    write_boxes(cells, output=tmp_path / "roi.csv", masks=tmp_path / "masks")
    mask = cv2.imread(str(tmp_path / "masks" / "wide.png"), cv2.IMREAD_UNCHANGED)
    truth = np.zeros((100, 180), np.uint8)
    cv2.circle(truth, (90, 50), 18, 255, -1)
    assert mask.shape == (100, 180)
    assert set(np.unique(mask)) == {0, 255}
    assert (mask & truth).astype(bool).sum() / (mask | truth).astype(bool).sum() > 0.9
    assert not cv2.imread(str(tmp_path / "masks" / "blank.png"), cv2.IMREAD_UNCHANGED).any()


def test_class_folders_keep_their_paths(tmp_path):
    _write(tmp_path / "cells" / "a" / "1.png", _draw())
    _write(tmp_path / "cells" / "b" / "1.png", _draw())
    table = write_boxes(tmp_path / "cells", output=tmp_path / "roi.csv", masks=tmp_path / "masks")
    assert list(table["file"]) == ["a/1.png", "b/1.png"]
    assert (tmp_path / "masks" / "b" / "1.png").is_file()


def test_table_equals_its_file(cells, tmp_path):
    table = write_boxes(cells, output=tmp_path / "roi.csv")
    rows = _rows(tmp_path / "roi.csv")
    assert list(table["file"]) == [row["file"] for row in rows]
    for name in ("y0", "x0", "y1", "x1"):
        np.testing.assert_allclose(table[name], [float(row[name]) for row in rows], atol=1e-6)


def test_many_pictures_keep_their_order(tmp_path):
    sizes = [(60 + index % 7, 60 + index % 5) for index in range(70)]
    for index, size in enumerate(sizes):
        _write(tmp_path / "cells" / f"{index:03d}.png", cv2.resize(_draw(), size[::-1]))
    table = write_boxes(tmp_path / "cells", output=tmp_path / "roi.csv", masks=tmp_path / "masks")
    assert list(table["file"]) == [f"{index:03d}.png" for index in range(70)]
    for index, size in enumerate(sizes):
        assert cv2.imread(str(tmp_path / f"masks/{index:03d}.png")).shape[:2] == size


def test_bad_pictures_are_all_named_and_nothing_is_written(cells, tmp_path, capsys):
    (cells / "torn.jpg").write_bytes((cells / "wide.jpg").read_bytes()[:400])
    (cells / "empty.png").write_bytes(b"")
    out = tmp_path / "out"
    arguments = ["--data", cells, "--output", out / "roi.csv", "--masks", out / "masks"]
    assert main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "torn.jpg" in error
    assert "empty.png" in error
    assert not out.exists()


def test_nothing_of_the_data_is_written_over(cells, tmp_path):
    before = {path: path.read_bytes() for path in cells.iterdir()}
    with pytest.raises(DataError, match=r"blank\.png: would be written over the data"):
        write_boxes(cells, output=tmp_path / "roi.csv", masks=cells)
    with pytest.raises(DataError, match="would be written over the data"):
        write_boxes(cells, output=tmp_path / "roi.csv", preview=cells / "blank.png")
    manifest = tmp_path / "cells.csv"
    manifest.write_text("file,label\ncells/cell.png,a\n")
    with pytest.raises(DataError, match=r"cells\.csv: would be written over the data"):
        write_boxes(manifest, output=manifest)
    assert {path: path.read_bytes() for path in cells.iterdir()} == before


def test_two_pictures_with_one_mask_are_refused(cells, tmp_path):
    _write(cells / "cell.jpg", _draw())
    with pytest.raises(DataError, match=r"cell\.png: would be the mask of more than one picture"):
        write_boxes(cells, output=tmp_path / "roi.csv", masks=tmp_path / "masks")


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"output": "."}, "is a folder; --output names the table"),
        ({"output": "roi.csv", "preview": "sheet.pdf"}, "--preview names a .png or .jpg"),
        ({"output": "roi.csv", "masks": "cells/cell.png"}, "--masks names a folder"),
    ],
)
def test_outputs_of_the_wrong_kind_are_refused(cells, tmp_path, outputs, message):
    with pytest.raises(DataError, match=message):
        write_boxes(cells, **{name: tmp_path / value for name, value in outputs.items()})
