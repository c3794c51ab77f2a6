"""The checks of the heatmaps, drawn."""

from __future__ import annotations

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from wbc_keras.statistics.faithfulness import STEPS, Checks

_BLUE, _ORANGE, _GREY = (
    sns.color_palette("colorblind")[0],
    sns.color_palette("colorblind")[1],
    "0.6",
)


def plot_checks(checks: Checks, *, ax: tuple[Axes, ...] | None = None) -> tuple[Axes, ...]:
    """Draw where the heat lies, deletion and insertion, and what is left without the weights.

    Args:
        checks: of `faithfulness.check_heatmaps`.
        ax: four axes.
    """
    if ax is None:
        figure = Figure(figsize=(15, 4), layout="constrained")
        ax = tuple(figure.subplots(1, 4))
    _plot_energy(checks, ax[0])
    for one, name in zip(ax[1:3], ("deletion", "insertion"), strict=True):
        _plot_curve(checks, name, one)
    _plot_similarity(checks, ax[3])
    for one in ax:
        sns.despine(ax=one)
    return ax


def _plot_energy(checks: Checks, ax: Axes) -> None:
    columns = [("heat", checks.energy, _BLUE), ("CBAM's attention", checks.attention, _ORANGE)]
    columns += [("of the crop's area", checks.area, _GREY)]
    columns = [column for column in columns if column[1]]
    width = 0.8 / len(columns)
    for number, (label, shares, color) in enumerate(columns):
        places = np.arange(len(shares)) + width * number
        heights = [np.nan if np.isnan(one).all() else np.nanmean(one) for one in shares.values()]
        bars = ax.bar(places, heights, 0.95 * width, color=color, label=label)
        ax.bar_label(bars, [f"{height:.0%}" for height in heights], size=9)
    middle = width * (len(columns) - 1) / 2
    ax.set_xticks(np.arange(len(checks.energy)) + middle, list(checks.energy))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    ax.set(ylim=(0, 1.3), ylabel="share inside", title="Where the heat lies")
    ax.set_yticks(np.linspace(0, 1, 6))
    ax.legend(frameon=False, loc="upper left")


def _plot_curve(checks: Checks, name: str, ax: Axes) -> None:
    share = np.arange(STEPS + 1) / STEPS
    for curves, color, line, label in (
        (checks.own, _BLUE, "-", "by its own map"),
        (checks.control, _ORANGE, "--", "by another cell's map"),
    ):
        heights = getattr(curves, name).mean(axis=0)
        ax.plot(share, heights, line, color=color, label=f"{label}, mean {heights.mean():.3f}")
    ax.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="probability of the class")
    ax.xaxis.set_major_formatter(PercentFormatter(1))
    what, better = ("taken away", "lower") if name == "deletion" else ("given back", "higher")
    ax.set(xlabel=f"hottest pixels {what}", title=f"{name.capitalize()} ({better} is better)")
    ax.legend(frameon=False, loc="upper right" if name == "deletion" else "lower right")


def _plot_similarity(checks: Checks, ax: Axes) -> None:
    stages = list(checks.similarity)
    for row, stage in enumerate(stages):
        values = checks.similarity[stage]
        values = values[~np.isnan(values)]
        if len(values):
            low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
            ax.plot([row, row], [low, high], color=_BLUE, lw=7, solid_capstyle="butt")
            ax.plot(row, middle, "o", color="white", mec="black", ms=6)
    ax.axhline(0, color="black", linewidth=1)
    between = float(np.nanmean(checks.between_cells))
    ax.axhline(between, color=_ORANGE, linestyle="--", label=f"two cells' maps, {between:.2f}")
    ax.set_xticks(range(len(stages)), [stage.replace(" of ", " of\n") for stage in stages])
    ax.set(
        ylim=(-1.02, 1.02), xlim=(-0.5, len(stages) - 0.5), ylabel="rank correlation with itself"
    )
    ax.set(xlabel="weights lost, from the head down to", title="Does it survive? (it should not)")
    ax.legend(frameon=False, loc="lower left")
