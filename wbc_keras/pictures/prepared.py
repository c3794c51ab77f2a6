"""Cropped cells on disk: made once for a source, ROI settings and size, read by every later run.

A store is a folder of the cache, named by a hash of all that decides what is in it::

    prepared/<hash>/  images.bin  boxes.npy  found.npy  about.json

Packed cells, see `packing`, are a store that stands by itself.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wbc_keras.cache import cache_dir, hash_files, materialise
from wbc_keras.config import RoiConfig
from wbc_keras.errors import DataError
from wbc_keras.manifest import Manifest
from wbc_keras.manifest.packed import mend_packed
from wbc_keras.pictures import cells, headers, images
from wbc_keras.pictures.cells import CHUNK, Cells, StoredImages, iter_chunks
from wbc_keras.pictures.images import BadImage, describe_bad
from wbc_keras.progress import show_progress

logger = logging.getLogger(__name__)

_IMAGES = "images.bin"
_TABLES = ("boxes.npy", "found.npy")
_CHECKED_CHUNKS = 256  # when a store is opened: all of 16,000 cells, a spread of more
_SPARE_ROOM = 1.02  # of the pictures' room: boxes and the rest take less than a hundredth


@dataclass(frozen=True)
class Prepared:
    """The cells of one source, each at its row in the manifest.

    Attributes:
        folder: where the store lies.
        files: the manifest's files.
        bad: row -> what is wrong with a picture that cannot be used; its cell is black.
        image_size: height and width of the crops.
        boxes: float32 ``(n, 4)``.
        found: bool ``(n,)``.
    """

    folder: Path
    files: pd.Index
    bad: Mapping[int, BadImage]
    image_size: tuple[int, int]
    boxes: np.ndarray
    found: np.ndarray

    def take(self, files: pd.Series[str]) -> Cells:
        """Return the cells of these files, in this order; the pictures stay on disk.

        Raises:
            DataError: pictures among them cannot be used; all are named.
        """
        if bad := list(self.bad_among(files).values()):
            raise DataError(f"{describe_bad(bad)}; mend or remove them")
        rows = self._rows_of(files)
        images = StoredImages(self.folder / _IMAGES, image_size=self.image_size, rows=rows)
        return Cells(images, self.boxes[rows], self.found[rows])

    def bad_among(self, files: pd.Series[str]) -> dict[str, BadImage]:
        """Return those of the files whose picture cannot be used, with what is wrong."""
        if not self.bad:
            return {}
        rows = zip(files, self._rows_of(files).tolist(), strict=True)
        return {file: self.bad[row] for file, row in rows if row in self.bad}

    def fingerprint(self) -> str:
        """Return what is equal for equal crops of equal files, from their checksums."""
        about = _read_about(self.folder)
        parts = [about["bad"], [about["tables"][name] for name in _TABLES], about["checksums"]]
        return json.dumps([*parts, self.image_size])

    def _rows_of(self, files: pd.Series[str]) -> np.ndarray:
        rows = self.files.get_indexer(pd.Index(files))
        if (rows < 0).any():
            raise ValueError("files: expected files of the manifest that was prepared")
        return rows


def prepare(manifest: Manifest, *, roi: RoiConfig, image_size: tuple[int, int]) -> Prepared:
    """Return the cropped cells of a source; they are made if this is the first time.

    Args:
        manifest: a source as it was read, with all its rows: its splits and folds share the store.
        roi: how the cell is found and cropped.
        image_size: height and width of the crops.

    Raises:
        DataError: the cache cannot be written or its disk has too little room, TensorFlow is
            needed and not there, or packed cells are damaged or were cropped in another way.
    """
    folder = manifest.packed
    if folder:
        _require_packed(folder, len(manifest.table), roi=roi, image_size=image_size)
    else:
        folder = _make(manifest, roi=roi, image_size=image_size)
    files = manifest.table["file"]
    return Prepared(
        folder,
        pd.Index(files),
        {
            row: BadImage(manifest.root / files.iloc[row], reason)
            for row, reason in _read_about(folder)["bad"]
        },
        image_size=image_size,
        boxes=np.load(folder / "boxes.npy"),
        found=np.load(folder / "found.npy"),
    )


def describe_cropping(roi: RoiConfig, image_size: tuple[int, int]) -> dict[str, Any]:
    """Return what decides how crops look, as ``about.json`` of packed cells has it."""
    return {"roi": dataclasses.asdict(roi), "image_size": list(image_size)}


def _make(manifest: Manifest, *, roi: RoiConfig, image_size: tuple[int, int]) -> Path:
    """Return the store of a source in the cache."""
    try:
        import tensorflow as tf
    except ModuleNotFoundError as error:
        raise DataError(
            f"{manifest.root}: finding and cropping cells needs TensorFlow, which is not installed "
            "here; pack them where it is, python -m wbc_keras.prepare --config FILE --data PATH "
            "--output FOLDER, and give that folder as --data"
        ) from error
    from wbc_keras.pictures import localize, stain

    key = hash_files(
        manifest.root,
        manifest.table["file"],
        code=(cells, headers, images, localize, stain),
        settings=[dataclasses.asdict(roi), image_size, tf.__version__],
    )
    folder = cache_dir() / "prepared" / key[:32]
    shape = (len(manifest.table), *image_size, 3)
    materialise(
        folder,
        lambda target: _write(target, manifest, roi=roi, image_size=image_size),
        is_whole=lambda path: _is_whole(path, shape),
    )
    return folder


def _require_packed(
    folder: Path, count: int, *, roi: RoiConfig, image_size: tuple[int, int]
) -> None:
    had, wanted = _read_cropping(folder), describe_cropping(roi, image_size)
    # First: of another size, the pictures' file would be taken for damaged.
    if had and (differing := [name for name, value in wanted.items() if had.get(name) != value]):
        names = {"roi": "roi", "image_size": "data.image_size"}
        raise DataError(
            f"{folder}: its cells were cropped with another "
            f"{' and '.join(names[name] for name in differing)} than the settings': {had}; "
            f"change the settings, or {mend_packed()}"
        )
    if faults := _find_faults(folder, (count, *image_size, 3)):
        raise DataError(f"{folder}: is damaged ({', '.join(faults)}); {mend_packed()}")


def _read_cropping(folder: Path) -> dict[str, Any]:
    """Return how packed cells were cropped, or nothing if that cannot be read."""
    try:
        return dict(_read_about(folder)["cropping"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}


# Writing


def _write(
    folder: Path, manifest: Manifest, *, roi: RoiConfig, image_size: tuple[int, int]
) -> None:
    files = manifest.table["file"]
    # One by one: a million Path objects would take more than all the rest.
    paths = (manifest.root / file for file in files)
    _require_room(folder, len(files) * image_size[0] * image_size[1] * 3)
    print(f"preparing {len(files)} cells, kept in {folder.parent}", flush=True)
    boxes, found = [], []
    checksums: list[int] = []
    bad: list[tuple[int, str]] = []
    with show_progress(len(files), "cells") as tell, (folder / _IMAGES).open("wb") as stream:
        for chunk in iter_chunks(paths, roi=roi, image_size=image_size):
            start = CHUNK * len(checksums)
            pictures = np.asarray(chunk.cells.images).tobytes()
            stream.write(pictures)
            checksums.append(zlib.crc32(pictures))
            boxes.append(chunk.cells.boxes)
            found.append(chunk.cells.found)
            bad += [(start + place, fault.reason) for place, fault in sorted(chunk.bad.items())]
            tell(len(chunk.cells))
        stream.flush()
        os.fsync(stream.fileno())
    np.save(folder / "boxes.npy", np.concatenate(boxes))
    np.save(folder / "found.npy", np.concatenate(found))
    tables = {name: _crc(folder / name) for name in _TABLES}
    about = {"source": str(manifest.root), "bad": bad, "tables": tables, "checksums": checksums}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < _SPARE_ROOM * needed:
        room = f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free"
        raise OSError(errno.ENOSPC, room)


# Checking


def _is_whole(folder: Path, shape: tuple[int, ...]) -> bool:
    """Tell whether a store is there and holds what was written; a damaged one is told of."""
    if not folder.is_dir():
        return False
    faults = _find_faults(folder, shape)
    if faults:
        logger.warning("%s: is damaged (%s) and is made anew", folder, ", ".join(faults))
    return not faults


def _find_faults(folder: Path, shape: tuple[int, ...]) -> list[str]:
    try:
        about = _read_about(folder)
        faults = [name for name, crc in about["tables"].items() if _crc(folder / name) != crc]
        return faults + ([] if _holds(folder / _IMAGES, shape, about["checksums"]) else [_IMAGES])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"about.json ({error})"]


def _holds(path: Path, shape: tuple[int, ...], checksums: Sequence[int]) -> bool:
    """Compare the file's size, and the checksums of all chunks or of a spread of them."""
    count = -(-shape[0] // CHUNK)
    if path.stat().st_size != math.prod(shape) or len(checksums) != count:
        return False
    size = CHUNK * math.prod(shape[1:])
    chosen = np.unique(np.linspace(0, count - 1, min(count, _CHECKED_CHUNKS)).astype(int))
    with path.open("rb") as stream:
        for chunk in chosen.tolist():
            stream.seek(chunk * size)
            if zlib.crc32(stream.read(size)) != checksums[chunk]:
                return False
    return True


def _crc(path: Path) -> int:
    return zlib.crc32(path.read_bytes())


def _read_about(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "about.json").read_text(encoding="utf-8")))
