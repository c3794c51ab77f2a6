"""CSV manifests: ``file,label[,patient|group][,split]``, every fault with its row."""

from __future__ import annotations

import csv
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wbc_keras.errors import DataError
from wbc_keras.manifest.table import (
    IMAGE_SUFFIXES,
    LEAVES,
    MANIFEST,
    REANNOTATIONS,
    Manifest,
    is_picture,
    link_checker,
    list_some,
    make_manifest,
    normalise,
    read_annotation,
    refuse_rows,
    repeated,
    stays_inside,
)

_Columns = dict[str, list[str]]

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
    header, numbers, columns = _parse_csv(path, label_column)
    if not labelled and label_column not in header:
        label_column = ""
    needed = [column for column in ("file", label_column) if column]
    _require_columns(path, header, needed)
    files = columns["file"]
    rows = {
        "file": files,
        "label": columns.get(label_column, [""] * len(files)),
        "group": _choose_group(columns),
        "split": [_SPLITS.get(value.lower(), "?") for value in columns.get("split", [])],
    }
    if not rows["split"]:
        del rows["split"]
    for column in REANNOTATIONS:
        if any(columns.get(column, ())):
            rows[column] = [read_annotation(value) for value in columns[column]]
    _check_rows(path, numbers, rows, columns, labelled=labelled)
    _check_files(path, numbers, files)
    name = "" if path.name == MANIFEST else path.stem
    return make_manifest(path.parent, rows, name=name)


def _parse_csv(path: Path, label_column: str) -> tuple[list[str], Sequence[int], _Columns]:
    """Return the header, each row's number in the file, and the columns that matter."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            lines = ((reader.line_num, row) for row in reader if any(map(str.strip, row)))
            _, first = next(lines, (0, []))
            header = [cell.strip() for cell in first]
            numbers, columns, uneven = _collect(lines, header, label_column)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV file ({error}); save it as CSV, UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if uneven:
        raise DataError(
            f"{path}: {len(uneven)} rows do not have the header's {len(header)} fields: "
            f"row {list_some(uneven)}; quote a value that holds a comma"
        )
    if not numbers:
        what = "has no rows under its header" if header else "is empty"
        raise DataError(f"{path}: {what}; add one row for each picture: file,label")
    return header, numbers, columns


def _collect(
    lines: Iterable[tuple[int, list[str]]], header: Sequence[str], label_column: str
) -> tuple[Sequence[int], _Columns, list[str]]:
    """Keep of each row what is needed, once: a table may have a million."""
    wanted = {"file", label_column, "group", "patient", "split", *REANNOTATIONS}
    places = [(name, place) for place, name in enumerate(header) if name in wanted]
    columns: _Columns = {name: [] for name, _ in places}
    numbers, uneven, known = array("Q"), list[str](), dict[str, str]()
    for number, row in lines:
        if len(row) != len(header):
            uneven.append(str(number))
            continue
        numbers.append(number)
        for name, place in places:
            value = row[place].strip()
            # Labels, patients and splits repeat: one string serves all their rows.
            value = normalise(value) if name == "file" else known.setdefault(value, value)
            columns[name].append(value)
    return numbers, columns, uneven


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
        (not stays_inside(file) for file in files),
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
    folder = os.fspath(path.parent)
    refuse_rows(
        path,
        numbers,
        faulty=(not os.path.isfile(f"{folder}/{file}") for file in files),
        what=f"no such file; paths are relative to {folder}",
        values=files,
    )
    is_inside = link_checker(folder)
    refuse_rows(
        path,
        numbers,
        faulty=(not is_inside(file) for file in files),
        what=f"the file {LEAVES}",
        values=files,
    )
