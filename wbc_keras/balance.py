"""Class weights against imbalance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

METHODS = ("none", "balanced", "capped", "effective_number")


def class_weights(
    counts: Sequence[int] | NDArray[np.integer],
    *,
    method: str,
    beta: float = 0.999,
    cap: float = 10.0,
) -> NDArray[np.float64]:
    """Return the weight of each class in the loss.

    Every method gives weights whose mean over the training cells is 1, so that the loss and the
    learning rate keep their scale. A class without a training cell weighs 1 and is counted nowhere.

    Args:
        counts: ``(classes,)``, training cells of each class.
        method: ``none``: 1 each. ``balanced``: n / (classes * count), as scikit-learn: every class
            weighs the same in all. ``capped``: balanced, cut off at ``cap``, then rescaled.
            ``effective_number``: (1 - beta) / (1 - beta^count), rescaled (Cui et al. 2019, eq. 2
            and section 3): with beta 0 none, with beta near 1 balanced.
        beta: for ``effective_number``, at least 0 and below 1.
        cap: for ``capped``, the largest weight before rescaling.

    Returns:
        float64 ``(classes,)``, positive.

    Raises:
        ValueError: no cells, a negative count, or an unknown method.
    """
    cells = np.asarray(counts, np.float64)
    if cells.ndim != 1 or (cells < 0).any() or not cells.any():
        raise ValueError(f"counts must be cells of each class, not all 0. Received: {counts}")
    present = cells > 0
    found = _weigh(cells[present], method=method, beta=beta, cap=cap)
    weights = np.ones_like(cells)
    # The mean over the cells is to be 1, not that over the classes.
    weights[present] = found * (cells.sum() / (found @ cells[present]))
    return weights


def _weigh(
    counts: NDArray[np.float64], *, method: str, beta: float, cap: float
) -> NDArray[np.float64]:
    balanced: NDArray[np.float64] = counts.sum() / (len(counts) * counts)
    if method == "none":
        return np.ones_like(counts)
    if method == "balanced":
        return balanced
    if method == "capped":
        return np.minimum(balanced, cap)
    if method == "effective_number":
        weights: NDArray[np.float64] = (1 - beta) / (1 - beta**counts)
        return weights
    raise ValueError(f"method must be one of {', '.join(METHODS)}. Received: method={method!r}")
