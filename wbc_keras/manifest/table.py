"""The one table that every source becomes, and what its readers share."""

from __future__ import annotations

import dataclasses
import os
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wbc_keras.errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
COLUMNS = ("file", "label", "group", "split")

# What two further experts called the cell, "" where they were not asked.
REANNOTATIONS = ("reannotation_1", "reannotation_2")

MANIFEST = "manifest.csv"
MUNICH = "annotations.dat"
LEAVES = "is a link that leaves the data folder; copy the picture into it"
ACCEPTED = (
    "a folder with one sub-folder of pictures for each class, a folder with manifest.csv, a .csv "
    "file, the Munich folder with annotations.dat, a MedMNIST .npz file, packed cells, or "
    "`synthetic`"
)


@dataclass(frozen=True, eq=False)
class Manifest:
    """The cells of one source.

    Attributes:
        root: folder that `file` is relative to.
        table: one row for each cell; text columns file (with forward slashes), label ("" unknown),
            group ("" none) and split ("" none, else train, validation or test). A source may have
            text columns of its own after these.
        name: a short name for results: the folder's, the file's stem, or "synthetic".
        packed: the folder that holds the cells cropped and packed, if they are.
    """

    root: Path
    table: pd.DataFrame
    name: str
    packed: Path | None = None

    def paths(self) -> list[Path]:
        """Return the pictures' paths, in the table's order."""
        return [self.root / file for file in self.table["file"]]

    def class_names(self) -> list[str]:
        """Return the labels present, sorted, without the unknown."""
        return sorted(set(self.table["label"]) - {""})

    def without_labels(self, labels: Sequence[str]) -> Manifest:
        """Return the rows whose label is none of ``labels``.

        Raises:
            ConfigError: no row has one of them.
        """
        missing = sorted(set(labels) - set(self.class_names()))
        if missing:
            raise ConfigError(
                f"data.exclude_labels: {', '.join(missing)} is not among the data's labels "
                f"({', '.join(self.class_names())})"
            )
        return self.select(~self.table["label"].isin(labels).to_numpy())

    def select(self, mask: npt.ArrayLike) -> Manifest:
        """Return the rows where ``mask``, bool (n,), is true, numbered anew from 0."""
        rows = self.table[np.asarray(mask, dtype=bool)].reset_index(drop=True)
        return dataclasses.replace(self, table=rows)


def make_manifest(root: Path, rows: Mapping[str, Sequence[str]], *, name: str = "") -> Manifest:
    """Return a manifest of text ``rows``; of the four columns, one that is not given is empty."""
    # Here, not above: the package's command shows its --help without pandas.
    import pandas as pd

    empty = dict.fromkeys(COLUMNS, [""] * len(rows["file"]))
    table = pd.DataFrame({**empty, **rows}, dtype=str)
    return Manifest(root, table, name or root.resolve().name or "data")


def accepted(labelled: bool) -> str:
    """Say which sources are taken."""
    return ACCEPTED if labelled else f"{ACCEPTED}, a folder of pictures, or picture files"


def is_picture(name: str) -> bool:
    """Tell by its suffix whether a file is a picture."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def normalise(file: str) -> str:
    """Return a path as written on any system with forward slashes and without detours."""
    return posixpath.normpath(file.replace("\\", "/")) if file else ""


def stays_inside(file: str) -> bool:
    """Tell whether a path as written leads nowhere but into the folder it is relative to."""
    # A drive letter makes a path absolute on Windows.
    is_absolute = file.startswith("/") or file[1:2] == ":" or "\0" in file
    return not is_absolute and file != ".." and not file.startswith("../")


def read_annotation(value: str) -> str:
    """Return an expert's answer as written in a table, "" where none was given (``nan``)."""
    return "" if value.lower() == "nan" else value


def repeated(files: Sequence[str]) -> Iterator[bool]:
    """Yield for each file whether it stood before."""
    seen: set[str] = set()
    for file in files:
        yield file in seen
        seen.add(file)


def refuse_rows(
    path: Path,
    numbers: Sequence[int],
    *,
    faulty: Iterable[bool],
    what: str,
    values: Sequence[str] | None = None,
) -> None:
    """Raise a DataError that counts the faulty rows and names the first few."""
    found = [index for index, is_faulty in enumerate(faulty) if is_faulty]
    if found:
        some = [f"{numbers[i]}" + (f" ({values[i]})" if values is not None else "") for i in found]
        count = f" ({len(found)} rows)" if len(found) > 1 else ""
        raise DataError(f"{path}: row {list_some(some)}{count}: {what}")


def require_utf8(names: Iterable[str]) -> None:
    """Raise a DataError for names that UTF-8, the encoding of every list written here, cannot hold.

    Python gives the bytes of such a file name as lone surrogates.
    """
    faulty = [name for name in names if not (name.isascii() or _is_utf8(name))]
    if faulty:
        shown = [os.fsencode(name).decode("utf-8", "backslashreplace") for name in faulty]
        count = f"{len(faulty)} names are" if len(faulty) > 1 else "a name is"
        raise DataError(f"{list_some(shown)}: {count} not UTF-8; rename them, e.g. with convmv")


def _is_utf8(name: str) -> bool:
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def link_checker(root: str | Path) -> Callable[[str], bool]:
    """Return a function that tells whether a file under ``root``, links followed, lies there."""
    real_root = os.path.realpath(root)
    parents: dict[str, bool] = {}

    def is_under(path: str) -> bool:
        return os.path.commonpath([real_root, os.path.realpath(path)]) == real_root

    def is_inside(file: str) -> bool:
        path = os.path.join(root, file)
        parent = os.path.dirname(path)
        # Each folder once: a table may have a million rows.
        if parent not in parents:
            parents[parent] = is_under(parent)
        return parents[parent] and (not os.path.islink(path) or is_under(path))

    return is_inside


def list_some(items: Sequence[str], limit: int = 5) -> str:
    """Name the first few, and how many more there are."""
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
