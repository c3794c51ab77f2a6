"""Layers of the classifier: attention (CBAM) and the input rule of Caffe-trained backbones."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

Shape = tuple[Any, ...]  # the batch's size is None

_BGR_MEAN = (103.939, 116.779, 123.68)  # ImageNet, 0-255


@keras.saving.register_keras_serializable(package="wbc_keras")
class ChannelAttention(keras.layers.Layer):
    """Weighs the channels of a feature map: which features matter.

    ``sigmoid(MLP(average pool) + MLP(max pool))`` times the input, with one MLP of two layers, ReLU
    between them and no biases, for both (Woo et al. 2018, eq. 2).

    Args:
        reduction_ratio: channels over hidden units of the MLP, which has at least one.

    Input and output shape: ``(batch, height, width, channels)``.
    """

    def __init__(self, reduction_ratio: int = 16, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if reduction_ratio < 1:
            raise ValueError(
                f"reduction_ratio must be at least 1. Received: reduction_ratio={reduction_ratio}"
            )
        self.reduction_ratio = reduction_ratio

    def build(self, input_shape: Shape) -> None:
        channels = input_shape[-1]
        units = max(1, channels // self.reduction_ratio)
        self.reduce = self._dense(units, activation="relu", name="reduce")
        self.expand = self._dense(channels, name="expand")
        self.reduce.build((None, channels))
        self.expand.build((None, units))

    def _dense(self, units: int, **kwargs: Any) -> keras.layers.Dense:
        return keras.layers.Dense(units, use_bias=False, dtype=self.dtype_policy, **kwargs)

    def call(self, features: Any) -> Any:
        average = self.expand(self.reduce(ops.mean(features, axis=(1, 2))))
        largest = self.expand(self.reduce(ops.max(features, axis=(1, 2))))
        weights = ops.sigmoid(average + largest)
        return features * weights[:, None, None, :]

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "reduction_ratio": self.reduction_ratio}


@keras.saving.register_keras_serializable(package="wbc_keras")
class SqueezeExcitation(ChannelAttention):
    """Weighs the channels by their averages alone (Hu et al. 2018, eq. 3, without biases).

    What channel attention is without its maximum; CBAM's comparison in a study.
    """

    def call(self, features: Any) -> Any:
        weights = ops.sigmoid(self.expand(self.reduce(ops.mean(features, axis=(1, 2)))))
        return features * weights[:, None, None, :]


@keras.saving.register_keras_serializable(package="wbc_keras")
class SpatialAttention(keras.layers.Layer):
    """Weighs the places of a feature map: where to look.

    ``sigmoid(convolution([mean, max over the channels]))`` times the input, without bias (Woo et
    al. 2018, eq. 3).

    Args:
        kernel_size: side of the convolution; 7 in the paper.

    Input and output shape: ``(batch, height, width, channels)``.
    """

    def __init__(self, kernel_size: int = 7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if kernel_size < 1:
            raise ValueError(f"kernel_size must be at least 1. Received: kernel_size={kernel_size}")
        self.kernel_size = kernel_size

    def build(self, input_shape: Shape) -> None:
        self.convolution = keras.layers.Conv2D(
            1,
            self.kernel_size,
            padding="same",
            use_bias=False,
            data_format="channels_last",
            dtype=self.dtype_policy,
            name="convolution",
        )
        self.convolution.build((*input_shape[:-1], 2))

    def weigh(self, features: Any) -> Any:
        """Return each place's weight, ``(batch, height, width, 1)`` in (0, 1)."""
        average = ops.mean(features, axis=-1, keepdims=True)
        largest = ops.max(features, axis=-1, keepdims=True)
        return ops.sigmoid(self.convolution(ops.concatenate([average, largest], axis=-1)))

    def call(self, features: Any) -> Any:
        return features * self.weigh(features)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "kernel_size": self.kernel_size}


@keras.saving.register_keras_serializable(package="wbc_keras")
class CBAM(keras.layers.Layer):
    """Convolutional block attention module: channel attention, then spatial attention.

    Args:
        reduction_ratio: channels over hidden units of the channel attention's MLP.
        kernel_size: side of the spatial attention's convolution.

    Input and output shape: ``(batch, height, width, channels)``.

    Example:
        >>> CBAM(reduction_ratio=8)(keras.ops.ones((2, 6, 6, 64))).shape
        (2, 6, 6, 64)

    Reference: Woo et al. 2018, "CBAM: Convolutional Block Attention Module", eq. 1.
    """

    def __init__(self, reduction_ratio: int = 16, kernel_size: int = 7, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.channel_attention = ChannelAttention(
            reduction_ratio, dtype=self.dtype_policy, name="channel_attention"
        )
        self.spatial_attention = SpatialAttention(
            kernel_size, dtype=self.dtype_policy, name="spatial_attention"
        )

    def build(self, input_shape: Shape) -> None:
        self.channel_attention.build(input_shape)
        self.spatial_attention.build(input_shape)

    def weigh(self, features: Any) -> Any:
        """Return how much each place counts, ``(batch, height, width, 1)`` in (0, 1)."""
        return self.spatial_attention.weigh(self.channel_attention(features))

    def call(self, features: Any) -> Any:
        return self.spatial_attention(self.channel_attention(features))

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "reduction_ratio": self.channel_attention.reduction_ratio,
            "kernel_size": self.spatial_attention.kernel_size,
        }


@keras.saving.register_keras_serializable(package="wbc_keras")
class CaffeInput(keras.layers.Layer):
    """Turns RGB 0-255 into what Caffe-trained networks expect: BGR minus the ImageNet mean.

    Input and output shape: ``(batch, height, width, 3)``.
    """

    def call(self, images: Any) -> Any:
        return ops.flip(images, axis=-1) - ops.convert_to_tensor(_BGR_MEAN, dtype=images.dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return input_shape
