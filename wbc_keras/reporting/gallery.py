"""Mistakes to look at: which cells, their pictures where these are at hand, and their heatmaps."""

from __future__ import annotations

import base64
import io
import logging
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from wbc_keras.checking.report import read_small
from wbc_keras.commands import silent_stderr
from wbc_keras.config import Config
from wbc_keras.errors import DataError, RunError
from wbc_keras.manifest import Manifest, read_manifest
from wbc_keras.prediction.predictions import BOX_COLUMNS
from wbc_keras.reporting.record import Record
from wbc_keras.runs import replacing

logger = logging.getLogger(__name__)

HEATMAPS_FILE = "mistakes.npz"
MOST_SHOWN = 36
_HOTTEST = 0.65  # how much of the cell the heat hides where it is greatest, as `plots` has it
_CROP = (0, 200, 255)  # BGR, the frame of what the model saw


@dataclass(frozen=True)
class Mistake:
    """A cell whose answer was wrong.

    Attributes:
        file, label, predicted: as the predictions have them.
        confidence: of the wrong answer.
        picture: a small JPEG as a data address, None if it is not at hand.
        heat: the same under its heatmap, None if there is none.
    """

    file: str
    label: str
    predicted: str
    confidence: float
    picture: str | None
    heat: str | None


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
    heatmaps = read_heatmaps(record.main.folder)
    found = []
    for row in choose_mistakes(record.main.predictions).to_dict("records"):
        file, box = row["file"], [row[name] for name in BOX_COLUMNS]
        # No file is opened but the source's.
        small = _read(source.root / file) if source and file in known else None
        picture, heat = _draw(small, heatmaps.get(file), box)
        answer = row["label"], row["predicted"], float(row["confidence"])
        found.append(Mistake(file, *answer, picture, heat))
    if not reason and not any(one.picture for one in found):
        reason = "none of these cells is in the data; give their place with --data"
    return Mistakes(tuple(found), reason if found else "")


def write_heatmaps(folder: Path, heatmaps: Mapping[str, np.ndarray]) -> None:
    """Write the heatmaps of mistakes, uint8 ``(height, width)`` of the crop by file."""
    with replacing(folder / HEATMAPS_FILE) as temporary:
        np.savez_compressed(
            temporary,
            files=np.array(list(heatmaps), str),
            heatmaps=np.array(list(heatmaps.values()), np.uint8),
        )


def read_heatmaps(folder: Path) -> dict[str, np.ndarray]:
    """Read what `write_heatmaps` wrote; nothing where an older evaluation has none.

    Raises:
        RunError: the file is damaged.
    """
    path = folder / HEATMAPS_FILE
    if not path.is_file():
        return {}
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            return dict(zip(stored["files"].tolist(), stored["heatmaps"], strict=True))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path}: is damaged; evaluate again, or remove it") from error


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


def _read(path: Path) -> np.ndarray | None:
    # libpng writes a line of its own for each damaged file.
    with silent_stderr():
        return read_small(path)


def _draw(
    small: np.ndarray | None, heat: np.ndarray | None, box: list[float]
) -> tuple[str | None, str | None]:
    """Return a picture, and it under its heatmap, as addresses."""
    if small is None:
        return None, None
    return _embed(small), None if heat is None else _embed(_under_heat(small, heat, box))


def _under_heat(small: np.ndarray, heat: np.ndarray, box: list[float]) -> np.ndarray:
    """Lay a crop's heatmap over the place of the picture that it was cut from, and frame that."""
    height, width = small.shape[:2]
    top, left, bottom, right = np.array(box, float) * (height, width, height, width)
    step_x, step_y = (right - left) / heat.shape[1], (bottom - top) / heat.shape[0]
    # From the middles of the crop's pixels to those of the picture's.
    move_x, move_y = left + step_x / 2 - 0.5, top + step_y / 2 - 0.5
    place = np.array([[step_x, 0, move_x], [0, step_y, move_y]])
    share = cv2.warpAffine(heat, place, (width, height)) / 255.0
    colors = cv2.applyColorMap(np.round(255 * share).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    weight = _HOTTEST * share[..., np.newaxis]
    drawn: np.ndarray = np.round(small * (1 - weight) + colors * weight).astype(np.uint8)
    start, end = (round(left), round(top)), (round(right) - 1, round(bottom) - 1)
    cv2.rectangle(drawn, start, end, _CROP, 1)
    return drawn


def _embed(image: np.ndarray) -> str:
    return embed(cv2.imencode(".jpg", image)[1].tobytes(), "jpeg")
