"""An archive of pictures, any number of them, through a predictor into one table.

Memory stays flat. What is done is kept in parts beside the output until all is there; a run that
was killed goes on after its last whole part.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import filelock
import pandas as pd
import threadpoolctl

from wbc_keras import runs
from wbc_keras.cache import hash_file
from wbc_keras.errors import DataError
from wbc_keras.manifest import Manifest
from wbc_keras.pictures.cells import CHUNK, map_ahead
from wbc_keras.pictures.images import BadImage, read_file
from wbc_keras.prediction.predictions import ERROR, NOVELTY, to_csv
from wbc_keras.prediction.predictor import Predictions, Predictor, model_files
from wbc_keras.progress import show_progress

_Chunk = TypeVar("_Chunk")

PART = 16 * CHUNK  # rows; what a kill loses at most

COUNTED = ("predicted", ERROR, NOVELTY)  # the columns that a tally is made of

_ABOUT = "_about.json"  # passed over by whoever reads a folder of Parquet files

# More cells than this beyond 99 % of the validation cells are worth a word: 1 % would be usual,
# and up to a tenth where the model knows a dozen validation cells only.
_FAR, _UNUSUAL = 0.99, 0.2


@dataclass(frozen=True)
class Tally:
    """What a finished table holds: cells of each class, pictures not read, and foreign cells."""

    predicted: Counter[str]
    bad: int
    foreign: int = 0  # farther from the training cells than 99 % of the validation cells

    def add(self, table: pd.DataFrame) -> Tally:
        """Return the tally with the rows of one more table: its columns `COUNTED`."""
        names = Counter(table.loc[table[ERROR] == "", "predicted"])
        bad, foreign = int((table[ERROR] != "").sum()), 0
        if NOVELTY in table:
            foreign = int((pd.to_numeric(table[NOVELTY]) > _FAR).sum())
        return Tally(self.predicted + names, self.bad + bad, self.foreign + foreign)

    def __str__(self) -> str:
        """Return the lines that a command prints."""
        width = max(map(len, self.predicted), default=0)
        lines = [f"{name:{width}}  {count}" for name, count in self.predicted.most_common()]
        if self.bad:
            lines.append(f"note: {self.bad} pictures cannot be used, see the column error")
        cells = self.predicted.total()
        if self.foreign > _UNUSUAL * cells:
            lines.append(
                f"note: {self.foreign / cells:.0%} of the cells are foreign to the model: its "
                f"answers may be wrong, see the column {NOVELTY}"
            )
        return "\n".join([*lines, f"{self.predicted.total() + self.bad} pictures"])


def classify_chunks(
    predictor: Predictor, manifest: Manifest, *, start: int = 0, overlays: Path | None = None
) -> Iterator[pd.DataFrame]:
    """Yield the tables of up to 64 pictures each, in order, in flat memory.

    Args:
        predictor: loaded for as many workers as there are cores.
        manifest: the pictures.
        start: rows to leave out.
        overlays: where each picture under its heatmap is written, as ``<file>.png``; the predictor
            must give them.
    """
    files, labels = manifest.table["file"], manifest.table["label"]
    slices = (slice(row, row + CHUNK) for row in range(start, len(files), CHUNK))
    chunks = ((list(files.iloc[rows]), list(labels.iloc[rows])) for rows in slices)
    work = partial(_classify, predictor, manifest.root, overlays)
    yield from map_chunks(lambda chunk: work(*chunk), chunks)


def map_chunks(
    work: Callable[[_Chunk], pd.DataFrame], chunks: Iterable[_Chunk]
) -> Iterator[pd.DataFrame]:
    """Yield the table of each chunk of pictures, in order, worked on by a thread for every core."""
    # A chunk's novelty is over sooner than threads of its own would come to rest again.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield from map_ahead(work, chunks)


def classify(
    predictor: Predictor, names: Sequence[str], reads: Iterable[Callable[[], bytes]]
) -> Predictions:
    """Read n pictures and classify them; one that cannot be read says so in its error.

    Args:
        predictor: a loaded model.
        names: what the pictures are called in errors.
        reads: n functions that read a picture's bytes, or raise BadImage or OSError.
    """
    encoded, unread = [], {}
    for place, read in enumerate(reads):
        try:
            encoded.append(read())
        except BadImage as fault:
            encoded.append(b"")
            unread[place] = fault.reason
        except OSError as error:
            encoded.append(b"")
            unread[place] = f"cannot be read ({error.strerror or error})"
    predictions = predictor.predict(encoded, names=names)
    reasons = enumerate(predictions.errors)
    errors = tuple(unread.get(place, reason) for place, reason in reasons)
    return dataclasses.replace(predictions, errors=errors)


def _classify(
    predictor: Predictor,
    root: Path,
    overlays: Path | None,
    files: list[str],
    labels: list[str],
) -> pd.DataFrame:
    reads = [partial(read_file, root / file) for file in files]
    predictions = classify(predictor, files, reads)
    if overlays is not None:
        _write_overlays(overlays, files, predictions.overlays or ())
    return predictor.table_of(predictions, files, labels)


def _write_overlays(folder: Path, files: Iterable[str], overlays: Iterable[bytes]) -> None:
    for file, png in zip(files, overlays, strict=True):
        if png:
            with runs.replacing(folder / f"{file}.png") as temporary:
                temporary.write_bytes(png)


def classify_archive(
    predictor: Predictor,
    manifest: Manifest,
    output: Path,
    *,
    about: dict[str, Any],
    resume: bool = False,
    overlays: Path | None = None,
) -> Tally:
    """Write the table of all pictures, whole or not at all, with a progress bar.

    Args:
        predictor: loaded for as many workers as there are cores.
        manifest: the pictures.
        output: a .csv or a .parquet.
        about: what decides the answers, see `describe`; a run is gone on with if it is the same.
        resume: whether to go on after the whole parts that a killed run left.
        overlays: as for `classify_chunks`.

    Raises:
        DataError: a killed run's parts are there and may not or cannot be gone on with, or another
            run is at work on them.
    """
    with open_parts(output, about=about, resume=resume) as folder:
        parts = _Parts(folder, output)
        done = min(len(parts.done()) * PART, len(manifest.table))
        chunks = classify_chunks(predictor, manifest, start=done, overlays=overlays)
        with show_progress(len(manifest.table), "pictures", done=done) as tell:
            for table in _gather(chunks, tell):
                parts.add(table)
        return parts.finish()


def describe(
    model: Path, manifest: Manifest, *, engine: str, overlays: Path | None
) -> dict[str, Any]:
    """Return what decides a table: hashes of the model and of the pictures' names and labels."""
    rows = hashlib.sha256()
    rows.update(os.fsencode(manifest.root.resolve()))
    for row in zip(manifest.table["file"], manifest.table["label"], strict=True):
        rows.update(repr(row).encode())
    return {
        "--data": rows.hexdigest(),
        "--model": hash_model(model),
        "--engine": engine,
        "--heatmaps": str(overlays.resolve()) if overlays else None,
    }


def hash_model(model: Path) -> str:
    """Return what tells a model of `predictor.find_model` from others."""
    files = hashlib.sha256()
    for path in model_files(model):
        files.update(f"{path.relative_to(model).as_posix()} {hash_file(path)}\n".encode())
    return files.hexdigest()


def part_folder(output: Path) -> Path:
    """Return where the parts of an unfinished table lie."""
    return output.with_name(f"{output.name}.parts")


@contextlib.contextmanager
def open_parts(output: Path, *, about: dict[str, Any], resume: bool) -> Iterator[Path]:
    """Yield the folder of the parts of an unfinished table, locked against other runs.

    Args:
        output: what the parts will become.
        about: what decides the answers; a run is gone on with if it is the same.
        resume: whether to go on with the parts that a killed run left.

    Raises:
        DataError: parts are there and may not or cannot be gone on with, or another run is at work
            on them.
    """
    folder = part_folder(output)
    _require_fresh(folder, about, resume=resume)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # The system frees it when its holder dies.
        with filelock.FileLock(folder / ".lock", timeout=0):
            if not (folder / _ABOUT).exists():
                runs.write_json(folder / _ABOUT, about)
            yield folder
    except filelock.Timeout:
        raise DataError(
            f"{output}: another run is writing it; wait for that, or choose another --output"
        ) from None


def _require_fresh(folder: Path, about: dict[str, Any], *, resume: bool) -> None:
    """Raise DataError if ``folder`` holds parts that cannot, or may not, be gone on with."""
    if not folder.exists():
        return
    if not resume:
        raise DataError(
            f"{folder}: holds what an unfinished run has done; --resume goes on with it, or remove "
            "it to begin anew"
        )
    try:
        found = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        found = {}
    changed = [name for name, value in about.items() if found.get(name, "?") != value]
    if changed:
        raise DataError(
            f"{folder}: was begun with another {', '.join(changed)}; resume with the same, or "
            "remove it to begin anew"
        )


@dataclass(frozen=True)
class _Parts:
    """The parts of a table, numbered files of the output's own format."""

    folder: Path
    output: Path

    def done(self) -> list[Path]:
        return sorted(self.folder.glob(f"[0-9]*{self.output.suffix}"))

    def add(self, table: pd.DataFrame) -> None:
        path = self.folder / f"{len(self.done()):08}{self.output.suffix}"
        with runs.replacing(path) as temporary:
            if self.output.suffix == ".parquet":
                table.to_parquet(temporary, index=False)
            else:
                temporary.write_text(to_csv(table), encoding="utf-8", newline="")

    def finish(self) -> Tally:
        """Join the parts into the output and remove them."""
        join = _join_parquet if self.output.suffix == ".parquet" else _join_csv
        with runs.replacing(self.output) as temporary:
            tally = join(self.done(), temporary)
        shutil.rmtree(self.folder)
        return tally


def _join_csv(parts: list[Path], output: Path) -> Tally:
    tally = Tally(Counter(), 0)
    with output.open("wb") as joined:
        for number, path in enumerate(parts):
            text = pd.read_csv(path, dtype=str, keep_default_na=False, na_filter=False)
            header = len(to_csv(text.iloc[:0]).encode()) if number else 0
            joined.write(path.read_bytes()[header:])
            tally = tally.add(text)
    return tally


def _join_parquet(parts: list[Path], output: Path) -> Tally:
    from pyarrow import parquet

    tally = Tally(Counter(), 0)
    with parquet.ParquetWriter(output, parquet.read_schema(parts[0])) as joined:
        for path in parts:
            rows = parquet.read_table(path)
            joined.write_table(rows)
            counted = [name for name in COUNTED if name in rows.column_names]
            tally = tally.add(rows.select(counted).to_pandas())
    return tally


def _gather(
    chunks: Iterator[pd.DataFrame], tell: Callable[[int], object]
) -> Iterator[pd.DataFrame]:
    """Put chunks together into parts, and tell of each chunk that it is done."""
    waiting: list[pd.DataFrame] = []
    for table in chunks:
        tell(len(table))
        waiting.append(table)
        if len(waiting) * CHUNK == PART:
            yield pd.concat(waiting, ignore_index=True)
            waiting = []
    if waiting:
        yield pd.concat(waiting, ignore_index=True)
