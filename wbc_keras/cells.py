"""Cropped cells, and the way from picture files to them: decode, find the cell, crop it.

`find_cells` and `crop_cells` are the graph that training reads its cells by and that the exported
model holds. Chunks of pictures go through it on all cores; what a picture gives depends on nothing
but the picture and the settings.
"""

from __future__ import annotations

import collections
import functools
import itertools
import math
import os
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf

from wbc_keras.config import RoiConfig
from wbc_keras.headers import read_header
from wbc_keras.images import BadImage, check_image, decode, read_bytes
from wbc_keras.localize import THUMBNAIL_SIZE, Roi, crop, locate, make_thumbnail

CHUNK = 64


class StoredImages:
    """Pictures of one size, one after the other in a file: what is indexed is read, no more.

    The file is held open, so that a run outlives a cache that is cleared meanwhile. It is read and
    not mapped, whose pages would count as the process's own memory.

    Args:
        path: the file; uint8, RGB.
        image_size: height and width of each picture.
        rows: int ``(n,)``, which of the file's pictures these are, in this order.
    """

    def __init__(self, path: Path, *, image_size: tuple[int, int], rows: np.ndarray) -> None:
        self.shape = (len(rows), *image_size, 3)
        self._rows = rows
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()
        weakref.finalize(self, os.close, self._file)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        rows = self._rows[index]
        return self._read(rows) if np.ndim(rows) else self._read(rows[np.newaxis])[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self._read(self._rows), dtype)

    def _read(self, rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        size = math.prod(self.shape[1:])
        with self._lock:
            for image, row in zip(images, rows.tolist(), strict=True):
                os.lseek(self._file, row * size, os.SEEK_SET)
                data = np.frombuffer(os.read(self._file, size), np.uint8)
                image[...] = data.reshape(image.shape)
        return images


@dataclass(frozen=True)
class Cells:
    """Cropped cells.

    images: uint8 ``(n, height, width, 3)``, RGB, in memory or on disk. boxes: float32 ``(n, 4)``,
    y0, x0, y1, x1 in shares of the picture. found: bool ``(n,)``, False where the crop fell back to
    the centre.
    """

    images: np.ndarray | StoredImages
    boxes: np.ndarray
    found: np.ndarray

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Chunk:
    """Up to 64 cells in the order of their files; those of bad pictures, by place, are black."""

    cells: Cells
    bad: dict[int, BadImage]


def find_cells(
    image_bytes: tf.Tensor, *, roi: RoiConfig, at_once: int = 10
) -> tuple[Roi, tf.Tensor]:
    """Find the cell in each encoded JPEG or PNG, string ``(b,)``; graph operations.

    Args:
        image_bytes: the pictures.
        roi: how the cell is found.
        at_once: how many are decoded side by side, and so are held whole.

    Returns:
        what `locate` gives, and the pictures' sizes, int32 ``(b, 2)``.
    """

    def shrink(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        image = decode(encoded)
        return make_thumbnail(image), tf.shape(image)[:2]

    signature = (
        tf.TensorSpec([THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3], tf.float32),
        tf.TensorSpec([2], tf.int32),
    )
    thumbnails, sizes = tf.map_fn(
        shrink, image_bytes, fn_output_signature=signature, parallel_iterations=at_once
    )
    return locate(thumbnails, sizes, mode=roi.mode, margin=roi.margin), sizes


def crop_cells(
    image_bytes: tf.Tensor, boxes: tf.Tensor, *, image_size: tuple[int, int], at_once: int = 10
) -> tf.Tensor:
    """Cut a box out of each encoded picture: uint8 ``(b, *image_size, 3)``; graph operations.

    Decoded a second time, which costs a tenth of finding the cell: so only the pictures at work are
    ever held whole, whatever their sizes.
    """

    def cut(pair: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return crop(decode(pair[0]), pair[1], image_size=image_size)

    signature = tf.TensorSpec([*image_size, 3], tf.uint8)
    return tf.map_fn(
        cut, (image_bytes, boxes), fn_output_signature=signature, parallel_iterations=at_once
    )


def load_cells(paths: Iterable[Path], *, roi: RoiConfig, image_size: tuple[int, int]) -> Cells:
    """Read pictures into one `Cells` in memory, in the order of ``paths``.

    Raises:
        images.BadImage: a picture cannot be used; the first one is named.
    """
    parts = []
    for chunk in iter_chunks(paths, roi=roi, image_size=image_size):
        for fault in chunk.bad.values():
            raise fault
        parts.append(chunk.cells)
    return Cells(
        np.concatenate([np.asarray(part.images) for part in parts]),
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.found for part in parts]),
    )


def iter_chunks(
    paths: Iterable[Path], *, roi: RoiConfig, image_size: tuple[int, int]
) -> Iterator[Chunk]:
    """Read pictures in order and yield their cells, 64 at a time, in flat memory."""
    workers = os.cpu_count() or 1
    make = functools.partial(crop_chunk, roi=roi, image_size=image_size)
    waiting: collections.deque[Future[Chunk]] = collections.deque()
    rest = iter(paths)
    with ThreadPoolExecutor(workers) as pool:
        try:
            while part := list(itertools.islice(rest, CHUNK)):
                waiting.append(pool.submit(make, part))
                # A few ahead, not all: a slow reader of these must not find them all in memory.
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def crop_chunk(paths: Sequence[Path], *, roi: RoiConfig, image_size: tuple[int, int]) -> Chunk:
    """Find and crop the cell in each picture; what is wrong with a picture is told, not raised."""
    encoded, bad = [], {}
    for place, path in enumerate(paths):
        try:
            encoded.append(read_bytes(path))
        except BadImage as fault:
            encoded.append(_blank())
            bad[place] = fault
    cut = _make_cutter(roi, image_size)
    try:
        images, boxes, found, sizes = cut(tf.constant(encoded, tf.string))
        is_sound = np.array_equal(sizes, [_size_of(data) for data in encoded])
    except tf.errors.OpError:
        is_sound = False
    if not is_sound:
        # Seldom: only now is each picture looked at by itself.
        faults = {place: check_image(path) for place, path in enumerate(paths)}
        bad |= {place: fault for place, fault in faults.items() if fault is not None}
        encoded = [_blank() if place in bad else data for place, data in enumerate(encoded)]
        images, boxes, found, _ = cut(tf.constant(encoded, tf.string))
    is_bad = _at(bad, len(paths))
    return Chunk(Cells(images.numpy(), boxes.numpy(), found.numpy() & ~is_bad), bad)


def _size_of(encoded: bytes) -> tuple[int, int]:
    """Return height and width as the header says, or (0, 0) for what is no picture of a cell."""
    header = read_header(encoded)
    return (header.height, header.width) if min(header.height, header.width) > 1 else (0, 0)


def _at(places: dict[int, BadImage], count: int) -> np.ndarray:
    mask = np.zeros(count, bool)
    mask[list(places)] = True
    return mask


@functools.cache
def _blank() -> bytes:
    """Return a black picture that stands in for a bad one."""
    return bytes(cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes())


@functools.cache
def _make_cutter(roi: RoiConfig, image_size: tuple[int, int]) -> Any:
    """Compile the way from encoded pictures to crops, boxes, found and sizes."""

    def cut(image_bytes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        # One at a time: there is a thread for every core already, and pictures may be large.
        located, sizes = find_cells(image_bytes, roi=roi, at_once=1)
        images = crop_cells(image_bytes, located.boxes, image_size=image_size, at_once=1)
        return images, located.boxes, located.found, sizes

    signature = [tf.TensorSpec([None], tf.string)]
    # Traced here: threads that meet during the first call would be warned of retracing.
    return tf.function(cut, input_signature=signature).get_concrete_function()
