"""The table of corrections, ``reviews.csv``: read, and added to so that nothing is ever lost.

A row is on the disk when `Corrections.add` returns. Programs and windows that share the file take
turns by a lock, and see each other's rows.
"""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import filelock

from wbc_keras.errors import DataError, RunError
from wbc_keras.manifest.reviews import (
    COLUMNS,
    Review,
    is_row,
    read_rows,
    review_line,
    standing,
    to_line,
)

REVIEWS = "reviews.csv"
_NOTHING = (0, 0)
_PATIENCE = 10.0  # seconds; a row takes milliseconds


class Corrections:
    """The reviews of one output folder; threads may share it.

    Raises:
        RunError: the folder cannot be written.
        DataError: it holds a ``reviews.csv`` that is no table of reviews.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / REVIEWS
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be written ({error.strerror}); choose another --output"
            ) from error
        if not os.access(self.path if self.path.exists() else folder, os.W_OK):
            raise RunError(f"{self.path}: cannot be written; choose another --output")
        self._guard = threading.Lock()
        self._rows: tuple[Review, ...] = ()
        self._standing: dict[tuple[str, str], list[Review]] = {}
        self._state = _NOTHING
        with self._guard:
            self._read()

    def rows(self) -> tuple[Review, ...]:
        """Return all rows, others' new ones too."""
        with self._guard:
            self._read()
            return self._rows

    def standing(self) -> dict[tuple[str, str], list[Review]]:
        """Return what reviewers now say of each cell, the last one last."""
        with self._guard:
            self._read()
            return self._standing

    def of(self, cell: tuple[str, str]) -> list[Review]:
        """Return what reviewers now say of one cell, the last one last."""
        return self.standing().get(cell, [])

    def add(self, review: Review) -> None:
        """Append a row; it is on the disk when this returns.

        Raises:
            DataError: the table is held by another program for long, or was broken meanwhile.
            OSError: the disk is full, or gone; the table is as it was before.
        """
        line = review_line(review)
        if line.count("\n") > 1:
            raise DataError(f"{review.file!r}: a name of two lines cannot be kept; rename it")
        try:
            with self._guard, filelock.FileLock(f"{self.path}.lock", timeout=_PATIENCE):
                # What is there is read first: a table that someone broke is not added to.
                self._read()
                self._append(line)
                self._read()
        except filelock.Timeout:
            raise DataError(
                f"{self.path}: another program holds it; close that and try again"
            ) from None

    def _append(self, line: str) -> None:
        with self.path.open("a+b", buffering=0) as stream:
            size = stream.seek(0, os.SEEK_END)
            data = ((_end_last_row(stream) if size else to_line(COLUMNS)) + line).encode("utf-8")
            whole = stream.seek(0, os.SEEK_END)
            try:
                if stream.write(data) < len(data):
                    raise OSError(f"{self.path}: the disk is full; make room")
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(whole)
                raise

    def _read(self) -> None:
        """Read the table anew if it is not as it was left."""
        found = self.path.stat() if self.path.exists() else None
        state = (found.st_size, found.st_mtime_ns) if found else _NOTHING
        if state != self._state:
            self._rows = read_rows(self.path) if state[0] else ()
            self._standing = standing(self._rows)
            self._state = state


def _end_last_row(stream: io.FileIO) -> str:
    """Return what ends a last row that an editor left open; one that was cut off is removed."""
    stream.seek(0)
    text = stream.read()
    if text.endswith(b"\n"):
        return ""
    start = text.rfind(b"\n") + 1
    if is_row(text[start:].decode("utf-8", "replace")):
        return "\n"
    stream.truncate(start)
    return ""
