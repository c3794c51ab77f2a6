"""The Munich set, AML-Cytomorphology_LMU (Matek et al. 2019), as it is unpacked.

``<CODE>/<CODE>_0001.tiff`` (400x400 pixels, four channels; JPEG and PNG copies do as well), in the
given folder or deeper, beside ``annotations.dat``: a picture, its label and two re-annotations, or
``nan`` for each that was not made. A re-annotator who could assign no class wrote ``UNC``.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from wbc_keras.errors import DataError
from wbc_keras.manifest.folders import find_pictures
from wbc_keras.manifest.table import (
    MUNICH,
    REANNOTATIONS,
    Manifest,
    list_some,
    make_manifest,
    normalise,
    read_annotation,
    refuse_rows,
    repeated,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Annotations:
    """The rows of annotations.dat: ``files`` as written there, one entry of each field a row.

    ``reannotations`` are a row's two, "" where there is none. ``numbers`` are the rows' lines.
    """

    numbers: tuple[int, ...]
    files: tuple[str, ...]
    labels: tuple[str, ...]
    reannotations: tuple[tuple[str, str], ...]


def read_munich(folder: Path) -> Manifest:
    """Read the set; the first label counts, the others become the columns `REANNOTATIONS`.

    Pictures without a row have no label: they are left out and named in a warning.

    Raises:
        DataError: annotations.dat cannot be used, or names pictures that are not there.
    """
    path = folder / MUNICH
    annotations = read_annotations(path)
    present = sorted(find_pictures(folder))
    files = _match_pictures(present, annotations.files)
    missing = [named for named, file in zip(annotations.files, files, strict=True) if file is None]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(files)} rows have no picture in {folder}: "
            f"{list_some(missing)}; unpack the code folders (BAS, EBO, ...) beside {MUNICH}"
        )
    found = [file for file in files if file is not None]
    refuse_rows(
        path,
        annotations.numbers,
        faulty=repeated(found),
        what="the file stands in an earlier row; keep one of them",
        values=found,
    )
    _warn_of_strays(path, sorted(set(present) - set(found)))
    again = zip(*annotations.reannotations, strict=True)
    columns = {name: list(values) for name, values in zip(REANNOTATIONS, again, strict=True)}
    return make_manifest(folder, {"file": found, "label": list(annotations.labels), **columns})


def read_annotations(path: Path) -> Annotations:
    """Read annotations.dat: ``BAS/BAS_0001.tiff BAS nan nan``; the pictures are not looked for.

    Raises:
        DataError: it cannot be read, is empty, or a row is not of this form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give the Munich set's {MUNICH}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"{path}: is empty; take the file from the Munich set's own archive")
    refuse_rows(
        path,
        [number for number, _ in rows],
        faulty=(not 2 <= len(row) <= 4 or not read_annotation(row[1]) for _, row in rows),
        what="expected `BAS/BAS_0001.tiff BAS nan nan`: a file, its label, two re-annotations",
        values=[" ".join(row) for _, row in rows],
    )
    return Annotations(
        tuple(number for number, _ in rows),
        tuple(normalise(row[0]) for _, row in rows),
        tuple(row[1] for _, row in rows),
        tuple(_reannotations(row[2:]) for _, row in rows),
    )


def _reannotations(values: Sequence[str]) -> tuple[str, str]:
    first, second = (read_annotation(value) for value in [*values, "", ""][:2])
    return first, second


def _match_pictures(present: Sequence[str], named: Sequence[str]) -> list[str | None]:
    """Return for each named file the picture of that name, or of that stem in another format.

    The code folders may lie in a folder of their own, so code folder and stem are what counts.
    """
    by_name, by_stem = set(present), {_code_and_stem(file): file for file in present}
    return [file if file in by_name else by_stem.get(_code_and_stem(file)) for file in named]


def _code_and_stem(file: str) -> str:
    return posixpath.splitext("/".join(file.split("/")[-2:]))[0]


def _warn_of_strays(path: Path, files: Sequence[str]) -> None:
    if files:
        count = "1 picture has" if len(files) == 1 else f"{len(files)} pictures have"
        some = list_some(files)
        logger.warning("%s: %s no row and no label, so left out: %s", path, count, some)
