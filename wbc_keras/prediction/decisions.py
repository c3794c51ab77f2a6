"""What is fitted on the validation cells once, and stored with the model: ``decision.json``.

A temperature that makes probabilities mean what they say, and the thresholds from which an answer
is accepted, or a cell is called abnormal, or a blast.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wbc_keras.calibration import fit_temperature
from wbc_keras.errors import RunError
from wbc_keras.labels import abnormal_classes, blast_classes
from wbc_keras.runs import write_json
from wbc_keras.statistics.probabilities import Array, softmax
from wbc_keras.statistics.selective import find_threshold

DECISION_FILE = "decision.json"
# Of the abnormal cells found, and of the normal ones left alone.
WANTED_RATE = 0.95
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Decisions:
    """Fitted on validation; a threshold that cannot be had is None.

    Attributes:
        temperature: the logits are divided by it.
        wanted_accuracy: that accepted answers keep on validation. Unless another one was asked for,
            errors are half as frequent among them as among all answers.
        accept_threshold: confidence from which an answer is accepted; None if no threshold keeps
            the wanted accuracy.
        sensitive_threshold: probability of an abnormal cell, summed over the abnormal classes, from
            which a cell is called abnormal, for finding them: sensitivity is at least 0.95. If some
            thresholds keep specificity at 0.95 too, it is the one of these that finds the most, as
            nothing is lost by it; otherwise the one that calls the fewest normal cells.
        specific_threshold: the same with the two sides changed, for calling few normal cells:
            specificity is at least 0.95. It is never below the sensitive one. Both are None where
            the classes, or the validation cells, are not both normal and abnormal.
        validation_cells: how many cells all this rests on.
        blast_sensitive_threshold, blast_specific_threshold: the same two for blasts against all
            other cells, of the probability summed over the classes of blasts.
    """

    temperature: float
    wanted_accuracy: float
    accept_threshold: float | None
    sensitive_threshold: float | None
    specific_threshold: float | None
    validation_cells: int
    # Runs of earlier versions have none.
    blast_sensitive_threshold: float | None = None
    blast_specific_threshold: float | None = None

    def accept(self, probabilities: npt.ArrayLike) -> npt.NDArray[np.bool_] | None:
        """Return which of n answers are accepted, (n,), or None where there is no threshold.

        Args:
            probabilities: (n, k), of logits that were divided by the temperature.
        """
        if self.accept_threshold is None:
            return None
        accepted: npt.NDArray[np.bool_] = (
            np.asarray(probabilities).max(axis=1) >= self.accept_threshold
        )
        return accepted


def fit_decisions(
    labels: npt.ArrayLike,
    logits: npt.ArrayLike,
    class_names: Sequence[str],
    *,
    wanted_accuracy: float | None = None,
) -> Decisions:
    """Fit everything on the validation cells.

    Args:
        labels: integers (n,), indices into the class names.
        logits: (n, k), finite.
        class_names: k names.
        wanted_accuracy: that accepted answers keep, 0 to 1; None to halve the share of errors,
            which a good and a poor model can do alike.

    Raises:
        DataError: shapes disagree, or a value is out of range.
    """
    truth = np.asarray(labels)
    temperature = fit_temperature(truth, logits)
    shares = softmax(logits, temperature=temperature)
    sensitive, specific = _thresholds(truth, shares, _members(class_names, abnormal_classes))
    blasts = _thresholds(truth, shares, _members(class_names, blast_classes))
    correct = shares.argmax(axis=1) == truth
    halved = 1 - float(np.mean(~correct)) / 2
    wanted = halved if wanted_accuracy is None else wanted_accuracy
    return Decisions(
        temperature=temperature,
        wanted_accuracy=wanted,
        accept_threshold=find_threshold(shares.max(axis=1), correct, wanted_accuracy=wanted),
        sensitive_threshold=sensitive,
        specific_threshold=specific,
        validation_cells=len(truth),
        blast_sensitive_threshold=blasts[0],
        blast_specific_threshold=blasts[1],
    )


def write_decisions(folder: Path, decisions: Decisions) -> None:
    """Write ``decision.json`` into a run folder, or beside a SavedModel, whole or not at all."""
    write_json(folder / DECISION_FILE, dataclasses.asdict(decisions))


def read_decisions(folder: Path) -> Decisions | None:
    """Read ``decision.json`` of a folder; None where an older run has none.

    Raises:
        RunError: the file does not hold what `write_decisions` wrote.
    """
    path = folder / DECISION_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        values = None
    fields = dataclasses.fields(Decisions)
    known = {field.name for field in fields}
    needed = {field.name for field in fields if field.default is dataclasses.MISSING}
    if not isinstance(values, dict) or not needed <= set(values) <= known or not _is_sound(values):
        raise RunError(
            f"{path}: is damaged; expected numbers for {', '.join(sorted(known))}. Restore it, or "
            "remove it to go on with probabilities that are not calibrated"
        )
    return Decisions(**values)


def _is_sound(values: dict[str, Any]) -> bool:
    """Tell whether all values are numbers, or None for a threshold, and the temperature is one."""
    may_miss = {name for name in values if name.endswith("_threshold")}
    for name, value in values.items():
        if value is None and name in may_miss:
            continue
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            return False
    return bool(values["temperature"] > 0)


def _members(
    class_names: Sequence[str], classes_of: Callable[[Sequence[str]], list[str] | None]
) -> npt.NDArray[np.bool_]:
    """Return which class names are of a kind; none where that is not known."""
    return np.isin(list(class_names), classes_of(class_names) or [])


def _thresholds(
    truth: npt.NDArray[Any], shares: Array, looked_for: npt.NDArray[np.bool_]
) -> tuple[float | None, float | None]:
    """Return the sensitive and the specific threshold for cells of the classes looked for."""
    positive, scores = looked_for[truth], shares[:, looked_for].sum(axis=1)
    if positive.all() or not positive.any():
        return None, None
    # Halfway between two scores, so that a last digit decides nothing.
    edges = np.append(0.0, np.unique(np.append(scores, 1.0)))
    thresholds = (edges[:-1] + edges[1:]) / 2
    missed, spared = (
        np.searchsorted(np.sort(part), thresholds) / len(part)
        for part in (scores[positive], scores[~positive])
    )
    return _choose(thresholds, 1 - missed, spared), _choose(thresholds, spared, 1 - missed)


def _choose(thresholds: Array, rate: Array, other: Array) -> float | None:
    """Return the threshold that keeps a wanted rate, and is the best there is (`Decisions`)."""
    keeps, keeps_other = (values >= WANTED_RATE - _ROUNDING for values in (rate, other))
    if not keeps.any():
        return None
    both = keeps & keeps_other
    # The last key counts first; where both are met, more of the own rate costs nothing.
    keys = (other[both], rate[both]) if both.any() else (rate[keeps], other[keeps])
    best = np.lexsort(keys)[-1]
    return float(thresholds[both if both.any() else keeps][best])
