"""One pass over the picture files: what each header says, and a few figures; no picture is kept.

What was seen, and the copies found, are kept in the cache for training: `survey_once`.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from wbc_keras.cache import cache_dir, hash_files, materialise
from wbc_keras.checking import duplicates
from wbc_keras.checking.duplicates import SIDE, Copies, Pictures, find_copies, fingerprint, shrink
from wbc_keras.commands import silent_stderr
from wbc_keras.pictures import headers
from wbc_keras.pictures.headers import Header, HeaderError, HugeError, read_header

logger = logging.getLogger(__name__)

# Grey levels of standard deviation under which nothing is to be seen on the small picture.
BLANK = 4.0
_COLUMNS = ("sizes", "digests", "contrasts", "colours", "fingerprints")
# What a survey that is not there, cut short or damaged raises.
_UNREADABLE = (
    AttributeError,
    EOFError,
    KeyError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
_BATCH = 2048
_REMEMBERED = 4096


Loader = Callable[[int], Pictures | None]


@dataclass(frozen=True)
class Fault:
    """Why a file cannot be used: `problem` is unreadable, damaged, huge or tiny."""

    problem: str
    reason: str


@dataclass(frozen=True, eq=False)
class Survey:
    """What was seen of n pictures, in their order; figures are 0 where a picture has a fault.

    Attributes:
        root: folder that `files` are relative to.
        files: the n pictures.
        faults: by row, for files that are no picture or that the header or OpenCV refuses.
        forms: by row, what is out of the ordinary though it is read: frames, 16 bits.
        sizes: int32 (n, 2), width and height.
        digests: uint64 (n,), of the bytes. Among a million files, two different ones share one by
            chance in three cases of a hundred million.
        contrasts: float32 (n,), standard deviation of the small picture's liveliest channel.
        colours: float32 (n,), mean distance between the highest and the lowest channel.
        fingerprints: float32 (n, 23), see `duplicates.fingerprint`.
    """

    root: Path
    files: Sequence[str]
    faults: Mapping[int, Fault]
    forms: Mapping[int, str]
    sizes: npt.NDArray[np.int32]
    digests: npt.NDArray[np.uint64]
    contrasts: npt.NDArray[np.float32]
    colours: npt.NDArray[np.float32]
    fingerprints: npt.NDArray[np.float32]

    def is_seen(self) -> npt.NDArray[np.bool_]:
        """Return bool (n,): without a fault."""
        seen = np.ones(len(self.files), bool)
        seen[list(self.faults)] = False
        return seen

    def is_blank(self) -> npt.NDArray[np.bool_]:
        """Return bool (n,): seen, and nearly uniform."""
        return self.is_seen() & (self.contrasts < BLANK)

    def with_damaged(self, damaged: Mapping[str, str]) -> Survey:
        """Return the survey with further faults: the reason of files that cannot be used."""
        rows = [row for row, file in enumerate(self.files) if file in damaged]
        kinds = {row: "tiny" if self.sizes[row].min() == 1 else "damaged" for row in rows}
        found = {row: Fault(kind, damaged[self.files[row]]) for row, kind in kinds.items()}
        return dataclasses.replace(self, faults={**found, **self.faults})

    def find_copies(self) -> Copies:
        """Find the copies among the pictures that are neither faulty nor blank."""
        rows = np.flatnonzero(self.is_seen() & ~self.is_blank())
        return find_copies(self.fingerprints, self.digests, rows=rows, load=self.load_small())

    def load_small(self) -> Loader:
        """Return a function that gives the small picture of a row; the last ones are remembered."""

        @functools.lru_cache(maxsize=_REMEMBERED)
        def load(row: int) -> Pictures | None:
            return _look_at(self.root / self.files[row]).small

        return load


def survey_pictures(root: Path, files: Sequence[str]) -> Survey:
    """Look once at every picture of ``files``, which are relative to ``root``."""
    faults: dict[int, Fault] = {}
    forms: dict[int, str] = {}
    columns: list[npt.NDArray[Any]] = []
    # libpng writes a line of its own for each damaged file.
    with silent_stderr(), ThreadPoolExecutor(os.cpu_count()) as pool:
        # In parts: a million waiting calls would take a gigabyte.
        for start in range(0, len(files), _BATCH):
            paths = [root / file for file in files[start : start + _BATCH]]
            looks = list(pool.map(_look_at, paths))
            faults |= {start + i: look.fault for i, look in enumerate(looks) if look.fault}
            forms |= {start + i: look.form for i, look in enumerate(looks) if look.form}
            part = _measure(looks)
            columns = columns or [np.zeros((len(files), *c.shape[1:]), c.dtype) for c in part]
            for column, values in zip(columns, part, strict=True):
                column[start : start + len(looks)] = values
    return Survey(root, files, faults, forms, *columns)


def survey_once(root: Path, files: Sequence[str]) -> tuple[Survey, Copies]:
    """Return what `survey_pictures` sees of the files, and the copies among them.

    Looked at the first time; then read from the cache for as long as no file changes size or time.

    Raises:
        DataError: the cache cannot be written.
    """
    code = (sys.modules[__name__], duplicates, headers)
    key = hash_files(root, files, code=code, settings=cv2.__version__)
    folder = cache_dir() / "surveys" / key[:32]
    materialise(
        folder,
        lambda target: _write(target, root, files),
        is_whole=lambda path: _is_whole(path, len(files)),
    )
    columns, about = _read(folder)
    faults = {int(row): Fault(*fault) for row, fault in about["faults"].items()}
    forms = {int(row): form for row, form in about["forms"].items()}
    units = columns.pop("units")
    return Survey(root, files, faults, forms, **columns), Copies(units)


def _write(folder: Path, root: Path, files: Sequence[str]) -> None:
    logger.info("looking for copies among %d pictures", len(files))
    survey = survey_pictures(root, files)
    columns = {name: getattr(survey, name) for name in _COLUMNS}
    np.savez(folder / "survey.npz", units=survey.find_copies().units, **columns)
    faults = {row: dataclasses.astuple(fault) for row, fault in survey.faults.items()}
    about = {"source": str(root), "faults": faults, "forms": survey.forms}
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")


def _is_whole(folder: Path, count: int) -> bool:
    """Tell whether a survey is there and can be read; the archive holds checksums."""
    try:
        columns, about = _read(folder)
        return {"faults", "forms"} <= about.keys() and all(
            len(columns[name]) == count for name in ("units", *_COLUMNS)
        )
    except _UNREADABLE:
        return False


def _read(folder: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    # Opened here: NumPy leaves a file that it cannot read open.
    with (folder / "survey.npz").open("rb") as stream, np.load(stream) as stored:
        columns = {name: stored[name] for name in stored.files}
    return columns, json.loads((folder / "about.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class _Look:
    """What one thread saw of one file."""

    fault: Fault | None = None
    form: str = ""
    size: tuple[int, int] = (0, 0)
    digest: int = 0
    contrast: float = 0.0
    small: Pictures | None = None


def _look_at(path: Path) -> _Look:
    try:
        encoded = path.read_bytes()
        header = read_header(encoded)
    except OSError as error:
        return _Look(Fault("unreadable", f"cannot be read ({error.strerror})"))
    except HugeError as error:
        return _Look(Fault("huge", str(error)))
    except HeaderError as error:
        return _Look(Fault("unreadable", str(error)))
    size = header.width, header.height
    small = shrink(encoded, size=size, kind=header.kind)
    if small is None:
        return _Look(Fault("damaged", f"the {header.kind} data are damaged or truncated"))
    digest = int.from_bytes(hashlib.blake2b(encoded, digest_size=8).digest(), "little")
    contrast = float(cv2.meanStdDev(small)[1].max())
    return _Look(None, _describe_form(header), size, digest, contrast, small)


def _describe_form(header: Header) -> str:
    if header.frames > 1:
        what = "pages" if header.kind == "TIFF" else "frames"
        return f"{header.frames} {what}; the first is read"
    if header.bits > 8:
        return f"{header.bits} bits a channel; the upper 8 are read"
    return ""


def _measure(looks: Sequence[_Look]) -> tuple[npt.NDArray[Any], ...]:
    """Return sizes, digests, contrasts, colours and fingerprints."""
    nothing = np.zeros((SIDE, SIDE, 3), np.uint8)
    small = np.stack([nothing if look.small is None else look.small for look in looks])
    blue, green, red = small[..., 0], small[..., 1], small[..., 2]
    highest = np.maximum(np.maximum(blue, green), red)
    lowest = np.minimum(np.minimum(blue, green), red)
    return (
        np.array([look.size for look in looks], np.int32),
        np.array([look.digest for look in looks], np.uint64),
        np.array([look.contrast for look in looks], np.float32),
        (highest - lowest).mean(axis=(1, 2), dtype=np.float32),
        fingerprint(small),
    )
