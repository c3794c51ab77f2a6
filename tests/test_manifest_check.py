"""The check command: what it prints and writes, and the mistakes it refuses in one line."""

from __future__ import annotations

from html import escape
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from wbc_keras.checking.data_check import check_data
from wbc_keras.manifest.__main__ import main


@pytest.fixture
def cells(drawn_cells: Path, tmp_path: Path) -> Path:
    """Drawn cells, six of a class, with two pictures cut off, one blank and one turned."""
    folder = tmp_path / "cells"
    for path in drawn_cells.glob("*/0[0-5].png"):
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        (folder / path.parent.name / path.name).write_bytes(path.read_bytes())
    monocyte = folder / "monocyte"
    (monocyte / "cut.png").write_bytes((monocyte / "01.png").read_bytes()[:-60])
    jpeg = cv2.imencode(".jpg", cv2.imread(str(monocyte / "03.png")))[1].tobytes()
    (monocyte / "closed.jpg").write_bytes(jpeg[:-200] + b"\xff\xd9")
    blank = np.full((64, 64, 3), 200, np.uint8)
    turned = np.ascontiguousarray(np.rot90(cv2.imread(str(monocyte / "02.png"))))
    one_pixel = blank[:1, :1]
    for name, image in (("blank", blank), ("turned", turned), ("pixel", one_pixel)):
        (monocyte / f"{name}.png").write_bytes(cv2.imencode(".png", image)[1].tobytes())
    return folder


def test_check(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "check"
    assert main(["check", "--data", str(cells), "--output", str(output)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "29 pictures checked, 5 findings"
    assert [line.split() for line in lines[1:5]] == [
        ["Damaged", "or", "cut", "off", "2"],
        ["Copies", "1"],
        ["Tiny", "1"],
        ["Blank", "1"],
    ]
    assert lines[5:] == [str(output / "report.html"), str(output / "findings.csv")]
    found = pd.read_csv(output / "findings.csv", keep_default_na=False)
    assert found[["file", "problem", "related"]].to_numpy().tolist() == [
        ["monocyte/closed.jpg", "damaged", ""],
        ["monocyte/cut.png", "damaged", ""],
        ["monocyte/turned.png", "copy", "monocyte/02.png"],
        ["monocyte/pixel.png", "tiny", ""],
        ["monocyte/blank.png", "blank", ""],
    ]


def test_default_folder_and_repetition(
    cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert check_data("cells").folder == Path("artifacts/check-cells")
    assert len(list(tmp_path.glob("artifacts/*"))) == 1
    page = Path("artifacts/check-cells/report.html").read_text(encoding="utf-8")
    assert f'srcdoc="{escape(page)}"' in check_data("cells")._repr_html_()


def test_mistakes(cells: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for arguments, words in (
        (["--data", str(tmp_path / "gone")], "no such file or folder"),
        (["--data", str(cells), "--output", str(tmp_path / "mine")], "notes.txt"),
    ):
        assert main(["check", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_unknown_command() -> None:
    for arguments in ([], ["mend"], ["check"]):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
