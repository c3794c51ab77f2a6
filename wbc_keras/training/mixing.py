"""Training on mixtures of two cells: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019).

Each cell of a batch is mixed with the one that stands as far from the batch's end as it does from
its start. The random numbers are, as those of `augment`, a function of seed, epoch and cell.
"""

from __future__ import annotations

from typing import Any

import keras
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
    mask = _make_masks(mixing, *images.shape[1:3])
    partner = ops.mean(mask, axis=(1, 2))
    return (
        _blend(images, mask[..., None]),
        _blend(targets, partner[:, None]),
        _blend(weights, partner),
    )


def mix_targets(
    targets: np.ndarray, weights: np.ndarray, mixing: np.ndarray, *, image_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Mix targets and weights in NumPy, as `mix` does; their images are left to `MixImages`.

    Args:
        targets: float32 ``(batch, classes)``.
        weights: float32 ``(batch,)``.
        mixing: rows of `draw_mixing`.
        image_size: height and width of the images.
    """
    share, cut, center_y, center_x = mixing.T[:, :, np.newaxis]
    side = np.sqrt(share) / 2
    covered = 1.0
    for center, pixels in zip((center_y, center_x), image_size, strict=True):
        places = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels
        covered = covered * np.mean(np.abs(places - center) < side, axis=1, keepdims=True)
    partner = cut * covered + (1 - cut) * share
    mixed = targets * (1 - partner) + targets[::-1] * partner
    one = partner[:, 0]
    return mixed.astype(np.float32), (weights * (1 - one) + weights[::-1] * one).astype(np.float32)


@keras.saving.register_keras_serializable("wbc_keras")
class MixImages(keras.layers.Layer):
    """The part of `mix` that is done on the device: images ``(batch, h, w, 3)`` by their draws."""

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)

    def call(self, images: Any, mixing: Any) -> Any:
        return _blend(images, _make_masks(mixing, *images.shape[1:3])[..., None])

    def compute_output_shape(self, images_shape: Any, mixing_shape: Any = None) -> Any:
        return images_shape


def _make_masks(mixing: Any, height: int, width: int) -> Any:
    """Return how much of each pixel is the partner's, ``(batch, height, width)``."""
    share, cut, center_y, center_x = (column[:, None] for column in ops.unstack(mixing, 4, axis=1))
    side = ops.sqrt(share) / 2
    rows = (ops.arange(height, dtype="float32") + 0.5) / height
    columns = (ops.arange(width, dtype="float32") + 0.5) / width
    inside_y = ops.cast(ops.abs(rows - center_y) < side, "float32")[:, :, None]
    inside_x = ops.cast(ops.abs(columns - center_x) < side, "float32")[:, None, :]
    cut, share = cut[:, :, None], share[:, :, None]
    return cut * inside_y * inside_x + (1 - cut) * share


def _blend(part: Any, amount: Any) -> Any:
    return part * (1 - amount) + ops.flip(part, axis=0) * amount
