"""What people said of cells at the review desk: ``reviews.csv``, as written and as a source.

Each row is the whole answer of one reviewer to one cell at one time. A later row of the same
reviewer replaces it; of several reviewers the last one counts.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

from wbc_keras.errors import DataError
from wbc_keras.manifest.table import (
    LEAVES,
    Manifest,
    is_picture,
    link_checker,
    list_some,
    make_manifest,
    refuse_rows,
    require_utf8,
    stays_inside,
)

logger = logging.getLogger(__name__)

_TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True)
class Review:
    """One row.

    Attributes:
        file: the picture, relative to ``folder``.
        predicted: what the model had said, "" if it could not read the picture.
        corrected: the reviewer's class, the predicted one where it was confirmed; "" where none
            was given.
        reviewer: name or initials.
        time: when, ISO 8601 in UTC.
        flagged: whether the cell is to be looked at again; it is no label then.
        patient: whom the cell was taken from, "" if that is not known.
        folder: the data folder; "" for a picture that lies beside the table.
    """

    file: str
    predicted: str
    corrected: str
    reviewer: str
    time: str
    flagged: bool = False
    patient: str = ""
    folder: str = ""

    @property
    def cell(self) -> tuple[str, str]:
        """What the review is of."""
        return self.folder, self.file

    @property
    def stands(self) -> bool:
        """Whether it says anything: one without a class and a flag takes the earlier one back."""
        return bool(self.corrected) or self.flagged


COLUMNS = tuple(field.name for field in fields(Review))


def now() -> str:
    """Return the time as a review holds it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def is_reviews(path: Path) -> bool:
    """Tell by its header whether a CSV is a table of reviews."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            return tuple(next(csv.reader(stream), ())) == COLUMNS
    except (OSError, UnicodeDecodeError, csv.Error):
        return False


def to_line(values: Iterable[str | bool]) -> str:
    """Return a row as the file holds it."""
    texts = [str(value).lower() if isinstance(value, bool) else value for value in values]
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(texts)
    return line.getvalue()


def review_line(review: Review) -> str:
    """Return a review as the file holds it."""
    return to_line(astuple(review))


def is_row(line: str) -> bool:
    """Tell whether a line holds a whole review."""
    return _is_whole(next(csv.reader([line]), []))


def read_rows(path: Path) -> tuple[Review, ...]:
    """Read all rows, in the order they were written.

    A last row that a crash of the machine cut off is left out, with a warning.

    Raises:
        DataError: the file cannot be read, is no table of reviews, or a row is broken.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            text = stream.read()
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table of reviews ({error})") from error
    if not lines or tuple(lines[0]) != COLUMNS:
        raise DataError(
            f"{path}: is no table of reviews; expected the columns {','.join(COLUMNS)}. "
            f"Received: {','.join(lines[0]) if lines else 'an empty file'}"
        )
    rows = list(enumerate(lines[1:], 2))
    if rows and not text.endswith("\n") and not _is_whole(rows[-1][1]):
        logger.warning("%s: its last row was cut off and is left out", path)
        rows.pop()
    refuse_rows(
        path,
        [number for number, _ in rows],
        faulty=(not _is_whole(row) for _, row in rows),
        what=f"expected {len(COLUMNS)} fields, a file among them, and flagged true or false",
    )
    return tuple(_parse(row) for _, row in rows)


def standing(rows: Iterable[Review]) -> dict[tuple[str, str], list[Review]]:
    """Return for each cell what its reviewers now say, one review each, the last one last."""
    latest: dict[tuple[str, str], dict[str, Review]] = {}
    for row in rows:
        mine = latest.setdefault(row.cell, {})
        mine.pop(row.reviewer, None)
        if row.stands:
            mine[row.reviewer] = row
    return {cell: list(reviews.values()) for cell, reviews in latest.items() if reviews}


def read_reviews(path: Path, *, labelled: bool) -> Manifest:
    """Read reviews as a source: the label of a cell is the class that the last review gives it.

    A picture is looked for in the data folder that its row names, then in the table's own.

    Args:
        path: the table.
        labelled: whether cells that are flagged, or have no class, are left out.

    Raises:
        DataError: the table cannot be used, or pictures are not there.
    """
    last = [reviews[-1] for reviews in standing(read_rows(path)).values()]
    usable = [row for row in last if row.corrected and not row.flagged]
    if labelled and len(usable) < len(last):
        logger.warning("%s: %d flagged cells are left out", path, len(last) - len(usable))
    rows = usable if labelled else last
    if not rows:
        raise DataError(
            f"{path}: holds no cell with a class that was given or confirmed; review some first: "
            "python -m wbc_keras.review"
        )
    _check_names(path, rows)
    placed = _place(path, rows)
    root = _common_root([folder for folder, _ in placed])
    files = [os.path.relpath(folder / row.file, root) for folder, row in placed]
    columns = {
        "file": [Path(file).as_posix() for file in files],
        "label": ["" if row.flagged else row.corrected for _, row in placed],
        "group": [row.patient for _, row in placed],
    }
    return make_manifest(root, columns, name=path.stem)


def _is_whole(row: Sequence[str]) -> bool:
    flagged = COLUMNS.index("flagged")
    return len(row) == len(COLUMNS) and bool(row[0]) and row[flagged].lower() in _TRUTHS


def _parse(row: Sequence[str]) -> Review:
    values = dict(zip(COLUMNS, row, strict=True))
    flagged = _TRUTHS[values.pop("flagged").lower()]  # a spreadsheet writes TRUE
    return Review(**values, flagged=flagged)


def _check_names(path: Path, rows: Sequence[Review]) -> None:
    for what, is_sound in (("leaves the data folder", stays_inside), ("is no picture", is_picture)):
        faulty = [row.file for row in rows if not is_sound(row.file)]
        if faulty:
            raise DataError(f"{path}: a file {what}: {list_some(faulty)}; remove its rows")
    require_utf8(row.folder for row in rows)


def _place(path: Path, rows: Sequence[Review]) -> list[tuple[Path, Review]]:
    """Return each row with the folder that its picture lies in, each picture once, its last row.

    Links that leave the folder are refused, as in any source.
    """
    home = Path(os.path.abspath(path.parent))
    found: dict[Path, tuple[Path, Review]] = {}
    missing: list[str] = []
    inside = {folder: link_checker(folder) for folder in {home, *(Path(r.folder) for r in rows)}}
    for row in rows:
        folders = [Path(row.folder), home] if row.folder else [home]
        folder = next((one for one in folders if (one / row.file).is_file()), None)
        if folder is None:
            missing.append(row.file)
        elif not inside[folder](row.file):
            raise DataError(f"{path}: {row.file} {LEAVES}")
        else:
            found.pop(folder / row.file, None)
            found[folder / row.file] = (folder, row)
    if missing:
        where = sorted({row.folder for row in rows if row.folder and row.file in set(missing)})
        raise DataError(
            f"{path}: {len(missing)} pictures are not there: {list_some(missing)}; they are looked "
            f"for in {list_some([*where, str(home)])}. Put the table beside them if they were moved"
        )
    return list(found.values())


def _common_root(folders: Sequence[Path]) -> Path:
    return folders[0] if len(set(folders)) == 1 else Path(os.path.commonpath(folders))
