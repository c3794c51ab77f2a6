"""Tar shards and Parquet: what is packed is what is read, and damage is told."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import tracemalloc

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from wbc_keras.errors import DataError, RunError
from wbc_keras.manifest import read_manifest
from wbc_keras.pictures.shards import pack_shards, read_shard
from wbc_keras.prepare import main


@pytest.fixture
def cells(tmp_path):
    """Seven files of two classes, of which the names are awkward; the bytes are no pictures."""
    names = ["a/1.jpg", "a/2.x.jpg", "a/2.y.jpg", "a/3.jpg", "a/3.png", "b/ü 1.JPG", "b/2.tif"]
    for name in names:
        path = tmp_path / "cells" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"bytes of {name}".encode() * 100)
    return tmp_path / "cells"


def make_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return str(path)


def test_what_is_packed_comes_back_as_it_was(cells, tmp_path):
    manifest = read_manifest(cells)
    paths = pack_shards(manifest, tmp_path / "shards", count=3)
    assert [path.name for path in paths] == [f"cells-00000{n}.tar" for n in range(3)]
    back = [packed for path in paths for packed in read_shard(str(path))]
    assert [packed.encoded for packed in back] == [
        (cells / file).read_bytes() for file in manifest.table["file"]
    ]
    assert [packed.label for packed in back] == list(manifest.table["label"])
    assert [len(list(read_shard(str(path)))) for path in paths] == [2, 2, 3]


def test_keys_are_those_of_webdataset(cells, tmp_path):
    """Up to the first dot of the base name is one cell's key, for WebDataset's own reader too."""
    (path,) = pack_shards(read_manifest(cells), tmp_path / "shards", count=1)
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar}
    keys = [f"{os.path.dirname(n)}/{os.path.basename(n).split('.')[0]}" for n in members]
    assert len(set(keys)) == 7
    assert [keys.count(key) for key in set(keys)] == [2] * 7
    told = [json.loads(data) for name, data in members.items() if name.endswith(".json")]
    assert [one["file"] for one in told] == list(read_manifest(cells).table["file"])
    assert {one["label"] for one in told} == {"a", "b"}


def test_the_same_cells_make_the_same_shards(cells, tmp_path):
    manifest = read_manifest(cells)
    (one,) = pack_shards(manifest, tmp_path / "one", count=1)
    os.utime(cells / "a/1.jpg", (0, 0))
    (other,) = pack_shards(manifest, tmp_path / "other", count=1)
    assert one.read_bytes() == other.read_bytes()


def test_a_tar_of_the_system_is_read(cells, tmp_path):
    path = tmp_path / "plain.tar"
    subprocess.run(["tar", "-cf", path, "-C", cells, "."], check=True)
    names = [packed.name for packed in read_shard(str(path))]
    assert sorted(names) == list(read_manifest(cells).table["file"])


def test_labels_lie_beside_their_pictures(tmp_path):
    members = {
        "x.cls": b"monocyte\n",
        "x.jpg": b"1",
        "y.jpg": b"2",
        "y.json": b'{"label": 3}',
        "z.json": b'{"label": null}',
        "z.mask.png": b"mask",
        "z.png": b"3",
        "._z.png": b"of a Mac",
    }
    path = make_tar(tmp_path / "some.tar", members)
    found = [(one.name, one.label, one.encoded) for one in read_shard(path)]
    assert found == [("x.jpg", "monocyte", b"1"), ("y.jpg", "3", b"2"), ("z.png", "", b"3")]
    path = make_tar(tmp_path / "bad.tar", {"x.jpg": b"1", "x.json": b"{"})
    with pytest.raises(DataError, match=r"bad\.tar: x\.json: cannot be read as a label"):
        list(read_shard(path))


def test_a_tar_cut_anywhere_is_told(cells, tmp_path):
    (path,) = pack_shards(read_manifest(cells), tmp_path / "shards", count=1)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = tar.getmembers()[-1].offset_data + 512
    cut = tmp_path / "cut.tar"
    for size in {0, 100, 512, 700, 5000, end - 512, end - 100, end, end + 511}:
        cut.write_bytes(whole[:size])
        with pytest.raises(DataError, match="truncated, damaged or no tar"):
            list(read_shard(str(cut)))
    cut.write_bytes(whole[: end + 512])
    assert len(list(read_shard(str(cut)))) == 7


def test_a_header_overwritten_in_the_middle_is_told(cells, tmp_path):
    (path,) = pack_shards(read_manifest(cells), tmp_path / "shards", count=1)
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        start = tar.getmembers()[6].offset
    data[start : start + 512] = b"?" * 512
    path.write_bytes(data)
    with pytest.raises(DataError, match="after 6 files"):
        list(read_shard(str(path)))


def test_zeros_in_the_middle_and_a_second_tar_are_no_end(cells, tmp_path):
    """As sparse copies and `cat` leave them: tarfile stops there without a word."""
    (path,) = pack_shards(read_manifest(cells), tmp_path / "shards", count=1)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        start = tar.getmembers()[4].offset
    path.write_bytes(whole[:start] + bytes(4096) + whole[start + 4096 :])
    with pytest.raises(DataError, match="more follows the end mark"):
        list(read_shard(str(path)))
    path.write_bytes(whole + whole)
    with pytest.raises(DataError, match="more follows the end mark"):
        list(read_shard(str(path)))


def test_what_is_no_tar_of_pictures(tmp_path):
    path = make_tar(tmp_path / "packed.tar", {"x.jpg": b"1"}, mode="w:gz")
    with pytest.raises(DataError, match="no tar"):
        list(read_shard(path))
    path = make_tar(tmp_path / "empty.tar", {"notes.txt": b"1"})
    with pytest.raises(DataError, match="holds no picture; leave it out"):
        list(read_shard(path))


def test_links_are_not_passed_over(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "1.jpg").write_bytes(b"1")
    os.link(tmp_path / "in" / "1.jpg", tmp_path / "in" / "2.jpg")
    path = tmp_path / "linked.tar"
    subprocess.run(["tar", "-cf", path, "-C", tmp_path / "in", "1.jpg", "2.jpg"], check=True)
    with pytest.raises(DataError, match=r"2\.jpg is a link"):
        list(read_shard(str(path)))


def test_memory_does_not_grow_with_a_shard(tmp_path):
    path = tmp_path / "large.tar"
    make_tar(path, {f"{number}.jpg": bytes(10_000) for number in range(2000)})
    tracemalloc.start()
    count = sum(len(packed.encoded) for packed in read_shard(str(path)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 20_000_000
    assert peak < 1_000_000


TABLES = {
    "named": pa.table({"image": [b"1", b"2"], "label": ["a", None], "file": ["x", "y"]}),
    "numbered": pa.table({"bytes": [b"1", b"2"], "label": [4, 5]}),
    "hugging face": pa.table(
        {"image": [{"bytes": b"1", "path": "x"}, {"bytes": b"2", "path": None}], "n": [1, 2]}
    ),
    "null": pa.table({"image": [b"1", None], "path": ["x", "y"]}),
}
FOUND = {
    "named": [("x", "a", b"1"), ("y", "", b"2")],
    "numbered": [("0", "4", b"1"), ("1", "5", b"2")],
    "hugging face": [("x", "", b"1"), ("1", "", b"2")],
    "null": [("x", "", b"1"), ("y", "", b"")],
}


@pytest.mark.parametrize("kind", TABLES)
def test_parquet_of_bytes(kind, tmp_path):
    path = str(tmp_path / "cells.parquet")
    parquet.write_table(TABLES[kind], path)
    assert [(one.name, one.label, one.encoded) for one in read_shard(path)] == FOUND[kind]


def test_parquet_that_cannot_be_used(tmp_path):
    path = tmp_path / "cells.parquet"
    pd.DataFrame({"one": [b"1"], "two": [b"2"]}).to_parquet(path)
    with pytest.raises(DataError, match=r"one column of encoded pictures\. Received: one, two of"):
        list(read_shard(str(path)))
    parquet.write_table(TABLES["named"], path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="truncated, damaged or no Parquet"):
        list(read_shard(str(path)))
    parquet.write_table(TABLES["named"].slice(0, 0), path)
    with pytest.raises(DataError, match="holds no picture"):
        list(read_shard(str(path)))


def test_the_command_packs(cells, tmp_path, capsys):
    output = tmp_path / "shards"
    arguments = ["--data", str(cells), "--output", str(output), "--shards"]
    assert main([*arguments, "2"]) == 0
    assert "pictures 7  shards 2" in capsys.readouterr().out
    assert main([*arguments, "2"]) == 2
    assert "not empty" in capsys.readouterr().err
    arguments[3] = str(tmp_path / "other")
    for count in ("0", "8", "-1"):
        assert main([*arguments, count]) == 2
        assert "expected 1 to 7" in capsys.readouterr().err
    for wrong in (["--shards", "2"], [*arguments, "2", "--config", "x"], arguments[:4]):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)


def test_what_cannot_be_read_is_not_left_out(cells, tmp_path):
    manifest = read_manifest(cells)
    (cells / "b/2.tif").unlink()
    with pytest.raises(DataError, match=r"2\.tif: cannot be read .* nothing was packed"):
        pack_shards(manifest, tmp_path / "shards", count=2)
    assert not (tmp_path / "shards").exists()
    with pytest.raises(RunError, match="not empty"):
        pack_shards(manifest, cells, count=2)
