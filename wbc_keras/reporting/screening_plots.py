"""Figures of screening, of patients and of comparisons; drawn as in `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from wbc_keras.statistics.comparison import Comparison, Difference
from wbc_keras.statistics.patients import Patients, ShareAgreement
from wbc_keras.statistics.screening import Curve, Screening

_COLORS = sns.color_palette("colorblind")
_STYLES = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
_SHORT = ("auprc", "auroc", "ece", "f1", "mcc", "nll")
_LOSSES = ("adaptive_ece", "brier", "ece", "nll")  # less is better
_TITLES = {"abnormal": "abnormal cells", "blast": "blasts"}


def plot_screening(
    screenings: Mapping[str, Screening], *, ax: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw ROC and precision-recall curves with their 95 % bands and the operating points.

    Args:
        screenings: by question, "abnormal" or "blast".
        ax: two axes, for ROC and precision-recall.
    """
    ax = ax or _new_axes(1, 2, width=11, height=4.9)
    drawn = [(name, one) for name, one in screenings.items() if one.roc and one.precision_recall]
    for rank, (name, one) in enumerate(drawn):
        style = {"color": _COLORS[rank], "linestyle": _STYLES[rank], "linewidth": 1.8}
        title = _TITLES.get(name, name)
        _draw_curve(ax[0], one.roc, f"{title}, AUROC {_figure(one, 'auroc')}", style)
        precision = f"{title}, AP {_figure(one, 'average_precision')}"
        _draw_curve(ax[1], one.precision_recall, precision, style)
        prevalence = one.positives / one.cells
        chance = f"{title}: {prevalence:.1%} of {one.cells:,} cells"
        ax[1].axhline(prevalence, color=_COLORS[rank], linestyle=":", linewidth=1, label=chance)
        _mark_points(ax, one)
    ax[0].plot([0, 1], [0, 1], ":", color="black", linewidth=1, label="chance")
    ax[0].set(xlabel="false-positive rate (1 - specificity)", ylabel="sensitivity")
    ax[1].set(xlabel="recall (sensitivity)", ylabel="precision (positive predictive value)")
    for one_ax in ax:
        one_ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
        one_ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9)
        sns.despine(ax=one_ax)
    return ax


def plot_patients(patients: Patients, *, ax: Sequence[Sequence[Axes]] | None = None) -> Any:
    """Draw predicted against true shares, and their differences as Bland and Altman 1986 do.

    Args:
        patients: with at least one share.
        ax: axes (shares, 2).

    Returns:
        the axes, one row for each share.
    """
    names = list(patients.shares)
    figure_size = {"width": 10.5, "height": 4.4 * len(names)}
    ax = ax if ax is not None else _new_axes(len(names), 2, squeeze=False, **figure_size)
    for (left, right), name in zip(ax, names, strict=True):
        table = patients.table[["patient", f"{name}_share_true", f"{name}_share_predicted"]]
        rows = table.dropna().itertuples(index=False, name=None)
        cells = [(str(patient), true, predicted) for patient, true, predicted in rows]
        threshold = patients.detection.threshold if name == "blast" and patients.detection else None
        title = _TITLES.get(name, name)
        _draw_shares(left, cells, patients.shares[name], title, threshold)
        _draw_differences(right, cells, patients.shares[name], title)
    return ax


def plot_differential(patients: Patients, *, ax: Axes | None = None) -> Axes:
    """Draw for each class how far predicted shares lie from true ones, over patients."""
    had = patients.differential.items()
    found = [(name, one, one.bias) for name, one in had if one.bias is not None]
    means = {name: float(patients.table[f"{name}_true"].mean()) for name, *_ in found}
    found.sort(key=lambda item: means[item[0]])
    ax = ax or _new_axes(1, 1, width=7.5, height=1.7 + 0.34 * len(found))
    for row, (_, one, bias) in enumerate(found):
        if one.limits:
            label = "limits of agreement (95 % of patients)" if row == 0 else None
            ax.plot(one.limits, [row, row], color="0.65", linewidth=2, zorder=1, label=label)
        label = "bias" if row == 0 else None
        ax.plot(bias, row, "o", color=_COLORS[0], ms=7, label=label)
    labels = [f"{name} ({means[name]:.1%})" for name, *_ in found]
    ax.set_yticks(range(len(found)), labels)
    ax.axvline(0, color="black", linewidth=1)
    ax.set(ylim=(-0.7, len(found) - 0.3), ylabel="class (mean true share)")
    ax.set_xlabel("predicted minus true share of a patient's cells (percentage points)")
    ax.xaxis.set_major_formatter(_points)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    sns.despine(ax=ax, left=True)
    ax.tick_params(axis="y", length=0)
    return ax


def plot_differences(
    comparisons: Sequence[Comparison], *, ax: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    """Draw the differences of figures, and of each class's F1, with their 95 % intervals.

    Args:
        comparisons: of one first run with one or more others.
        ax: two axes, for figures and classes.
    """
    figures = [name for name, one in comparisons[0].figures.items() if one.difference is not None]
    classes = sorted(comparisons[0].per_class.items(), key=lambda item: -item[1].support)
    rows = max(len(figures), len(classes)) * (0.3 + 0.06 * len(comparisons))
    ax = ax or _new_axes(1, 2, width=13, height=2 + rows)
    _draw_forest(
        ax[0],
        [_readable(name) for name in figures],
        {one.second: [one.figures[name] for name in figures] for one in comparisons},
    )
    _draw_forest(
        ax[1],
        [f"{name} (n={change.support:,})" for name, change in classes],
        {
            one.second: [one.per_class[name].figures["f1"] for name, _ in classes]
            for one in comparisons
        },
    )
    first = comparisons[0].first
    ax[0].set_xlabel(f"difference to {first}")
    ax[1].set_xlabel(f"difference of F1 to {first}")
    ax[1].legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1.0, 1.0))
    return ax


def _new_axes(rows: int, columns: int, *, width: float, height: float, squeeze: bool = True) -> Any:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure.subplots(rows, columns, squeeze=squeeze)


def _figure(one: Screening, name: str) -> str:
    interval = one.intervals[name]
    bounds = "" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    return f"{getattr(one, name):.3f}{bounds}"


def _draw_curve(ax: Axes, curve: Curve | None, label: str, style: Mapping[str, Any]) -> None:
    if curve is None:
        return
    ax.plot(curve.x, curve.y, label=label, **style)
    if curve.low is not None and curve.high is not None:
        band = {"color": style["color"], "alpha": 0.15, "linewidth": 0}
        ax.fill_between(curve.grid, curve.low, curve.high, **band)


def _mark_points(ax: tuple[Axes, Axes], one: Screening) -> None:
    given = [(name, point) for name, point in one.points.items() if point is not None]
    for (name, point), marker in zip(given, _MARKERS, strict=False):
        style: dict[str, Any] = {
            "marker": marker,
            "ms": 8,
            "color": "black",
            "mfc": "white",
            "ls": "",
        }
        if point.sensitivity is None or point.specificity is None:
            continue
        label = name if point.threshold is None else f"{name} (from {point.threshold:.3f})"
        ax[0].plot(1 - point.specificity, point.sensitivity, label=label, **style)
        if point.ppv is not None:
            ax[1].plot(point.sensitivity, point.ppv, label=label, **style)


def _draw_shares(
    ax: Axes,
    cells: Sequence[tuple[str, float, float]],
    agreement: ShareAgreement,
    title: str,
    threshold: float | None,
) -> None:
    ax.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    true, predicted = ([row[i] for row in cells] for i in (1, 2))
    ax.plot(true, predicted, "o", color=_COLORS[0], ms=6, mec="white", clip_on=False)
    lines = [f"mean absolute error {_with_interval(agreement, 'mean_absolute_error')}"]
    if threshold is not None:
        ax.axvline(threshold, color="black", linestyle=":", linewidth=1)
        ax.axhline(threshold, color="black", linestyle=":", linewidth=1)
        wrong = [row for row in cells if (row[1] >= threshold) != (row[2] >= threshold)]
        style = {"color": _COLORS[1], "mec": "black", "ms": 7, "clip_on": False}
        ax.plot([row[1] for row in wrong], [row[2] for row in wrong], "D", **style)
        lines += [f"diamonds: wrong side of {threshold:.0%}, {len(wrong)} of {len(cells)} patients"]
    ax.set_title("\n".join(lines), size=9.5)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel=f"true share of {title}", ylabel=f"predicted share of {title}")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    sns.despine(ax=ax)


def _draw_differences(
    ax: Axes, cells: Sequence[tuple[str, float, float]], agreement: ShareAgreement, title: str
) -> None:
    true, predicted = (np.array([row[i] for row in cells]) for i in (1, 2))
    ax.plot((true + predicted) / 2, predicted - true, "o", color=_COLORS[0], ms=6, mec="white")
    ax.axhline(0, color="0.6", linewidth=1)
    lines = [("bias", agreement.bias, "-")]
    if agreement.limits is not None:
        lines += [("bias - 1.96 SD", agreement.limits[0], "--")]
        lines += [("bias + 1.96 SD", agreement.limits[1], "--")]
    for name, height, style in lines:
        if height is None:
            continue
        ax.axhline(height, color="black", linestyle=style, linewidth=1)
        place = ax.get_yaxis_transform()
        text = f"{name}\n{100 * height:+.1f}"
        ax.text(1.01, height, text, transform=place, size=8, va="center")
    ax.set(xlim=(0, 1), xlabel=f"mean of true and predicted share of {title}")
    ax.set_ylabel("predicted minus true (percentage points)")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    ax.yaxis.set_major_formatter(_points)
    sns.despine(ax=ax)


def _with_interval(agreement: ShareAgreement, name: str) -> str:
    value, interval = getattr(agreement, name), agreement.intervals[name]
    if value is None:
        return "-"
    bounds = "" if interval is None else f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"
    return f"{100 * value:.1f}{bounds} percentage points"


def _draw_forest(
    ax: Axes, labels: Sequence[str], differences: Mapping[str, Sequence[Difference]]
) -> None:
    step = 0.6 / max(len(differences), 2)
    for rank, (name, column) in enumerate(differences.items()):
        offset = (rank - (len(differences) - 1) / 2) * step
        color, marker = _COLORS[rank % len(_COLORS)], _MARKERS[rank % len(_MARKERS)]
        for row, one in enumerate(column):
            if one.interval is not None:
                ax.plot(one.interval, [row + offset] * 2, color=color, linewidth=2)
        places = {row + offset: one.difference for row, one in enumerate(column)}
        had = {height: value for height, value in places.items() if value is not None}
        style: dict[str, Any] = {"color": color, "mec": "black", "mew": 0.6, "ms": 7, "ls": ""}
        ax.plot(list(had.values()), list(had), marker, label=name, **style)
    ax.axvline(0, color="black", linewidth=1)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6))
    ax.set_yticks(range(len(labels)), labels)
    ax.set_ylim(len(labels) - 0.4, -0.6)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    sns.despine(ax=ax, left=True)
    ax.tick_params(axis="y", length=0)


def _readable(name: str) -> str:
    words = [word.upper() if word in _SHORT else word for word in name.split("_")]
    return " ".join(words) + (" (less is better)" if name in _LOSSES else "")


def _points(share: float, _position: float = 0) -> str:
    """Write a difference of shares in percentage points."""
    return f"{100 * share:+.0f}" if share else "0"
