from __future__ import annotations

import dataclasses
import functools
import hashlib
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from wbc_keras.datasets import ByHand, describe, get, main
from wbc_keras.errors import DataError
from wbc_keras.manifest import read_manifest
from wbc_keras.sets.catalogue import CATALOGUE, PublicSet, find
from wbc_keras.sets.download import Download


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address on loopback where its files are served."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "shelf"
    folder.mkdir()
    handler = functools.partial(_QuietHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def _served(shelf: tuple[Path, str], name: str) -> PublicSet:
    """Return BloodMNIST as if it were the file ``name`` of the shelf."""
    folder, address = shelf
    digest = hashlib.md5((folder / name).read_bytes()).hexdigest()
    download = Download(f"{address}/{name}", name, f"md5:{digest}")
    return dataclasses.replace(find("bloodmnist"), download=download)


def _write_npz(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 16), ("val", 8), ("test", 8)):
        arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 8).astype(np.uint8)[:, None]
    np.savez_compressed(path, **arrays)


def _write_zip(path: Path, cells: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for picture in cells.rglob("*.png"):
            name = f"PBC_dataset_normal_DIB/{picture.relative_to(cells).as_posix()}"
            archive.write(picture, name)


def test_list_names_every_set_and_what_is_not_verified(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(CATALOGUE)
    for line, public in zip(lines[1:], CATALOGUE, strict=True):
        assert line.startswith(public.name)
        assert f"{public.pictures:,}" in line
        assert line.endswith("download" if public.download else "by hand")
        assert ("(not verified)" in line) == ("licence" in public.unverified)


@pytest.mark.parametrize("public", CATALOGUE, ids=lambda public: public.name)
def test_info_says_all_there_is_to_know(capsys, public):
    assert main(["info", public.name.upper()]) == 0
    shown = capsys.readouterr().out
    assert shown == describe(public) + "\n"
    assert max(map(len, shown.splitlines())) <= 100
    flat = " ".join(shown.split())
    for fact in (public.what, public.licence, public.citation, public.doi, public.page):
        assert fact in flat
    assert all(f"{name} {count:,}" in flat for name, count in public.classes.items())
    assert (f"{public.page} (not verified)" in flat) == ("page" in public.unverified)
    assert flat.count("(not verified)") == len(public.unverified)
    if public.download:
        assert f"{public.download.url} checksum {public.download.checksum}" in flat
        assert f"python -m wbc_keras.datasets get {public.name} --to DIR" in flat


@pytest.mark.parametrize("name", [public.name for public in CATALOGUE if not public.download])
def test_set_to_fetch_by_hand_prints_the_steps_and_says_so_to_a_script(tmp_path, capsys, name):
    assert main(["get", name, "--to", str(tmp_path / "data")]) == 2
    out, error = capsys.readouterr()
    public = find(name)
    assert public.page in out
    assert all(f"{number}. " in out for number in range(1, len(public.steps) + 1))
    assert "DIR" not in out.replace("PBC_dataset_normal_DIB", "")
    assert error.startswith(f"error: {name}: nothing was downloaded")
    assert error.count("\n") == 1
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("arguments", [["info", "cifar"], ["get", "cifar", "--to", "nowhere"]])
def test_unknown_set_is_one_line_and_code_2(capsys, arguments):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: no data set is called 'cifar'; ")


@pytest.mark.parametrize("arguments", [[], ["get", "pbc"], ["fetch"]])
def test_incomplete_command_is_code_2(capsys, arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2


def test_npz_is_fetched_once_and_is_a_source(shelf, tmp_path):
    _write_npz(shelf[0] / "bloodmnist.npz")
    public = _served(shelf, "bloodmnist.npz")
    path = get(public, tmp_path / "data")
    assert path == tmp_path / "data" / "bloodmnist.npz"
    manifest = read_manifest(path)
    assert len(manifest.table) == 32
    assert "erythroblast" in manifest.class_names()
    (shelf[0] / "bloodmnist.npz").unlink()
    assert get(public, tmp_path / "data") == path


def test_archive_is_fetched_unpacked_and_a_source(shelf, tmp_path, drawn_cells):
    _write_zip(shelf[0] / "cells.zip", drawn_cells)
    public = _served(shelf, "cells.zip")
    folder = get(public, tmp_path / "data")
    assert folder == tmp_path / "data" / "cells"
    assert len(read_manifest(folder).table) == 96
    (shelf[0] / "cells.zip").unlink()
    (tmp_path / "data" / "cells.zip").unlink()
    assert get(public, tmp_path / "data") == folder


def test_altered_archive_is_never_unpacked(shelf, tmp_path, drawn_cells):
    _write_zip(shelf[0] / "cells.zip", drawn_cells)
    public = _served(shelf, "cells.zip")
    _write_zip(shelf[0] / "cells.zip", drawn_cells / "monocyte")
    with pytest.raises(DataError, match="not the published file"):
        get(public, tmp_path / "data")
    assert list((tmp_path / "data").iterdir()) == []


def test_archive_fetched_by_hand_is_unpacked(tmp_path, capsys, drawn_cells):
    with pytest.raises(ByHand):
        get("pbc", tmp_path)
    _write_zip(tmp_path / "PBC_dataset_normal_DIB.zip", drawn_cells)
    assert main(["get", "pbc", "--to", str(tmp_path)]) == 0
    folder = tmp_path / "PBC_dataset_normal_DIB"
    assert capsys.readouterr().out == f"pass on: --data {folder}\n"
    assert len(read_manifest(folder).table) == 96


def test_docs_have_every_set(root):
    page = (root / "docs" / "datasets.md").read_text(encoding="utf-8")
    for public in CATALOGUE:
        assert public.name in page
        assert public.doi in page
        assert public.licence in page
    assert "python -m wbc_keras.datasets" in (root / "README.md").read_text(encoding="utf-8")


def test_agreement_prints_the_experts_figures(
    lmu_metadata: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agreement", str(lmu_metadata)]) == 0
    out = capsys.readouterr().out
    # The shares that the set's README gives.
    assert all(share in out for share in ("84.9", "80.3", "82.3"))


def test_agreement_without_annotations_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agreement", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
