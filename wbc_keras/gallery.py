"""Mistakes to look at: which cells, and their pictures where these are at hand."""

from __future__ import annotations

import base64
import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wbc_keras.check_report import make_thumbnail
from wbc_keras.commands import silent_stderr
from wbc_keras.config import Config
from wbc_keras.errors import DataError
from wbc_keras.manifest import Manifest, read_manifest
from wbc_keras.record import Record

logger = logging.getLogger(__name__)

MOST_SHOWN = 36


@dataclass(frozen=True)
class Mistake:
    """A cell whose answer was wrong.

    Attributes:
        file, label, predicted: as the predictions have them.
        confidence: of the wrong answer.
        picture: a small JPEG as a data address, None if it is not at hand.
    """

    file: str
    label: str
    predicted: str
    confidence: float
    picture: str | None


def choose_mistakes(predictions: pd.DataFrame, *, most: int = MOST_SHOWN) -> pd.DataFrame:
    """Return the rows of wrong answers to look at: the classes in turn, the surest of each first.

    Args:
        predictions: ``file, label, predicted, confidence`` and more; unlabelled cells are not
            looked at.
        most: how many at most.
    """
    wrong = predictions[
        (predictions["label"] != "") & (predictions["label"] != predictions["predicted"])
    ].sort_values("confidence", ascending=False, kind="stable")
    turn = wrong.groupby("label").cumcount()
    chosen = wrong.loc[turn.sort_values(kind="stable").index[:most]]
    return chosen.sort_values(["label", "confidence"], ascending=[True, False], kind="stable")


@dataclass(frozen=True)
class Mistakes:
    """Wrong answers to look at.

    Attributes:
        cells: by true class, the surest of each first.
        no_pictures: why they are without pictures, "" if they have them.
    """

    cells: tuple[Mistake, ...]
    no_pictures: str

    def by_class(self) -> list[tuple[str, list[Mistake]]]:
        """Return each true class with its mistakes."""
        labels = dict.fromkeys(one.label for one in self.cells)
        return [(label, [one for one in self.cells if one.label == label]) for label in labels]


def show_mistakes(record: Record, *, data: str | Path | None = None) -> Mistakes:
    """Return mistakes of the run's main evaluation, with their pictures if these are at hand.

    Args:
        record: the run.
        data: where its cells are now, if they were moved.

    Raises:
        DataError: ``data`` is given and cannot be read.
    """
    if record.main is None or record.main.predictions is None:
        return Mistakes((), "")
    source, reason = _find_cells(record.run.config, data)
    known = set() if source is None else set(source.table["file"])
    chosen = choose_mistakes(record.main.predictions)
    columns = [chosen[name] for name in ("file", "label", "predicted", "confidence")]
    found = tuple(
        Mistake(file, label, predicted, float(confidence), _picture(source, file, known))
        for file, label, predicted, confidence in zip(*columns, strict=True)
    )
    if not reason and not any(one.picture for one in found):
        reason = "none of these cells is in the data; give their place with --data"
    return Mistakes(found, reason if found else "")


def embed(data: bytes, kind: str) -> str:
    """Return a picture as an address that holds it; ``kind`` is png or jpeg."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _find_cells(config: Config, data: str | Path | None) -> tuple[Manifest | None, str]:
    source = data if data is not None else config.data.source
    if source is None:
        return None, "the run does not name its data; give it with --data"
    settings = config.data
    try:
        manifest = read_manifest(
            source,
            label_column=settings.label_column,
            synthetic=settings.synthetic,
            labelled=False,
        )
    except (DataError, OSError) as error:
        if data is not None:
            raise
        # The report is of the run: it stands without the pictures, but says so.
        logger.warning("no pictures of cells: %s", error)
        return None, "the run's pictures are not where they were; give their place with --data"
    return manifest, ""


def _picture(source: Manifest | None, file: str, known: Collection[str]) -> str | None:
    """Return a cell's picture, if it is one of the source's: no other file is opened."""
    if source is None or file not in known:
        return None
    # libpng writes a line of its own for each damaged file.
    with silent_stderr():
        jpeg = make_thumbnail(source.root / file)
    return None if jpeg is None else embed(jpeg, "jpeg")
