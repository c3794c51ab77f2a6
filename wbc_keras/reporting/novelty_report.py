"""What is foreign to a model, in an evaluation's folder: ``novelty.json``, ``novelty.png``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import cv2
import keras
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from wbc_keras import runs
from wbc_keras.pictures.cells import Cells, load_cells
from wbc_keras.pictures.non_cells import KINDS, draw_non_cell
from wbc_keras.pictures.prepared import Prepared
from wbc_keras.plots import save_figure
from wbc_keras.prediction.networks import ask
from wbc_keras.prediction.novelty import Novelty, spread_over_classes
from wbc_keras.selection import Selection
from wbc_keras.statistics.bootstrap import bootstrap_intervals, plan_resampling
from wbc_keras.synthetic import CLASS_NAMES, draw_cell

_LEFT_OUT_CELLS = 500  # looked at, evenly over their labels
_DRAWN_CELLS = 36  # of each kind
_DRAWN_SIZE = 160  # pixels
_FAR = 0.99
# A drawn picture may be foreign because it is drawn: how much, its drawn cells tell.
_CONTROL = "cell"

_COLORS = sns.color_palette("colorblind")
_COLOR_OF = {"scored": _COLORS[0], "left out": _COLORS[1], "drawn": _COLORS[2]}


def describe_novelty(novelty: Novelty, features: np.ndarray) -> pd.DataFrame:
    """Return a row for each of n cells, from features ``(n, d)``.

    ``novelty`` is `Novelty.rank`, ``mahalanobis`` and ``neighbours`` are the two shares of
    validation cells that are nearer, which it is made of, and ``far`` is the Mahalanobis distance
    over that which 99 % of the validation cells keep within.
    """
    distances = novelty.measure(features)
    mahalanobis, neighbours = novelty.shares(distances)
    return pd.DataFrame(
        {
            "novelty": novelty.rank(distances),
            "mahalanobis": mahalanobis,
            "neighbours": neighbours,
            "far": distances.mahalanobis / np.quantile(novelty.known[:, 0], _FAR),
        }
    )


def describe_foreign(
    run: runs.Run, network: keras.Model, novelty: Novelty, prepared: Prepared, selection: Selection
) -> pd.DataFrame:
    """Return what `describe_novelty` gives, for cells that the model should not know.

    ``source`` is "left out" for cells of labels that the model has no class for, "drawn" for
    pictures without a cell and, as their control, of drawn cells; ``name`` is the label or kind.
    """
    parts = [_left_out(prepared, selection), _draw(run)]
    tables = [
        describe_novelty(novelty, ask(network, cells).features).join(about)
        for about, cells in parts
        if len(cells)
    ]
    return pd.concat(tables, ignore_index=True)


def write_novelty_report(
    folder: Path, scored: pd.DataFrame, foreign: pd.DataFrame, *, groups: Sequence[str] | None
) -> None:
    """Write how well novelty tells foreign cells from validation cells.

    Args:
        folder: an evaluation's.
        scored: of the scored cells, by `describe_novelty`.
        foreign: of `describe_foreign`.
        groups: the scored cells' patients, or None.
    """
    tables: dict[str, dict[str, Any]] = {"left_out": {}, "drawn": {}}
    for (source, name), rows in foreign.groupby(["source", "name"], sort=False):
        tables[str(source).replace(" ", "_")][str(name)] = _figures(rows, None)
    runs.write_json(folder / "novelty.json", {"scored": _figures(scored, groups)} | tables)
    axes = plot_novelty(scored, foreign)
    save_figure(cast("Figure", axes.figure), folder / "novelty.png")


def plot_novelty(scored: pd.DataFrame, foreign: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Draw how far the cells of each source lie: the middle half, and 5 to 95 %.

    Args:
        scored: of `describe_novelty`.
        foreign: of `describe_foreign`.
        ax: where to draw.
    """
    everyone = pd.concat([scored.assign(source="scored", name="cells"), foreign])
    sources = list(everyone.groupby(["source", "name"], sort=False))[::-1]
    height = 1.2 + 0.34 * len(sources)
    ax = ax or Figure(figsize=(7.5, height), layout="constrained").subplots()
    for row, ((source, _), rows) in enumerate(sources):
        lowest, low, middle, high, highest = rows["far"].quantile([0.05, 0.25, 0.5, 0.75, 0.95])
        color = _COLOR_OF[str(source)]
        ax.plot([lowest, highest], [row, row], color=color, lw=1.5)
        ax.plot([low, high], [row, row], color=color, lw=7)
        ax.plot(middle, row, "o", color="white", mec="black", ms=5, zorder=3)
    ax.axvline(1, color="black", linestyle="--", linewidth=1, zorder=1)
    names = [
        f"{source}: {name} (n={len(rows):,}), AUROC {rows['novelty'].mean():.3f}".replace("_", " ")
        for (source, name), rows in sources
    ]
    ax.set_yticks(range(len(names)), names)
    ax.set_xscale("log")
    ax.set_xlabel("Mahalanobis distance; beyond the dashed line lies 1 % of the validation cells")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.tick_params(axis="x", which="both", length=3, pad=3)
    ax.tick_params(axis="y", length=0)
    sns.despine(ax=ax, left=True)
    return ax


def _figures(rows: pd.DataFrame, groups: Sequence[str] | None) -> dict[str, Any]:
    """Return AUROCs against the validation cells, which are mean shares, and their intervals."""
    values = {
        "auroc": rows["novelty"].to_numpy(),
        "auroc_mahalanobis": rows["mahalanobis"].to_numpy(),
        "auroc_neighbours": rows["neighbours"].to_numpy(),
        "share_over_99": (rows["novelty"] > _FAR).to_numpy(float),
    }
    intervals = bootstrap_intervals(
        lambda weights: {name: weights @ one / weights.sum(axis=1) for name, one in values.items()},
        plan_resampling(np.zeros(len(rows), int), groups=groups),
    )
    means = {name: float(one.mean()) for name, one in values.items()}
    return {"cells": len(rows), **means, "confidence_interval_95": intervals}


def _left_out(prepared: Prepared, selection: Selection) -> tuple[pd.DataFrame, Cells]:
    """Return cells of the source's labels that the model has no class for."""
    table = selection.source.table
    unknown = ~table["label"].isin(["", *selection.shared.labels])
    unknown &= ~table["file"].isin(list(prepared.bad_among(table["file"][unknown])))
    table = table[unknown]
    chosen = table.iloc[spread_over_classes(table["label"], _LEFT_OUT_CELLS)]
    about = pd.DataFrame({"source": "left out", "name": list(chosen["label"])})
    return about, prepared.take(chosen["file"])


def _draw(run: runs.Run) -> tuple[pd.DataFrame, Cells]:
    """Draw pictures of each kind, and read them as the run reads its own."""
    rows = [(kind, number) for kind in (*KINDS, _CONTROL) for number in range(_DRAWN_CELLS)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{kind}_{number}.png" for kind, number in rows]
        for path, (kind, number) in zip(paths, rows, strict=True):
            picture = _draw_one(kind, number)
            path.write_bytes(cv2.imencode(".png", picture[..., ::-1])[1].tobytes())
        cells = load_cells(paths, roi=run.config.roi, image_size=run.config.data.image_size)
    return pd.DataFrame({"source": "drawn", "name": [kind for kind, _ in rows]}), cells


def _draw_one(kind: str, number: int) -> np.ndarray:
    rng = np.random.default_rng([number, (*KINDS, _CONTROL).index(kind)])
    if kind == _CONTROL:
        return draw_cell(CLASS_NAMES[number % len(CLASS_NAMES)], size=_DRAWN_SIZE, rng=rng).image
    return draw_non_cell(kind, size=_DRAWN_SIZE, rng=rng)
