"""What ``--data`` names becomes pieces: shards or rows, here or at an address."""

from __future__ import annotations

import os
import shutil

import fsspec
import pytest

from wbc_keras.errors import DataError
from wbc_keras.manifest import read_manifest
from wbc_keras.pictures.shards import pack_shards
from wbc_keras.prediction import pieces
from wbc_keras.prediction.pieces import RowsPiece, ShardPiece, find_pieces, hash_names


@pytest.fixture
def folder(tmp_path):
    """Five files in two classes."""
    for number in range(5):
        path = tmp_path / "cells" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number)
    return tmp_path / "cells"


@pytest.fixture
def memory(folder):
    """The same files at an address."""
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/bucket/cells", recursive=True)
    yield "memory://bucket/cells"
    fs.rm("/", recursive=True)


def read_all(found):
    """Return name, label and bytes of everything."""
    samples = [sample for piece in found for sample in piece.read_samples()]
    return [(sample.name, sample.label, sample.read()) for sample in samples]


CELLS = [(f"{'ab'[n % 2]}/{n}.jpg", "ab"[n % 2], b"%d" % n) for n in (0, 2, 4, 1, 3)]


def test_rows_of_a_manifest(folder, monkeypatch):
    monkeypatch.setattr(pieces, "ROWS", 2)
    found = find_pieces([str(folder)])
    assert [len(piece.files) for piece in found] == [2, 2, 1]
    assert read_all(found) == CELLS


def test_pieces_do_not_depend_on_where_the_command_runs(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    found = find_pieces(["cells"])
    monkeypatch.chdir("/")
    assert read_all(found) == CELLS


def test_shards_are_named_by_what_tells_them_apart(folder, tmp_path):
    manifest = read_manifest(folder)
    pack_shards(manifest, tmp_path / "day1", count=2)
    pack_shards(manifest, tmp_path / "day2", count=1)
    found = find_pieces([str(tmp_path / "day2"), str(tmp_path / "day1")])
    assert [piece.name for piece in found] == [
        "day1/cells-000000.tar",
        "day1/cells-000001.tar",
        "day2/cells-000000.tar",
    ]
    (one,) = find_pieces([str(tmp_path / "day2" / "cells-000000.tar")])
    assert read_all([one]) == [(f"cells-000000.tar/{file}", *rest) for file, *rest in CELLS]


def test_at_an_address(memory, folder, tmp_path):
    assert read_all(find_pieces([memory])) == CELLS
    assert read_all(find_pieces([f"{memory}/a/*"])) == [(n[2:], "", d) for n, _, d in CELLS[:3]]
    assert read_all(find_pieces([f"{memory}/b/3.jpg"])) == [("3.jpg", "", b"3")]
    fs = fsspec.filesystem("memory")
    with fs.open("/bucket/cells/manifest.csv", "w") as file:
        file.write("file,label\nb/3.jpg,mono\na/0.jpg,\n")
    listed = [("b/3.jpg", "mono", b"3"), ("a/0.jpg", "", b"0")]
    assert read_all(find_pieces([memory])) == listed
    assert read_all(find_pieces([f"{memory}/manifest.csv"])) == listed
    pack_shards(read_manifest(folder), tmp_path / "packed", count=2)
    fs.put(str(tmp_path / "packed"), "/shards", recursive=True)
    for address in ("memory://shards", "memory://shards/*.tar"):
        found = find_pieces([address])
        assert [piece.name for piece in found] == ["cells-000000.tar", "cells-000001.tar"]
        assert [data for _, _, data in read_all(found)] == [data for _, _, data in CELLS]


def test_lists_at_an_address_that_cannot_be_used(memory):
    fs = fsspec.filesystem("memory")
    for text, said in {
        "name\nb/3.jpg\n": "has no column file",
        "file\nb/3.jpg\nb/./3.jpg\n": "stands in an earlier row",
        "file\n../3.jpg\n": "leads out of the folder",
        "file,label\n": "lists no picture",
    }.items():
        with fs.open("/bucket/cells/manifest.csv", "w") as file:
            file.write(text)
        with pytest.raises(DataError, match=said):
            find_pieces([memory])


def test_what_cannot_be_scored(folder, memory, tmp_path):
    pack_shards(read_manifest(folder), tmp_path / "shards", count=2)
    shards = str(tmp_path / "shards")
    with pytest.raises(DataError, match="cannot be scored together with shards"):
        find_pieces([shards, str(folder)])
    with pytest.raises(DataError, match="is named twice"):
        find_pieces([shards, f"{shards}/cells-000000.tar"])
    with pytest.raises(DataError, match="is named twice"):
        find_pieces([shards, shards])
    with pytest.raises(DataError, match="is named twice"):
        find_pieces([shards, f"{folder}/../shards/cells-000000.tar"])
    with pytest.raises(DataError, match="one address at a time"):
        find_pieces([f"{memory}/a", f"{memory}/b"])
    with pytest.raises(DataError, match="no such file, or an empty folder"):
        find_pieces(["memory://nowhere"])
    with pytest.raises(DataError, match="cannot be read"):
        find_pieces(["nosuchprotocol://bucket/cells"])
    with pytest.raises(DataError, match="no such file or folder"):
        find_pieces([str(tmp_path / "nowhere.tar")])
    (tmp_path / "shards" / "loose.jpg").write_bytes(b"1")
    with pytest.raises(DataError, match="holds both shards and pictures"):
        find_pieces([shards])


def test_pieces_are_plain_values():
    assert RowsPiece("root", ("a",), ("",)) == RowsPiece("root", ("a",), ("",))
    assert ShardPiece("x/1.tar", "1.tar") != ShardPiece("y/1.tar", "1.tar")


def test_names_are_told_apart_by_order_and_refused_twice():
    assert hash_names(["a", "b"]) != hash_names(["b", "a"]) != hash_names(["a"])
    with pytest.raises(DataError, match="a: stands twice"):
        hash_names(["a", "b", "a"])


def test_a_stamp_tells_a_shard_from_what_it_is_later(folder, tmp_path):
    pack_shards(read_manifest(folder), tmp_path / "shards", count=1)
    fs = fsspec.filesystem("memory")
    fs.put(str(tmp_path / "shards"), "/stamped", recursive=True)
    for data, path in (
        (str(tmp_path / "shards"), tmp_path / "shards" / "cells-000000.tar"),
        ("memory://stamped", None),
    ):
        (before,) = find_pieces([data])
        assert find_pieces([data]) == [before]
        if path:
            os.utime(path, ns=(1, 1))  # as long as it was
        else:
            fs.pipe("/stamped/cells-000000.tar", fs.cat("/stamped/cells-000000.tar"))
        (after,) = find_pieces([data])
        assert after.stamp != before.stamp
        assert repr(after) == repr(before)  # it is still the same piece of the archive


def test_a_missing_file_is_its_own_fault_and_a_lost_mount_that_of_all(folder, memory):
    for root, lose in ((str(folder), None), (memory, fsspec.filesystem("memory"))):
        (piece,) = find_pieces([root])
        first, second, *_ = piece.read_samples()
        if lose:
            lose.rm("/bucket/cells/a/0.jpg")
        else:
            (folder / first.name).unlink()
        with pytest.raises(FileNotFoundError):
            first.read()
        assert second.read() == b"2"
        # As a mount point is, whose disk has gone: there, and empty.
        if lose:
            lose.rm("/bucket/cells", recursive=True)
        else:
            shutil.rmtree(folder)
            folder.mkdir()
        with pytest.raises(DataError, match=f"{os.uname().nodename}: .*a/2.jpg: cannot be read"):
            second.read()
