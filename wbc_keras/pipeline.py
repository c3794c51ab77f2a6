"""From cropped cells to batches: shuffle, augment, batch, prefetch.

Cells are read from where they lie, a batch at a time. What an epoch looks like is a function of
seed and epoch alone, so that a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from wbc_keras.augment import draw_uniforms, make_augmentation
from wbc_keras.cells import Cells
from wbc_keras.config import AugmentConfig
from wbc_keras.mixing import draw_mixing, mix


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
    # Compiled, it takes a third of the time; every batch has the same shape.
    change = tf.function(make_augmentation(augment), jit_compile=True)
    is_mixed = augment.mixup > 0 or augment.cutmix > 0
    if is_mixed and labels.ndim == 1:
        raise ValueError("labels: mixing cells needs one-hot rows. Received: (n,)")
    labels = np.asarray(labels, np.float32 if labels.ndim == 2 else np.int32)
    steps = count_steps(count, batch_size)
    draw = _make_draw(
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
        return mix(images, labels, weights, mixing) if is_mixed else (images, labels, weights)

    dataset = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(make_epoch)
    return dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)


def _make_draw(
    labels: np.ndarray,
    weights: np.ndarray,
    *,
    augment: AugmentConfig,
    shape: tuple[int, int],
    seed: int,
    weights_from: int,
    sampling_balance: float,
) -> Callable[[np.ndarray], tuple[np.ndarray, ...]]:
    """Return what draws an epoch of ``shape`` steps and cells from its number alone.

    It gives rows of cells, their uniforms, labels, weights and mixing, each ``(*shape, ...)``.
    """
    count, drawn = len(labels), shape[0] * shape[1]
    classes = labels.argmax(axis=1) if labels.ndim == 2 else labels
    chances = _chances(classes, sampling_balance) if sampling_balance else None

    def draw(epoch: np.ndarray) -> tuple[np.ndarray, ...]:
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
        return tuple(row.reshape(*shape, *row.shape[1:]) for row in rows)

    return draw


def _chances(labels: np.ndarray, balance: float) -> np.ndarray:
    """Return each cell's chance of a draw, float64 ``(n,)``: that of its class, shared out."""
    counts = np.bincount(labels)
    chances = counts[labels] ** -float(balance)
    return np.asarray(chances / chances.sum())
