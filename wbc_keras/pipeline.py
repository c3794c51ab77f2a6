"""From picture files to batches: read, find and crop the cell, then shuffle, augment, batch.

Cropped cells are held in memory as uint8; what an epoch looks like is a function of seed and epoch
alone, so that a resumed run sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow as tf

from wbc_keras.augment import CellAugmentation, draw_uniforms
from wbc_keras.config import AugmentConfig, RoiConfig
from wbc_keras.images import read_image
from wbc_keras.localize import crop, locate, make_thumbnail

_CHUNK = 64


@dataclass(frozen=True)
class Cells:
    """Cropped cells.

    images: uint8 ``(n, height, width, 3)``, RGB. boxes: float32 ``(n, 4)``, y0, x0, y1, x1 in
    shares of the picture. found: bool ``(n,)``, False where the crop fell back to the centre.
    """

    images: np.ndarray
    boxes: np.ndarray
    found: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


def iter_cells(
    paths: Sequence[Path], *, roi: RoiConfig, image_size: tuple[int, int]
) -> Iterator[Cells]:
    """Read pictures in order and yield their cropped cells, 64 at a time, in flat memory.

    Raises:
        images.BadImage: a picture cannot be read.
    """
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _CHUNK):
            images = list(pool.map(read_image, paths[start : start + _CHUNK]))
            yield crop_cells(images, roi=roi, image_size=image_size, pool=pool)


def load_cells(paths: Sequence[Path], *, roi: RoiConfig, image_size: tuple[int, int]) -> Cells:
    """Read pictures into one `Cells`, in the order of ``paths``."""
    images = np.empty((len(paths), *image_size, 3), np.uint8)
    boxes = np.empty((len(paths), 4), np.float32)
    found = np.empty(len(paths), bool)
    start = 0
    for cells in iter_cells(paths, roi=roi, image_size=image_size):
        part = slice(start, start + len(cells))
        images[part], boxes[part], found[part] = cells.images, cells.boxes, cells.found
        start += len(cells)
    return Cells(images, boxes, found)


def crop_cells(
    images: Sequence[np.ndarray],
    *,
    roi: RoiConfig,
    image_size: tuple[int, int],
    pool: ThreadPoolExecutor,
) -> Cells:
    """Find the cell in each RGB picture (any sizes) and crop it."""
    thumbnails = tf.stack(list(pool.map(make_thumbnail, images)))
    sizes = tf.constant([image.shape[:2] for image in images], tf.int32)
    located = _locate(thumbnails, sizes, mode=roi.mode, margin=roi.margin)
    crops = pool.map(_make_crop(image_size), images, located.boxes)
    return Cells(
        np.stack([np.asarray(image) for image in crops]),
        located.boxes.numpy(),
        located.found.numpy(),
    )


_locate = tf.function(locate, reduce_retracing=True)


@functools.cache
def _make_crop(image_size: tuple[int, int]) -> Callable[[np.ndarray, tf.Tensor], tf.Tensor]:
    """Compile `crop` once for pictures of every size."""
    signature = (tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([4], tf.float32))
    cut = tf.function(
        lambda image, box: crop(image, box, image_size=image_size), input_signature=signature
    )
    # Traced here: threads that meet during the first call would be warned of retracing.
    return cut.get_concrete_function()


def make_batches(
    cells: Cells, labels: np.ndarray | None = None, *, batch_size: int
) -> tf.data.Dataset:
    """Return every cell once and in order: float32 images 0-255, with labels if given."""
    arrays = (cells.images,) if labels is None else (cells.images, labels)
    dataset = tf.data.Dataset.from_tensor_slices(arrays).batch(batch_size)
    return dataset.map(
        lambda images, *rest: (tf.cast(images, tf.float32), *rest),
        num_parallel_calls=tf.data.AUTOTUNE,
    ).prefetch(2)


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
    # All cells on a GPU would take the room of the network.
    with tf.device("CPU:0"):
        images = tf.constant(cells.images)
        labels, weights = tf.constant(labels, tf.int32), tf.constant(weights, tf.float32)

    def draw(epoch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = np.random.default_rng([seed, int(epoch), 0]).permutation(count)
        return order, draw_uniforms(count, seed=seed, epoch=int(epoch))[order]

    def make_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        order, uniforms = tf.numpy_function(draw, [epoch], (tf.int64, tf.float32))
        order.set_shape((count,))
        uniforms.set_shape((count, None))
        rows = tf.data.Dataset.from_tensor_slices((order, uniforms))
        return rows.batch(batch_size, drop_remainder=True)

    def read(order: tf.Tensor, uniforms: tf.Tensor) -> tuple[tf.Tensor, ...]:
        batch = change(tf.gather(images, order), uniforms)
        return batch, tf.gather(labels, order), tf.gather(weights, order)

    dataset = tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(make_epoch)
    return dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE).prefetch(2)
