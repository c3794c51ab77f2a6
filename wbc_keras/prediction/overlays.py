"""Where the model looked, in graph operations: Grad-CAM, laid into the picture's frame and drawn.

The exported model explains itself with these; `gradcam` computes its maps by the first of them.
Grad-CAM: Selvaraju et al. 2017.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from wbc_keras.pictures.images import decode

_STRONGEST = 0.65  # of an overlay's colour, where the heat is 1


def activation_maps(
    head: Callable[[tf.Tensor], tf.Tensor], features: tf.Tensor, classes: tf.Tensor
) -> tf.Tensor:
    """Return how much each field of the feature map speaks for a class (eq. 1 and 2).

    Args:
        head: gives the logits ``(b, classes)`` of the feature map; gradients go no further down.
        features: ``(b, rows, columns, channels)``.
        classes: int32 ``(b,)``, one class for each picture.

    Returns:
        float32 ``(b, rows, columns)``, at least 0.
    """
    with tf.GradientTape() as tape:
        tape.watch(features)
        scores = tf.gather(head(features), classes, batch_dims=1)
    weights = tf.reduce_mean(tape.gradient(scores, features), axis=(1, 2), keepdims=True)
    return tf.nn.relu(tf.cast(tf.reduce_sum(weights * features, axis=-1), tf.float32))


def lay_in_frame(maps: tf.Tensor, boxes: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Lay the maps of crops into the pictures that they were cut from.

    Between the centres of a map's fields the heat changes linearly; from the outer centres to the
    edge of the crop it stays. Outside the crop it is 0.

    Args:
        maps: float32 ``(b, rows, columns)``.
        boxes: float32 ``(b, 4)``, y0, x0, y1, x1 in shares of the picture.
        sizes: int32 ``(b, 2)``, height and width of each picture.

    Returns:
        float32 ``(b, height, width)``, as high and wide as the highest and the widest picture: the
        upper left corner is the picture's own frame, the rest is 0. The largest value of each map
        counts as 1; a map of zeros stays zeros.
    """
    peaks = tf.reduce_max(maps, axis=(1, 2), keepdims=True)
    maps = tf.math.divide_no_nan(maps, peaks)
    frame = tf.reduce_max(sizes, axis=0)
    rows = _weigh_fields(maps.shape[1], boxes[:, 0::2], sizes[:, 0], frame[0])
    columns = _weigh_fields(maps.shape[2], boxes[:, 1::2], sizes[:, 1], frame[1])
    return rows @ maps @ tf.transpose(columns, (0, 2, 1))


def _weigh_fields(fields: int, spans: tf.Tensor, sides: tf.Tensor, pixels: tf.Tensor) -> tf.Tensor:
    """Return each field's weight at each pixel of one axis: float32 ``(b, pixels, fields)``."""
    place = (tf.range(tf.cast(pixels, tf.float32)) + 0.5) / tf.cast(sides, tf.float32)[
        :, tf.newaxis
    ]
    share = (place - spans[:, :1]) / (spans[:, 1:] - spans[:, :1])
    field = tf.clip_by_value(share * fields - 0.5, 0.0, fields - 1.0)
    distance = tf.abs(field[:, :, tf.newaxis] - tf.range(fields, dtype=tf.float32))
    # A box that ends on the picture's edge ends at 1 but for rounding, and padding begins there.
    inside = (share > 0.0) & (share < 1.0) & (place < 1.0)
    return tf.nn.relu(1.0 - distance) * tf.cast(inside, tf.float32)[:, :, tf.newaxis]


def draw_overlays(image_bytes: tf.Tensor, heatmaps: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Draw each picture under its heatmap, as encoded PNG, string ``(b,)``.

    Args:
        image_bytes: string ``(b,)``, JPEG or PNG.
        heatmaps: float32 ``(b, height, width)`` of `lay_in_frame`.
        sizes: int32 ``(b, 2)``.
    """
    from matplotlib import colormaps

    colors = tf.constant(255.0 * colormaps["viridis"](np.arange(256))[:, :3], tf.float32)

    def draw(row: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        encoded, heatmap, size = row
        heat = heatmap[: size[0], : size[1]]
        color = tf.gather(colors, tf.cast(heat * 255.0, tf.int32))
        # Where nothing speaks for the class the cell stays clear.
        weight = _STRONGEST * heat[:, :, tf.newaxis]
        image = tf.cast(decode(encoded), tf.float32)
        drawn = tf.cast(image * (1.0 - weight) + color * weight, tf.uint8)
        # Packed a tenth worse than by default, in a fifth of the time.
        return tf.io.encode_png(drawn, compression=1)

    return tf.map_fn(
        draw, (image_bytes, heatmaps, sizes), fn_output_signature=tf.TensorSpec([], tf.string)
    )
