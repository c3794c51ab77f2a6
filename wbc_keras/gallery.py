"""Mistakes to look at: which cells, and their pictures where these are at hand."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wbc_keras.check_report import make_thumbnail
from wbc_keras.commands import silent_stderr
from wbc_keras.config import Config
from wbc_keras.errors import DataError
from wbc_keras.manifest import Manifest, read_manifest

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


def show_mistakes(
    predictions: pd.DataFrame, config: Config, *, data: str | Path | None, pictures: bool
) -> tuple[list[Mistake], str]:
    """Return mistakes with their pictures, and why there are none if so.

    Args:
        predictions: as `predictions.read_predictions` gives them.
        config: of the run; names where its cells are.
        data: where they are now, if they were moved.
        pictures: whether pictures may be shown.

    Raises:
        DataError: ``data`` is given and cannot be read.
    """
    chosen = choose_mistakes(predictions)
    source, reason = _find_cells(config, data) if pictures else (None, "left out (--no-pictures)")
    known = set() if source is None else set(source.table["file"])
    found = [
        Mistake(
            str(row.file),
            str(row.label),
            str(row.predicted),
            float(row.confidence),
            _picture(source, str(row.file)) if source and row.file in known else None,
        )
        for row in chosen.itertuples()
    ]
    if not reason and found and not any(one.picture for one in found):
        reason = "none of these cells is in the data; give their place with --data"
    return found, reason


def by_class(mistakes: list[Mistake]) -> Iterator[tuple[str, list[Mistake]]]:
    """Yield each true class with its mistakes, in their order."""
    for label in dict.fromkeys(one.label for one in mistakes):
        yield label, [one for one in mistakes if one.label == label]


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


def _picture(source: Manifest, file: str) -> str | None:
    # libpng writes a line of its own for each damaged file.
    with silent_stderr():
        jpeg = make_thumbnail(source.root / file)
    return None if jpeg is None else embed(jpeg, "jpeg")
