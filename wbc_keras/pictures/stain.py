"""The stain of a smear as planes: batched graph operations, for `localize`.

Colours are those of a Wright, Giemsa or May-Grünwald stain: nuclei are purple, so they absorb green
light most; red cells absorb blue light nearly as well, nuclei do not.

Pictures and masks (0 and 1) are "planes", ``(1, height, width, b)``: pooling over a last axis that
is the batch is ten times faster than over a single channel. Sums over pixels are sums of whole
numbers below 2**24, exact in any order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

_BINS = 64
_BIN_WIDTH = 4.0  # of stain, which runs from 0 to 255
_BLUE_SHARE = 0.6  # of the density in blue light, taken off that in green
_BLACK = 0.08  # of the light: less in every colour is no part of the smear but a frame around it


class Classes(NamedTuple):
    """Mean stain of three classes of pixels, ``(b,)`` each."""

    pale: tf.Tensor
    middle: tf.Tensor
    dark: tf.Tensor


class Absorbance(NamedTuple):
    """What the smear takes of the light, planes."""

    green: tf.Tensor  # whole numbers 0-255
    blue: tf.Tensor
    smear: tf.Tensor  # 1, but 0 on a black frame


def measure_absorbance(thumbnails: tf.Tensor) -> Absorbance:
    """Return how much of the light of the empty field is missing.

    That light is the 95th percentile of each colour: smears are photographed in any tint.

    Args:
        thumbnails: float32 ``(b, 96, 96, 3)``, RGB 0-255.
    """
    colors = tf.transpose(thumbnails, (3, 1, 2, 0))
    blocks = tf.nn.avg_pool2d(colors, 4, 4, "VALID")
    count = blocks.shape[1] * blocks.shape[2]
    flat = tf.transpose(tf.reshape(blocks, (3, count, -1)), (0, 2, 1))
    light = tf.math.top_k(flat, count // 20).values[..., -1]
    # A picture without an empty field must not make its cell pale.
    light = tf.maximum(light, 64.0)[:, tf.newaxis, tf.newaxis, :]
    missing = tf.round(255.0 * (1.0 - tf.minimum(colors / light, 1.0)))
    smear = _find_smear(tf.reduce_min(missing, axis=0, keepdims=True))
    return Absorbance(missing[1:2] * smear, missing[2:] * smear, smear)


def _find_smear(missing: tf.Tensor) -> tf.Tensor:
    black = tf.cast(tf.nn.avg_pool2d(missing, 2, 2, "VALID") > 255.0 * (1.0 - _BLACK), tf.float32)
    # Grown further than it was shrunk, over the edge that JPEG and resizing smear.
    return 1.0 - enlarge(grow(shrink(black, 3), 5))


def measure_stain(absorbance: Absorbance) -> tf.Tensor:
    """Return planes of nuclear stain, smooth, 0-255.

    A share of blue's optical density is taken from green's, which keeps its order also where both
    are dark (Beer and Lambert), and the rest is turned back into an absorbance.
    """
    levels = np.arange(256)
    density = -np.log10(np.maximum(1.0 - levels / 255.0, 0.02))
    purple = np.maximum(density[:, np.newaxis] - _BLUE_SHARE * density, 0.0)
    # A table of whole numbers: an exponential may differ in its last bit with the batch.
    table = tf.constant(np.round(255.0 * (1.0 - 10.0**-purple)).ravel(), tf.float32)
    index = tf.cast(256.0 * absorbance.green + absorbance.blue, tf.int32)
    return _blur(tf.gather(table, index))


def _blur(planes: tf.Tensor) -> tf.Tensor:
    """Weigh each pixel and its eight neighbours 1 2 1, by row and by column."""
    # Edges repeated: `tf.pad` does the same by SYMMETRIC, at many times the cost.
    rows = tf.concat([planes[:, :1], planes, planes[:, -1:]], axis=1)
    planes = (rows[:, :-2] + 2.0 * rows[:, 1:-1] + rows[:, 2:]) / 4.0
    columns = tf.concat([planes[:, :, :1], planes, planes[:, :, -1:]], axis=2)
    return (columns[:, :, :-2] + 2.0 * columns[:, :, 1:-1] + columns[:, :, 2:]) / 4.0


def count_stain(stain: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Count the pixels, weight 0 or 1, of each picture in bins of stain: float32 ``(b, 64)``."""
    batch = tf.shape(stain)[-1]
    bins = tf.cast(tf.clip_by_value(stain / _BIN_WIDTH, 0.0, _BINS - 1.0), tf.int32)
    bins += _BINS * tf.range(batch)
    return tf.reshape(add_up(weights, bins, _BINS * batch), (batch, _BINS))


def add_up(values: tf.Tensor, bins: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    """Return the sum of the values in each bin, float32 ``(count,)``.

    Several times faster than `tf.math.unsorted_segment_sum`.
    """
    flat, places = tf.reshape(values, [-1]), tf.reshape(bins, [-1])
    return tf.raw_ops.DenseBincount(input=places, size=count, weights=flat, binary_output=False)


def split_classes(histogram: tf.Tensor) -> Classes:
    """Split the pixels at the two cuts of the greatest variance between classes.

    Otsu 1979, eq. 14, for three classes, by trying every pair of cuts.
    """
    count = tf.cumsum(histogram, axis=1)
    total = tf.cumsum(histogram * (tf.range(_BINS, dtype=tf.float32) + 0.5), axis=1)
    pale = _part_variance(total, count)[:, :, tf.newaxis]
    dark = _part_variance(total[:, -1:] - total, count[:, -1:] - count)[:, tf.newaxis, :]
    middle = _part_variance(
        total[:, tf.newaxis, :] - total[:, :, tf.newaxis],
        count[:, tf.newaxis, :] - count[:, :, tf.newaxis],
    )
    ordered = tf.linalg.band_part(tf.ones((_BINS, _BINS)), 0, -1)
    pairs = tf.reshape((pale + middle + dark) * ordered, (-1, _BINS * _BINS))
    best = tf.argmax(pairs, axis=1, output_type=tf.int32)
    ends = tf.stack([best // _BINS, best % _BINS, tf.fill(tf.shape(best), _BINS - 1)], axis=1)
    counts = _differences(tf.gather(count, ends, batch_dims=1))
    totals = _differences(tf.gather(total, ends, batch_dims=1))
    return Classes(*tf.unstack(_BIN_WIDTH * totals / tf.maximum(counts, 1.0), axis=1))


def _part_variance(total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    return total * total / tf.maximum(count, 1.0)


def _differences(ends: tf.Tensor) -> tf.Tensor:
    return ends - tf.pad(ends[:, :-1], ((0, 0), (1, 0)))


# Shape


def grow(planes: tf.Tensor, size: int) -> tf.Tensor:
    """Return the largest value in a square of ``size`` pixels around each."""
    return tf.nn.max_pool2d(planes, size, 1, "SAME")


def shrink(planes: tf.Tensor, size: int) -> tf.Tensor:
    """Return the smallest value in a square of ``size`` pixels around each, of values 0 to 1."""
    return 1.0 - grow(1.0 - planes, size)


def halve(planes: tf.Tensor) -> tf.Tensor:
    """Return the largest value of every two by two pixels."""
    return tf.nn.max_pool2d(planes, 2, 2, "VALID")


def enlarge(planes: tf.Tensor) -> tf.Tensor:
    """Repeat every pixel as two by two."""
    return tf.repeat(tf.repeat(planes, 2, axis=1), 2, axis=2)
