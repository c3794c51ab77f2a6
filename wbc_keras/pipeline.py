"""From cropped cells to batches: shuffle, augment, batch, prefetch.

Cells are read from where they lie, a batch at a time. What an epoch looks like is a function of
seed and epoch alone, so that a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow as tf

from wbc_keras.augment import CellAugmentation, draw_uniforms
from wbc_keras.cells import Cells
from wbc_keras.config import AugmentConfig


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


def count_steps(cells: int, batch_size: int) -> int:
    """Return the full batches of an epoch; a set smaller than one batch is one batch."""
    return max(1, cells // batch_size)


def make_training_batches(
    cells: Cells,
    labels: np.ndarray,
    weights: np.ndarray,
    *,
    augment: AugmentConfig,
    batch_size: int,
    seed: int,
    epochs: range,
) -> tf.data.Dataset:
    """Return shuffled, augmented batches of the given epochs, one after the other.

    Each epoch has `count_steps` full batches: batch normalisation would suffer from a last batch of
    one or two cells, and XLA would compile twice. Which cells an epoch leaves out (fewer than a
    batch) changes with the epoch.

    Args:
        cells: the training cells.
        labels: int32 ``(n,)``.
        weights: float32 ``(n,)``, each cell's weight in the loss.
        augment: strengths of the changes.
        batch_size: cells in a batch.
        seed: with the epoch's number, decides order and changes.
        epochs: numbers of the epochs, from 0; a resumed run starts above 0.

    Returns:
        a dataset of ``(images float32 (batch, h, w, 3) 0-255, labels, weights)``.
    """
    count = len(cells)
    batch_size = min(batch_size, count)
    # Compiled, it takes a third of the time; every batch has the same shape.
    change = tf.function(CellAugmentation(**dataclasses.asdict(augment)), jit_compile=True)
    with tf.device("CPU:0"):
        labels, weights = tf.constant(labels, tf.int32), tf.constant(weights, tf.float32)

    steps = count_steps(count, batch_size)

    def draw(epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng([seed, int(epoch), 0]).permutation(count)
        order = order[: steps * batch_size].reshape(steps, batch_size)
        return order, draw_uniforms(count, seed=seed, epoch=int(epoch))[order]

    def make_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order, uniforms = tf.numpy_function(draw, [epoch], (tf.int64, tf.float32))
        order.set_shape((steps, batch_size))
        uniforms.set_shape((steps, batch_size, None))
        return tf.data.Dataset.from_tensor_slices((order, uniforms))

    def read(order: tf.Tensor, uniforms: tf.Tensor) -> tuple[tf.Tensor, ...]:
        batch = change(_read_images(cells, order), uniforms)
        return batch, tf.gather(labels, order), tf.gather(weights, order)

    dataset = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(make_epoch)
    return dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
