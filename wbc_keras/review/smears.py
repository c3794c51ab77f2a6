"""Smears on the desk: cells looked at together, classified in the background while people look."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from wbc_keras import runs
from wbc_keras.cache import hash_file
from wbc_keras.manifest import Manifest, read_manifest
from wbc_keras.pictures.cells import CHUNK
from wbc_keras.prediction.archive import classify_chunks
from wbc_keras.prediction.predictor import Predictor

logger = logging.getLogger(__name__)

PICTURES = "pictures"  # under the output folder: uploaded pictures that were corrected
_FIRST_LOOK = 5.0  # seconds that a page may take to show its first cell


@dataclass(frozen=True)
class Source:
    """Where the cells of a smear are.

    Attributes:
        manifest: the cells.
        cells: for each, the folder and file that its reviews are kept under (`reviews.Review`).
        kept: where the reviews' own pictures lie; None for cells that stay in their data folder.
    """

    manifest: Manifest
    cells: tuple[tuple[str, str], ...]
    kept: Path | None = None

    def path(self, row: int) -> Path:
        """Return where a cell's picture is."""
        return self.manifest.root / str(self.manifest.table["file"].iloc[row])

    def keep(self, row: int) -> None:
        """Copy an uploaded picture beside its review, so that it can be a label."""
        if self.kept is None:
            return
        target = self.kept / self.cells[row][1]
        if not target.exists():
            with runs.replacing(target) as temporary:
                shutil.copyfile(self.path(row), temporary)


def open_data(data: str | Path) -> Source:
    """Read any source that ``--data`` takes, labelled or not; pictures are not decoded.

    Raises:
        DataError: it is no source.
    """
    manifest = read_manifest(data, labelled=False)
    folder = str(manifest.root.resolve())
    return Source(manifest, tuple((folder, file) for file in manifest.table["file"]))


def open_uploads(files: Sequence[Path], output: Path) -> Source:
    """Take pictures that were dropped on the page.

    A picture is known by its contents and name: dropped again, it has the reviews it had.

    Raises:
        DataError: a file is no picture by its name.
    """
    manifest = read_manifest(files, labelled=False)
    with ThreadPoolExecutor() as pool:
        names = pool.map(_name_upload, manifest.paths())
        return Source(manifest, tuple(("", f"{PICTURES}/{name}") for name in names), output)


def _name_upload(path: Path) -> str:
    return f"{hash_file(path)[:12]}-{path.name}"


class Smear:
    """Cells and what the model says of them, as far as it has come once it was started.

    Args:
        source: the cells, at least one.
        predictor: shared with others.
    """

    def __init__(self, source: Source, predictor: Predictor) -> None:
        self.source = source
        self.failure = ""
        self._predictor = predictor
        self._parts: list[pd.DataFrame] = []
        self._lock = threading.Lock()
        self._stopped, self._seen = threading.Event(), threading.Event()
        # Ends with the program, which an archive of days must not hold up.
        self._thread = threading.Thread(target=self._classify, daemon=True)

    def start(self) -> None:
        """Begin to classify."""
        self._thread.start()

    @property
    def total(self) -> int:
        """How many cells there are."""
        return len(self.source.manifest.table)

    @property
    def done(self) -> int:
        """How many the model has answered."""
        with self._lock:
            return sum(map(len, self._parts))

    @property
    def is_running(self) -> bool:
        """Whether more answers will come."""
        return self._thread.ident is None or self._thread.is_alive()

    def wait(self, seconds: float) -> None:
        """Wait until all cells are answered, but not for ever."""
        self._thread.join(seconds)

    def table(self) -> pd.DataFrame:
        """Return the answers so far: rows of the predictions table, in the source's order."""
        with self._lock:
            if len(self._parts) > 1:
                self._parts = [pd.concat(self._parts, ignore_index=True)]
            return self._parts[0] if self._parts else self._predictor.tabulate([], [])

    def see(self) -> None:
        """Know that a page shows one of the cells, so that the others may take all cores."""
        self._seen.set()

    def stop(self) -> None:
        """Leave off after the cells in work."""
        self._stopped.set()
        self._seen.set()

    def _answer(self) -> Iterator[pd.DataFrame]:
        """Yield the first cells' answers at once, the others when the page has shown a cell."""
        manifest = self.source.manifest
        yield from classify_chunks(self._predictor, manifest.select(np.arange(self.total) < CHUNK))
        if self.total > CHUNK:
            self._seen.wait(_FIRST_LOOK)
        yield from classify_chunks(self._predictor, manifest, start=CHUNK)

    def _classify(self) -> None:
        try:
            for part in self._answer():
                with self._lock:
                    self._parts.append(part)
                if self._stopped.is_set():
                    return
        except Exception as error:  # told on the page: nobody waits for this thread
            logger.exception("classifying stopped")
            self.failure = f"Classifying stopped: {error}"
