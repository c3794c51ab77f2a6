"""From cells to patients: the differential count that a model would report, beside the true one.

Shares are of a patient's nucleated, intact cells (`labels.counted_classes`): platelets and smudge
cells are left out on either side, as a differential count leaves them out. A predicted share counts
the cells by their most probable class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.errors import DataError
from wbc_keras.labels import abnormal_classes, blast_classes, counted_classes
from wbc_keras.statistics.bootstrap import DRAWS, Interval, bootstrap_intervals, plan_resampling
from wbc_keras.statistics.probabilities import Array, check_probabilities, divide
from wbc_keras.statistics.proportions import wilson

BLAST_SHARE = 0.20  # acute leukaemia from here on, with few exceptions (WHO 2022, 5th edition)


@dataclass(frozen=True)
class ShareAgreement:
    """Predicted against true share over patients, as fractions; None where it cannot be had.

    Attributes:
        patients: how many have both shares.
        mean_absolute_error: mean of the distances.
        bias: mean of predicted minus true.
        limits: bias minus and plus 1.96 standard deviations of the differences, within which 95 %
            of patients are expected (Bland and Altman 1986); two patients or more.
        intervals: 95 % bootstrap intervals, by patient, of the first two figures.
    """

    patients: int
    mean_absolute_error: float | None
    bias: float | None
    limits: tuple[float, float] | None
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class Detection:
    """Patients whose blast share is at least ``threshold``, told by the predicted share.

    Attributes:
        threshold: of the share, both true and predicted.
        found, missed, false_alarms, cleared: the patients' names: over the threshold and told so,
            over and not told so, under and told over, under and told so.
        sensitivity, specificity: shares of patients; None if there are none.
        intervals: 95 % Wilson intervals of the two.
    """

    threshold: float
    found: tuple[str, ...]
    missed: tuple[str, ...]
    false_alarms: tuple[str, ...]
    cleared: tuple[str, ...]
    sensitivity: float | None
    specificity: float | None
    intervals: Mapping[str, Interval]


@dataclass(frozen=True, eq=False)
class Patients:
    """What the cells say of the patients they were taken from.

    Attributes:
        table: one row for each patient: ``patient``, ``cells``, ``counted_true`` and
            ``counted_predicted`` (nucleated cells by label and by prediction), then pairs of shares
            ``<name>_true, <name>_predicted``: ``abnormal_share`` and ``blast_share`` (where the
            classes say what is), then each counted class. NaN for a share of no cells.
        shares: agreement on ``abnormal`` and ``blast``.
        differential: agreement on each counted class.
        detection: patients over the blast threshold; None where blasts are not told.
        ungrouped: cells that name no patient; they are not in these figures.
    """

    table: pd.DataFrame
    shares: Mapping[str, ShareAgreement]
    differential: Mapping[str, ShareAgreement]
    detection: Detection | None
    ungrouped: int

    def to_json(self) -> dict[str, Any]:
        """Return the content of screening.json for patients."""
        return {
            "patients": len(self.table),
            "cells_without_patient": self.ungrouped,
            "shares": {name: _with_lists(one) for name, one in self.shares.items()},
            "differential": {name: _with_lists(one) for name, one in self.differential.items()},
            "detection": None if self.detection is None else _with_lists(self.detection),
        }


def count_patients(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str],
    groups: Sequence[str],
    *,
    blast_share: float = BLAST_SHARE,
    draws: int = DRAWS,
    seed: int = 0,
) -> Patients:
    """Count each patient's cells by label and by prediction.

    Args:
        y_true: integers (n,), the index of each cell's class.
        probabilities: (n, k), rows that sum to one.
        class_names: k different names.
        groups: n patients' names, at least one that is not "".
        blast_share: share of blasts from which a patient is to be detected.
        draws: number of bootstrap draws.
        seed: of the draws.

    Raises:
        DataError: shapes disagree, a value is out of range, or no cell names a patient.
    """
    truth, shares = check_probabilities(y_true, probabilities, class_names)
    named = np.array([bool(name) for name in groups])
    if len(named) != len(truth) or not named.any():
        raise DataError(
            f"patients: expected a name for each of {len(truth)} cells, some not empty. "
            f"Received: {len(named)}, {int(named.sum())} of them not empty"
        )
    patients, row = np.unique(np.array(groups)[named], return_inverse=True)
    size = (len(patients), len(class_names))
    predicted = shares.argmax(axis=1)
    counts = _count(row, truth[named], size=size), _count(row, predicted[named], size=size)
    counted = counted_classes(class_names)
    sums = _sums(class_names)
    pairs = {name: _shares(counts, class_names, sums[name], counted) for name in sums}
    differential = {name: _shares(counts, class_names, [name], counted) for name in counted}
    blasts = pairs.get("blast")
    return Patients(
        _table(patients, counts, class_names, pairs, differential),
        {name: _agree(*pair, draws=draws, seed=seed) for name, pair in pairs.items()},
        {name: _agree(*pair, draws=draws, seed=seed) for name, pair in differential.items()},
        None if blasts is None else _detect(patients, *blasts, threshold=blast_share),
        int((~named).sum()),
    )


def _count(
    row: npt.NDArray[np.integer], classes: npt.NDArray[np.integer], *, size: tuple[int, int]
) -> Array:
    """Return how many cells of each class each patient has, (patients, classes)."""
    counts = np.zeros(size)
    np.add.at(counts, (row, classes), 1)
    return counts


def _sums(class_names: Sequence[str]) -> dict[str, list[str]]:
    """Return the classes that are counted together, where the classes say which."""
    sums = {"abnormal": abnormal_classes(class_names), "blast": blast_classes(class_names)}
    return {name: classes for name, classes in sums.items() if classes is not None}


def _shares(
    counts: tuple[Array, Array],
    class_names: Sequence[str],
    classes: Sequence[str],
    counted: Sequence[str],
) -> tuple[Array, Array]:
    """Return the true and the predicted share of ``classes``, each (patients,)."""
    chosen, whole = (np.isin(list(class_names), list(names)) for names in (classes, counted))
    true, predicted = (divide(one[:, chosen].sum(1), one[:, whole].sum(1)) for one in counts)
    return true, predicted


def _table(
    patients: npt.NDArray[Any],
    counts: tuple[Array, Array],
    class_names: Sequence[str],
    pairs: Mapping[str, tuple[Array, Array]],
    differential: Mapping[str, tuple[Array, Array]],
) -> pd.DataFrame:
    whole = np.isin(list(class_names), list(differential))
    true, predicted = (one[:, whole].sum(axis=1).astype(int) for one in counts)
    columns: dict[str, Any] = {
        "patient": patients,
        "cells": counts[0].sum(axis=1).astype(int),
        "counted_true": true,
        "counted_predicted": predicted,
    }
    named = {f"{name}_share": pair for name, pair in pairs.items()} | dict(differential)
    for name, (first, second) in named.items():
        columns |= {f"{name}_true": first, f"{name}_predicted": second}
    return pd.DataFrame(columns)


def _agree(true: Array, predicted: Array, *, draws: int, seed: int) -> ShareAgreement:
    difference = predicted - true
    difference = difference[~np.isnan(difference)]
    if not len(difference):
        return ShareAgreement(0, None, None, None, {"mean_absolute_error": None, "bias": None})
    columns = np.stack([np.abs(difference), difference], axis=1)

    def figures(weights: Array) -> dict[str, Array]:
        means = weights @ columns / weights.sum(axis=1, keepdims=True)
        return {"mean_absolute_error": means[:, 0], "bias": means[:, 1]}

    # Patients are the units: each is drawn by itself.
    resampling = plan_resampling(np.zeros(len(difference)))
    error, bias = columns.mean(axis=0).tolist()
    spread = 1.96 * float(difference.std(ddof=1)) if len(difference) > 1 else None
    return ShareAgreement(
        len(difference),
        error,
        bias,
        None if spread is None else (bias - spread, bias + spread),
        bootstrap_intervals(figures, resampling, draws=draws, seed=seed),
    )


def _detect(
    patients: npt.NDArray[Any], true: Array, predicted: Array, *, threshold: float
) -> Detection:
    had = ~np.isnan(true) & ~np.isnan(predicted)
    over, told = true >= threshold, predicted >= threshold
    kinds = (over & told, over & ~told, ~over & told, ~over & ~told)
    found, missed, false_alarms, cleared = (tuple(patients[had & kind].tolist()) for kind in kinds)
    sick, well = len(found) + len(missed), len(cleared) + len(false_alarms)
    return Detection(
        threshold,
        found,
        missed,
        false_alarms,
        cleared,
        sensitivity=_share(len(found), sick),
        specificity=_share(len(cleared), well),
        intervals={
            "sensitivity": wilson(len(found), sick),
            "specificity": wilson(len(cleared), well),
        },
    )


def _share(count: int, total: int) -> float | None:
    return count / total if total else None


def _with_lists(result: ShareAgreement | Detection) -> dict[str, Any]:
    """Return a result as JSON has it: lists for tuples, the intervals under their known name."""
    figures = asdict(result)
    intervals = figures.pop("intervals")
    listed = {name: None if one is None else list(one) for name, one in intervals.items()}
    return {
        **{name: list(one) if isinstance(one, tuple) else one for name, one in figures.items()},
        "confidence_interval_95": listed,
    }
