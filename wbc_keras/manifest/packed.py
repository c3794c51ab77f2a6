"""Packed cells, what ``prepare --output`` writes: the table lies beside the cropped cells."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wbc_keras.errors import DataError
from wbc_keras.manifest.table import COLUMNS, Manifest

if TYPE_CHECKING:
    import pandas as pd

TABLE = "cells.csv"
ABOUT = "about.json"
# Of a copy of a picture: the file of the first of them.
COPY_OF = "copy_of"


def is_packed(folder: Path) -> bool:
    """Tell whether a folder holds packed cells."""
    return (folder / TABLE).is_file() and (folder / ABOUT).is_file()


def read_packed(folder: Path) -> Manifest:
    """Read the table of packed cells; the pictures that they were cropped from need not be there.

    Raises:
        DataError: it is damaged.
    """
    import pandas as pd

    try:
        table = pd.read_csv(folder / TABLE, dtype=str, keep_default_na=False, encoding="utf-8")
        root = Path(json.loads((folder / ABOUT).read_text(encoding="utf-8"))["source"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{folder}: is damaged ({reason}); {mend_packed()}") from error
    wanted = [*COLUMNS, COPY_OF]
    if missing := [name for name in wanted if name not in table]:
        raise DataError(
            f"{folder / TABLE}: has no column {', '.join(missing)}, so it is damaged; "
            f"{mend_packed()}"
        )
    return Manifest(root, table, folder.resolve().name, packed=folder)


def mend_packed() -> str:
    """Say how packed cells are made anew."""
    return "pack the cells anew: python -m wbc_keras.prepare --output FOLDER"


def name_copies(files: Sequence[str], units: npt.NDArray[np.intp]) -> list[str]:
    """Return for each file the first of its copies, "" for the first itself.

    Args:
        files: n names.
        units: ``(n,)``, the row of the first of a picture's copies, as `duplicates.Copies` has it.
    """
    return [files[unit] if unit != row else "" for row, unit in enumerate(units.tolist())]


def read_units(table: pd.DataFrame) -> npt.NDArray[np.intp]:
    """Return the rows of the first copies, intp ``(n,)``, from a packed table or rows of one."""
    first = table[COPY_OF].where(table[COPY_OF] != "", table["file"])
    _, rows, units = np.unique(first.to_numpy(str), return_index=True, return_inverse=True)
    return np.asarray(rows[units], np.intp)
