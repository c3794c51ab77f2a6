"""What is gained by not answering: accuracy against the share of cells that are answered.

Cells are answered in the order of the top-1 confidence, the surest first; cells of one confidence
are answered together or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from wbc_keras.errors import DataError
from wbc_keras.statistics.bootstrap import DRAWS, Interval, bootstrap_intervals, plan_resampling
from wbc_keras.statistics.probabilities import Array, Integers, check_probabilities, divide

_COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)  # of the table for people


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """The risk-coverage curve, one point for each of m different confidences, the surest first.

    Attributes:
        thresholds: (m,), falling: a cell of this confidence or more is answered.
        coverage: (m,), share of the cells that are answered.
        risk: (m,), share of wrong answers among them.
        area: mean over all cells of the risk among the cells at least as sure (Geifman et al.
            2019); smaller is better, the risk itself if confidence says nothing.
        best_area: the area if every wrong answer were less sure than every right one.
    """

    thresholds: Array
    coverage: Array
    risk: Array
    area: float
    best_area: float

    def at_least(self, coverage: float) -> dict[str, float]:
        """Return coverage, threshold and accuracy where this share or more is answered."""
        place = int(np.searchsorted(self.coverage, coverage - 1e-12))
        return {
            "coverage": float(self.coverage[place]),
            "threshold": float(self.thresholds[place]),
            "accuracy": float(1 - self.risk[place]),
        }


@dataclass(frozen=True)
class Selective:
    """Answers given and withheld; a figure that cannot be had is None.

    Attributes:
        curve: over all thresholds.
        coverage: share of the cells whose answer is accepted.
        accuracy: of the accepted answers.
        intervals: of ``area``, ``coverage`` and ``accuracy``.
    """

    curve: RiskCoverage
    coverage: float | None
    accuracy: float | None
    intervals: Mapping[str, Interval]

    def to_json(self) -> dict[str, Any]:
        """Return the figures of selective.json."""
        return {
            "coverage": self.coverage,
            "accuracy": self.accuracy,
            "area_under_risk_coverage": self.curve.area,
            "best_area": self.curve.best_area,
            "confidence_interval_95": {
                name: pair and list(pair) for name, pair in self.intervals.items()
            },
            "at_coverage": [self.curve.at_least(share) for share in _COVERAGES],
        }


def trace_risk_coverage(confidence: npt.ArrayLike, correct: npt.ArrayLike) -> RiskCoverage:
    """Return the risk-coverage curve of n answers.

    Args:
        confidence: (n,), at least one.
        correct: bool (n,), whether the answer is right.
    """
    surest_first = -np.asarray(confidence, np.float64)
    wrong = ~np.asarray(correct, bool)
    order = np.argsort(surest_first, kind="stable")
    last = _last_of_each(surest_first[order])
    answered = last + 1
    risk = np.cumsum(wrong[order])[last] / answered
    misses = np.maximum(np.arange(1, len(wrong) + 1) - np.sum(~wrong), 0)
    return RiskCoverage(
        thresholds=-surest_first[order][last],
        coverage=answered / len(wrong),
        risk=risk,
        area=float(risk @ np.diff(answered, prepend=0) / len(wrong)),
        best_area=float(np.mean(misses / np.arange(1, len(wrong) + 1))),
    )


def find_threshold(
    confidence: npt.ArrayLike, correct: npt.ArrayLike, *, wanted_accuracy: float
) -> float | None:
    """Return the confidence from which answers keep a wanted accuracy, answering the most cells.

    It lies halfway to the next lower confidence, so that a last digit decides nothing; 0 if all may
    be answered, None if no threshold keeps the accuracy.

    Args:
        confidence: (n,), 0 to 1, at least one.
        correct: bool (n,).
        wanted_accuracy: 0 to 1.
    """
    curve = trace_risk_coverage(confidence, correct)
    kept = np.flatnonzero(1 - curve.risk >= wanted_accuracy - 1e-12)
    if not kept.size:
        return None
    last = int(kept[-1])
    if last + 1 == len(curve.thresholds):
        return 0.0
    return float(curve.thresholds[last : last + 2].mean())


def measure_selective(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    accepted: npt.ArrayLike | None,
    groups: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Selective:
    """Return the curve, and what accepting these answers alone gives, with intervals.

    Args:
        y_true: integers (n,).
        probabilities: (n, k), rows that sum to one.
        accepted: bool (n,), or None where no threshold was chosen.
        groups: n group names, as `bootstrap.plan_resampling` takes them.
        draws: number of bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: shapes disagree, or a value is out of range.
    """
    truth, shares = check_probabilities(y_true, probabilities)
    taken = None if accepted is None else np.asarray(accepted, bool)
    if taken is not None and taken.shape != truth.shape:
        raise DataError(
            f"accepted: expected one for each of {len(truth)} cells. Received: {taken.shape}"
        )
    confidence, correct = shares.max(axis=1), shares.argmax(axis=1) == truth
    scorer = _Scorer(confidence, correct, taken)
    values = {name: value[0] for name, value in scorer.figures(np.ones((1, len(truth)))).items()}
    plan = plan_resampling(truth, groups=groups)
    return Selective(
        curve=trace_risk_coverage(confidence, correct),
        coverage=None if np.isnan(values["coverage"]) else float(values["coverage"]),
        accuracy=None if np.isnan(values["accuracy"]) else float(values["accuracy"]),
        intervals=bootstrap_intervals(scorer.figures, plan, draws=draws, seed=seed),
    )


class _Scorer:
    """The figures for any number of weightings (draws, n) at once."""

    def __init__(
        self,
        confidence: Array,
        correct: npt.NDArray[np.bool_],
        accepted: npt.NDArray[np.bool_] | None,
    ) -> None:
        self._order = np.argsort(-confidence, kind="stable")
        falling = -confidence[self._order]
        self._last = np.searchsorted(falling, falling, side="right") - 1
        self._wrong = ~correct[self._order]
        self._correct, self._accepted = correct, accepted

    def figures(self, weights: Array) -> dict[str, Array]:
        total = weights.sum(axis=1)
        coverage = accuracy = np.full(len(weights), np.nan)
        if self._accepted is not None:
            answered = weights @ self._accepted
            coverage = answered / total
            accuracy = divide(weights @ (self._accepted & self._correct), answered)
        return {"area": self._area(weights) / total, "coverage": coverage, "accuracy": accuracy}

    def _area(self, weights: Array) -> Array:
        ordered = weights[:, self._order]
        answered = np.cumsum(ordered, axis=1)[:, self._last]
        wrong = np.cumsum(ordered * self._wrong, axis=1)[:, self._last]
        risk = np.divide(wrong, answered, out=np.zeros_like(wrong), where=answered > 0)
        area: Array = (ordered * risk).sum(axis=1)
        return area


def _last_of_each(values: Array) -> Integers:
    """Return the place of the last of each run of equal sorted values."""
    return np.flatnonzero(np.append(np.diff(values) != 0, True))
