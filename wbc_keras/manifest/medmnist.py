"""MedMNIST's .npz files, unpacked once into the cache."""

from __future__ import annotations

import dataclasses
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wbc_keras.cache import cache_dir, hash_file, materialise
from wbc_keras.errors import DataError
from wbc_keras.manifest.csv_table import read_csv
from wbc_keras.manifest.table import MANIFEST, Manifest

Arrays = Mapping[str, npt.NDArray[Any]]

BLOODMNIST_CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "ig",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)
_MEDMNIST_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# Not a zip, cut short, damaged, pickled; a single array is no context manager (AttributeError on
# Python 3.10, TypeError since).
_UNREADABLE_NPZ = (
    AttributeError,
    EOFError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


def read_npz(path: Path) -> Manifest:
    """Read a MedMNIST file; its own splits are kept."""
    folder = cache_dir() / "npz" / f"{path.stem}-{hash_file(path)[:16]}"
    materialise(folder, lambda target: _write_npz(target, _load_npz(path), path=path))
    manifest = read_csv(folder / MANIFEST, label_column="label", labelled=True)
    return dataclasses.replace(manifest, name=path.stem)


def _load_npz(path: Path) -> Arrays:
    keys = [f"{split}_{part}" for split in _MEDMNIST_SPLITS for part in ("images", "labels")]
    try:
        # Opened here: NumPy leaves a file that it cannot read open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive.files]
            received = ", ".join(archive.files)
            arrays = {} if missing else {key: archive[key] for key in keys}
    except _UNREADABLE_NPZ as error:
        raise DataError(f"{path}: is not a readable .npz file ({error})") from error
    if missing:
        raise DataError(
            f"{path}: is not in MedMNIST's form, it lacks {', '.join(missing)}. "
            f"Received: {received}"
        )
    for split in _MEDMNIST_SPLITS:
        _check_arrays(path, split, arrays)
    return arrays


def _check_arrays(path: Path, split: str, arrays: Arrays) -> None:
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    is_picture = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)
    if images.dtype != np.uint8 or not is_picture:
        raise DataError(
            f"{path}: {split}_images: expected uint8 (n, height, width, 3) or (n, height, width). "
            f"Received: {images.dtype} {images.shape}"
        )
    is_whole = np.issubdtype(labels.dtype, np.integer)
    if not is_whole or labels.shape not in ((len(images),), (len(images), 1)) or (labels < 0).any():
        raise DataError(
            f"{path}: {split}_labels: expected one class number, 0 or more, for each of the "
            f"{len(images)} pictures. Received: {labels.dtype} {labels.shape}"
        )


def _write_npz(folder: Path, arrays: Arrays, *, path: Path) -> None:
    """Write every picture as PNG into its class folder, and manifest.csv."""
    labels = {split: arrays[f"{split}_labels"].astype(int).ravel() for split in _MEDMNIST_SPLITS}
    names = _name_classes(path, np.concatenate(list(labels.values())))
    lines = ["file,label,split\n"]
    for split, split_name in _MEDMNIST_SPLITS.items():
        for index, image in enumerate(arrays[f"{split}_images"]):
            label = names[labels[split][index]]
            file = f"{label}/{split}_{index:06d}.png"
            _write_png(folder / file, image)
            lines.append(f"{file},{label},{split_name}\n")
    (folder / MANIFEST).write_text("".join(lines), encoding="utf-8")


def _name_classes(path: Path, labels: npt.NDArray[np.int_]) -> tuple[str, ...]:
    count = int(labels.max(initial=-1)) + 1
    if count == len(BLOODMNIST_CLASSES) and "bloodmnist" in path.name.lower():
        return BLOODMNIST_CLASSES
    return tuple(f"class_{number}" for number in range(count))


def _write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    import cv2

    path.parent.mkdir(exist_ok=True)
    bgr = image[..., ::-1] if image.ndim == 3 else image
    _, png = cv2.imencode(".png", np.ascontiguousarray(bgr))
    path.write_bytes(png.tobytes())
