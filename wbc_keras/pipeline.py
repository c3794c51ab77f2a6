"""From cropped cells to batches in `tf.data`: shuffle, augment, batch, prefetch.

Cells are read from where they lie, a batch at a time. What an epoch looks like is a function of
seed and epoch alone, so that a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from wbc_keras.augment import make_augmentation
from wbc_keras.config import AugmentConfig
from wbc_keras.pictures.cells import Cells
from wbc_keras.training.drawing import count_steps, is_mixed, make_draw
from wbc_keras.training.mixing import mix


def make_batches(
    cells: Cells, labels: np.ndarray | None = None, *, batch_size: int
) -> tf.data.Dataset:
    """Return every cell once and in order: float32 images 0-255, with labels if given."""
    numbers = tf.data.Dataset.range(len(cells)).batch(batch_size)

    def read(rows: tf.Tensor) -> tuple[tf.Tensor, ...]:
        batch = tf.cast(_read_images(cells, rows), tf.float32)
        return (batch,) if labels is None else (batch, tf.gather(labels, rows))

    return numbers.map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)


def _read_images(cells: Cells, rows: tf.Tensor) -> tf.Tensor:
    """Return uint8 ``(batch, height, width, 3)``: these cells alone are read."""
    images = tf.numpy_function(lambda chosen: cells.images[chosen], [rows], tf.uint8)
    images.set_shape((*rows.shape, *cells.images.shape[1:]))
    return images


def make_training_batches(
    cells: Cells,
    labels: np.ndarray,
    weights: np.ndarray,
    *,
    augment: AugmentConfig,
    batch_size: int,
    seed: int,
    epochs: range,
    weights_from: int = 0,
    sampling_balance: float = 0.0,
) -> tf.data.Dataset:
    """Return shuffled, augmented batches of the given epochs, one after the other.

    Each epoch has `count_steps` full batches: batch normalisation would suffer from a last batch of
    one or two cells, and XLA would compile twice. Which cells an epoch leaves out (fewer than a
    batch) changes with the epoch.

    Args:
        cells: the training cells.
        labels: int32 ``(n,)``, or float32 ``(n, classes)``, one-hot, which mixing needs.
        weights: float32 ``(n,)``, each cell's weight in the loss.
        augment: strengths of the changes.
        batch_size: cells in a batch.
        seed: with the epoch's number, decides order and changes.
        epochs: numbers of the epochs, from 0; a resumed run starts above 0.
        weights_from: the first epoch in which the weights count; before it, each cell weighs 1.
        sampling_balance: 0 takes each cell once an epoch. Otherwise cells are drawn with repeats, a
            class as often as its count to the power of 1 minus this (Kang et al. 2020, eq. 1).

    Returns:
        a dataset of ``(images float32 (batch, h, w, 3) 0-255, labels, weights)``.
    """
    count = len(cells)
    batch_size = min(batch_size, count)
    mixes = is_mixed(augment)
    # Compiled, it takes a third of the time; every batch has the same shape.
    change = tf.function(make_augmentation(augment), jit_compile=True)
    labels = np.asarray(labels, np.float32 if labels.ndim == 2 else np.int32)
    steps = count_steps(count, batch_size)
    draw = make_draw(
        labels,
        np.asarray(weights, np.float32),
        augment=augment,
        shape=(steps, batch_size),
        seed=seed,
        weights_from=weights_from,
        sampling_balance=sampling_balance,
    )
    types = (tf.int64, tf.float32, tf.as_dtype(labels.dtype), tf.float32, tf.float32)

    def make_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        rows = tf.numpy_function(draw, [epoch], types)
        for row, rest in zip(rows, ((), (None,), labels.shape[1:], (), (4,)), strict=True):
            row.set_shape((steps, batch_size, *rest))
        return tf.data.Dataset.from_tensor_slices(tuple(rows))

    def read(
        order: tf.Tensor, uniforms: tf.Tensor, *rest: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        labels, weights, mixing = rest
        images = change(_read_images(cells, order), uniforms)
        return mix(images, labels, weights, mixing) if mixes else (images, labels, weights)

    dataset = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(make_epoch)
    return dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
