"""Labels worth a second look, in an evaluation's folder: ``second_look.csv`` and its gallery."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from wbc_keras import runs
from wbc_keras.pictures.images import read_image
from wbc_keras.plots import plot_cells, save_figure
from wbc_keras.prediction.predictions import BOX_COLUMNS, class_columns
from wbc_keras.statistics.second_look import rank_labels

_SHOWN = 40


def write_second_look(folder: Path, predictions: pd.DataFrame, *, root: Path) -> None:
    """Write the cells whose prediction contradicts their label, and a sheet of the first 40.

    Args:
        folder: an evaluation's.
        predictions: of `predictions.prediction_table`, every label among its classes.
        root: where the files' pictures are; shown whole, with the box that the model looked at.
    """
    names = class_columns(predictions)
    labels = [names.index(label) for label in predictions["label"]]
    ranked = rank_labels(labels, predictions[names].to_numpy(), names)
    cells = predictions.iloc[ranked.pop("cell")].reset_index(drop=True)
    ranked.insert(0, "file", cells["file"])
    text = ranked.to_csv(index=False, float_format="%.6g")
    runs.write_text(folder / "second_look.csv", text)
    if len(ranked):
        shown = ranked.head(_SHOWN)
        images = [read_image(root / file) for file in shown["file"]]
        boxes = cells.head(_SHOWN)[list(BOX_COLUMNS)]
        save_figure(plot_cells(images, _titles(shown), boxes=boxes), folder / "second_look.png")


def _titles(ranked: pd.DataFrame) -> list[str]:
    columns = ["label", "label_probability", "suggested", "suggested_probability"]
    return [
        f"{label} {own:.0%}, or {suggested} {other:.0%}?"
        for label, own, suggested, other in ranked[columns].itertuples(index=False)
    ]
