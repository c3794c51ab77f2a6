"""Two or more models on the same cells: differences of every figure, and which classes moved.

Every bootstrap draw holds the same cells for both models (paired), so what is hard about the cells
cancels: an interval of the difference is narrower than those of the two figures let expect.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from wbc_keras.calibration import BIASED
from wbc_keras.errors import DataError
from wbc_keras.labels import abnormal_classes
from wbc_keras.metrics import SCORES, Scorer
from wbc_keras.reporting.estimates import NONE, Cell, Estimate
from wbc_keras.reporting.score_tables import CALIBRATION, FIGURES
from wbc_keras.reporting.tables import Table
from wbc_keras.statistics.bootstrap import (
    DRAWS,
    Interval,
    Resampling,
    draw_figures,
    interval_of,
    plan_resampling,
)
from wbc_keras.statistics.probabilities import Array, check_probabilities


@dataclass(frozen=True)
class Difference:
    """One figure of two models; None where it cannot be had.

    Attributes:
        first, second: the figure of each.
        difference: second minus first.
        interval: 95 % paired bootstrap interval of the difference.
    """

    first: float | None
    second: float | None
    difference: float | None
    interval: Interval

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True)
class ClassChange:
    """One class under two models.

    Attributes:
        support: its cells.
        gained: cells of it that only the second model has right.
        lost: cells of it that only the first has right.
        figures: `metrics.SCORES`: precision, recall, F1, AUROC and AUPRC.
    """

    support: int
    gained: int
    lost: int
    figures: Mapping[str, Difference]

    @property
    def moved(self) -> str:
        """``better`` or ``worse`` where the interval of the F1's difference leaves 0 out."""
        f1 = self.figures["f1"]
        if not f1.is_clear or f1.difference is None:
            return ""
        return "better" if f1.difference > 0 else "worse"


@dataclass(frozen=True)
class McNemar:
    """Whether two models are right equally often (McNemar 1947), by the exact binomial test.

    Cells count as independent, which cells of one patient are not: with patients, the paired
    interval of the accuracy is the safer word.

    Attributes:
        only_first: cells that only the first model has right.
        only_second: cells that only the second has right.
        p: two-sided.
        p_holm: corrected for all pairs that are compared (Holm 1979).
    """

    only_first: int
    only_second: int
    p: float
    p_holm: float


@dataclass(frozen=True)
class Comparison:
    """Two models, ``first`` and ``second``, on the same cells."""

    first: str
    second: str
    figures: Mapping[str, Difference]
    per_class: Mapping[str, ClassChange]
    mcnemar: McNemar

    def _repr_html_(self) -> str:
        """Return the differences as a notebook shows them: of all cells, then of each class."""
        return "".join(table._repr_html_() for table in (_figure_table(self), _class_table(self)))

    def to_json(self) -> dict[str, Any]:
        """Return one entry of comparison.json."""
        return {
            "first": self.first,
            "second": self.second,
            "figures": {name: _difference_json(one) for name, one in self.figures.items()},
            "mcnemar": asdict(self.mcnemar),
            "per_class": {
                name: {
                    "support": one.support,
                    "gained": one.gained,
                    "lost": one.lost,
                    "moved": one.moved or None,
                    **{key: _difference_json(value) for key, value in one.figures.items()},
                }
                for name, one in self.per_class.items()
            },
        }


def compare_models(
    y_true: npt.ArrayLike,
    probabilities: Mapping[str, npt.ArrayLike],
    class_names: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> tuple[Comparison, ...]:
    """Compare every two of several models.

    Args:
        y_true: integers (n,), the index of each cell's class.
        probabilities: by model's name, (n, k) with rows that sum to one; two models or more.
        class_names: k different names.
        groups: n group names (patients), drawn whole; a cell with "" is a group of its own.
        draws: number of bootstrap draws.
        seed: of the draws.

    Returns:
        one comparison for each two models, in the order given.

    Raises:
        DataError: fewer than two models, shapes disagree, or a value is out of range.
    """
    if len(probabilities) < 2:
        raise DataError(f"compare: expected two models or more. Received: {list(probabilities)}")
    resampling = plan_resampling(np.asarray(y_true), groups=groups)
    models = {
        name: _measure(y_true, shares, class_names, resampling, draws=draws, seed=seed)
        for name, shares in probabilities.items()
    }
    truth = np.asarray(y_true)
    return _correct(
        [
            Comparison(
                one,
                other,
                _differences(models[one], models[other]),
                _changes(truth, class_names, models[one], models[other]),
                _test(models[one].right, models[other].right),
            )
            for one, other in combinations(models, 2)
        ]
    )


def difference_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Return ``first_run, second_run, figure, first, second, difference, low, high``, by pair."""
    return pd.DataFrame(
        {"first_run": pair.first, "second_run": pair.second, "figure": name, **_cells(one)}
        for pair in comparisons
        for name, one in pair.figures.items()
    )


def class_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Return ``first_run, second_run, class, support, gained, lost, moved``, then each figure.

    A figure has the columns ``<figure>_first, _second, _difference, _low, _high``.
    """
    return pd.DataFrame(
        {
            "first_run": pair.first,
            "second_run": pair.second,
            "class": name,
            "support": one.support,
            "gained": one.gained,
            "lost": one.lost,
            "moved": one.moved,
            **{
                f"{figure}_{column}": cell
                for figure, difference in one.figures.items()
                for column, cell in _cells(difference).items()
            },
        }
        for pair in comparisons
        for name, one in pair.per_class.items()
    )


def _figure_table(pair: Comparison) -> Table:
    titles, test = FIGURES | CALIBRATION, pair.mcnemar
    rows = tuple((titles[name], *_columns(one)) for name, one in pair.figures.items())
    note = (
        f"Right in {pair.first} only: {test.only_first} cells, in {pair.second} only: "
        f"{test.only_second}; McNemar's p {test.p:.2g}. Intervals are paired, 95 %; a difference "
        "is clear where its interval leaves 0 out."
    )
    columns = ("figure", pair.first, pair.second, "difference", "clear")
    return Table("differences", f"{pair.second} minus {pair.first}", note, columns, rows)


def _class_table(pair: Comparison) -> Table:
    rows = tuple(
        (name, one.support, one.gained, one.lost, *_columns(one.figures["f1"]))
        for name, one in pair.per_class.items()
    )
    columns = ("class", "cells", "gained", "lost", pair.first, pair.second, "difference", "clear")
    note = f"Gained: cells that only {pair.second} names right; lost: only {pair.first}."
    return Table("classes", "F1 of each class", note, columns, rows)


def _columns(one: Difference) -> tuple[Cell, ...]:
    bounds = "" if one.interval is None else f" [{one.interval[0]:+.3f}, {one.interval[1]:+.3f}]"
    difference = NONE if one.difference is None else f"{one.difference:+.3f}{bounds}"
    clear = "yes" if one.is_clear else ""
    return Estimate(one.first), Estimate(one.second), difference, clear


@dataclass(frozen=True, eq=False)
class Drawn:
    """Figures of one model and their bootstrap draws.

    Attributes:
        figures: by name, NaN where one cannot be had.
        draws: (draws,) by name; empty if nothing could be drawn.
        degrees_of_freedom: of the resampling.
    """

    figures: Mapping[str, float]
    draws: Mapping[str, Array]
    degrees_of_freedom: int


@dataclass(frozen=True, eq=False)
class _Model(Drawn):
    """right: bool (n,). The figures are as `Scorer` names them."""

    right: npt.NDArray[np.bool_]


def _measure(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    resampling: Resampling,
    *,
    draws: int,
    seed: int,
) -> _Model:
    """Return a model's figures; with the same cells and seed, the draws hold the same cells."""
    truth, shares = check_probabilities(y_true, probabilities, class_names)
    abnormal = abnormal_classes(class_names)
    is_abnormal = None if abnormal is None else np.isin(list(class_names), abnormal)
    scorer = Scorer(truth, shares, is_abnormal)

    every_cell_once = np.ones((1, len(truth)))
    own = {name: float(values[0]) for name, values in scorer.figures(every_cell_once).items()}
    freedom = resampling.degrees_of_freedom
    drawn: dict[str, Array] = {}
    if draws and freedom:
        drawn = draw_figures(scorer.figures, resampling, draws=draws, seed=seed)
        for name in BIASED:
            drawn[name] = np.maximum(drawn[name] - drawn[name].mean() + own[name], 0)
    return _Model(own, drawn, freedom, shares.argmax(axis=1) == truth)


def _differences(one: _Model, other: _Model) -> dict[str, Difference]:
    names = (name for name in one.figures if "/" not in name)
    return {name: paired_difference(one, other, name) for name in names}


def _changes(
    truth: npt.NDArray[np.integer], class_names: Sequence[str], one: _Model, other: _Model
) -> dict[str, ClassChange]:
    return {
        name: ClassChange(
            int((truth == c).sum()),
            int((other.right & ~one.right)[truth == c].sum()),
            int((one.right & ~other.right)[truth == c].sum()),
            {figure: paired_difference(one, other, f"{figure}/{c}") for figure in SCORES},
        )
        for c, name in enumerate(class_names)
    }


def paired_difference(one: Drawn, other: Drawn, name: str) -> Difference:
    """Return ``other`` minus ``one`` in a figure; the draws of both must hold the same cells."""
    first, second = one.figures[name], other.figures[name]
    interval = None
    if one.draws:
        drawn, freedom = other.draws[name] - one.draws[name], one.degrees_of_freedom
        interval = interval_of(second - first, drawn, degrees_of_freedom=freedom)
    return Difference(_or_none(first), _or_none(second), _or_none(second - first), interval)


def _test(first: npt.NDArray[np.bool_], second: npt.NDArray[np.bool_]) -> McNemar:
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    differing = only_first + only_second
    p = float(stats.binomtest(only_first, differing).pvalue) if differing else 1.0
    return McNemar(only_first, only_second, p, p)


def _correct(comparisons: Sequence[Comparison]) -> tuple[Comparison, ...]:
    """Correct the p values for their number, step down (Holm 1979)."""
    p = np.array([one.mcnemar.p for one in comparisons])
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(stepped, 1)
    return tuple(
        replace(one, mcnemar=replace(one.mcnemar, p_holm=float(value)))
        for one, value in zip(comparisons, corrected, strict=True)
    )


def _cells(one: Difference) -> dict[str, float | None]:
    low, high = one.interval or (None, None)
    figures = {"first": one.first, "second": one.second, "difference": one.difference}
    return {**figures, "low": low, "high": high}


def _difference_json(one: Difference) -> dict[str, Any]:
    figures = {"first": one.first, "second": one.second, "difference": one.difference}
    return figures | {"confidence_interval_95": list(one.interval) if one.interval else None}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
