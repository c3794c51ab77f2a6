"""The picture of a study: each figure of each setting, and its difference to the baseline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from wbc_keras.statistics.comparison import Difference
from wbc_keras.studies.figures import FIGURES, SettingFigures, StudyFigures
from wbc_keras.studies.report import HELPED, HURT, NOT_SHOWN, TITLES, compare, verdict

_PALETTE = sns.color_palette("colorblind")
_BLUE, _ORANGE, _GREEN, _GREY = _PALETTE[0], _PALETTE[1], _PALETTE[2], (0.5, 0.5, 0.5)
_STYLES = {HELPED: ("^", _GREEN), HURT: ("v", _ORANGE), NOT_SHOWN: ("o", _GREY)}


def plot_study(figures: StudyFigures, *, ax: Any = None) -> Any:
    """Draw a column a figure: above the settings' own, below the differences, in points.

    The differences are to the baseline; of a grid, what each level of a component is worth.

    Args:
        figures: of a study with at least one finished run.
        ax: two rows of axes, as many columns as figures that can be had.

    Returns:
        the axes, (2, columns).
    """
    names = [
        n for n in FIGURES if any(one.figures[n].value is not None for one in figures.settings)
    ]
    settings, compared = figures.settings, compare(figures)
    if ax is None:
        heights = [1.2 + 0.32 * max(len(rows), 1) for rows in (settings, compared)]
        figure = Figure(figsize=(3 + 2.9 * len(names), sum(heights)), layout="constrained")
        ratios = {"height_ratios": heights}
        ax = figure.subplots(2, len(names), squeeze=False, sharey="row", gridspec_kw=ratios)
    against = "the first level" if figures.levels else figures.baseline
    for column, name in enumerate(names):
        _draw_figures(ax[0][column], settings, name)
        _draw_differences(ax[1][column], [one[name] for one in compared.values()])
        ax[0][column].set_xlabel(TITLES[name])
        ax[1][column].set_xlabel(f"{TITLES[name]}, points over {against}")
    for one, rows in ((ax[0][0], [row.name for row in settings]), (ax[1][0], list(compared))):
        one.set_yticks(range(len(rows)), rows)
        one.set_ylim(len(rows) - 0.4, -0.6)
    return ax


def _draw_figures(ax: Axes, settings: Sequence[SettingFigures], name: str) -> None:
    for row, one in enumerate(settings):
        estimate = one.figures[name]
        if estimate.low is not None and estimate.high is not None:
            ax.plot([estimate.low, estimate.high], [row, row], color=_BLUE, linewidth=2)
        if estimate.value is not None:
            ax.plot(estimate.value, row, "o", color=_BLUE, mec="black", mew=0.6, ms=7)
    _frame(ax)


def _draw_differences(ax: Axes, differences: Sequence[Difference]) -> None:
    ax.axvline(0, color="black", linewidth=1)
    for row, one in enumerate(differences):
        if one.difference is None:
            continue
        marker, color = _STYLES[verdict(one)]
        if one.interval is not None:
            ends = [100 * end for end in one.interval]
            ax.plot(ends, [row, row], color=color, linewidth=2)
        style: dict[str, Any] = {"color": color, "mec": "black", "mew": 0.6, "ms": 7}
        ax.plot(100 * one.difference, row, marker, **style)
    _frame(ax)


def _frame(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    sns.despine(ax=ax, left=True)
    ax.tick_params(axis="y", length=0)
