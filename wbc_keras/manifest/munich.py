"""The Munich set, AML-Cytomorphology_LMU (Matek et al. 2019), as it is unpacked."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path

from wbc_keras.errors import DataError
from wbc_keras.manifest.folders import find_pictures
from wbc_keras.manifest.table import (
    MUNICH,
    Manifest,
    list_some,
    make_manifest,
    normalise,
    refuse_rows,
    repeated,
)


def read_munich(folder: Path) -> Manifest:
    """Read annotations.dat: ``BAS/BAS_0001.tiff BAS nan nan``; the first label counts."""
    path = folder / MUNICH
    numbers, named, labels = _parse_annotations(path)
    files = _match_pictures(folder, named)
    missing = [named[index] for index, file in enumerate(files) if file is None]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(named)} rows have no picture in {folder}: "
            f"{list_some(missing)}; unpack the code folders (BAS, EBO, ...) beside {MUNICH}"
        )
    found = [file for file in files if file is not None]
    refuse_rows(
        path,
        numbers,
        faulty=repeated(found),
        what="the file stands in an earlier row; keep one of them",
        values=found,
    )
    return make_manifest(folder, {"file": found, "label": labels})


def _parse_annotations(path: Path) -> tuple[list[int], list[str], list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"{path}: is empty; take the file from the Munich set's own archive")
    refuse_rows(
        path,
        [number for number, _ in rows],
        faulty=(len(row) < 2 or row[1].lower() == "nan" for _, row in rows),
        what="expected `BAS/BAS_0001.tiff BAS nan nan`: a file and its label",
        values=[" ".join(row) for _, row in rows],
    )
    files = [normalise(row[0]) for _, row in rows]
    return [number for number, _ in rows], files, [row[1] for _, row in rows]


def _match_pictures(folder: Path, named: Sequence[str]) -> list[str | None]:
    """Return for each named file the picture of that name, or of that stem in another format.

    The code folders may lie in a folder of their own, so code folder and stem are what counts.
    """
    present = sorted(find_pictures(folder))
    by_name, by_stem = set(present), {_code_and_stem(file): file for file in present}
    return [file if file in by_name else by_stem.get(_code_and_stem(file)) for file in named]


def _code_and_stem(file: str) -> str:
    return posixpath.splitext("/".join(file.split("/")[-2:]))[0]
