"""The predictions table: one row a cell, in the form that evaluation, explanation and people read.

Columns: ``file, label, predicted, confidence``, one probability per class, then the box
``roi_y0, roi_x0, roi_y1, roi_x1`` in relative units (0 to 1). A label that is not known is "".
Then what is told of the answer, where the run has it: ``accepted`` (true or false), ``novelty``
(0 to 1). Of new pictures, ``error`` says what is wrong with one that cannot be used: its row has no
class and no numbers, and is not accepted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.errors import DataError
from wbc_keras.runs import replacing

CELL_COLUMNS = ("file", "label", "predicted", "confidence")
BOX_COLUMNS = ("roi_y0", "roi_x0", "roi_y1", "roi_x1")
ACCEPTED = "accepted"
NOVELTY = "novelty"
ERROR = "error"


def prediction_table(
    files: Sequence[str],
    labels: Sequence[str],
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    boxes: npt.ArrayLike,
    *,
    accepted: npt.NDArray[np.bool_] | None = None,
    novelty: npt.NDArray[np.floating] | None = None,
    errors: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Return the table of n predicted cells.

    Args:
        files: n paths, kept as given.
        labels: n labels, "" where unknown.
        probabilities: (n, k), kept as float32; ``predicted`` is the largest of these.
        class_names: k names, in the order of the columns.
        boxes: (n, 4) of y0, x0, y1, x1 in relative units, kept as float32.
        accepted: bool (n,), whether the answer is sure enough; no column if None.
        novelty: (n,), how foreign the cell is, kept as float32; no column if None.
        errors: n texts, "" for a picture that was read; the others' numbers are NaN. No column if
            None.

    Raises:
        DataError: lengths disagree, or a class has the name of another column.
    """
    _check_class_names(class_names)
    shares = np.asarray(probabilities, dtype=np.float32)
    corners = np.asarray(boxes, dtype=np.float32)
    if (
        not len(files) == len(labels) == len(shares) == len(corners)
        or shares.shape[1:] != (len(class_names),)
        or corners.shape[1:] != (4,)
    ):
        raise DataError(
            "predictions: expected n files, n labels, (n, k) probabilities for k class names and "
            f"(n, 4) boxes. Received: {len(files)} files, {len(labels)} labels, probabilities "
            f"{shares.shape}, {len(class_names)} class names, boxes {corners.shape}"
        )
    cells = pd.DataFrame({"file": list(files), "label": list(labels)})
    names = [class_names[c] for c in shares.argmax(axis=1)]
    if errors is not None:
        names = ["" if error else name for name, error in zip(names, errors, strict=True)]
    cells["predicted"] = names
    cells["confidence"] = shares.max(axis=1)
    columns = [pd.DataFrame(shares, columns=list(class_names))]
    columns.append(pd.DataFrame(corners, columns=list(BOX_COLUMNS)))
    if accepted is not None:
        columns.append(pd.DataFrame({ACCEPTED: accepted}))
    if novelty is not None:
        columns.append(pd.DataFrame({NOVELTY: np.asarray(novelty, np.float32)}))
    if errors is not None:
        columns.append(pd.DataFrame({ERROR: list(errors)}, dtype=str))
    return pd.concat([cells, *columns], axis=1)


def class_columns(table: pd.DataFrame) -> list[str]:
    """Return the class names of a predictions table, in its order."""
    return [str(name) for name in table.columns[len(CELL_COLUMNS) : _box_place(table.columns)]]


def write_predictions(path: str | Path, table: pd.DataFrame) -> None:
    """Write the table as CSV, whole or not at all.

    float32 is written with the fewest digits that read back to the same number, so the largest
    probability stays the largest.
    """
    with replacing(Path(path)) as temporary:
        temporary.write_text(to_csv(table), encoding="utf-8", newline="")


def to_csv(table: pd.DataFrame) -> str:
    """Return the table as `write_predictions` writes it."""
    if ACCEPTED in table:
        table = table.assign(**{ACCEPTED: table[ACCEPTED].map({True: "true", False: "false"})})
    return str(table.to_csv(index=False, lineterminator="\n"))


def read_predictions(path: str | Path) -> pd.DataFrame:
    """Read what `write_predictions` wrote: texts as they stand ("NA" is a name), numbers float32.

    Raises:
        DataError: the file is missing, is not a predictions table, or holds a broken number.
    """
    try:
        table = pd.read_csv(
            path, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8"
        )
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such predictions table; evaluate or predict first") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read as a predictions table ({reason})") from error
    _check_columns(path, list(table.columns))
    end = _box_place(table.columns) + len(BOX_COLUMNS)
    if ERROR in table:
        # Of pictures that could not be used; empty elsewhere is a fault.
        numbers = [*table.columns[3:end], *table.columns.intersection([NOVELTY])]
        table.loc[table[ERROR] != "", numbers] = "nan"
    parts = [table.iloc[:, :3], _read_numbers(path, table.iloc[:, 3:end])]
    if ACCEPTED in table:
        parts.append(_read_accepted(path, table[ACCEPTED]).to_frame())
    if NOVELTY in table:
        parts.append(_read_numbers(path, table[[NOVELTY]]))
    if ERROR in table:
        parts.append(table[[ERROR]])
    return pd.concat(parts, axis=1)


def _check_class_names(class_names: Sequence[str]) -> None:
    reserved = {"", *CELL_COLUMNS, *BOX_COLUMNS, ACCEPTED, NOVELTY, ERROR}
    taken = [name for name in class_names if name in reserved]
    if taken:
        raise DataError(
            "predictions: a class cannot have the name of another column or none; "
            f"rename the class. Received: {taken[0]!r}"
        )
    if len(set(class_names)) != len(class_names):
        raise DataError(
            f"predictions: expected different class names. Received: {list(class_names)}"
        )


def _box_place(columns: pd.Index) -> int:
    """Return the place of the first column of the box, or the end if there is none."""
    names = list(columns)
    return names.index(BOX_COLUMNS[0]) if BOX_COLUMNS[0] in names else len(names)


def _check_columns(path: str | Path, columns: list[str]) -> None:
    place = _box_place(pd.Index(columns))
    first, box = columns[: len(CELL_COLUMNS)], columns[place : place + len(BOX_COLUMNS)]
    if tuple(first) != CELL_COLUMNS or tuple(box) != BOX_COLUMNS:
        raise DataError(
            f"{path}: is not a predictions table; expected the columns {','.join(CELL_COLUMNS)}, "
            f"the classes, {','.join(BOX_COLUMNS)}. Received: {','.join(columns)}"
        )
    if place == len(CELL_COLUMNS):
        raise DataError(
            f"{path}: holds no probabilities, so it cannot be scored; expected a column for each "
            f"class between {CELL_COLUMNS[-1]} and {BOX_COLUMNS[0]}; evaluate or predict again"
        )


def _read_accepted(path: str | Path, texts: pd.Series[str]) -> pd.Series[bool]:
    if not texts.isin(["true", "false"]).all():
        raise DataError(f"{path}: {ACCEPTED} is neither true nor false in a row; write it anew")
    return texts == "true"


def _read_numbers(path: str | Path, texts: pd.DataFrame) -> pd.DataFrame:
    try:
        return texts.astype(np.float64).astype(np.float32)
    except ValueError as error:
        raise DataError(
            f"{path}: a probability, box or novelty is not a number ({error})"
        ) from error
