"""An archive of any size through a model, spread over workers, into a folder of Parquet files.

Each piece of the archive becomes one file, ``00000000.parquet`` and so on, with the columns of
`predictions` and ``error``. Until all are there and checked they lie beside the output, in
``<output>.parts``. This process alone writes them: a worker that dies leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import platform
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

from wbc_keras import runs
from wbc_keras.errors import DataError, WbcError
from wbc_keras.pictures.cells import CHUNK
from wbc_keras.pictures.shards import require_pyarrow
from wbc_keras.prediction.archive import (
    Tally,
    classify,
    hash_model,
    map_chunks,
    open_parts,
    part_folder,
)
from wbc_keras.prediction.pieces import Piece, Sample, find_pieces, hash_names, open_lister
from wbc_keras.prediction.predictions import ERROR
from wbc_keras.prediction.predictor import Predictor, find_model
from wbc_keras.prediction.spread import Outcome, spread
from wbc_keras.progress import show_progress

SUMMARY = "_summary.json"  # passed over by whoever reads a folder of Parquet files

_ROOM = 2**20  # bytes
_MOST_FAULTS = 16  # a lost mount spoils every piece: no need to try them all


class Scorer:
    """A loaded model that maps a piece to a Parquet file, on all cores."""

    def __init__(self, model: str) -> None:
        _require_room()
        self._predictor = Predictor.load(model, workers=os.cpu_count() or 1)

    def __call__(self, piece: Piece) -> bytes:
        """Return the piece's rows, one for each picture in its order.

        Raises:
            DataError: the piece cannot be read whole, or a name stands in it twice.
        """
        samples = iter(piece.read_samples())
        chunks = iter(lambda: list(itertools.islice(samples, CHUNK)), [])
        table = pd.concat(map_chunks(self._tabulate, chunks), ignore_index=True)
        hash_names(list(table["file"]))
        encoded = BytesIO()
        table.to_parquet(encoded, index=False)
        return encoded.getvalue()

    def _tabulate(self, samples: list[Sample]) -> pd.DataFrame:
        names = [sample.name for sample in samples]
        predictions = classify(self._predictor, names, [sample.read for sample in samples])
        return self._predictor.table_of(predictions, names, [sample.label for sample in samples])


def _require_room() -> None:
    """Raise DataError where temporary files cannot be written.

    TensorFlow writes some, and without them it fails with words that tell nothing of a disk.
    """
    try:
        with tempfile.TemporaryFile() as file:
            file.write(bytes(_ROOM))
            file.flush()
    except OSError as error:
        raise DataError(
            f"{platform.node()}: {tempfile.gettempdir()}: no room ({error.strerror}); make some, "
            "then --resume goes on"
        ) from error


def score_archive(
    model: str | Path,
    data: Sequence[str],
    *,
    output: str | Path,
    engine: str = "local",
    resume: bool = False,
) -> Tally:
    """Score an archive into a folder of Parquet files, whole or not at all.

    Args:
        model: a run folder, a SavedModel or the name of a shipped model; every worker finds it
            under this name.
        data: as for `find_pieces`.
        output: the folder, missing or empty.
        engine: one of `spread.ENGINES`.
        resume: whether to go on with what a killed run has left in ``<output>.parts``.

    Raises:
        WbcError: as `find_pieces` and `find_model`; a shard is truncated, a disk full, a worker
            lost for good: what is done is kept for ``resume``.
    """
    output = Path(output)
    require_pyarrow(output)
    pieces = find_pieces(data)
    about = {"--data": _hash_pieces(pieces), "--model": hash_model(find_model(model))}
    if resume and (output / SUMMARY).is_file():
        return _read_summary(output, about)
    runs.require_empty(output)
    with open_parts(output, about=about, resume=resume) as folder:
        done = {number for number in range(len(pieces)) if _part(folder, number).exists()}
        waiting = {number: piece for number, piece in enumerate(pieces) if number not in done}
        make = partial(Scorer, str(model))
        _collect(engine, make, waiting, total=len(pieces), take=partial(_write, folder))
        tally = _check(engine, pieces, folder)
        summary = {"predicted": dict(tally.predicted), "bad": tally.bad, "about": about}
        runs.write_json(folder / SUMMARY, summary)
        for left in folder.glob(".*.parquet"):  # of a killed run, not yet whole
            left.unlink()
    _publish(part_folder(output), output)
    return tally


def _collect(
    engine: str,
    make: Callable[[], Callable[[Piece], bytes]],
    pieces: dict[int, Piece],
    *,
    total: int,
    take: Callable[[Outcome], None],
) -> None:
    """Have the pieces worked on and give each result to ``take``.

    Raises:
        WbcError: ``take`` or the engine gave up, or pieces have faults, which are told together.
    """
    faults: list[str] = []
    stopped: WbcError | None = None
    with (
        show_progress(total, "parts", done=total - len(pieces)) as tell,
        closing(spread(engine, make, pieces)) as outcomes,
    ):
        try:
            for outcome in itertools.takewhile(lambda _: len(faults) < _MOST_FAULTS, outcomes):
                if outcome.fault:
                    faults.append(outcome.fault)
                else:
                    take(outcome)
                tell(1)
        except WbcError as error:
            # Raised below: here it would bring all that libraries wrote on stderr with it.
            stopped = error
    if stopped:
        raise stopped
    if faults:
        raise DataError(
            f"{'; '.join(dict.fromkeys(faults))}: {len(faults)} of {total} parts are missing, the "
            "others are kept; mend this, then --resume goes on"
        )


def _write(folder: Path, outcome: Outcome) -> None:
    path = _part(folder, outcome.number)
    try:
        with runs.replacing(path) as temporary:
            temporary.write_bytes(outcome.result)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); make room, then --resume goes on"
        ) from error


def _check(engine: str, pieces: Sequence[Piece], folder: Path) -> Tally:
    """Return what the parts hold; raise DataError unless each input has exactly one row.

    The names of the inputs are listed anew, where the work was done.
    """
    tallies = []

    def compare(outcome: Outcome) -> None:
        path = _part(folder, outcome.number)
        table = pd.read_parquet(path, columns=["file", "predicted", ERROR])
        if hash_names(list(table["file"])) != outcome.result:
            raise DataError(
                f"{path}: its rows are not the inputs of its piece, which has changed meanwhile "
                "or was written wrongly; remove this file, then --resume goes on"
            )
        tallies.append(Tally(Counter(), 0).add(table))

    _collect(engine, open_lister, dict(enumerate(pieces)), total=len(pieces), take=compare)
    return Tally(
        sum((one.predicted for one in tallies), Counter()), sum(one.bad for one in tallies)
    )


def _publish(parts: Path, output: Path) -> None:
    (parts / ".lock").unlink(missing_ok=True)
    if output.exists():
        output.rmdir()  # it is empty
    os.replace(parts, output)


def _read_summary(output: Path, about: dict[str, Any]) -> Tally:
    """Return what a finished output holds; raise DataError if it is of other data or model."""
    try:
        summary = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
        if summary["about"] == about:
            return Tally(Counter(summary["predicted"]), summary["bad"])
    except (OSError, ValueError, KeyError):
        pass
    raise DataError(f"{output}: is finished, with another --data or --model; choose another place")


def _part(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.parquet"


def _hash_pieces(pieces: Sequence[Piece]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(f"{piece!r}\n".encode())
    return digest.hexdigest()
