"""What is fitted on the validation cells once, and stored with the model: ``decision.json``.

A temperature that makes probabilities mean what they say, and the thresholds from which an answer
is accepted, or a cell is called abnormal.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from wbc_keras.calibration import fit_temperature
from wbc_keras.errors import RunError
from wbc_keras.labels import abnormal_classes
from wbc_keras.probabilities import Array, softmax
from wbc_keras.runs import write_json
from wbc_keras.selective import find_threshold

DECISION_FILE = "decision.json"
WANTED_ACCURACY = 0.95
# 0.95 of the abnormal cells found, or of the normal ones left alone: one in twenty may be missed.
_ONE_IN = 20


@dataclass(frozen=True)
class Decisions:
    """Fitted on validation; a threshold that cannot be had is None.

    Attributes:
        temperature: the logits are divided by it.
        wanted_accuracy: that accepted answers keep on validation.
        accept_threshold: confidence from which an answer is accepted; None if no threshold keeps
            the wanted accuracy.
        sensitive_threshold: probability of an abnormal cell, summed over the abnormal classes, from
            which a cell is called abnormal: the highest that finds 95 % of the abnormal cells.
        specific_threshold: the lowest that leaves 95 % of the normal cells alone. Both are None
            where the classes, or the validation cells, are not both normal and abnormal.
        validation_cells: how many cells all this rests on.
    """

    temperature: float
    wanted_accuracy: float
    accept_threshold: float | None
    sensitive_threshold: float | None
    specific_threshold: float | None
    validation_cells: int

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
    wanted_accuracy: float = WANTED_ACCURACY,
) -> Decisions:
    """Fit everything on the validation cells.

    Args:
        labels: integers (n,), indices into the class names.
        logits: (n, k), finite.
        class_names: k names.
        wanted_accuracy: 0 to 1.

    Raises:
        DataError: shapes disagree, or a value is out of range.
    """
    truth = np.asarray(labels)
    temperature = fit_temperature(truth, logits)
    shares = softmax(logits, temperature=temperature)
    sensitive, specific = _abnormal_thresholds(truth, shares, class_names)
    return Decisions(
        temperature=temperature,
        wanted_accuracy=wanted_accuracy,
        accept_threshold=find_threshold(
            shares.max(axis=1), shares.argmax(axis=1) == truth, wanted_accuracy=wanted_accuracy
        ),
        sensitive_threshold=sensitive,
        specific_threshold=specific,
        validation_cells=len(truth),
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
    fields = [field.name for field in dataclasses.fields(Decisions)]
    if not isinstance(values, dict) or sorted(values) != sorted(fields) or not _is_sound(values):
        raise RunError(
            f"{path}: is damaged; expected numbers for {', '.join(fields)}. Restore it, or remove "
            "it to go on with probabilities that are not calibrated"
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


def _abnormal_thresholds(
    truth: npt.NDArray[Any], shares: Array, class_names: Sequence[str]
) -> tuple[float | None, float | None]:
    """Return the sensitive and the specific threshold."""
    names = abnormal_classes(class_names) or []
    is_abnormal = np.isin(list(class_names), names)
    positive, scores = is_abnormal[truth], shares[:, is_abnormal].sum(axis=1)
    if positive.all() or not positive.any():
        return None, None
    ours, others = np.sort(scores[positive]), np.sort(scores[~positive])[::-1]
    needed = ours[len(ours) // _ONE_IN]  # the lowest score that must still be called abnormal
    refused = others[len(others) // _ONE_IN]  # the highest that must be left alone
    # Halfway to the next score, so that a last digit decides nothing.
    sensitive = (needed + max(scores[scores < needed], default=0.0)) / 2
    specific = (refused + min(scores[scores > refused], default=1.0)) / 2
    return float(sensitive), float(specific) if specific > refused else None
