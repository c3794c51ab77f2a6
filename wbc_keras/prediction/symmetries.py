"""A cell has no upper side: answers averaged over mirrored and turned views of it.

The views go through the network as one larger batch, and the feature maps come back to where they
belong in the picture and are averaged. As pooling and the last layer are linear, the logits are
exactly the mean of the views' logits, and all that reads the feature map (heatmaps, novelty) sees
one map a cell, as without views.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Shape = tuple[Any, ...]  # the batch's size is None


class _Symmetries(keras.layers.Layer):
    """Holds how many symmetries of the square are taken: 2, 4 or 8, the first of `_view`."""

    def __init__(self, count: int = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if count not in (2, 4, 8):
            raise ValueError(f"count must be 2, 4 or 8. Received: count={count}")
        self.count = count

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "count": self.count}

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (None, *input_shape[1:])


@keras.saving.register_keras_serializable(package="wbc_keras")
class MakeViews(_Symmetries):
    """Give ``(batch, height, width, channels)`` as ``(count * batch, ...)``, one view by another.

    Args:
        count: 2 (left and right mirrored), 4 (also upside down) or 8 (also height and width
            exchanged, which needs square pictures).
    """

    def call(self, images: Any) -> Any:
        return ops.concatenate([_view(images, number) for number in range(self.count)])


@keras.saving.register_keras_serializable(package="wbc_keras")
class MergeViews(_Symmetries):
    """Turn the maps of `MakeViews`'s views back and average them.

    Args:
        count: as `MakeViews` had it.

    Input shape: ``(count * batch, height, width, channels)``, of any height and width.

    Output shape: ``(batch, height, width, channels)``.
    """

    def call(self, maps: Any) -> Any:
        views = ops.reshape(maps, (self.count, -1, *maps.shape[1:]))
        return sum(_undo(views[number], number) for number in range(self.count)) / self.count


def _view(images: Any, number: int) -> Any:
    """Return a symmetry: the number's bits say mirror, turn upside down, exchange the axes."""
    for bit, axis in ((1, 2), (2, 1)):
        if number & bit:
            # A flip would do, but OpenVINO loses the layout behind one.
            images = ops.take(images, ops.arange(images.shape[axis] - 1, -1, -1), axis=axis)
    return ops.transpose(images, (0, 2, 1, 3)) if number & 4 else images


def _undo(maps: Any, number: int) -> Any:
    maps = ops.transpose(maps, (0, 2, 1, 3)) if number & 4 else maps
    return _view(maps, number & 3)
