"""Early detection: cells of some classes (abnormal ones, blasts) against all others.

The score of a cell is the sum of the probabilities of the classes looked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wbc_keras.errors import DataError
from wbc_keras.statistics.bootstrap import (
    DRAWS,
    Figures,
    Interval,
    draw_figures,
    interval_of,
    plan_resampling,
)
from wbc_keras.statistics.probabilities import Array, check_probabilities, divide
from wbc_keras.statistics.proportions import wilson
from wbc_keras.statistics.ranking import Ranking

Bools = npt.NDArray[np.bool_]
Threshold = float | Array  # one for all cells, or (n,) one for each

RATES = ("sensitivity", "specificity", "ppv", "npv")
_GRID = np.linspace(0, 1, 201)
_ROUNDING = 1e-9  # weights of draws are not whole numbers


@dataclass(frozen=True)
class OperatingPoint:
    """What comes of calling a cell from a threshold on; a rate without cells is None.

    Attributes:
        threshold: a cell is called if its score is at least this; None if cells have different
            ones, as those of several models have.
        true_positives, false_positives, true_negatives, false_negatives: cells.
        sensitivity: share of the cells looked for that are called.
        specificity: share of the others that are not called.
        ppv: share of the called cells that are looked for; it hangs on how many there are.
        npv: share of the cells not called that are others; likewise.
        intervals: (low, high) by rate.
    """

    threshold: float | None
    true_positives: int
    false_positives: int
    true_negatives: int
    false_negatives: int
    sensitivity: float | None
    specificity: float | None
    ppv: float | None
    npv: float | None
    intervals: Mapping[str, Interval]


@dataclass(frozen=True, eq=False)
class Curve:
    """A curve ``x, y``, and the 95 % band ``low, high`` of y at each of ``grid``, if there is one.

    All are 0 to 1; x and y are (points,), the others (grid,).
    """

    x: Array
    y: Array
    grid: Array
    low: Array | None
    high: Array | None


@dataclass(frozen=True, eq=False)
class Screening:
    """Cells of ``classes`` against all others; a figure that cannot be had is None.

    Attributes:
        classes: what is looked for.
        cells: how many are scored.
        positives: how many of them are of ``classes``.
        auroc: chance that a cell looked for scores above another one.
        average_precision: area under the precision-recall steps, as scikit-learn has it.
        intervals: (low, high) of the two.
        points: operating points by name; None where there is no threshold.
        roc: sensitivity over the false-positive rate.
        precision_recall: precision over recall.
    """

    classes: tuple[str, ...]
    cells: int
    positives: int
    auroc: float | None
    average_precision: float | None
    intervals: Mapping[str, Interval]
    points: Mapping[str, OperatingPoint | None]
    roc: Curve | None
    precision_recall: Curve | None

    def to_json(self) -> dict[str, Any]:
        """Return the content of screening.json for one question: all but the curves."""
        return {
            "classes": list(self.classes),
            "cells": self.cells,
            "positives": self.positives,
            "auroc": self.auroc,
            "average_precision": self.average_precision,
            "confidence_interval_95": _as_lists(self.intervals),
            "operating_points": {
                name: None if point is None else _point_json(point)
                for name, point in self.points.items()
            },
        }


def screen(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    classes: Sequence[str],
    *,
    thresholds: Mapping[str, Threshold | None] | None = None,
    groups: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Screening:
    """Tell cells of some classes from all others.

    Areas and curves have bootstrap intervals, and so have the rates of operating points by patient.
    By cell a rate is a plain share, with Wilson's interval; so it is over the patients where it is
    exactly 0 or 1, as no draw differs then.

    Args:
        y_true: integers (n,), the index of each cell's class.
        probabilities: (n, k), rows that sum to one.
        class_names: k different names.
        classes: those of them that are looked for.
        thresholds: by name, one for all cells or (n,) one for each; chosen on other cells.
        groups: n group names (patients), drawn whole; a cell with "" is a group of its own.
        draws: number of bootstrap draws; 0 for no intervals by bootstrap.
        seed: of the draws.

    Raises:
        DataError: shapes disagree, a value is out of range, or a class is unknown.
    """
    truth, shares = check_probabilities(y_true, probabilities, class_names)
    looked_for = _looked_for(class_names, classes)
    groups = groups if groups is not None and any(groups) else None
    positive, scores = looked_for[truth], shares[:, looked_for].sum(axis=1)
    given = {name: value for name, value in (thresholds or {}).items() if value is not None}
    ranking, curves = Ranking(positive, scores), _Curves(positive, scores)
    tables = {name: _outcomes(positive, scores >= value) for name, value in given.items()}

    def figures(weights: Array) -> dict[str, Array]:
        rates = {
            f"{name} {rate}": values
            for name, table in tables.items()
            for rate, values in _rates(weights @ table).items()
        }
        return _areas(ranking, weights) | curves.on_grid(weights) | rates

    own = {name: values[0] for name, values in figures(np.ones((1, len(truth)))).items()}
    intervals = _intervals(figures, own, truth, groups, draws=draws, seed=seed)
    points = {
        name: _point(value, tables[name], _of_point(intervals, name), groups)
        for name, value in given.items()
    }
    return Screening(
        classes=tuple(classes),
        cells=len(truth),
        positives=int(positive.sum()),
        auroc=_or_none(own["auroc"]),
        average_precision=_or_none(own["average_precision"]),
        intervals={name: intervals[name][0] for name in ("auroc", "average_precision")},
        points={name: points.get(name) for name in thresholds or {}},
        roc=curves.curve("roc", intervals["roc"]),
        precision_recall=curves.curve("precision_recall", intervals["precision_recall"]),
    )


def _intervals(
    figures: Figures,
    own: Mapping[str, Array],
    truth: npt.NDArray[np.integer],
    groups: Sequence[str] | None,
    *,
    draws: int,
    seed: int,
) -> dict[str, list[Interval]]:
    """Return the intervals of each figure, one, or one for each point of the grid."""
    resampling = plan_resampling(truth, groups=groups)
    freedom = resampling.degrees_of_freedom
    if draws < 1 or not freedom:
        return {name: [None] * np.size(value) for name, value in own.items()}
    drawn = draw_figures(figures, resampling, draws=draws, seed=seed)
    return {
        name: [
            interval_of(float(one), column, degrees_of_freedom=freedom)
            for one, column in zip(
                np.atleast_1d(value), drawn[name].reshape(draws, -1).T, strict=True
            )
        ]
        for name, value in own.items()
    }


def _areas(ranking: Ranking, weights: Array) -> dict[str, Array]:
    weighed = ranking.weigh(weights)
    # Where there is but one kind of cell, nothing is told apart.
    precision = np.where(weighed.negatives > 0, weighed.auprc(), np.nan)
    return {"auroc": weighed.auroc(), "average_precision": precision}


class _Curves:
    """Cells by falling score, ties together: curves for any weights of the cells."""

    def __init__(self, positive: Bools, scores: Array) -> None:
        self._order = np.argsort(-scores, kind="stable")
        self._positive = positive[self._order].astype(np.float64)
        # A threshold can stand only where the score changes: at the last of each tie.
        self._ends = np.flatnonzero(np.append(np.diff(scores[self._order]) != 0, True))
        self._has_both = 0 < positive.sum() < len(positive)

    def on_grid(self, weights: Array) -> dict[str, Array]:
        """Return the curves on the grid, each (draws, grid); NaN if a side is empty."""
        true, false = self._called(weights)
        return {
            "roc": _on_grid(_roc_at, true, false),
            "precision_recall": _on_grid(_precision_at, true, false),
        }

    def curve(self, kind: str, band: Sequence[Interval]) -> Curve | None:
        """Return the cells' own curve with its band, or None if a side is empty."""
        if not self._has_both:
            return None
        true, false = (one[0] for one in self._called(np.ones((1, len(self._order)))))
        rate = np.append(0, true) / true[-1]
        if kind == "roc":
            x, y = np.append(0, false) / false[-1], rate
        else:
            # The first precision is that of the first threshold, down to recall 0.
            precision = true / (true + false)
            x, y = rate, np.append(precision[0], precision)
        known = [one for one in band if one is not None]
        low, high = np.array(known).T if len(known) == len(band) else (None, None)
        return Curve(x, y, _GRID, low, high)

    def _called(self, weights: Array) -> tuple[Array, Array]:
        """Return the weights of cells called rightly and wrongly at each threshold."""
        weights = weights[:, self._order]
        right = weights * self._positive
        true = np.cumsum(right, axis=1)[:, self._ends]
        return true, np.cumsum(weights - right, axis=1)[:, self._ends]


def _on_grid(read: Callable[[Array, Array], Array], true: Array, false: Array) -> Array:
    """Read a curve off at the grid for each draw; NaN for a draw in which a side is empty."""
    rows = np.full((len(true), len(_GRID)), np.nan)
    for row, one, other in zip(rows, true, false, strict=True):
        if one[-1] and other[-1]:
            row[:] = read(one, other)
    return rows


def _roc_at(true: Array, false: Array) -> Array:
    false, true = np.append(0, false) / false[-1], np.append(0, true) / true[-1]
    return np.asarray(np.interp(_GRID, false, true))


def _precision_at(true: Array, false: Array) -> Array:
    """Return the precision at the first threshold that reaches each recall, more than none."""
    least = true[true > 0][0]
    wanted = np.maximum(_GRID * true[-1] * (1 - _ROUNDING), least)
    first = np.searchsorted(true, wanted)
    return np.asarray(true[first] / (true[first] + false[first]))


def _outcomes(positive: Bools, called: Bools) -> Array:
    """Return 0 or 1 (n, 4): true positive, false positive, true negative, false negative."""
    columns = [positive & called, ~positive & called, ~positive & ~called, positive & ~called]
    return np.stack(columns, axis=1).astype(np.float64)


def _rates(counts: Array) -> dict[str, Array]:
    """Return each rate (draws,) of counts (draws, 4) as `_outcomes` orders them."""
    tp, fp, tn, fn = counts.T
    pairs = ((tp, fn), (tn, fp), (tp, fp), (tn, fn))
    return {
        name: divide(right, right + wrong)
        for name, (right, wrong) in zip(RATES, pairs, strict=True)
    }


def _of_point(intervals: Mapping[str, Sequence[Interval]], point: str) -> dict[str, Interval]:
    return {rate: intervals[f"{point} {rate}"][0] for rate in RATES}


def _point(
    threshold: Threshold,
    table: Array,
    intervals: Mapping[str, Interval],
    groups: Sequence[str] | None,
) -> OperatingPoint:
    tp, fp, tn, fn = table.sum(axis=0).astype(int).tolist()
    values = _rates(np.array([[tp, fp, tn, fn]], np.float64))
    rates = {name: _or_none(one[0]) for name, one in values.items()}
    cells_of = {"sensitivity": [0, 3], "specificity": [2, 1], "ppv": [0, 1], "npv": [2, 3]}
    bounds = dict(intervals)
    for name, rate in rates.items():
        units = _count_units(table[:, cells_of[name]].sum(axis=1) > 0, groups)
        if groups is None or rate in (0, 1):
            bounds[name] = wilson(round((rate or 0) * units), units)
    sensitivity, specificity, ppv, npv = (rates[name] for name in RATES)
    different = np.unique(threshold)
    common = float(different[0]) if len(different) == 1 else None
    return OperatingPoint(
        common, tp, fp, tn, fn, sensitivity, specificity, ppv, npv, intervals=bounds
    )


def _count_units(chosen: Bools, groups: Sequence[str] | None) -> int:
    if groups is None:
        return int(chosen.sum())
    return len({groups[cell] or cell for cell in np.flatnonzero(chosen).tolist()})


def _looked_for(class_names: Sequence[str], classes: Sequence[str]) -> Bools:
    unknown = sorted(set(classes) - set(class_names))
    if unknown or not classes:
        raise DataError(
            f"screening: expected some of {', '.join(class_names)}. "
            f"Received: {', '.join(unknown) or 'none'}"
        )
    return np.isin(list(class_names), list(classes))


def _point_json(point: OperatingPoint) -> dict[str, Any]:
    figures = asdict(point)
    return figures | {"confidence_interval_95": _as_lists(figures.pop("intervals"))}


def _or_none(value: Array) -> float | None:
    return None if np.isnan(value) else float(value)


def _as_lists(intervals: Mapping[str, Interval]) -> dict[str, list[float] | None]:
    return {name: None if one is None else list(one) for name, one in intervals.items()}
