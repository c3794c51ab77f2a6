"""Cropped cells, and the way from picture files to them: decode, find the cell, crop it.

Training, evaluation and prediction read their cells by one graph, the exported model by the same
operations. Chunks of pictures go through it on all cores; what a picture gives depends on nothing
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
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np

from wbc_keras.config import RoiConfig
from wbc_keras.pictures.headers import read_header
from wbc_keras.pictures.images import BadImage, as_jpeg_or_png, decode, decode_picture, read_file

# Loaded when pictures are cropped: training on packed cells does without it.
if TYPE_CHECKING:
    import tensorflow as tf

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

CHUNK = 64
_HELD_PIXELS = 4_000_000  # decoded side by side, 12 MB; larger pictures one by one


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
    rest = iter(paths)
    parts = iter(lambda: list(itertools.islice(rest, CHUNK)), [])
    yield from map_ahead(functools.partial(crop_chunk, roi=roi, image_size=image_size), parts)


def map_ahead(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Yield ``function(item)`` in order, worked on by a thread for every core, in flat memory."""
    workers = os.cpu_count() or 1
    waiting: collections.deque[Future[_Result]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
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
    encoded, unread = [], {}
    for place, path in enumerate(paths):
        try:
            encoded.append(read_file(path))
        except BadImage as fault:
            encoded.append(b"")
            unread[place] = fault
    chunk = crop_encoded(paths, encoded, roi=roi, image_size=image_size)
    return Chunk(chunk.cells, chunk.bad | unread)


def crop_encoded(
    names: Sequence[str | Path],
    encoded: Sequence[bytes],
    *,
    roi: RoiConfig,
    image_size: tuple[int, int],
) -> Chunk:
    """Find and crop the cell in each encoded picture, of any format that `images` reads.

    Each is decoded once. Those that are small are held side by side, those that are large one
    after the other, whatever their number.

    Args:
        names: what the pictures are called where something is wrong with them.
        encoded: their bytes.
        roi: how the cell is found.
        image_size: height and width of the crops.
    """
    import tensorflow as tf

    pictures, bad = screen_pictures(names, encoded)
    cut = _make_cutter(roi, image_size)
    try:
        parts, sizes = _cut_all(cut, pictures), [_size_of(picture) for picture in pictures]
        is_sound = np.array_equal(np.concatenate([part[3] for part in parts]), sizes)
    except tf.errors.OpError:
        is_sound = False
    if not is_sound:
        # Seldom: only now is each picture looked at by itself.
        pictures, worse = screen_pictures(names, pictures, thorough=True)
        bad = worse | bad
        parts = _cut_all(cut, pictures)
    images, boxes, found, _ = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Chunk(Cells(images, boxes, found & ~_at(bad, len(pictures))), bad)


def screen_pictures(
    names: Sequence[str | Path], encoded: Sequence[bytes], *, thorough: bool = False
) -> tuple[list[bytes], dict[int, BadImage]]:
    """Return encoded pictures as JPEG or PNG, a black one for each bad one, and those by place.

    Args:
        names: what they are called in errors.
        encoded: bytes of any format that `images` reads.
        thorough: whether each is decoded, or only its header read.
    """
    pictures, bad = [], {}
    for place, (name, data) in enumerate(zip(names, encoded, strict=True)):
        try:
            if thorough:
                decode_picture(name, data)
            pictures.append(as_jpeg_or_png(name, data))
        except BadImage as fault:
            pictures.append(_blank())
            bad[place] = fault
    return pictures, bad


def split_by_room(pictures: Sequence[bytes]) -> list[list[bytes]]:
    """Split JPEGs or PNGs into as many parts as it takes to hold a part's decoded, or their frames.

    A frame has the size of the part's largest picture.
    """
    parts: list[list[bytes]] = [[]]
    largest = 0
    for picture in pictures:
        largest = max(largest, math.prod(_size_of(picture)))
        if parts[-1] and largest * (len(parts[-1]) + 1) > _HELD_PIXELS:
            parts.append([])
            largest = math.prod(_size_of(picture))
        parts[-1].append(picture)
    return parts


def _cut_all(cut: Any, pictures: Sequence[bytes]) -> list[tuple[np.ndarray, ...]]:
    import tensorflow as tf

    outputs = (cut(tf.constant(part, tf.string)) for part in split_by_room(pictures))
    return [tuple(output.numpy() for output in one) for one in outputs]


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
    import tensorflow as tf

    from wbc_keras.pictures.localize import THUMBNAIL_SIZE, crop, locate, make_thumbnail

    def cut(image_bytes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        count = tf.size(image_bytes)
        any_size = {"infer_shape": False, "element_shape": (None, None, 3)}
        pictures = tf.TensorArray(tf.uint8, count, **any_size)
        thumbnails = tf.TensorArray(
            tf.float32, count, element_shape=(THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3)
        )
        sizes = tf.TensorArray(tf.int32, count, element_shape=(2,))
        images = tf.TensorArray(tf.uint8, count, element_shape=(*image_size, 3))
        # One at a time: there is a thread for every core already.
        for place in tf.range(count):
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            picture = decode(image_bytes[place])
            pictures = pictures.write(place, picture)
            thumbnails = thumbnails.write(place, make_thumbnail(picture))
            sizes = sizes.write(place, tf.shape(picture)[:2])
        sides = sizes.stack()
        located = locate(thumbnails.stack(), sides, mode=roi.mode, margin=roi.margin)
        for place in tf.range(count):
            tf.autograph.experimental.set_loop_options(parallel_iterations=1)
            cell = crop(pictures.read(place), located.boxes[place], image_size=image_size)
            images = images.write(place, cell)
        return images.stack(), located.boxes, located.found, sides

    signature = [tf.TensorSpec([None], tf.string)]
    # Traced here: threads that meet during the first call would be warned of retracing.
    return tf.function(cut, input_signature=signature).get_concrete_function()
