"""What the page asks: open pictures, explain a cell, take a correction. No Gradio in here."""

from __future__ import annotations

import functools
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from wbc_keras.errors import DataError
from wbc_keras.manifest import read_manifest
from wbc_keras.manifest.reviews import Review, now
from wbc_keras.pictures.images import BadImage, decode_picture, read_file
from wbc_keras.prediction.predictor import Predictor, find_model
from wbc_keras.reporting.record import read_checks
from wbc_keras.reporting.summary import say_heatmaps
from wbc_keras.review.corrections import Corrections
from wbc_keras.review.smears import Smear, Source, open_uploads
from wbc_keras.runs import open_run

_SHOWN = 720  # pixels, the longer side of an opened cell
_EXPLAINED = 1600  # pixels, the longer side from which a picture is made smaller for its heatmap
_LONGEST_NAME = 60
_TYPICAL = 3  # cells of a class
_OPEN = 100  # cells whose heatmaps are kept, about 20 MB
_HELD = 8  # smears that were uploaded, of all windows together


@dataclass(frozen=True)
class Opened:
    """A cell to look at: its picture, and it under its heatmap, JPEG; b"" where there is none."""

    picture: bytes
    heat: bytes


class Desk:
    """A model, the smears on the desk and their corrections; threads may share it.

    Args:
        predictor: gives the answers.
        explainer: the same model, with heatmaps.
        output: folder of the corrections.
        typical: by class, pictures of cells that the model knows well.
        heat_warning: what is to be known of the model's heatmaps.

    Raises:
        WbcError: ``output`` cannot be written, or holds another ``reviews.csv``.
    """

    def __init__(
        self,
        predictor: Predictor,
        explainer: Predictor,
        output: Path,
        *,
        typical: Mapping[str, Sequence[Path]] | None = None,
        heat_warning: str = "",
    ) -> None:
        self.predictor, self.output = predictor, output
        self.corrections = Corrections(output)
        self.class_names = predictor.class_names
        self.typical, self.heat_warning = typical or {}, heat_warning
        self._explainer = explainer
        self._smears: OrderedDict[str, Smear] = OrderedDict()
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._open = functools.lru_cache(maxsize=_OPEN)(self._explain)

    @classmethod
    def load(cls, model: str | Path, output: Path) -> Desk:
        """Load what ``--model`` takes.

        Raises:
            WbcError: ``model`` is no model, or as the constructor.
        """
        # Before a model is loaded, which takes its time.
        Corrections(output)
        folder = find_model(model)
        predictor = Predictor.load(folder, workers=os.cpu_count() or 1)
        explainer = Predictor.load(folder, heatmaps=True)
        # The first call of each compiles.
        blank = _encode(np.full((64, 64, 3), 200, np.uint8))
        for one in (predictor, explainer):
            one.predict([blank])
        return cls(
            predictor,
            explainer,
            output,
            typical=find_typical(folder),
            heat_warning=say_heatmaps(read_checks(folder)),
        )

    def open_data(self, source: Source) -> str:
        """Put the cells of ``--data`` on the desk; returns the name they are asked for by.

        They are to be started when the page is there, which would have to wait for them.
        """
        return self._add(source, "data")

    def open_uploads(self, files: Sequence[Path]) -> str:
        """Put uploaded pictures on the desk; the oldest ones have to make room."""
        key = self._add(open_uploads(files, self.output), f"upload-{next(self._numbers)}")
        with self._lock:
            uploads = [name for name in self._smears if name != "data"]
            for name in uploads[:-_HELD]:
                self._smears.pop(name).stop()
        self.smear(key).start()
        return key

    def smear(self, key: str) -> Smear:
        """Return a smear.

        Raises:
            DataError: it had to make room, or the desk was started anew.
        """
        with self._lock:
            if key not in self._smears:
                raise DataError("These pictures are no longer on the desk; open them again.")
            return self._smears[key]

    def open_cell(self, key: str, row: int) -> Opened:
        """Return a cell's picture and its heatmap; the last ones are kept."""
        opened = self._open(key, row)
        self.smear(key).see()
        return opened

    def _explain(self, key: str, row: int) -> Opened:
        path = self.smear(key).source.path(row)
        try:
            image = decode_picture(path, read_file(path))
        except BadImage:
            return Opened(b"", b"")
        encoded = _encode(_shrink(image, _EXPLAINED))
        overlays = self._explainer.predict([encoded]).overlays or (b"",)
        heat = decode_picture(path, overlays[0]) if overlays[0] else None
        return Opened(_show(image), b"" if heat is None else _show(heat))

    def correct(
        self, key: str, row: int, *, label: str, flagged: bool, reviewer: str
    ) -> tuple[Review, ...]:
        """Write what a reviewer says of a cell; it is on the disk when this returns.

        Args:
            key: of the smear.
            row: of its table.
            label: the class, "" for none.
            flagged: whether the cell is to be looked at again.
            reviewer: name or initials.

        Returns:
            what others say of the cell, where they say otherwise.

        Raises:
            DataError: no name is given, or the class is none of the model's.
        """
        name = tidy_name(reviewer)
        if not name:
            raise DataError("Write your name or initials first, at the top of the page.")
        if label and label not in self.class_names:
            raise DataError(f"{label} is none of the model's classes.")
        smear = self.smear(key)
        source = smear.source
        folder, file = source.cells[row]
        source.keep(row)
        patient = str(source.manifest.table["group"].iloc[row])
        predicted = str(smear.table()["predicted"].iloc[row])
        review = Review(file, predicted, label, name, now(), flagged, patient, folder)
        self.corrections.add(review)
        others = [one for one in self.corrections.of(review.cell) if one.reviewer != name]
        return tuple(one for one in others if one.corrected not in ("", label)) if label else ()

    def close(self) -> None:
        """Leave off classifying."""
        for smear in self._smears.values():
            smear.stop()

    def _add(self, source: Source, key: str) -> str:
        smear = Smear(source, self.predictor)
        with self._lock:
            self._smears[key] = smear
        return key


def tidy_name(reviewer: str) -> str:
    """Return a reviewer's name as it is kept."""
    return " ".join(reviewer.split())[:_LONGEST_NAME]


def find_typical(folder: Path) -> dict[str, list[Path]]:
    """Return for each class the surest right cells of the run's own sheet (`explain`).

    Nothing where the model came without a sheet, or its cells are not at hand.
    """
    sheet = folder / "explanations" / "cells.csv"
    if not sheet.is_file() or not (folder / "model.keras").is_file():
        return {}
    settings = open_run(folder).config.data
    if settings.source is None:
        return {}
    try:
        root = read_manifest(
            settings.source,
            label_column=settings.label_column,
            synthetic=settings.synthetic,
            labelled=False,
        ).root
        table = pd.read_csv(sheet, dtype={"file": str, "label": str, "predicted": str})
        right = table[table["label"] == table["predicted"]]
        surest = right.sort_values("confidence", ascending=False)
        files = surest.groupby("label")["file"].apply(lambda column: list(column[:_TYPICAL]))
    except (DataError, OSError, ValueError, KeyError):
        return {}
    return {str(name): [root / file for file in some] for name, some in files.items()}


def _shrink(image: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = [max(2, round(length * scale)) for length in image.shape[1::-1]]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _encode(image: np.ndarray) -> bytes:
    """Return RGB as PNG, hardly compressed: it is decoded at once."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".png", bgr, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes())


def _show(image: np.ndarray) -> bytes:
    bgr = cv2.cvtColor(_shrink(image, _SHOWN), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes())
