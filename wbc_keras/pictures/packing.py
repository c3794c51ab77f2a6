"""Packed cells: a prepared store with its table, in a folder that stands by itself.

It is trained from where neither the pictures nor TensorFlow are, on another machine say::

    FOLDER/  cells.csv  images.bin  boxes.npy  found.npy  about.json

``cells.csv`` is the source's table with a column ``copy_of``: what was seen of copies.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

from wbc_keras import runs
from wbc_keras.config import RoiConfig
from wbc_keras.manifest import Manifest
from wbc_keras.manifest.packed import ABOUT, COPY_OF, TABLE, name_copies
from wbc_keras.pictures.prepared import Prepared, describe_cropping
from wbc_keras.pictures.survey import survey_once

_FILES = frozenset({TABLE, ABOUT, "images.bin", "boxes.npy", "found.npy"})


def pack_cells(
    manifest: Manifest,
    prepared: Prepared,
    folder: Path,
    *,
    roi: RoiConfig,
    image_size: tuple[int, int],
) -> None:
    """Write the prepared cells of a source as a folder that stands by itself, whole or not at all.

    Args:
        manifest: the source, with all its rows.
        prepared: its cells.
        folder: missing, empty, or an older pack, which is replaced.
        roi: how the cells were found.
        image_size: height and width of the crops.

    Raises:
        RunError: the folder cannot be written, or holds something else.
    """
    runs.require_replaceable(folder, _FILES)
    files = manifest.table["file"].tolist()
    _, copies = survey_once(manifest.root, files)
    table = manifest.table.assign(**{COPY_OF: name_copies(files, copies.units)})
    with runs.replacing_folder(folder) as temporary:
        text = table.to_csv(index=False, lineterminator="\n").encode()
        (temporary / TABLE).write_bytes(text)
        for name in _FILES - {TABLE, ABOUT}:
            _link(prepared.folder / name, temporary / name)
        about = json.loads((prepared.folder / ABOUT).read_text(encoding="utf-8"))
        about["tables"][TABLE] = zlib.crc32(text)
        about["cropping"] = describe_cropping(roi, image_size)
        runs.write_json(temporary / ABOUT, about)


def _link(source: Path, target: Path) -> None:
    """Give a file a second name; a store's are never written to again."""
    try:
        os.link(source, target)
    except OSError:  # on another disk
        shutil.copyfile(source, target)
