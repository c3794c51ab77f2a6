"""Encoded pictures as a server receives them: looked at before they are decoded, bad ones by place.

Graph operations, the part of the exported model that says no. A picture is read by the rules of
`images`: JPEG and PNG by their first bytes, no CMYK, at least two pixels each way, and no more
pixels than a limit, which the header shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from wbc_keras.pictures.images import decode
from wbc_keras.pictures.localize import THUMBNAIL_SIZE, crop, make_thumbnail

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# A picture is held whole while its thumbnail is made: so many at a time.
_AT_ONCE = 8
_CHUNK = 16  # pictures whose cells are found together, while the next ones are decoded
_CHUNKS_AT_ONCE = 4
_HELD_PIXELS = 1_000_000  # larger pictures are decoded twice rather than kept in memory


class Pictures(NamedTuple):
    """Some pictures that are sound, to be cropped by `crop_held`.

    held: string ``(b,)``. thumbnails: what `make_thumbnail` makes of each, float32
    ``(b, 96, 96, 3)``. sizes: their heights and widths, int32 ``(b, 2)``.
    """

    held: tf.Tensor
    thumbnails: tf.Tensor
    sizes: tf.Tensor


def take_in(
    image_bytes: tf.Tensor,
    *,
    max_pixels: int,
    work: Callable[[Pictures], tuple[tf.Tensor, ...]],
) -> tuple[tf.Tensor, ...]:
    """Check encoded pictures and work on them, a few at a time on each core; graph operations.

    Args:
        image_bytes: string ``(b,)``.
        max_pixels: a picture whose header declares more is refused before it is decoded.
        work: gives tensors with a row for each of some pictures.

    Returns:
        what ``work`` gives, for all pictures in their order.

    Raises:
        tf.errors.InvalidArgumentError: when run, if pictures cannot be used; all are named by place
            (``image_bytes[3]``), with the reason.
    """

    def examine(place: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, Pictures]:
        encoded = image_bytes[place]
        size, channels = _read_header(encoded)
        fault = _find_fault(size, channels, max_pixels=max_pixels)
        return place, fault, tf.cond(fault == "", lambda: _hold(encoded), _blank)

    def work_on(places: tf.Tensor, faults: tf.Tensor, pictures: Pictures) -> tuple[tf.Tensor, ...]:
        return places, faults, *work(pictures)

    count = tf.size(image_bytes, out_type=tf.int64)
    # Nothing else in a graph survives a decoder's error, and tells which pictures are left.
    examined = tf.data.Dataset.range(count).map(examine, num_parallel_calls=_AT_ONCE)
    worked = examined.ignore_errors().batch(_CHUNK).map(work_on, num_parallel_calls=_CHUNKS_AT_ONCE)
    # One row behind the others: a data set without any has no element to give.
    spare = [tf.zeros([1, *spec.shape[1:]], spec.dtype) for spec in worked.element_spec]
    spare[0] += count
    rows = worked.concatenate(tf.data.Dataset.from_tensors(tuple(spare))).rebatch(count + 1)
    places, faults, *results = rows.get_single_element()
    unread = tf.fill([count + 1], "is no JPEG or PNG that can be decoded")
    faults = tf.tensor_scatter_nd_update(unread, places[:, tf.newaxis], faults)
    with tf.control_dependencies(_require_sound(faults[:-1])):
        return tuple(tf.identity(result[:-1]) for result in results)


def crop_held(pictures: Pictures, boxes: tf.Tensor, *, image_size: tuple[int, int]) -> tf.Tensor:
    """Cut a box, see `localize.crop`, out of each picture: uint8 ``(b, *image_size, 3)``."""

    def cut(row: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        held, size, box = row
        image = tf.cond(
            _is_small(size), lambda: tf.io.parse_tensor(held, tf.uint8), lambda: decode(held)
        )
        return crop(tf.ensure_shape(image, (None, None, 3)), box, image_size=image_size)

    return tf.map_fn(
        cut,
        (pictures.held, pictures.sizes, boxes),
        fn_output_signature=tf.TensorSpec([*image_size, 3], tf.uint8),
        parallel_iterations=1,
    )


def _require_sound(faults: tf.Tensor) -> list[tf.Operation]:
    """Refuse a request without pictures, or with bad ones; ``faults`` are string ``(b,)``."""
    bad = tf.where(faults != "")[:, 0]
    named = tf.strings.join(
        ["image_bytes[", tf.strings.as_string(bad), "] ", tf.gather(faults, bad)]
    )
    message = tf.strings.reduce_join(named, separator="; ")
    return [
        tf.debugging.Assert(tf.size(bad) == 0, [message]),
        tf.debugging.Assert(tf.size(faults) > 0, ["image_bytes holds no picture"]),
    ]


def _is_small(size: tf.Tensor) -> tf.Tensor:
    return tf.reduce_prod(size) <= _HELD_PIXELS


def _hold(encoded: tf.Tensor) -> Pictures:
    """Decode one picture; what is held of a small one is the pixels, of a large one the file."""
    image = decode(encoded)
    size = tf.shape(image)[:2]
    held = tf.cond(_is_small(size), lambda: tf.io.serialize_tensor(image), lambda: encoded)
    return Pictures(held, make_thumbnail(image), size)


def _blank() -> Pictures:
    """Return what stands in for a picture that is refused."""
    image = tf.zeros((2, 2, 3), tf.uint8)
    thumbnail = tf.zeros((THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3))
    return Pictures(tf.io.serialize_tensor(image), thumbnail, tf.constant([2, 2]))


def _read_header(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return height and width, int32 ``(2,)``, and the channels; an error for other formats."""

    def read_png() -> tf.Tensor:
        stored = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)
        return tf.stack([stored[1], stored[0], 3])

    def read_jpeg() -> tf.Tensor:
        is_jpeg = tf.strings.substr(encoded, 0, len(_JPEG)) == _JPEG
        with tf.control_dependencies([tf.debugging.Assert(is_jpeg, ["no picture"])]):
            return tf.ensure_shape(tf.io.extract_jpeg_shape(encoded), (3,))

    shape = tf.cond(tf.strings.substr(encoded, 0, len(_PNG)) == _PNG, read_png, read_jpeg)
    return shape[:2], shape[2]


def _find_fault(size: tf.Tensor, channels: tf.Tensor, *, max_pixels: int) -> tf.Tensor:
    """Say what a header tells against a picture, or nothing."""
    # Above 2**31 a side is negative here.
    wide = tf.cast(size, tf.int64) % (1 << 32)
    height, width = wide[0], wide[1]
    said = tf.strings.join(
        ["has ", tf.strings.as_string(width), "x", tf.strings.as_string(height), " pixels"]
    )
    return tf.case(
        [
            (height > max_pixels // tf.maximum(width, 1), lambda: said + f", over {max_pixels:,}"),
            (tf.minimum(height, width) < 2, lambda: said + ", fewer than 2x2"),
            (channels > 3, lambda: tf.constant("has CMYK colours; save it as RGB")),
        ],
        default=lambda: tf.constant(""),
    )
