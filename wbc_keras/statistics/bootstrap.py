"""Cells drawn again and again: the intervals of every figure.

A draw is a weight for each cell, not a list of cells, so that a figure of a thousand draws is a few
operations on a table (draws, cells). Any function from weights (draws, n) to figures (draws,) has
intervals from here; weights of one give the figure itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from wbc_keras.errors import DataError
from wbc_keras.statistics.probabilities import Array, Integers

Figures = Callable[[Array], Mapping[str, Array]]
Interval = tuple[float, float] | None

DRAWS = 1000
_BLOCK_CELLS = 1_000_000  # weights held at once; near the size that fits a processor's cache
_MOST_CORRECTION = 1.0  # in standard deviations; beyond, the draws say too little of the figure


@dataclass(frozen=True)
class Resampling:
    """Units that are drawn together, with replacement, inside each stratum.

    Attributes:
        unit_of_cell: (n,), each cell's unit, a number from 0.
        strata: the units of each stratum.
        by: what a unit is, "group" or "cell".
    """

    unit_of_cell: Integers
    strata: tuple[Integers, ...]
    by: str

    @property
    def degrees_of_freedom(self) -> int:
        """How many units could be drawn otherwise; 0 if every draw is the cells as they are."""
        return sum(len(units) - 1 for units in self.strata)

    def draw(self, draws: int, rng: np.random.Generator) -> Array:
        """Return a weight for each cell in each draw, (draws, n).

        Of a stratum's m units m - 1 are drawn, each for m / (m - 1) (Rao and Wu 1988): drawing m,
        as usual, makes a class of few cells look surer than it is.
        """
        weights = np.empty((draws, int(self.unit_of_cell.max()) + 1))
        for units in self.strata:
            count = len(units)
            drawn = max(count - 1, 1)
            # Far faster than drawing the counts themselves (`rng.multinomial`).
            chosen = rng.integers(count, size=(draws, drawn))
            counts = np.stack([np.bincount(row, minlength=count) for row in chosen])
            # One factor for all changes no figure, and whole numbers are exact.
            factor = count / drawn if len(self.strata) > 1 else 1.0
            weights[:, units] = counts * factor
        return weights[:, self.unit_of_cell]


def plan_resampling(
    labels: npt.ArrayLike | Sequence[str], *, groups: Sequence[str] | None = None
) -> Resampling:
    """Choose what is drawn: whole groups where there are any, else cells within their class.

    Cells of one patient are alike, so a patient is drawn whole. Without patients no class is ever
    absent from a draw.

    Args:
        labels: n labels, of any kind.
        groups: n group names; a cell with "" is a group of its own. All "" is as None.

    Raises:
        DataError: not one group for each label.
    """
    strata = np.unique(np.asarray(labels), return_inverse=True)[1]
    if groups is not None and len(groups) != len(strata):
        raise DataError(
            f"groups: expected one for each of {len(strata)} cells. Received: {len(groups)}"
        )
    if groups is None or not any(groups):
        members = tuple(np.flatnonzero(strata == c) for c in range(strata.max() + 1))
        return Resampling(np.arange(len(strata)), members, "cell")
    units: dict[str | int, int] = {}
    # A cell's number never equals a name, so a cell without a group stays alone.
    numbers = [units.setdefault(name or cell, len(units)) for cell, name in enumerate(groups)]
    return Resampling(np.array(numbers), (np.arange(len(units)),), "group")


def draw_figures(
    figures: Figures, resampling: Resampling, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, Array]:
    """Return each figure of every draw, (draws,), the same draws for the same seed.

    Args:
        figures: from weights (d, n) to figures (d,), NaN where one cannot be had.
        resampling: what is drawn.
        draws: how often, at least once.
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    sizes = _block_sizes(draws, len(resampling.unit_of_cell))
    blocks = [figures(resampling.draw(size, rng)) for size in sizes]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def bootstrap_intervals(
    figures: Figures,
    resampling: Resampling,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    biased: Collection[str] = (),
) -> dict[str, Interval]:
    """Return the 95 % interval of each figure; None where there is none.

    There is none if nothing can be drawn (one group, or one cell in each class), or if a figure
    cannot be had in half of the draws. See `interval_of` for the ends.

    Args:
        figures: from weights (d, n) to figures (d,), NaN where one cannot be had.
        resampling: what is drawn.
        draws: how often.
        seed: of the draws.
        biased: figures that any draw raises, because it holds cells twice; their draws are first
            moved by the mean excess over the figure. They are never below 0.
    """
    values = figures(np.ones((1, len(resampling.unit_of_cell))))
    freedom = resampling.degrees_of_freedom
    if draws < 1 or not freedom:
        return dict.fromkeys(values)
    drawn = draw_figures(figures, resampling, draws=draws, seed=seed)
    for name in biased:
        drawn[name] = np.maximum(drawn[name] - drawn[name].mean() + values[name], 0.0)
    return {
        name: interval_of(float(values[name][0]), drawn[name], degrees_of_freedom=freedom)
        for name in drawn
    }


def interval_of(figure: float, drawn: Array, *, degrees_of_freedom: int) -> Interval:
    """Return the 95 % interval of a figure from its draws, NaN among them.

    Bias-corrected percentiles (Efron 1981) at the quantiles of Student's distribution instead of
    the normal one (Hesterberg 2015): with few patients plain percentiles are too narrow.

    Args:
        figure: of the cells as they are.
        drawn: (draws,).
        degrees_of_freedom: of the resampling.
    """
    had = drawn[~np.isnan(drawn)]
    if np.isnan(figure) or len(had) * 2 <= len(drawn):
        return None
    below = (np.mean(had < figure - 1e-12) + np.mean(had <= figure + 1e-12)) / 2
    shift = np.clip(stats.norm.ppf(below), -_MOST_CORRECTION, _MOST_CORRECTION)
    reach = stats.t.ppf(0.975, degrees_of_freedom)
    low, high = np.quantile(had, stats.norm.cdf(2 * shift + np.array([-reach, reach])))
    # Weights that are no whole numbers leave a last digit.
    return round(float(low), 12), round(float(high), 12)


def _block_sizes(draws: int, cells: int) -> Iterator[int]:
    block = max(1, _BLOCK_CELLS // cells)
    for start in range(0, draws, block):
        yield min(block, draws - start)
