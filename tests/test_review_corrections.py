"""reviews.csv: appended safely by threads, programs and across kills; read back as labels."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest

from wbc_keras.errors import DataError, RunError
from wbc_keras.manifest import read_manifest
from wbc_keras.manifest.reviews import COLUMNS, Review, read_rows, standing
from wbc_keras.review.corrections import Corrections


def _review(file: str, corrected: str, reviewer: str = "A", **more: object) -> Review:
    return Review(file, "monocyte", corrected, reviewer, "2025-11-26T12:00:00+00:00", **more)


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    folder = tmp_path / "cells"
    (folder / "x").mkdir(parents=True)
    for number in range(4):
        (folder / "x" / f"{number}.png").write_bytes(b"not looked at")
    return folder


def _table(folder: Path, *rows: Review) -> Path:
    corrections = Corrections(folder)
    for row in rows:
        corrections.add(row)
    return corrections.path


def test_rows_come_back_as_written(tmp_path):
    odd = _review('a,"b" é.png', "x, y", 'Dr "Q", MD', flagged=True, patient="P1", folder="/d")
    path = _table(tmp_path, odd, _review("b.png", "basophil"))
    assert read_rows(path) == (odd, _review("b.png", "basophil"))
    table = pd.read_csv(path, keep_default_na=False)
    assert list(table) == list(COLUMNS)
    assert list(table["corrected"]) == ["x, y", "basophil"]


def test_last_answer_of_each_reviewer_stands():
    rows = [
        _review("a.png", "basophil", "A"),
        _review("a.png", "monocyte", "B"),
        _review("a.png", "eosinophil", "A"),
        _review("b.png", "monocyte", "A"),
        _review("b.png", "", "A"),  # taken back
    ]
    found = standing(rows)
    assert list(found) == [("", "a.png")]
    assert [(r.reviewer, r.corrected) for r in found["", "a.png"]] == [
        ("B", "monocyte"),
        ("A", "eosinophil"),
    ]


def test_threads_and_programs_lose_no_row(tmp_path, root):
    code = (
        "import sys; from pathlib import Path\n"
        "from wbc_keras.manifest.reviews import Review\n"
        "from wbc_keras.review.corrections import Corrections\n"
        "table = Corrections(Path(sys.argv[1]))\n"
        "for n in range(50): table.add(Review(f'{n}.png', 'x', 'y', sys.argv[2], 'now'))\n"
    )
    others = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path), name], cwd=root)
        for name in ("P", "Q")
    ]
    first, second = Corrections(tmp_path), Corrections(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        for n in range(50):
            pool.submit(first.add, _review(f"{n}.png", "y", "R"))
            pool.submit(second.add, _review(f"{n}.png", "y", "S"))
    assert [other.wait() for other in others] == [0, 0]
    rows = first.rows()
    assert len(rows) == len(set(rows)) == 200
    assert rows == read_rows(first.path) == second.rows()


def test_kill_loses_no_row_that_was_told(tmp_path, root):
    code = (
        "import sys; from pathlib import Path\n"
        "from wbc_keras.manifest.reviews import Review\n"
        "from wbc_keras.review.corrections import Corrections\n"
        "table = Corrections(Path(sys.argv[1]))\n"
        "for n in range(100_000):\n"
        "    table.add(Review(f'{n}.png', 'x', 'y', 'A', 'now')); print(n, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        told = [int(next(writer.stdout)) for _ in range(40)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout if line.endswith("\n")]
    table = Corrections(tmp_path)
    assert {f"{n}.png" for n in told} <= {row.file for row in table.rows()}
    started = time.perf_counter()
    table.add(_review("after.png", "y"))  # the lock died with its holder
    assert time.perf_counter() - started < 2


def test_row_cut_off_by_a_crash_is_left_out_and_the_next_one_is_whole(tmp_path, caplog):
    path = _table(tmp_path, _review("a.png", "basophil"), _review("b.png", "basophil"))
    path.write_bytes(path.read_bytes()[:-20])
    with caplog.at_level(logging.WARNING):
        table = Corrections(tmp_path)
        assert [row.file for row in table.rows()] == ["a.png"]
    assert "cut off" in caplog.text
    table.add(_review("c.png", "basophil"))
    assert [row.file for row in read_rows(path)] == ["a.png", "c.png"]


def test_row_that_an_editor_left_open_is_kept(tmp_path):
    path = _table(tmp_path, _review("a.png", "basophil"))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    Corrections(tmp_path).add(_review("b.png", "basophil"))
    assert [row.file for row in read_rows(path)] == ["a.png", "b.png"]


def test_spreadsheet_may_have_been_at_it(tmp_path):
    path = _table(tmp_path, _review("a.png", "basophil", flagged=True))
    text = path.read_text("utf-8").replace("true", "TRUE").replace("\n", "\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    Corrections(tmp_path).add(_review("b.png", "basophil"))
    assert [(row.file, row.flagged) for row in read_rows(path)] == [
        ("a.png", True),
        ("b.png", False),
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("file,label\na.png,x\n", "is no table of reviews"),
        (",".join(COLUMNS) + "\na.png,x\n", "row 2"),
        (",".join(COLUMNS) + "\n,x,y,A,now,false,,\n", "row 2"),
        (",".join(COLUMNS) + "\na.png,x,y,A,now,maybe,,\n", "true or false"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_broken_table_is_refused_and_left_alone(tmp_path, content, told):
    path = tmp_path / "reviews.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = path.read_bytes()
    with pytest.raises(DataError, match=told):
        Corrections(tmp_path)
    assert path.read_bytes() == before


def test_table_broken_meanwhile_is_not_added_to(tmp_path):
    table = Corrections(tmp_path)
    table.add(_review("a.png", "basophil"))
    table.path.write_text("something else\n")
    with pytest.raises(DataError, match="is no table of reviews"):
        table.add(_review("b.png", "basophil"))
    assert table.path.read_text() == "something else\n"


def test_name_of_two_lines_is_refused(tmp_path):
    with pytest.raises(DataError, match="two lines"):
        Corrections(tmp_path).add(_review("a\nb.png", "basophil"))


def test_output_that_cannot_be_written_is_told_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        Corrections(tmp_path / "file")
    if Path("/proc/self").exists():  # root may write anywhere, it thinks
        with pytest.raises(RunError, match="cannot be written"):
            Corrections(Path("/proc/reviews"))
    if os.geteuid():
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(RunError, match="cannot be written"):
            Corrections(tmp_path / "closed")


# As a source


def test_reviews_are_labels(cells, tmp_path, caplog):
    home = str(cells)
    path = _table(
        tmp_path / "out",
        _review("x/0.png", "basophil", folder=home, patient="P1"),
        _review("x/1.png", "monocyte", folder=home, patient="P2"),
        _review("x/0.png", "eosinophil", "B", folder=home, patient="P1"),
        _review("x/2.png", "basophil", flagged=True, folder=home, patient="P2"),
        _review("x/3.png", "basophil", folder=home, patient="P2"),
        _review("x/3.png", "", folder=home, patient="P2"),
    )
    with caplog.at_level(logging.WARNING):
        manifest = read_manifest(path)
    assert manifest.root == cells
    assert manifest.name == "reviews"
    rows = manifest.table[["file", "label", "group"]].to_numpy().tolist()
    assert sorted(rows) == [["x/0.png", "eosinophil", "P1"], ["x/1.png", "monocyte", "P2"]]
    assert "1 flagged cells are left out" in caplog.text


def test_unlabelled_use_takes_flagged_cells_too(cells, tmp_path):
    path = _table(tmp_path / "out", _review("x/0.png", "basophil", flagged=True, folder=str(cells)))
    table = read_manifest(path, labelled=False).table
    assert table[["file", "label"]].to_numpy().tolist() == [["x/0.png", ""]]


def test_pictures_beside_the_table_and_data_that_were_moved(cells, tmp_path):
    output = tmp_path / "out"
    rows = [
        _review("x/0.png", "basophil", folder="/moved/away"),
        _review("x/1.png", "monocyte", folder="/moved/away"),
    ]
    path = _table(output, *rows)
    with pytest.raises(DataError, match=r"2 pictures are not there: x/0.png, x/1.png.*/moved/away"):
        read_manifest(path)
    beside = path.rename(cells / "reviews.csv")
    assert read_manifest(beside).root == cells
    (output / "pictures").mkdir()
    (output / "pictures" / "9.png").write_bytes(b"")
    mixed = _table(
        output,
        _review("pictures/9.png", "monocyte"),
        _review("x/0.png", "basophil", folder=str(cells)),
    )
    manifest = read_manifest(mixed)
    assert manifest.root == tmp_path
    assert sorted(manifest.table["file"]) == ["cells/x/0.png", "out/pictures/9.png"]
    assert all(file.is_file() for file in manifest.paths())


@pytest.mark.parametrize("file", ["../secret.png", "/etc/x.png", "x/0.txt"])
def test_files_outside_or_no_pictures_are_refused(cells, tmp_path, file):
    path = _table(tmp_path / "out", _review(file, "basophil", folder=str(cells)))
    with pytest.raises(DataError, match=r"leaves the data folder|is no picture"):
        read_manifest(path)


def test_link_that_leaves_is_refused(cells, tmp_path):
    (tmp_path / "other.png").write_bytes(b"")
    (cells / "link.png").symlink_to(tmp_path / "other.png")
    path = _table(tmp_path / "out", _review("link.png", "basophil", folder=str(cells)))
    with pytest.raises(DataError, match="is a link that leaves"):
        read_manifest(path)


def test_no_label_at_all_says_what_to_do(cells, tmp_path):
    path = _table(tmp_path / "out", _review("x/0.png", "", flagged=True, folder=str(cells)))
    with pytest.raises(DataError, match=r"python -m wbc_keras\.review"):
        read_manifest(path)
