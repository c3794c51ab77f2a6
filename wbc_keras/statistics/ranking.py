"""Scores of positives among negatives, sorted once, then read for any weights of the cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wbc_keras.statistics.probabilities import Array, Integers, divide

# Of the weight of all negatives: weights of bootstrap draws are not whole numbers.
_ROUNDING = 1e-9


class Ranking:
    """Cells in the order of a score, the positives apart.

    Args:
        positive: bool (n,).
        scores: float (n,), higher speaks for positive.
    """

    def __init__(self, positive: npt.NDArray[np.bool_], scores: Array) -> None:
        self._negatives = _sorted_by(scores, np.flatnonzero(~positive))
        self._positives = _sorted_by(scores, np.flatnonzero(positive))
        ranked, own = scores[self._negatives], scores[self._positives]
        self._below = np.searchsorted(ranked, own, side="left")
        self._up_to = np.searchsorted(ranked, own, side="right")
        self._first_equal = np.searchsorted(own, own, side="left")

    def weigh(self, weights: Array) -> Weighed:
        """Return the sums that figures are made of, for weights (draws, n) of the cells."""
        negatives = _running_sums(weights[:, self._negatives])
        positive = weights[:, self._positives]
        return Weighed(
            positive=positive,
            negatives=negatives[:, -1],
            below=negatives[:, self._below],
            up_to=negatives[:, self._up_to],
            positives_below=_running_sums(positive)[:, self._first_equal],
        )


@dataclass(frozen=True, eq=False)
class Weighed:
    """Weights around each of the p positives, (draws, p), and of all negatives, (draws,).

    Each figure is (draws,), NaN where it cannot be had.

    Attributes:
        positive: of the positive itself.
        negatives: of all negatives.
        below: of the negatives that score less.
        up_to: of the negatives that score less or the same.
        positives_below: of the positives that score less.
    """

    positive: Array
    negatives: Array
    below: Array
    up_to: Array
    positives_below: Array

    def auroc(self) -> Array:
        """Return the chance that a positive scores above a negative, ties counting half.

        Fawcett 2006, section 7.
        """
        wins = (self.positive * (self.below + self.up_to)).sum(axis=1) / 2
        return divide(wins, self.positive.sum(axis=1) * self.negatives)

    def auprc(self) -> Array:
        """Return the average precision over the recall, without interpolation, as scikit-learn."""
        total = self.positive.sum(axis=1)
        hits = total[:, np.newaxis] - self.positives_below
        called = hits + self.negatives[:, np.newaxis] - self.below
        precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
        return divide((self.positive * precision).sum(axis=1), total)

    def sensitivity(self, specificity: float) -> Array:
        """Return the largest sensitivity that any threshold has at this specificity or a higher."""
        # A threshold at a positive's own score rejects exactly the negatives below it.
        needed = (specificity - _ROUNDING) * self.negatives[:, np.newaxis]
        hits = (self.positive * (self.below >= needed)).sum(axis=1)
        found = divide(hits, self.positive.sum(axis=1))
        return np.where(self.negatives > 0, found, np.nan)


def _sorted_by(scores: Array, cells: Integers) -> Integers:
    return cells[np.argsort(scores[cells], kind="stable")]


def _running_sums(weights: Array) -> Array:
    """Return the sums of the first 0, 1, ... columns: (draws, columns + 1)."""
    sums = np.zeros((len(weights), weights.shape[1] + 1))
    np.cumsum(weights, axis=1, out=sums[:, 1:])
    return sums
