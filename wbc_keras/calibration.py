"""Whether a probability means what it says: fitting a temperature, and figures of calibration.

- **ECE**: mean gap between confidence and accuracy over 15 bins of equal width, weighted by their
  cells (Guo et al. 2017, eq. 3); adaptive: over 15 bins of equal cells (Nguyen and O'Connor 2015).
  Noise in a bin counts as a gap, so few cells give an ECE above 0 to the best of models: what a
  perfectly calibrated one would show on these cells stands beside it, and the interval tells what
  other sets of this size would show.
- **Brier**: mean over cells of the sum over classes of (p - y)^2, so 0 to 2 (Brier 1950).
- **NLL**: mean negative logarithm of the true class's probability, natural, as
  scikit-learn's ``log_loss``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize

from wbc_keras.errors import DataError
from wbc_keras.statistics.bootstrap import DRAWS, Interval, bootstrap_intervals, plan_resampling
from wbc_keras.statistics.probabilities import Array, Integers, check_probabilities, divide, softmax

CALIBRATION_BINS = 15
BIASED = ("ece", "adaptive_ece")  # noise in a bin counts as a gap
_CHANCE_DRAWS = 200  # give the mean to a twentieth of its spread
_WIDEST = np.log(50.0)  # temperatures from 1/50 to 50


@dataclass(frozen=True, eq=False)
class Reliability:
    """Top-1 confidence against accuracy in bins of equal width; NaN in a bin without cells.

    ``edges`` is (bins + 1,); ``confidence``, ``accuracy`` (means) and ``counts`` are (bins,).
    """

    edges: Array
    confidence: Array
    accuracy: Array
    counts: Integers

    def to_json(self) -> list[dict[str, Any]]:
        """Return one entry for each bin with cells."""
        return [
            {
                "from": float(self.edges[b]),
                "to": float(self.edges[b + 1]),
                "cells": int(self.counts[b]),
                "confidence": float(self.confidence[b]),
                "accuracy": float(self.accuracy[b]),
            }
            for b in np.flatnonzero(self.counts)
        ]


@dataclass(frozen=True)
class Calibration:
    """How far probabilities are from what happens; ``intervals`` by figure, None where none.

    ``ece_by_chance`` is the mean ECE if each answer were right with a chance of its confidence.
    """

    ece: float
    adaptive_ece: float
    brier: float
    nll: float
    ece_by_chance: float
    intervals: dict[str, Interval]
    reliability: Reliability

    def to_json(self) -> dict[str, Any]:
        """Return one half of calibration.json."""
        names = ("ece", "adaptive_ece", "brier", "nll", "ece_by_chance")
        figures = {name: getattr(self, name) for name in names}
        bounds = {name: pair and list(pair) for name, pair in self.intervals.items()}
        return figures | {
            "confidence_interval_95": bounds,
            "reliability": self.reliability.to_json(),
        }


def fit_temperature(y_true: npt.ArrayLike, logits: npt.ArrayLike) -> float:
    """Return the temperature that makes held-out logits most likely (Guo et al. 2017, section 4.2).

    The logarithm of the temperature is held near 0 as by one cell's worth of doubt (a normal prior
    of deviation 1): it moves no fit on hundreds of cells, and gives a finite answer where all cells
    are right, or all wrong.

    Args:
        y_true: integers (n,).
        logits: (n, k), finite.

    Returns:
        over 1 where the model is too sure, under 1 where it is too unsure.

    Raises:
        DataError: shapes disagree, or a value is out of range.
    """
    scores = np.asarray(logits, np.float64)
    if scores.size and not np.isfinite(scores).all():
        raise DataError(
            "logits: expected finite numbers, so the training has gone astray; lower "
            "train.learning_rate and train again. Received: NaN or infinity"
        )
    truth = check_probabilities(y_true, softmax(scores) if scores.size else scores)[0]

    def cost(logarithm: float) -> float:
        shares = softmax(scores, temperature=float(np.exp(logarithm)))
        return float(_surprise(truth, shares).sum() + logarithm**2 / 2)

    found = optimize.minimize_scalar(
        cost, bounds=(-_WIDEST, _WIDEST), method="bounded", options={"xatol": 1e-9}
    )
    return float(np.exp(found.x))


def measure_calibration(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    *,
    groups: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Calibration:
    """Return the figures with their intervals, and the bins of a reliability diagram.

    Args:
        y_true: integers (n,).
        probabilities: (n, k), rows that sum to one.
        groups: n group names, as `bootstrap.plan_resampling` takes them.
        draws: number of bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: shapes disagree, or a value is out of range.
    """
    truth, shares = check_probabilities(y_true, probabilities)
    scorer = CalibrationScorer(truth, shares)
    values = scorer.figures(np.ones((1, len(truth))))
    plan = plan_resampling(truth, groups=groups)
    return Calibration(
        **{name: float(value[0]) for name, value in values.items()},
        intervals=bootstrap_intervals(scorer.figures, plan, draws=draws, seed=seed, biased=BIASED),
        ece_by_chance=_ece_by_chance(shares.max(axis=1), seed=seed),
        reliability=bin_reliability(truth, shares),
    )


def bin_reliability(
    y_true: npt.ArrayLike, probabilities: npt.ArrayLike, *, bins: int = CALIBRATION_BINS
) -> Reliability:
    """Return confidence and accuracy by bin of top-1 confidence: what a reliability plot shows.

    Args:
        y_true: integers (n,).
        probabilities: (n, k), rows that sum to one.
        bins: number of bins of equal width over 0 to 1.

    Raises:
        DataError: shapes disagree, or a value is out of range.
    """
    truth, shares = check_probabilities(y_true, probabilities)
    confidence, correct = shares.max(axis=1), shares.argmax(axis=1) == truth
    where = _bins_of_equal_width(confidence, bins)
    counts = np.bincount(where, minlength=bins)
    sums = [np.bincount(where, weights=values, minlength=bins) for values in (confidence, correct)]
    means = [divide(values, counts) for values in sums]
    return Reliability(np.linspace(0.0, 1.0, bins + 1), means[0], means[1], counts)


class CalibrationScorer:
    """The figures of calibration for any number of weightings (draws, n) at once.

    Args:
        truth: (n,), the index of each cell's class.
        shares: (n, k), rows that sum to one.
    """

    def __init__(self, truth: Integers, shares: Array) -> None:
        confidence = shares.max(axis=1)
        gap = (shares.argmax(axis=1) == truth) - confidence
        self._gap = _spread(gap, _bins_of_equal_width(confidence, CALIBRATION_BINS))
        self._adaptive_gap = _spread(gap, _bins_of_equal_cells(confidence, CALIBRATION_BINS))
        self._error = ((shares - np.eye(shares.shape[1])[truth]) ** 2).sum(axis=1)
        self._surprise = _surprise(truth, shares)

    def figures(self, weights: Array) -> dict[str, Array]:
        """Return each figure as (draws,)."""
        total = weights.sum(axis=1)
        return {
            "ece": np.abs(weights @ self._gap).sum(axis=1) / total,
            "adaptive_ece": np.abs(weights @ self._adaptive_gap).sum(axis=1) / total,
            "brier": weights @ self._error / total,
            "nll": weights @ self._surprise / total,
        }


def _ece_by_chance(confidence: Array, *, seed: int) -> float:
    """Return the mean ECE over drawn outcomes of answers that are as sure as they should be."""
    rng, bins = np.random.default_rng(seed), _bins_of_equal_width(confidence, CALIBRATION_BINS)
    drawn = [
        np.abs(np.bincount(bins, (rng.random(len(bins)) < confidence) - confidence)).sum()
        for _ in range(_CHANCE_DRAWS)
    ]
    return float(np.mean(drawn) / len(bins))


def _surprise(truth: Integers, shares: Array) -> Array:
    """Return -log of each cell's true class, (n,); a 0 counts as the smallest step above it."""
    own = shares[np.arange(len(truth)), truth]
    return -np.log(np.clip(own, np.finfo(np.float64).eps, 1.0))


def _spread(values: Array, bins: Integers) -> Array:
    """Return (n, bins): each cell's value in the column of its bin."""
    table: Array = np.eye(CALIBRATION_BINS)[bins] * values[:, np.newaxis]
    return table


def _bins_of_equal_width(confidence: Array, bins: int) -> Integers:
    """Return the bin of each confidence; a bin holds its upper edge."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _bins_of_equal_cells(confidence: Array, bins: int) -> Integers:
    """Return the bin of each confidence by its rank; equal confidences share a bin."""
    ranks = np.searchsorted(np.sort(confidence), confidence, side="left")
    return (ranks * bins // len(confidence)).astype(np.int64)
