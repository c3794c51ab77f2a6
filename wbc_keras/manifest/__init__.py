"""Any source of cells becomes one table: ``file,label,group,split``.

Sources: a class folder, a folder with manifest.csv, a CSV, the Munich folder with annotations.dat
(Matek et al. 2019), a MedMNIST .npz, drawn cells, the review desk's reviews.csv, packed cells; for
prediction also a flat folder or single files. Rows of a CSV are counted as a spreadsheet counts
them: the header is row 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from wbc_keras.config import SyntheticConfig
from wbc_keras.errors import DataError
from wbc_keras.manifest.csv_table import read_csv
from wbc_keras.manifest.drawn import read_synthetic
from wbc_keras.manifest.folders import read_class_folder, read_files
from wbc_keras.manifest.medmnist import BLOODMNIST_CLASSES, read_npz
from wbc_keras.manifest.munich import read_munich
from wbc_keras.manifest.packed import is_packed, read_packed
from wbc_keras.manifest.reviews import is_reviews, read_reviews
from wbc_keras.manifest.table import (
    COLUMNS,
    IMAGE_SUFFIXES,
    MANIFEST,
    MUNICH,
    Manifest,
    accepted,
    require_utf8,
)

__all__ = [
    "BLOODMNIST_CLASSES",
    "COLUMNS",
    "IMAGE_SUFFIXES",
    "Manifest",
    "read_manifest",
    "require_apart",
]


def read_manifest(
    source: str | Path | Sequence[str | Path],
    *,
    label_column: str = "label",
    synthetic: SyntheticConfig | None = None,
    labelled: bool = True,
) -> Manifest:
    """Read any source of cells; files are looked for, pictures are not decoded.

    Args:
        source: what ``--data`` takes; a sequence is a list of single files.
        label_column: the CSV column that holds the label.
        synthetic: how ``synthetic`` cells are drawn; the defaults if None.
        labelled: whether every cell needs a label, and the source two classes. If not, a flat
            folder and single files are taken as well, and a CSV may lack the label.

    Raises:
        DataError: the source or some of its rows cannot be used.
    """
    manifest = _read_source(
        source,
        label_column=label_column,
        synthetic=synthetic or SyntheticConfig(),
        labelled=labelled,
    )
    if labelled:
        _require_two_classes(manifest)
    return manifest


def require_apart(
    manifest: Manifest, data: str | Path | Sequence[str | Path], outputs: Iterable[str | Path]
) -> None:
    """Raise DataError if one of ``outputs`` would be written over the data it is made from."""
    sources = [data] if isinstance(data, (str, Path)) else list(data)
    lists = [manifest.root / MANIFEST, manifest.root / MUNICH]
    kept = {Path(path).resolve() for path in (*sources, *lists, *manifest.paths())}
    for path in map(Path, outputs):
        if path.resolve() in kept:
            raise DataError(f"{path}: would be written over the data; choose another place")


def _read_source(
    source: str | Path | Sequence[str | Path],
    *,
    label_column: str,
    synthetic: SyntheticConfig,
    labelled: bool,
) -> Manifest:
    if not isinstance(source, (str, Path)):
        if len(source) != 1:
            return read_files([Path(path) for path in source], labelled=labelled)
        source = source[0]
    if str(source) == "synthetic":
        return read_synthetic(synthetic)
    require_utf8([str(source)])
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, label_column=label_column, labelled=labelled)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; give {accepted(labelled)}")
    suffix = path.suffix.lower()
    if suffix == ".csv" and is_reviews(path):
        return read_reviews(path, labelled=labelled)
    if suffix == ".csv":
        return read_csv(path, label_column=label_column, labelled=labelled)
    if suffix == ".npz":
        return read_npz(path)
    return read_files([path], labelled=labelled)


def _require_two_classes(manifest: Manifest) -> None:
    names = manifest.class_names()
    if len(names) < 2:
        raise DataError(
            f"{manifest.root}: holds one class only, and a classifier needs two or more; add "
            "pictures of another class, or give the folder whose sub-folders are the classes. "
            f"Received: {', '.join(names) or 'no labels'}"
        )


def _read_folder(folder: Path, *, label_column: str, labelled: bool) -> Manifest:
    if is_packed(folder):
        return read_packed(folder)
    if (folder / MANIFEST).is_file():
        return read_csv(folder / MANIFEST, label_column=label_column, labelled=labelled)
    if (folder / MUNICH).is_file():
        return read_munich(folder)
    return read_class_folder(folder, labelled=labelled)
