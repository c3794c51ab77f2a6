"""What an epoch of training looks like, drawn from seed and epoch alone; NumPy on any backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from wbc_keras.augment import draw_uniforms
from wbc_keras.config import AugmentConfig
from wbc_keras.training.mixing import draw_mixing


class Epoch(NamedTuple):
    """The cells of an epoch by step and place in the batch, each array ``(steps, batch, ...)``.

    order: rows of cells. uniforms: what `augment` draws, ``(..., 20)``. labels: int32, or float32
    ``(..., classes)``. weights: float32, in the loss. mixing: what `mixing` draws, ``(..., 4)``.
    """

    order: np.ndarray
    uniforms: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    mixing: np.ndarray


def count_steps(cells: int, batch_size: int) -> int:
    """Return the full batches of an epoch; a set smaller than one batch is one batch."""
    return max(1, cells // batch_size)


def make_draw(
    labels: np.ndarray,
    weights: np.ndarray,
    *,
    augment: AugmentConfig,
    shape: tuple[int, int],
    seed: int,
    weights_from: int,
    sampling_balance: float,
) -> Callable[[np.ndarray | int], Epoch]:
    """Return what draws an epoch of ``shape`` steps and cells from its number alone.

    Raises:
        ValueError: cells are to be mixed and ``labels`` are not one-hot.
    """
    if is_mixed(augment) and labels.ndim == 1:
        raise ValueError("labels: mixing cells needs one-hot rows. Received: (n,)")
    count, drawn = len(labels), shape[0] * shape[1]
    classes = labels.argmax(axis=1) if labels.ndim == 2 else labels
    chances = _chances(classes, sampling_balance) if sampling_balance else None

    def draw(epoch: np.ndarray | int) -> Epoch:
        number = int(epoch)
        generator = np.random.default_rng([seed, number, 0])
        if chances is None:
            order = generator.permutation(count)[:drawn]
        else:
            order = generator.choice(count, drawn, p=chances)
        # By place in the epoch when a cell may come twice, so that it comes changed differently.
        place = order if chances is None else np.arange(drawn)
        uniforms = draw_uniforms(count, seed=seed, epoch=number)[place]
        weighing = weights[order] if number >= weights_from else np.ones_like(weights[order])
        mixing = draw_mixing(
            drawn, mixup=augment.mixup, cutmix=augment.cutmix, seed=seed, epoch=number
        )
        rows = (order, uniforms, labels[order], weighing, mixing)
        return Epoch(*(row.reshape(*shape, *row.shape[1:]) for row in rows))

    return draw


def is_mixed(augment: AugmentConfig) -> bool:
    """Tell whether cells are mixed by twos."""
    return augment.mixup > 0 or augment.cutmix > 0


def _chances(labels: np.ndarray, balance: float) -> np.ndarray:
    """Return each cell's chance of a draw, float64 ``(n,)``: that of its class, shared out."""
    counts = np.bincount(labels)
    chances = counts[labels] ** -float(balance)
    return np.asarray(chances / chances.sum())
