"""Probabilities and true labels in, the figures of metrics.json out. No plotting, no files.

Every figure is computed from weights of the cells: ones give the figures themselves, the counts of
a bootstrap draw give the draw's, so that both come from the same lines. A figure that cannot be
had is NaN inside this module and None in the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.errors import DataError
from wbc_keras.probabilities import check_probabilities

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

CALIBRATION_BINS = 15
_SPECIFICITY = (19, 20)  # 0.95 in whole numbers: counts are compared without rounding
_BLOCK_CELLS = 1_000_000  # weights held at once; near the size that fits a processor's cache


@dataclass(frozen=True)
class ClassScores:
    """One class against all others; a figure that cannot be had is None."""

    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None
    support: int


@dataclass(frozen=True)
class Evaluation:
    """The figures of one set of cells, as fractions; a figure that cannot be had is None.

    ``confusion`` is int64 (classes, classes): rows are true classes, columns predicted ones.
    ``intervals`` gives (low, high) of the central 95 % of the bootstrap draws by figure.
    """

    samples: int
    class_names: tuple[str, ...]
    accuracy: float
    macro_f1: float
    balanced_accuracy: float
    mcc: float
    kappa: float | None
    macro_auroc: float | None
    ece: float
    brier: float
    abnormal_auroc: float | None
    abnormal_sensitivity_at_95_specificity: float | None
    per_class: Mapping[str, ClassScores]
    intervals: Mapping[str, tuple[float, float] | None]
    confusion: Integers

    def to_json(self) -> dict[str, Any]:
        """Return the content of metrics.json."""
        return {
            "samples": self.samples,
            "classes": list(self.class_names),
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "balanced_accuracy": self.balanced_accuracy,
            "mcc": self.mcc,
            "kappa": self.kappa,
            "macro_auroc": self.macro_auroc,
            "ece": self.ece,
            "brier": self.brier,
            "abnormal": {
                "auroc": self.abnormal_auroc,
                "sensitivity_at_95_specificity": self.abnormal_sensitivity_at_95_specificity,
            },
            "per_class": {name: asdict(scores) for name, scores in self.per_class.items()},
            "confidence_interval_95": {
                name: None if bounds is None else list(bounds)
                for name, bounds in self.intervals.items()
            },
        }


@dataclass(frozen=True)
class Reliability:
    """Top-1 confidence against accuracy in bins of equal width; NaN in a bin without cells.

    ``edges`` is (bins + 1,); ``confidence``, ``accuracy`` (means) and ``counts`` are (bins,).
    """

    edges: Array
    confidence: Array
    accuracy: Array
    counts: Integers


def evaluate_predictions(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    abnormal: Sequence[str] | None,
    groups: Sequence[str] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score predicted probabilities.

    - Macro figures and balanced accuracy are means over the classes with at least one cell; in a
      bootstrap draw, over the classes with at least one cell in the draw.
    - A class without cells has no precision, recall, F1 or AUROC; one that is never predicted has
      precision and F1 of 0, as in scikit-learn. ``mcc`` is 0 where its denominator is 0, as there.
    - ``ece``: 15 bins of equal width over the top-1 confidence (Guo et al. 2017, eq. 3).
    - ``brier``: mean over cells of the sum over classes of (p - y)^2, so 0 to 2 (Brier 1950).
    - ``abnormal``: the score is the sum of the abnormal classes' probabilities; the sensitivity is
      the largest that any threshold reaches at a specificity of at least 0.95.

    Intervals are percentiles of bootstrap draws: whole groups (patients) are drawn when ``groups``
    names any, since cells of one patient are alike; else cells are drawn within their class, so
    that no class is ever absent. ``ece`` is first moved by the draws' mean excess over the figure,
    because a draw, holding cells twice, adds noise that ECE counts as miscalibration. An interval
    is None if the cells leave nothing to draw (one group, or one cell in each class) or if a
    figure cannot be had in most draws.

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
    figures = {name: float(value[0]) for name, value in scorer.figures(every_cell_once).items()}
    plan = _sampling_plan(truth, groups)
    return Evaluation(
        samples=len(truth),
        class_names=tuple(class_names),
        per_class=_class_scores(class_names, scorer),
        intervals=_intervals(scorer, figures, plan, draws=draws, seed=seed),
        confusion=scorer.confusion(every_cell_once)[0].astype(np.int64),
        **{name: _or_none(value) for name, value in figures.items()},  # type: ignore[arg-type]
    )


def per_class_table(evaluation: Evaluation) -> pd.DataFrame:
    """Return ``class, precision, recall, f1, auroc, support``, NaN where a figure is missing."""
    rows = [{"class": name, **asdict(one)} for name, one in evaluation.per_class.items()]
    table = pd.DataFrame(rows)
    scores = ["precision", "recall", "f1", "auroc"]
    return table.astype(dict.fromkeys(scores, float))


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
    truth, shares = check_probabilities(y_true, probabilities, None)
    confidence, correct = shares.max(axis=1), shares.argmax(axis=1) == truth
    where = _bin_of(confidence, bins)
    counts = np.bincount(where, minlength=bins)
    sums = [np.bincount(where, weights=values, minlength=bins) for values in (confidence, correct)]
    means = [_divide(values, counts) for values in sums]
    return Reliability(np.linspace(0.0, 1.0, bins + 1), means[0], means[1], counts)


class _Ranking:
    """Scores of positives among negatives, sorted once, for any weights of the cells.

    AUROC is the chance that a positive scores above a negative, ties counting half (Fawcett 2006,
    section 7); with negatives in order, each positive needs only the weight below it.
    """

    def __init__(self, positive: npt.NDArray[np.bool_], scores: Array) -> None:
        self._positives = np.flatnonzero(positive)
        negatives = np.flatnonzero(~positive)
        self._negatives = negatives[np.argsort(scores[negatives])]
        ranked, own = scores[self._negatives], scores[self._positives]
        self._below = np.searchsorted(ranked, own, side="left")
        self._up_to = np.searchsorted(ranked, own, side="right")

    def auroc(self, weights: Array) -> Array:
        """Return (draws,) for weights (draws, n); NaN where a side has no weight."""
        wins, of_positives, of_negatives = self._accumulate(weights)
        halves = wins[:, self._below] + wins[:, self._up_to]
        return _divide(
            (of_positives * halves).sum(axis=1) / 2, of_positives.sum(axis=1) * of_negatives
        )

    def sensitivity(self, weights: Array) -> Array:
        """Return the largest sensitivity at a specificity of at least 0.95, (draws,)."""
        wins, of_positives, of_negatives = self._accumulate(weights)
        share, whole = _SPECIFICITY
        # A threshold at a positive's own score rejects exactly the negatives below it.
        allowed = wins[:, self._below] * whole >= share * of_negatives[:, np.newaxis]
        found = _divide((of_positives * allowed).sum(axis=1), of_positives.sum(axis=1))
        return np.where(of_negatives > 0, found, np.nan)

    def _accumulate(self, weights: Array) -> tuple[Array, Array, Array]:
        """Return weights: of the first 0, 1, ... negatives; of each positive; of all negatives."""
        wins = np.zeros((len(weights), len(self._negatives) + 1))
        np.cumsum(weights[:, self._negatives], axis=1, out=wins[:, 1:])
        return wins, weights[:, self._positives], wins[:, -1]


class Scorer:
    """Every figure of one set of cells, for any number of weightings (draws, n) at once.

    Args:
        truth: (n,), shares: (n, k), as `check_probabilities` returns them.
        is_abnormal: (k,), or None where that is not known.
    """

    def __init__(
        self, truth: Integers, shares: Array, is_abnormal: npt.NDArray[np.bool_] | None
    ) -> None:
        self.samples, self._classes = shares.shape
        predicted, confidence = shares.argmax(axis=1), shares.max(axis=1)
        self._pair = truth * self._classes + predicted
        self._error = ((shares - np.eye(self._classes)[truth]) ** 2).sum(axis=1)
        in_bin = np.eye(CALIBRATION_BINS)[_bin_of(confidence, CALIBRATION_BINS)]
        self._gap = in_bin * ((predicted == truth) - confidence)[:, np.newaxis]
        self._rankings = [_Ranking(truth == c, shares[:, c]) for c in range(self._classes)]
        self._abnormal = None
        if is_abnormal is not None:
            self._abnormal = _Ranking(is_abnormal[truth], shares[:, is_abnormal].sum(axis=1))

    def figures(self, weights: Array) -> dict[str, Array]:
        """Return each figure as (draws,), NaN where it cannot be had."""
        confusion, total = self.confusion(weights), weights.sum(axis=1)
        aurocs = self.class_aurocs(weights)
        missing = np.full(len(weights), np.nan)
        abnormal = self._abnormal
        return {
            **_confusion_figures(confusion),
            "macro_auroc": _mean_where(~np.isnan(aurocs), aurocs),
            "ece": np.abs(weights @ self._gap).sum(axis=1) / total,
            "brier": weights @ self._error / total,
            "abnormal_auroc": abnormal.auroc(weights) if abnormal else missing,
            "abnormal_sensitivity_at_95_specificity": (
                abnormal.sensitivity(weights) if abnormal else missing
            ),
        }

    def confusion(self, weights: Array) -> Array:
        """Return confusion matrices (draws, true classes, predicted classes)."""
        size = self._classes**2
        flat = np.stack([np.bincount(self._pair, weights=row, minlength=size) for row in weights])
        return flat.reshape(-1, self._classes, self._classes).astype(np.float64)

    def class_aurocs(self, weights: Array) -> Array:
        """Return each class's AUROC against the rest, (draws, classes)."""
        return np.stack([ranking.auroc(weights) for ranking in self._rankings], axis=1)


@dataclass(frozen=True)
class _SamplingPlan:
    """Units that are drawn together, with replacement, inside each stratum."""

    unit_of_cell: Integers  # (n,)
    strata: tuple[Integers, ...]  # the units of each

    def draw(self, draws: int, rng: np.random.Generator) -> Array:
        """Return how often each cell is drawn, (draws, n)."""
        counts = np.zeros((draws, int(self.unit_of_cell.max()) + 1))
        for units in self.strata:
            even = np.full(len(units), 1 / len(units))
            counts[:, units] = rng.multinomial(len(units), even, size=draws)
        return counts[:, self.unit_of_cell]

    @property
    def leaves_nothing(self) -> bool:
        """Whether every draw would be the cells as they are."""
        return all(len(units) < 2 for units in self.strata)


def _sampling_plan(truth: Integers, groups: Sequence[str] | None) -> _SamplingPlan:
    if groups is not None and len(groups) != len(truth):
        raise DataError(
            f"groups: expected one for each of {len(truth)} cells. Received: {len(groups)}"
        )
    if groups is None or not any(groups):
        strata = tuple(np.flatnonzero(truth == c) for c in np.unique(truth))
        return _SamplingPlan(np.arange(len(truth)), strata)
    units: dict[str | int, int] = {}
    # A cell's number never equals a name, so a cell without a group stays alone.
    numbers = [units.setdefault(name or cell, len(units)) for cell, name in enumerate(groups)]
    return _SamplingPlan(np.array(numbers), (np.arange(len(units)),))


def _intervals(
    scorer: Scorer, figures: Mapping[str, float], plan: _SamplingPlan, *, draws: int, seed: int
) -> dict[str, tuple[float, float] | None]:
    if draws < 1 or plan.leaves_nothing:
        return dict.fromkeys(figures)
    rng = np.random.default_rng(seed)
    blocks = [
        scorer.figures(plan.draw(size, rng)) for size in _block_sizes(draws, len(plan.unit_of_cell))
    ]
    drawn = {name: np.concatenate([block[name] for block in blocks]) for name in figures}
    drawn["ece"] = np.maximum(drawn["ece"] - drawn["ece"].mean() + figures["ece"], 0.0)
    return {name: _central_95(values) for name, values in drawn.items()}


def _block_sizes(draws: int, cells: int) -> Iterator[int]:
    block = max(1, _BLOCK_CELLS // cells)
    for start in range(0, draws, block):
        yield min(block, draws - start)


def _central_95(values: Array) -> tuple[float, float] | None:
    had = values[~np.isnan(values)]
    if len(had) * 2 <= len(values):
        return None
    low, high = np.percentile(had, [2.5, 97.5])
    return float(low), float(high)


def _confusion_figures(confusion: Array) -> dict[str, Array]:
    """Return the figures that need only confusion matrices (draws, classes, classes)."""
    hits = np.trace(confusion, axis1=1, axis2=2)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    total = true.sum(axis=1)
    chance = (true * predicted).sum(axis=1)
    spread = (total**2 - (true**2).sum(axis=1)) * (total**2 - (predicted**2).sum(axis=1))
    _, recall, f1 = class_figures(confusion)
    return {
        "accuracy": hits / total,
        "macro_f1": _mean_where(true > 0, f1),
        "balanced_accuracy": _mean_where(true > 0, recall),
        # Gorodkin 2004, eq. 8; 0 without spread, as scikit-learn has it.
        "mcc": np.nan_to_num(_divide(hits * total - chance, np.sqrt(spread))),
        # Cohen 1960, multiplied out by total^2, so that 0/0 is met exactly.
        "kappa": _divide(hits * total - chance, total**2 - chance),
    }


def class_figures(confusion: Array) -> tuple[Array, Array, Array]:
    """Return precision, recall and F1, each (draws, classes); NaN for a class without cells."""
    hits = np.diagonal(confusion, axis1=1, axis2=2)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    precision = _divide(hits, np.where(predicted > 0, predicted, 1.0))
    return (
        np.where(true > 0, precision, np.nan),
        _divide(hits, true),
        np.where(true > 0, _divide(2 * hits, true + predicted), np.nan),
    )


def _class_scores(class_names: Sequence[str], scorer: Scorer) -> dict[str, ClassScores]:
    every_cell_once = np.ones((1, scorer.samples))
    confusion = scorer.confusion(every_cell_once)
    columns = [*class_figures(confusion), scorer.class_aurocs(every_cell_once)]
    precision, recall, f1, auroc = ([_or_none(value) for value in one[0]] for one in columns)
    support = confusion[0].sum(axis=1).astype(int).tolist()
    rows = map(ClassScores, precision, recall, f1, auroc, support)
    return dict(zip(class_names, rows, strict=True))


def _bin_of(confidence: Array, bins: int) -> Integers:
    """Return the bin of each confidence; a bin holds its upper edge."""
    return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)


def _divide(over: npt.NDArray[Any], under: npt.NDArray[Any]) -> Array:
    """Return the quotient, NaN where the denominator is 0."""
    result = np.full(np.shape(over), np.nan)
    np.divide(over, under, out=result, where=under != 0)
    return result


def _mean_where(counted: npt.NDArray[np.bool_], values: Array) -> Array:
    """Return the mean over the last axis of the counted values, NaN where there are none."""
    return _divide(np.where(counted, values, 0.0).sum(axis=-1), counted.sum(axis=-1))


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


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
