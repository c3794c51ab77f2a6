"""CSV manifests: ``file,label[,patient|group][,split]``, every fault with its row."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PureWindowsPath

from wbc_keras.errors import DataError
from wbc_keras.manifest.table import (
    IMAGE_SUFFIXES,
    MANIFEST,
    REANNOTATIONS,
    Manifest,
    is_picture,
    list_some,
    make_manifest,
    normalise,
    read_annotation,
    refuse_rows,
    repeated,
)

_SPLITS = {
    "": "",
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


def read_csv(path: Path, *, label_column: str, labelled: bool) -> Manifest:
    """Read a CSV; its rows are checked, its files looked for."""
    header, numbered = _parse_csv(path)
    if not labelled and label_column not in header:
        label_column = ""
    needed = [column for column in ("file", label_column) if column]
    _require_columns(path, header, needed)
    numbers = [number for number, _ in numbered]
    columns = {
        column: [row[index].strip() for _, row in numbered] for index, column in enumerate(header)
    }
    rows = {
        "file": [normalise(file) for file in columns["file"]],
        "label": columns.get(label_column, [""] * len(numbers)),
        "group": _choose_group(columns),
        "split": [_SPLITS.get(value.lower(), "?") for value in columns.get("split", [])],
    }
    if not rows["split"]:
        del rows["split"]
    for column in REANNOTATIONS:
        if any(columns.get(column, ())):
            rows[column] = [read_annotation(value) for value in columns[column]]
    _check_rows(path, numbers, rows, columns, labelled=labelled)
    _check_files(path, numbers, rows["file"])
    name = "" if path.name == MANIFEST else path.stem
    return make_manifest(path.parent, rows, name=name)


def _parse_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and the rows, each with its number in the file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV file ({error}); save it as CSV, UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(lines) < 2:
        what = "has no rows under its header" if lines else "is empty"
        raise DataError(f"{path}: {what}; add one row for each picture: file,label")
    header = [cell.strip() for cell in lines[0][1]]
    uneven = [str(number) for number, row in lines[1:] if len(row) != len(header)]
    if uneven:
        raise DataError(
            f"{path}: {len(uneven)} rows do not have the header's {len(header)} fields: "
            f"row {list_some(uneven)}; quote a value that holds a comma"
        )
    return header, lines[1:]


def _require_columns(path: Path, header: Sequence[str], needed: Sequence[str]) -> None:
    missing = [column for column in needed if column not in header]
    if missing:
        hint = "; separate columns by commas" if ";" in header[0] or "\t" in header[0] else ""
        raise DataError(
            f"{path}: no column {' or '.join(missing)}; the columns file and label are needed "
            f"(another label column: data.label_column){hint}. Received: {', '.join(header)}"
        )
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise DataError(f"{path}: column {', '.join(twice)} stands twice; keep one")


def _choose_group(columns: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Return the `group` column, or `patient` where there is no filled `group`."""
    for column in ("group", "patient"):
        if any(columns.get(column, ())):
            return columns[column]
    return [""] * len(columns["file"])


def _check_rows(
    path: Path,
    numbers: Sequence[int],
    rows: Mapping[str, Sequence[str]],
    columns: Mapping[str, Sequence[str]],
    *,
    labelled: bool,
) -> None:
    def refuse(faulty: Iterable[bool], what: str, values: Sequence[str] | None = None) -> None:
        refuse_rows(path, numbers, faulty=faulty, what=what, values=values)

    files, groups = rows["file"], rows["group"]
    refuse((not file for file in files), "the file is empty; name one or remove the row")
    refuse(
        (not _stays_inside(file) for file in files),
        "the file leaves the data folder; give paths inside it, relative to the CSV",
        files,
    )
    refuse(
        (not is_picture(file) for file in files),
        f"the file is not a picture ({' '.join(IMAGE_SUFFIXES)})",
        files,
    )
    refuse(repeated(files), "the file stands in an earlier row; keep one of them", files)
    if labelled:
        refuse((not label for label in rows["label"]), "the label is empty; fill it")
    if any(groups):
        refuse(
            (not group for group in groups),
            "the patient or group is empty while other rows have one; fill it or drop the column",
        )
    refuse(
        (split == "?" for split in rows.get("split", ())),
        "the split is none of train, validation, test",
        columns.get("split"),
    )


def _check_files(path: Path, numbers: Sequence[int], files: Sequence[str]) -> None:
    """Raise unless every file exists and, links followed, lies under the CSV's folder."""
    root = path.parent
    refuse_rows(
        path,
        numbers,
        faulty=(not (root / file).is_file() for file in files),
        what=f"no such file; paths are relative to {root}",
        values=files,
    )
    is_inside = _link_checker(root)
    refuse_rows(
        path,
        numbers,
        faulty=(not is_inside(file) for file in files),
        what="the file is a link that leaves the data folder; copy the picture into it",
        values=files,
    )


def _link_checker(root: Path) -> Callable[[str], bool]:
    """Return a function that tells whether a file under ``root`` truly lies there."""
    real_root = os.path.realpath(root)
    parents: dict[str, bool] = {}

    def is_under(path: str) -> bool:
        return os.path.commonpath([real_root, os.path.realpath(path)]) == real_root

    def is_inside(file: str) -> bool:
        path = os.path.join(root, file)
        parent = os.path.dirname(path)
        # Each folder once: a table may have 100,000 rows.
        if parent not in parents:
            parents[parent] = is_under(parent)
        return parents[parent] and (not os.path.islink(path) or is_under(path))

    return is_inside


def _stays_inside(file: str) -> bool:
    is_absolute = file.startswith("/") or bool(PureWindowsPath(file).drive) or "\0" in file
    return not is_absolute and file != ".." and not file.startswith("../")
