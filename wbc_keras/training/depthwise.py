"""Depthwise convolutions as sums of shifted pictures, which JAX trains faster on a CPU.

There, XLA makes of a grouped convolution what takes far longer than the multiplications and
additions written out: whole networks train 3 to 4 times as fast so (`benchmarks/README.md`).
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops


class ShiftedSum(keras.layers.Layer):
    """Computes what a depthwise convolution does, with its own kernel, tap by tap.

    Args:
        convolution: a layer that `is_plain`.

    Input shape: ``(batch, height, width, channels)``.
    Output shape: the convolution's.
    """

    def __init__(self, convolution: keras.layers.DepthwiseConv2D, **kwargs: Any) -> None:
        super().__init__(dtype=convolution.dtype_policy, **kwargs)
        self.convolution = convolution

    def call(self, images: Any) -> Any:
        # Products and sums in float32, rounded to bfloat16 at the end, as a convolution does it.
        kernel = ops.cast(self.convolution.kernel, "float32")
        rows, columns = kernel.shape[:2]
        stride = self.convolution.strides[0]
        if self.convolution.padding == "same":
            sides = [
                _pad(side, k, stride)
                for side, k in zip(images.shape[1:3], (rows, columns), strict=True)
            ]
            images = ops.pad(images, [(0, 0), *sides, (0, 0)])
        height, width = images.shape[1] - rows + 1, images.shape[2] - columns + 1
        total: Any = 0.0
        for row in range(rows):
            for column in range(columns):
                shifted = images[
                    :, row : row + height : stride, column : column + width : stride, :
                ]
                total += ops.cast(shifted, "float32") * kernel[row, column, :, 0]
        return ops.cast(total, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.convolution.compute_output_shape(input_shape)


def _pad(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return how many zeros a side gets before and after it, where the padding is ``same``."""
    room = max((-(-side // stride) - 1) * stride + kernel - side, 0)
    return room // 2, room - room // 2


def is_plain(layer: keras.layers.Layer) -> bool:
    """Tell whether a layer is a depthwise convolution and nothing more."""
    return (
        isinstance(layer, keras.layers.DepthwiseConv2D)
        and layer.data_format == "channels_last"
        and layer.depth_multiplier == 1
        and layer.dilation_rate == (1, 1)
        and layer.strides[0] == layer.strides[1]
        and not layer.use_bias
        and layer.activation is keras.activations.linear
    )


def with_shifted_sums(network: keras.Model) -> keras.Model:
    """Return a network of the same layers and weights, its depthwise convolutions written out."""

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if is_plain(layer):
            layer = ShiftedSum(layer, name=f"{layer.name}_sum")
        return layer(*args, **kwargs)

    return keras.models.clone_model(network, clone_function=lambda layer: layer, call_function=call)
