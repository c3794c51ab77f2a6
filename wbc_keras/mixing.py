"""Training on mixtures of two cells: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

Each cell of a batch is mixed with the one that stands as far from the batch's end as it does from
its start. The random numbers are, as those of `augment`, a function of seed, epoch and cell.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops


def draw_mixing(cells: int, *, mixup: float, cutmix: float, seed: int, epoch: int) -> np.ndarray:
    """Draw what one epoch's mixing needs, float32 ``(cells, 4)``.

    Args:
        cells: how many.
        mixup: alpha of the Beta distribution of the shares; 0 is off.
        cutmix: the same; where both are on, each is used for half of the cells.
        seed: with the epoch's number, decides all.
        epoch: from 0.

    Returns:
        the partner's share, whether it is cut in (1) or blended (0), and the cut's centre, y and x,
        in shares of the side.
    """
    generator = np.random.default_rng([seed, epoch, 3])
    chance = 0.5 if mixup and cutmix else float(cutmix > 0)
    cut = generator.random(cells) < chance
    alpha = np.where(cut, cutmix or 1.0, mixup or 1.0)
    columns = [generator.beta(alpha, alpha), cut, generator.random(cells), generator.random(cells)]
    return np.stack(columns, axis=1).astype(np.float32)


def mix(images: Any, targets: Any, weights: Any, mixing: Any) -> tuple[Any, Any, Any]:
    """Mix the cells of a batch.

    A cut's share is that of the pixels that it covers, which may be less than was drawn where it
    reaches over the edge (Yun et al. 2019, eq. 2).

    Args:
        images: float ``(batch, height, width, 3)``.
        targets: float ``(batch, classes)``, each row of sum 1.
        weights: float ``(batch,)``, of the cells in the loss; they are mixed as the targets are.
        mixing: rows of `draw_mixing`.

    Returns:
        the three, mixed.
    """
    height, width = images.shape[1:3]
    share, cut, center_y, center_x = (column[:, None] for column in ops.unstack(mixing, 4, axis=1))
    side = ops.sqrt(share) / 2
    rows = (ops.arange(height, dtype="float32") + 0.5) / height
    columns = (ops.arange(width, dtype="float32") + 0.5) / width
    inside_y = ops.cast(ops.abs(rows - center_y) < side, "float32")[:, :, None]
    inside_x = ops.cast(ops.abs(columns - center_x) < side, "float32")[:, None, :]
    cut, share = cut[:, :, None], share[:, :, None]
    mask = cut * inside_y * inside_x + (1 - cut) * share
    partner = ops.mean(mask, axis=(1, 2))
    mixed = [
        part * (1 - amount) + ops.flip(part, axis=0) * amount
        for part, amount in (
            (images, mask[..., None]),
            (targets, partner[:, None]),
            (weights, partner),
        )
    ]
    return mixed[0], mixed[1], mixed[2]
