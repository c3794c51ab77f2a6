"""An archive of any size through a model, spread over workers, into a folder of Parquet files.

Each piece of the archive becomes one file, ``00000000.parquet`` and so on, with the columns of
`predictions` and ``error``, and within its metadata what it was made of: the stamp of its shard and
a hash of the names. Until all are there and checked they lie beside the output, in
``<output>.parts``. This process alone writes them: a worker that dies leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
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
from wbc_keras.errors import DataError, RunError, WbcError
from wbc_keras.manifest.table import list_some
from wbc_keras.pictures.cells import CHUNK
from wbc_keras.pictures.shards import require_pyarrow
from wbc_keras.prediction.archive import (
    COUNTED,
    Tally,
    classify,
    hash_model,
    map_chunks,
    open_parts,
    part_folder,
)
from wbc_keras.prediction.pieces import Piece, RowsPiece, Sample, find_pieces, hash_names
from wbc_keras.prediction.predictor import Predictor, find_model
from wbc_keras.prediction.spread import Outcome, spread
from wbc_keras.progress import show_progress

SUMMARY = "_summary.json"  # passed over by whoever reads a folder of Parquet files

logger = logging.getLogger(__name__)

_MADE_OF = b"wbc_keras"  # of a part's metadata: a JSON object of ``stamp`` and ``names``
_ROOM = 2**20  # bytes
_MOST_FAULTS = 16  # a lost mount spoils every piece: no need to try them all


class Scorer:
    """A loaded model that maps a piece to a Parquet file, on all cores.

    Args:
        model: what `find_model` finds.
        expected: its `hash_model` on the first host.

    Raises:
        WbcError: there is no such model on this host, or another one; no room for its files.
    """

    def __init__(self, model: str, expected: str) -> None:
        _require_room()
        if hash_model(find_model(model)) != expected:
            raise RunError(
                f"{platform.node()}: {model}: is not the model that the first host has under this "
                "name; copy that one here"
            )
        self._predictor = Predictor.load(model, workers=os.cpu_count() or 1)

    def __call__(self, piece: Piece) -> bytes:
        """Return the piece's rows, one for each picture in its order.

        Raises:
            DataError: the piece cannot be read whole, or a name stands in it twice.
        """
        samples = iter(piece.read_samples())
        chunks = iter(lambda: list(itertools.islice(samples, CHUNK)), [])
        table = pd.concat(map_chunks(self._tabulate, chunks), ignore_index=True)
        return _encode(table, piece)

    def _tabulate(self, samples: list[Sample]) -> pd.DataFrame:
        names = [sample.name for sample in samples]
        predictions = classify(self._predictor, names, [sample.read for sample in samples])
        return self._predictor.table_of(predictions, names, [sample.label for sample in samples])


def _encode(table: pd.DataFrame, piece: Piece) -> bytes:
    import pyarrow
    from pyarrow import parquet

    made_of = {"stamp": piece.stamp, "names": hash_names(list(table["file"]))}
    rows = pyarrow.Table.from_pandas(table, preserve_index=False)
    rows = rows.replace_schema_metadata({**rows.schema.metadata, _MADE_OF: json.dumps(made_of)})
    encoded = BytesIO()
    parquet.write_table(rows, encoded)
    return encoded.getvalue()


def _read_made_of(path: Path) -> dict[str, str]:
    """Return what a part was made of; raise ValueError or OSError if it cannot be read."""
    from pyarrow import parquet

    metadata = parquet.read_schema(path).metadata or {}
    return dict(json.loads(metadata.get(_MADE_OF, b"{}")))


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
        model: a run folder, a SavedModel or the name of a shipped model; every host has the same
            under this path or name.
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
    folder_of_model = find_model(model)
    about = {"--data": _hash_pieces(pieces), "--model": hash_model(folder_of_model)}
    if resume and (output / SUMMARY).is_file():
        return _read_summary(output, about)
    runs.require_empty(output)
    with open_parts(output, about=about, resume=resume) as folder:
        waiting = {
            number: piece
            for number, piece in enumerate(pieces)
            if not _is_done(_part(folder, number), piece)
        }
        # A shipped model's name is good on every host; a path is not, from another folder.
        is_path = Path(model).expanduser().exists()
        name = str(folder_of_model.absolute()) if is_path else str(model)
        make = partial(Scorer, name, about["--model"])
        _collect(engine, make, waiting, total=len(pieces), take=partial(_write, folder))
        tally = _check(data, pieces, folder)
        summary = vars(tally) | {"about": about}
        runs.write_json(folder / SUMMARY, summary)
        for left in folder.glob(".*.????????.*"):  # of a killed run, not yet whole
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
            for outcome in outcomes:
                if outcome.fault:
                    faults.append(outcome.fault)
                else:
                    take(outcome)
                tell(1)
                if len(faults) == _MOST_FAULTS:
                    break
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


def _is_done(path: Path, piece: Piece) -> bool:
    """Tell whether a part is there and made of the piece as it is now; remove another one."""
    if not path.exists():
        return False
    try:
        if _read_made_of(path).get("stamp") == piece.stamp:
            return True
        reason = "has changed since it was scored"
    except (OSError, ValueError):
        reason = f"has a damaged part ({path.name})"
    logger.warning("%s: %s; it is scored again", piece, reason)
    path.unlink()
    return False


def _check(data: Sequence[str], pieces: Sequence[Piece], folder: Path) -> Tally:
    """Return what the parts hold; raise DataError unless each input has exactly one row.

    A shard's rows are those of the one pass that read it to its end. So it must be what it was when
    it was listed, and each part must hold what it held when it was made.
    """
    from pyarrow import parquet

    now = find_pieces(data)
    if _hash_pieces(now) != _hash_pieces(pieces):
        raise DataError("--data: names other inputs than when this began; score it anew")
    changed = [str(one) for one, old in zip(now, pieces, strict=True) if one.stamp != old.stamp]
    if changed:
        raise DataError(
            f"{list_some(changed)}: changed while it was scored; --resume scores it again"
        )
    tally = Tally(Counter(), 0)
    for number, piece in enumerate(pieces):
        path = _part(folder, number)
        try:
            held = parquet.read_schema(path).names
            table = pd.read_parquet(path, columns=["file", *(c for c in COUNTED if c in held)])
            made_of = _read_made_of(path)
        except (OSError, ValueError):
            table, made_of = pd.DataFrame({"file": []}), {}
        names = hash_names(list(table["file"]))
        expected = hash_names(piece.files) if isinstance(piece, RowsPiece) else names
        if made_of != {"stamp": piece.stamp, "names": names} or names != expected:
            raise DataError(
                f"{path}: its rows are not the inputs of its piece, as it was written wrongly or "
                "changed since; remove this file, then --resume goes on"
            )
        tally = tally.add(table)
    return tally


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
            predicted = Counter(summary["predicted"])
            return Tally(predicted, summary["bad"], summary.get("foreign", 0))
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
