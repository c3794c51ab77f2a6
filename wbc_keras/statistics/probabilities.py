"""Labels and probabilities as every figure takes them: made of logits, checked in one place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from wbc_keras.errors import DataError

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def softmax(logits: npt.ArrayLike, *, temperature: float = 1.0) -> Array:
    """Return probabilities ``(n, k)`` of logits ``(n, k)`` divided by a temperature.

    No temperature changes which class is the largest (Guo et al. 2017, section 4.2).
    """
    scaled = np.asarray(logits, np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    shares: Array = exponentials / exponentials.sum(axis=1, keepdims=True)
    return shares


def check_probabilities(
    y_true: npt.ArrayLike,
    probabilities: npt.ArrayLike,
    class_names: Sequence[str] | None = None,
) -> tuple[Integers, Array]:
    """Return labels int64 ``(n,)`` and probabilities float64 ``(n, k)``.

    Args:
        y_true: integers (n,), 0 to k - 1.
        probabilities: (n, k), rows of 0 to 1 that sum to one within 0.001.
        class_names: k different names, where there are any.

    Raises:
        DataError: shapes disagree, or a value is out of range.
    """
    truth, shares = np.asarray(y_true), np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 1 or shares.ndim != 2 or len(truth) != len(shares) or not shares.size:
        raise DataError(
            "evaluation: expected labels (n,) and probabilities (n, classes), n at least 1. "
            f"Received: {truth.shape} and {shares.shape}"
        )
    if class_names is not None and len(set(class_names)) != shares.shape[1]:
        raise DataError(
            f"class_names: expected {shares.shape[1]} different names, one for each column of "
            f"the probabilities. Received: {list(class_names)}"
        )
    if not np.issubdtype(truth.dtype, np.integer):
        raise DataError(f"labels: expected whole numbers. Received: dtype {truth.dtype}")
    _check_values(truth, shares)
    return truth.astype(np.int64), shares


def divide(over: npt.NDArray[Any], under: npt.NDArray[Any]) -> Array:
    """Return the quotient, NaN where the denominator is 0: a figure that cannot be had."""
    result = np.full(np.broadcast_shapes(np.shape(over), np.shape(under)), np.nan)
    np.divide(over, under, out=result, where=np.asarray(under) != 0)
    return result


def _check_values(truth: npt.NDArray[Any], shares: Array) -> None:
    outside = np.flatnonzero((truth < 0) | (truth >= shares.shape[1]))
    if outside.size:
        raise DataError(
            f"labels: expected 0 to {shares.shape[1] - 1}. "
            f"Received: {truth[outside[0]]} at cell {outside[0]}"
        )
    # `not within` also refuses NaN.
    within = np.all((shares >= 0) & (shares <= 1 + 1e-3), axis=1)
    wrong = np.flatnonzero(~(within & (np.abs(shares.sum(axis=1) - 1) <= 1e-3)))
    if wrong.size:
        raise DataError(
            "probabilities: expected rows of 0 to 1 that sum to one (not logits). "
            f"Received: {np.array2string(shares[wrong[0]], precision=4, max_line_width=10**6)} "
            f"at cell {wrong[0]}"
        )
