"""Folders: one rule for links, and names that no list can hold are refused before anything else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from wbc_keras.errors import DataError
from wbc_keras.manifest import read_manifest

NOT_UTF8 = os.fsdecode(b"zelle \xe4.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.jpg", "a/2.jpg", "b/3.jpg"):
        (tmp_path / "cells" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cells" / name).write_bytes(b"x")
    return tmp_path / "cells"


def refuse(source: object, **options: bool) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(source, **options)  # type: ignore[arg-type]
    message = str(caught.value)
    assert "\n" not in message
    message.encode()  # printable anywhere
    return message


def test_links_that_leave_are_refused_and_not_entered(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "4.jpg").write_bytes(b"x")
    (folder / "c").symlink_to(outside)
    (folder / "a" / "link.jpg").symlink_to(outside / "4.jpg")
    (folder / "everything").symlink_to("/")
    for options in ({}, {"labelled": False}):
        message = refuse(folder, **options)
        assert message.startswith(f"{folder}: a/link.jpg, c, everything: is a link that leaves")
    # The Munich form walks the folder as well.
    (folder / "annotations.dat").write_text("a/1.jpg A nan nan\nb/3.jpg B nan nan\n")
    assert "leaves the data folder" in refuse(folder)


def test_broken_links_and_hidden_ones(folder: Path, tmp_path: Path) -> None:
    (folder / ".cache").symlink_to(tmp_path)
    (folder / "a" / "notes.txt").symlink_to(tmp_path / "notes.txt")
    assert len(read_manifest(folder).table) == 3
    (folder / "a" / "gone.jpg").symlink_to(tmp_path / "gone.jpg")
    assert "a/gone.jpg: is a link that leaves" in refuse(folder)


def test_files_named_one_by_one_may_be_links(folder: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.jpg"
    link.symlink_to(folder / "a" / "1.jpg")
    assert read_manifest(link, labelled=False).table["file"].tolist() == ["link.jpg"]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems take no such name")
def test_names_that_are_not_utf8(folder: Path, tmp_path: Path) -> None:
    picture = folder / "a" / NOT_UTF8
    picture.write_bytes(b"x")
    told = r"a/zelle \xe4.jpg: a name is not UTF-8; rename them"
    assert refuse(folder).startswith(told)
    assert refuse(folder, labelled=False).startswith(told)
    assert r"zelle \xe4.jpg" in refuse(picture, labelled=False)
    picture.unlink()
    renamed = tmp_path / NOT_UTF8
    folder.rename(renamed)
    assert r"zelle \xe4.jpg: a name is not UTF-8" in refuse(renamed)
