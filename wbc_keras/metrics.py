"""Probabilities and true labels in, the figures of metrics.json out. No plotting, no files.

Every figure is computed from weights of the cells: ones give the figures themselves, the weights of
a bootstrap draw give the draw's, so that both come from the same lines. A figure that cannot be
had is NaN inside this module and None in the result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.calibration import BIASED, CalibrationScorer
from wbc_keras.errors import DataError
from wbc_keras.reporting.score_tables import tabulate_classes, tabulate_figures
from wbc_keras.statistics.bootstrap import DRAWS, Interval, bootstrap_intervals, plan_resampling
from wbc_keras.statistics.probabilities import Array, Integers, check_probabilities, divide
from wbc_keras.statistics.ranking import Ranking

_ENOUGH_CELLS = 20  # a class of fewer makes a macro figure noisy
_PAIRS_NAMED = 10
SCORES = ("precision", "recall", "f1", "auroc", "auprc")


@dataclass(frozen=True)
class ClassScores:
    """One class against all others; a figure that cannot be had is None.

    ``intervals`` gives (low, high) of the 95 % interval by figure, None where there is none.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    auprc: float | None
    support: int
    intervals: Mapping[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Return the class's part of metrics.json."""
        figures = asdict(self)
        intervals = figures.pop("intervals")
        return figures | {"confidence_interval_95": _bounds(intervals)}


@dataclass(frozen=True)
class Evaluation:
    """The figures of one set of cells, as fractions; a figure that cannot be had is None.

    ``confusion`` is int64 (classes, classes): rows are true classes, columns predicted ones.
    ``intervals`` gives (low, high) of the 95 % bootstrap interval by figure; ``resampled_by`` tells
    what was drawn for it, "group" or "cell", None if nothing could be.
    """

    samples: int
    class_names: tuple[str, ...]
    accuracy: float
    top2_accuracy: float
    macro_f1: float
    macro_f1_at_least_20_cells: float | None
    balanced_accuracy: float
    mcc: float
    kappa: float | None
    macro_auroc: float | None
    macro_auprc: float | None
    ece: float
    adaptive_ece: float
    brier: float
    nll: float
    abnormal_auroc: float | None
    abnormal_auprc: float | None
    abnormal_sensitivity_at_95_specificity: float | None
    per_class: Mapping[str, ClassScores]
    intervals: Mapping[str, Interval]
    resampled_by: str | None
    confusion: Integers

    def without_cells(self) -> list[str]:
        """Return the classes that no cell has: macro figures are over the others."""
        return [name for name, one in self.per_class.items() if not one.support]

    def of_at_least_20_cells(self) -> list[str]:
        """Return the classes of at least 20 cells."""
        return [name for name, one in self.per_class.items() if one.support >= _ENOUGH_CELLS]

    def _repr_html_(self) -> str:
        """Return the figures as a notebook shows them: of all cells, then of each class."""
        metrics = self.to_json()
        tables = (tabulate_figures(metrics), tabulate_classes(metrics))
        return "".join(table._repr_html_() for table in tables)

    def to_json(self) -> dict[str, Any]:
        """Return the content of metrics.json."""
        named = [field.name for field in fields(self) if field.name in self.intervals]
        figures = {name: getattr(self, name) for name in named if "abnormal" not in name}
        abnormal = {
            name.removeprefix("abnormal_"): getattr(self, name)
            for name in named
            if name.startswith("abnormal_")
        }
        absent, enough = self.without_cells(), self.of_at_least_20_cells()
        return {
            "samples": self.samples,
            "classes": list(self.class_names),
            **figures,
            "abnormal": abnormal,
            "macro_over": {
                "classes": len(self.class_names) - len(absent),
                "classes_of_at_least_20_cells": len(enough),
                "without_cells": absent,
            },
            "per_class": {name: scores.to_json() for name, scores in self.per_class.items()},
            "confusion_pairs": confusion_pairs(self).head(_PAIRS_NAMED).to_dict("records"),
            "confidence_interval_95": _bounds(self.intervals),
            "resampled_by": self.resampled_by,
        }


def evaluate_predictions(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    abnormal: Sequence[str] | None,
    groups: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Evaluation:
    """Score predicted probabilities.

    - Macro figures and balanced accuracy are means over the classes with at least one cell; in a
      bootstrap draw, over the classes with at least one cell in the draw. The macro F1 of classes
      with enough cells is over those of at least 20, the same ones in every draw.
    - A class without cells has no precision, recall, F1 or AUROC; one that is never predicted has
      precision and F1 of 0, as in scikit-learn. ``mcc`` is 0 where its denominator is 0, as there.
    - ``top2_accuracy``: the true class is among the two most probable; equal ones as scikit-learn.
    - ``auprc``: average precision, without interpolation.
    - ``ece``, ``adaptive_ece``, ``brier``, ``nll``: see `calibration`.
    - Abnormal: the score is the sum of the abnormal classes' probabilities; the sensitivity is
      the largest that any threshold reaches at a specificity of at least 0.95.

    Intervals are of the bootstrap (`bootstrap.bootstrap_intervals`).

    Args:
        y_true: integers (n,), the index of each cell's class.
        probabilities: (n, k), rows that sum to one.
        class_names: k different names.
        abnormal: the names of the abnormal classes, or None where that is not known.
        groups: n group names; a cell with "" is a group of its own.
        draws: number of bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: shapes disagree, or a value is out of range.
    """
    truth, shares = check_probabilities(y_true, probabilities, class_names)
    scorer = Scorer(truth, shares, _abnormal_classes(class_names, abnormal))
    every_cell_once = np.ones((1, len(truth)))
    figures = {name: value[0] for name, value in scorer.figures(every_cell_once).items()}
    plan = plan_resampling(truth, groups=groups)
    intervals = bootstrap_intervals(scorer.figures, plan, draws=draws, seed=seed, biased=BIASED)
    whole = [name for name in figures if "/" not in name]
    return Evaluation(
        samples=len(truth),
        class_names=tuple(class_names),
        per_class={
            name: _class_scores(c, figures, intervals, support=int(np.sum(truth == c)))
            for c, name in enumerate(class_names)
        },
        intervals={name: intervals[name] for name in whole},
        resampled_by=plan.by if intervals["accuracy"] else None,
        confusion=scorer.confusion(every_cell_once)[0].astype(np.int64),
        **{name: _or_none(figures[name]) for name in whole},  # type: ignore[arg-type]
    )


def per_class_table(evaluation: Evaluation) -> pd.DataFrame:
    """Return ``class, precision, recall, f1, auroc, auprc, support``, then the intervals' ends.

    They are ``precision_low, precision_high, recall_low, ...``; NaN where a figure is missing.
    """
    rows = []
    for name, one in evaluation.per_class.items():
        row = {"class": name, **asdict(one)}
        for figure, bounds in row.pop("intervals").items():
            row[f"{figure}_low"], row[f"{figure}_high"] = bounds or (None, None)
        rows.append(row)
    table = pd.DataFrame(rows)
    return table.astype({column: float for column in table if column not in ("class", "support")})


def confusion_pairs(evaluation: Evaluation) -> pd.DataFrame:
    """Return which class is taken for which: ``true, predicted, cells, share``, most cells first.

    ``share`` is of the true class's cells.
    """
    wrong = evaluation.confusion * ~np.eye(len(evaluation.class_names), dtype=bool)
    support = evaluation.confusion.sum(axis=1)
    names = evaluation.class_names
    rows = [
        (names[t], names[p], int(wrong[t, p]), float(wrong[t, p] / support[t]))
        for t, p in zip(*np.nonzero(wrong), strict=True)
    ]
    table = pd.DataFrame(rows, columns=["true", "predicted", "cells", "share"])
    return table.sort_values(["cells", "share"], ascending=False, kind="stable", ignore_index=True)


class Scorer:
    """Every figure of one set of cells, for any number of weightings (draws, n) at once.

    Args:
        truth: (n,), shares: (n, k), as `check_probabilities` returns them.
        is_abnormal: (k,), or None where that is not known.
    """

    def __init__(
        self, truth: Integers, shares: Array, is_abnormal: npt.NDArray[np.bool_] | None
    ) -> None:
        self._classes = shares.shape[1]
        self._pair = truth * self._classes + shares.argmax(axis=1)
        self._in_top2 = _ranks_of_truth(truth, shares) < 2
        self._enough = np.bincount(truth, minlength=self._classes) >= _ENOUGH_CELLS
        self._calibration = CalibrationScorer(truth, shares)
        self._rankings = [Ranking(truth == c, shares[:, c]) for c in range(self._classes)]
        self._abnormal = None
        if is_abnormal is not None:
            self._abnormal = Ranking(is_abnormal[truth], shares[:, is_abnormal].sum(axis=1))

    def figures(self, weights: Array) -> dict[str, Array]:
        """Return each figure as (draws,), NaN where it cannot be had; a class's as "f1/0"."""
        confusion = self.confusion(weights)
        true = confusion.sum(axis=2)
        by_class = self._class_figures(weights, confusion)
        aurocs = by_class["auroc"]
        return {
            **_confusion_figures(confusion),
            "top2_accuracy": weights @ self._in_top2 / weights.sum(axis=1),
            "macro_f1": mean_where(true > 0, by_class["f1"]),
            "macro_f1_at_least_20_cells": mean_where((true > 0) & self._enough, by_class["f1"]),
            "balanced_accuracy": mean_where(true > 0, by_class["recall"]),
            "macro_auroc": mean_where(~np.isnan(aurocs), aurocs),
            "macro_auprc": mean_where(~np.isnan(aurocs), by_class["auprc"]),
            **self._calibration.figures(weights),
            **self._abnormal_figures(weights),
            **{
                f"{name}/{c}": values[:, c]
                for name, values in by_class.items()
                for c in range(self._classes)
            },
        }

    def confusion(self, weights: Array) -> Array:
        """Return confusion matrices (draws, true classes, predicted classes)."""
        size = self._classes**2
        flat = np.stack([np.bincount(self._pair, weights=row, minlength=size) for row in weights])
        return flat.reshape(-1, self._classes, self._classes).astype(np.float64)

    def _class_figures(self, weights: Array, confusion: Array) -> dict[str, Array]:
        """Return `SCORES`, each (draws, classes); NaN for a class without cells."""
        # One class at a time: what a ranking weighs is as large as the weights.
        ranked = [_rank_figures(ranking, weights) for ranking in self._rankings]
        auroc, auprc = (np.stack(one, axis=1) for one in zip(*ranked, strict=True))
        return scores_by_class(confusion) | {"auroc": auroc, "auprc": auprc}

    def _abnormal_figures(self, weights: Array) -> dict[str, Array]:
        names = ("auroc", "auprc", "sensitivity_at_95_specificity")
        if self._abnormal is None:
            return {f"abnormal_{name}": np.full(len(weights), np.nan) for name in names}
        weighed = self._abnormal.weigh(weights)
        # Where there is but one kind of cell, nothing is told apart.
        auprc = np.where(weighed.negatives > 0, weighed.auprc(), np.nan)
        values = (weighed.auroc(), auprc, weighed.sensitivity(0.95))
        return {f"abnormal_{name}": value for name, value in zip(names, values, strict=True)}


def scores_by_class(confusion: Array) -> dict[str, Array]:
    """Return precision, recall and F1 of each class, (draws, classes); NaN for one without cells.

    Args:
        confusion: (draws, true classes, predicted classes), as `Scorer.confusion` returns it.
    """
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    precision = divide(hits, np.where(predicted > 0, predicted, 1.0))
    f1 = divide(2 * hits, true + predicted)
    return {
        "precision": np.where(true > 0, precision, np.nan),
        "recall": divide(hits, true),
        "f1": np.where(true > 0, f1, np.nan),
    }


def _rank_figures(ranking: Ranking, weights: Array) -> tuple[Array, Array]:
    weighed = ranking.weigh(weights)
    return weighed.auroc(), weighed.auprc()


def _ranks_of_truth(truth: Integers, shares: Array) -> Integers:
    """Return how many classes come before the true one; of equal ones the last, as scikit-learn."""
    own = shares[np.arange(len(truth)), truth][:, np.newaxis]
    later = np.arange(shares.shape[1]) > truth[:, np.newaxis]
    ranks: Integers = ((shares > own) | ((shares == own) & later)).sum(axis=1)
    return ranks


def _confusion_figures(confusion: Array) -> dict[str, Array]:
    """Return the figures of all classes together, of matrices (draws, classes, classes)."""
    hits = np.trace(confusion, axis1=1, axis2=2)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    total = true.sum(axis=1)
    chance = (true * predicted).sum(axis=1)
    spread = (total**2 - (true**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
    # Weights that are no whole numbers leave a last digit where there is no spread.
    spread = np.where(spread > 1e-12 * total**4, spread, 0.0)
    return {
        "accuracy": hits / total,
        # Gorodkin 2004, eq. 8; 0 without spread, as scikit-learn has it.
        "mcc": np.nan_to_num(divide(hits * total - chance, np.sqrt(spread))),
        # Cohen 1960, multiplied out by total^2, so that 0/0 is met exactly.
        "kappa": divide(hits * total - chance, total**2 - chance),
    }


def _class_scores(
    c: int, figures: Mapping[str, Any], intervals: Mapping[str, Interval], *, support: int
) -> ClassScores:
    values = {name: _or_none(figures[f"{name}/{c}"]) for name in SCORES}
    bounds = {name: intervals[f"{name}/{c}"] for name in SCORES}
    return ClassScores(**values, support=support, intervals=bounds)


def mean_where(counted: npt.NDArray[np.bool_], values: Array) -> Array:
    """Return the mean over the last axis of the counted values, NaN where none is counted."""
    return divide(np.where(counted, values, 0.0).sum(axis=-1), counted.sum(axis=-1))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _bounds(intervals: Mapping[str, Interval]) -> dict[str, list[float] | None]:
    return {name: None if pair is None else list(pair) for name, pair in intervals.items()}


def _abnormal_classes(
    class_names: Sequence[str], abnormal: Sequence[str] | None
) -> npt.NDArray[np.bool_] | None:
    if abnormal is None:
        return None
    unknown = sorted(set(abnormal) - set(class_names))
    if unknown:
        raise DataError(
            f"abnormal: expected some of {', '.join(class_names)}. Received: {', '.join(unknown)}"
        )
    return np.isin(list(class_names), list(abnormal))
