"""Figures drawn from results. Each function draws on ``ax``, or on a figure of its own if None.

Figures are made without pyplot, so that nothing is shown, kept open or configured globally; a
notebook shows one by ending a cell with ``display(ax.figure)``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import seaborn as sns
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, PercentFormatter
from sklearn.metrics import roc_curve

from wbc_keras.calibration import Reliability
from wbc_keras.metrics import Evaluation
from wbc_keras.prediction.predictions import ACCEPTED, BOX_COLUMNS
from wbc_keras.runs import replacing
from wbc_keras.statistics.selective import Selective

_COLORS = sns.color_palette("colorblind")
_BLUE, _ORANGE, _GREEN, _GREY = _COLORS[0], _COLORS[1], _COLORS[2], (0.6, 0.6, 0.6)
_ROC_COLORED = 6  # more hues are not told apart
_ROC_STYLES = ("-", "--", "-.", ":")


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a PNG of 150 dots an inch, whole or not at all."""
    with replacing(Path(path)) as temporary:
        figure.savefig(temporary, dpi=150, format="png", bbox_inches="tight")


def plot_confusion_matrix(
    matrix: npt.ArrayLike, class_names: Sequence[str], *, ax: Axes | None = None
) -> Axes:
    """Draw counts and row shares, coloured by the share of the true class.

    Args:
        matrix: counts (k, k), rows true, columns predicted.
        class_names: k names.
        ax: where to draw.
    """
    counts = np.asarray(matrix)
    support = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, support, out=np.full(counts.shape, np.nan), where=support > 0)
    side = 2.6 + 0.58 * max(len(class_names), 3)
    ax = ax or _new_axes(side + 1.2, side)
    # Cubehelix: lightness falls evenly, so also for the colour-blind and in grey print.
    colors = sns.cubehelix_palette(start=2.6, rot=-0.3, light=0.98, dark=0.2, as_cmap=True)
    picture = ax.imshow(np.ma.masked_invalid(shares), cmap=colors, vmin=0, vmax=1)
    ax.set_facecolor("0.9")  # what a class without cells shows
    _write_shares(ax, counts, shares)
    rows = [f"{name} (n={n:,})" for name, n in zip(class_names, support[:, 0], strict=True)]
    ax.set_yticks(range(len(rows)), rows)
    ax.set_xticks(range(len(rows)), class_names)
    if max(map(len, class_names)) > 5:
        ax.tick_params(axis="x", rotation=45)
        for label in ax.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    ax.set_xticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(len(rows) + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="0.85", linewidth=0.7)
    ax.tick_params(which="both", length=0)
    ax.spines[:].set_visible(False)
    ax.set(xlabel="predicted", ylabel="true class")
    bar = ax.figure.colorbar(picture, ax=ax, shrink=0.6, format=_percent)
    bar.set_label("share of the true class")
    bar.outline.set_visible(False)
    return ax


def plot_history(
    history: pd.DataFrame, *, ax: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw loss and macro F1 over the epochs, with the phases and the best epoch.

    Args:
        history: the table of history.csv; ``epoch``, ``phase``, and ``loss`` and ``macro_f1`` with
            their ``val_`` counterparts are read.
        ax: two axes, for loss and macro F1.
    """
    if ax is None:
        figure = Figure(figsize=(10, 4), layout="constrained")
        ax = tuple(figure.subplots(1, 2))
    best = history.iloc[int(history["val_macro_f1"].argmax())]
    for one, name, title in zip(ax, ("loss", "macro_f1"), ("loss", "macro F1"), strict=True):
        for column, label, color in (
            (name, "train", _BLUE),
            (f"val_{name}", "validation", _ORANGE),
        ):
            marker = "o" if label == "train" else "s"
            one.plot(
                history["epoch"], history[column], color=color, marker=marker, ms=3, label=label
            )
        label = f"best macro F1: {best['val_macro_f1']:.3f} (epoch {best['epoch']:.0f})"
        star = {"marker": "*", "ms": 14, "color": _ORANGE, "mec": "black", "ls": "", "label": label}
        one.plot(best["epoch"], best[f"val_{name}"], **star)
        _mark_phases(one, history)
        one.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        limits = (history["epoch"].min() - 0.5, history["epoch"].max() + 0.5)
        one.set(xlabel="epoch", ylabel=title, xlim=limits)
        sns.despine(ax=one)
    ax[1].set_ylim(0, 1.02)
    ax[0].set_ylim(0, 1.08 * history[["loss", "val_loss"]].to_numpy(float).max())
    ax[1].legend(frameon=False, loc="lower right")
    return ax


def plot_per_class(evaluation: Evaluation, *, ax: Axes | None = None) -> Axes:
    """Draw precision, recall and F1 of each class, the largest class on top."""
    scores = sorted(evaluation.per_class.items(), key=lambda item: item[1].support)
    ax = ax or _new_axes(7, 1.4 + 0.34 * len(scores))
    styles = (("precision", "<", _BLUE), ("recall", ">", _ORANGE), ("f1", "o", "black"))
    for name, marker, color in styles:
        values = [getattr(one, name) for _, one in scores]
        heights = [row for row, value in enumerate(values) if value is not None]
        ax.plot([values[row] for row in heights], heights, marker, color=color, ms=7, label=name)
    for row, (_, one) in enumerate(scores):
        _join_scores(ax, row, one.precision, one.recall)
    ax.lines[2].set_label("F1")
    ax.set_yticks(range(len(scores)), [f"{name} (n={one.support:,})" for name, one in scores])
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.7, len(scores) - 0.3), xlabel="score")
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    sns.despine(ax=ax, left=True)
    ax.tick_params(axis="y", length=0)
    return ax


def plot_roc(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    evaluation: Evaluation,
    ax: Axes | None = None,
) -> Axes:
    """Draw each class against the rest; the six worst have colours, the legend names all.

    The false-positive axis is logarithmic: a rare class is drowned by a small share of the others.

    Args:
        y_true: integers (n,).
        probabilities: (n, k).
        class_names: k names.
        evaluation: of the same cells; gives the AUROC.
        ax: where to draw.
    """
    truth, shares = np.asarray(y_true), np.asarray(probabilities)
    ax = ax or _new_axes(8.5, 5.5)
    floor = 0.5 / len(truth)
    for rank, (auroc, c) in enumerate(_worst_first(evaluation, class_names)):
        false, true, _ = roc_curve(truth == c, shares[:, c])
        support = evaluation.per_class[class_names[c]].support
        label = f"{auroc:.4f} {class_names[c]} (n={support:,})"
        ax.plot(np.maximum(false, floor), true, label=label, **_roc_style(rank))
    chance = np.geomspace(floor, 1, 200)
    ax.plot(chance, chance, ":", color="black", linewidth=1, label="0.5000 chance")
    ax.set(xscale="log", xlim=(floor, 1), ylim=(0, 1.01))
    ax.set(xlabel="false-positive rate (log scale)", ylabel="recall")
    ax.legend(title="AUROC", frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    sns.despine(ax=ax)
    return ax


def plot_reliability(reliability: Reliability, *, ax: Axes | None = None) -> Axes:
    """Draw accuracy against confidence by bin, with the number of cells in each."""
    ax = ax or _new_axes(5, 5)
    filled = np.flatnonzero(reliability.counts)
    edges, accuracy = reliability.edges, reliability.accuracy
    widths = np.diff(edges)
    ax.bar(edges[filled], accuracy[filled], widths[filled], align="edge", color=_BLUE, ec="white")
    for b in filled:
        ax.plot(reliability.confidence[b], accuracy[b], "o", color="black", ms=4)
        middle = edges[b] + widths[b] / 2
        text = ax.text(
            middle, accuracy[b] + 0.02, f"{reliability.counts[b]:,}", size=7, ha="center"
        )
        text.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.3})
    ax.plot([0, 1], [0, 1], "--", color="black", linewidth=1)
    ax.set(xlim=(0, 1), ylim=(0, 1.06), aspect="equal")
    gaps = np.abs(accuracy - reliability.confidence)[filled] * reliability.counts[filled]
    ax.set_title(f"ECE {gaps.sum() / reliability.counts.sum():.3f}; numbers count cells", size=10)
    ax.set(xlabel="confidence", ylabel="accuracy")
    sns.despine(ax=ax)
    return ax


def plot_calibration(
    before: Reliability, after: Reliability, *, ax: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw the reliability of probabilities as trained and of those divided by the temperature.

    Args:
        before: of the network's own probabilities.
        after: of the calibrated ones, of the same cells.
        ax: two axes.
    """
    if ax is None:
        figure = Figure(figsize=(10, 5), layout="constrained")
        ax = tuple(figure.subplots(1, 2))
    for one, reliability, name in zip(
        ax, (before, after), ("as trained", "calibrated"), strict=True
    ):
        plot_reliability(reliability, ax=one)
        one.set_title(f"{name}: {one.get_title()}", size=10)
    return ax


def plot_risk_coverage(selective: Selective, *, ax: Axes | None = None) -> Axes:
    """Draw the share of wrong answers against the share of cells answered, the surest first.

    Between the best curve that so many wrong answers allow and what a random order would give.
    """
    curve = selective.curve
    ax = ax or _new_axes(6.5, 4.5)
    ax.plot(curve.coverage, curve.risk, color=_BLUE, label=f"this model, area {curve.area:.4f}")
    share, error = np.linspace(0.001, 1, 1000), curve.risk[-1]
    best = np.maximum(share - (1 - error), 0) / share
    label = f"best order, area {curve.best_area:.4f}"
    ax.plot(share, best, "--", color=_GREEN, label=label)
    ax.plot([0, 1], [error, error], ":", color="black", label=f"random order, area {error:.4f}")
    if selective.coverage and selective.accuracy is not None:
        label = f"accepted: {_percent(selective.coverage)}, {selective.accuracy:.1%} of them right"
        point = {"marker": "o", "ms": 9, "color": _ORANGE, "mec": "black", "ls": ""}
        ax.plot(selective.coverage, 1 - selective.accuracy, label=label, **point)
    top = 1.15 * max(curve.risk.max(), 0.01)
    ax.set(xlim=(0, 1.01), ylim=(-0.02 * top, top))
    ax.set(xlabel="coverage: share of cells answered", ylabel="risk: share of them wrong")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))
    sns.despine(ax=ax)
    return ax


def plot_cells(
    images: Sequence[npt.NDArray[Any]],
    titles: Sequence[str],
    *,
    boxes: npt.ArrayLike | None = None,
    columns: int = 8,
) -> Figure:
    """Return a sheet of cells.

    Args:
        images: n arrays (h, w, 3), RGB 0-255, sizes may differ.
        titles: n texts, broken over lines where they are long.
        boxes: (n, 4) of y0, x0, y1, x1 in relative units, drawn over the cells.
        columns: cells in a row.
    """
    figure, grid = _draw_sheet(images, titles, columns=columns, width=1.5)
    for ax, image, box in zip(
        grid, images, () if boxes is None else np.asarray(boxes), strict=False
    ):
        _draw_box(ax, box, image.shape[:2])
    return figure


def plot_answers(
    images: Sequence[npt.NDArray[Any]], table: pd.DataFrame, *, columns: int = 6
) -> Figure:
    """Return a sheet of cells with their boxes and what a model says; wrong answers are marked.

    Args:
        images: n arrays (h, w, 3), RGB 0-255, sizes may differ.
        table: n rows of a predictions table; what is not ``accepted`` has a question mark.
        columns: cells in a row.
    """
    figure, grid = _draw_answers(images, table, columns=columns, width=1.7)
    for ax, image, box in zip(grid, images, table[list(BOX_COLUMNS)].to_numpy(), strict=False):
        _draw_box(ax, box, image.shape[:2])
    return figure


def plot_heatmaps(
    images: npt.NDArray[Any], heatmaps: npt.NDArray[Any], table: pd.DataFrame, *, columns: int = 4
) -> Figure:
    """Return a sheet of cells, each beside itself under its heatmap; wrong answers are marked.

    Args:
        images: (n, h, w, 3), RGB 0-255.
        heatmaps: (n, h, w), 0 to 1.
        table: n rows with ``label``, ``predicted`` and ``confidence``.
        columns: cells in a row.
    """
    pairs = [_beside_heat(image, heat) for image, heat in zip(images, heatmaps, strict=True)]
    return _draw_answers(pairs, table, columns=columns, width=2.8)[0]


def _new_axes(width: float, height: float) -> Axes:
    return Figure(figsize=(width, height), layout="constrained").subplots()


def _percent(share: float, _position: int = 0) -> str:
    return f"{share:.0%}"


def _write_shares(ax: Axes, counts: npt.NDArray[Any], shares: npt.NDArray[Any]) -> None:
    """Write count and per cent in each cell that is not empty."""
    size = 9 if len(counts) <= 10 else 7.5
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = shares[row, column]
        # 0 % beside a count, or 100 % of less than all, would be read as a mistake.
        percent = "<1%" if share < 0.005 else ">99%" if 0.995 <= share < 1 else _percent(share)
        color = "white" if share > 0.71 else "black"  # contrast at least 4.5 to 1
        text = f"{counts[row, column]:,}\n{percent}"
        ax.text(column, row, text, color=color, size=size, ha="center", va="center")


def _mark_phases(ax: Axes, history: pd.DataFrame) -> None:
    """Draw a line where the phase changes, with the name of each phase on its side."""
    epochs, phases = history["epoch"].to_numpy(), history["phase"].to_numpy()
    for i in range(1, len(phases)):
        if phases[i] != phases[i - 1]:
            middle = (epochs[i] + epochs[i - 1]) / 2
            ax.axvline(middle, color=_GREY, linestyle="--", linewidth=1)
            for name, side in ((f"{phases[i - 1]} ", "right"), (f" {phases[i]}", "left")):
                text = ax.text(middle, 1.0, name, size=8, color="0.4", ha=side, va="bottom")
                text.set_transform(ax.get_xaxis_transform())


def _join_scores(ax: Axes, row: int, precision: float | None, recall: float | None) -> None:
    if precision is not None and recall is not None:
        ax.plot([precision, recall], [row, row], color=_GREY, linewidth=2, zorder=1)


def _worst_first(evaluation: Evaluation, class_names: Sequence[str]) -> list[tuple[float, int]]:
    """Return AUROC and index of the classes that have an AUROC, the lowest first."""
    aurocs = [evaluation.per_class[name].auroc for name in class_names]
    return sorted((auroc, c) for c, auroc in enumerate(aurocs) if auroc is not None)


def _roc_style(rank: int) -> dict[str, Any]:
    if rank >= _ROC_COLORED:
        return {"color": "0.8", "linewidth": 1, "zorder": 1}
    style = _ROC_STYLES[rank % len(_ROC_STYLES)]
    return {"color": _COLORS[rank], "linestyle": style, "linewidth": 1.8}


def _draw_sheet(
    images: Sequence[npt.NDArray[Any]], titles: Sequence[str], *, columns: int, width: float
) -> tuple[Figure, list[Axes]]:
    """Draw pictures ``width`` inches wide in rows; return the figure and all its axes."""
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    # Underscores let no line break.
    wrapped = [textwrap.fill(title.replace("_", " "), int(width * 12)) for title in titles]
    lines = max(text.count("\n") + 1 for text in wrapped)
    height = width * max(image.shape[0] / image.shape[1] for image in images) + 0.15 * lines
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for ax in grid:
        ax.set_axis_off()
    for ax, image, title in zip(grid, images, wrapped, strict=False):
        ax.imshow(np.clip(image, 0, 255).astype(np.uint8))
        ax.set_title(title, size=8, pad=3)
    return figure, grid


def _draw_answers(
    images: Sequence[npt.NDArray[Any]], table: pd.DataFrame, *, columns: int, width: float
) -> tuple[Figure, list[Axes]]:
    """Draw a sheet with titles that tell the answers, coloured where they are wrong."""
    accepted = table.get(ACCEPTED, pd.Series(True, table.index))
    rows = list(zip(table["label"], table["predicted"], table["confidence"], accepted, strict=True))
    titles = [_answer_title(*row) for row in rows]
    figure, grid = _draw_sheet(images, titles, columns=columns, width=width)
    for ax, (label, predicted, *_) in zip(grid, rows, strict=False):
        ax.title.set_color("black" if label in ("", predicted) else _COLORS[3])
    return figure, grid


def _beside_heat(image: npt.NDArray[Any], heat: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the picture and, to its right, the picture under its heatmap."""
    colors = colormaps["viridis"](heat)[..., :3] * 255
    weight = 0.65 * heat[..., np.newaxis]  # where nothing speaks for the class the cell stays clear
    return np.hstack([image, image * (1 - weight) + colors * weight])


def _answer_title(label: str, predicted: str, confidence: float, accepted: bool) -> str:
    share = _percent(confidence) + ("" if accepted else "?")
    if label in ("", predicted):
        return f"{predicted} {share}"
    return f"{label}, taken for {predicted} {share}"


def _draw_box(ax: Axes, box: npt.NDArray[Any], size: tuple[int, int]) -> None:
    height, width = size
    y0, x0, y1, x1 = box * (height, width, height, width)
    corner = (x0 - 0.5, y0 - 0.5)
    for color, line in (("black", 2.6), ("yellow", 1.2)):  # seen on light and dark cells alike
        ax.add_patch(Rectangle(corner, x1 - x0, y1 - y0, fill=False, ec=color, lw=line))
