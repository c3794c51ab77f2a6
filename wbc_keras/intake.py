"""Encoded pictures as a server receives them: looked at before they are decoded, bad ones by place.

Graph operations, the part of the exported model that says no. A picture is read by the rules of
`images`: JPEG and PNG by their first bytes, no CMYK, at least two pixels each way, and no more
pixels than a limit, which the header shows.
"""

from __future__ import annotations

import cv2
import numpy as np
import tensorflow as tf

from wbc_keras.images import decode
from wbc_keras.localize import THUMBNAIL_SIZE, make_thumbnail

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
# A picture is held whole while its thumbnail is made: so many at a time.
_AT_ONCE = 8


def take_in(image_bytes: tf.Tensor, *, max_pixels: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Check and shrink encoded pictures; graph operations.

    Args:
        image_bytes: string ``(b,)``.
        max_pixels: a picture whose header declares more is refused before it is decoded.

    Returns:
        the pictures, string ``(b,)``, to be decoded further, what `make_thumbnail` makes of each,
        float32 ``(b, 96, 96, 3)``, and their heights and widths, int32 ``(b, 2)``.

    Raises:
        tf.errors.InvalidArgumentError: when run, if pictures cannot be used; all are named by place
            (``image_bytes[3]``), with the reason.
    """

    def examine(place: tf.Tensor) -> tuple[tf.Tensor, ...]:
        encoded = pictures[place]
        size, channels = _read_header(encoded)
        fault = _find_fault(size, channels, max_pixels=max_pixels)
        thumbnail = tf.cond(
            fault == "",
            lambda: make_thumbnail(decode(encoded)),
            lambda: tf.zeros((THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3)),
        )
        return place, fault, thumbnail, size

    count = tf.size(image_bytes, out_type=tf.int64)
    # One good picture behind the others: an empty data set has no element to give.
    pictures = tf.concat([image_bytes, [_blank()]], axis=0)
    # Nothing else in a graph survives a decoder's error, and tells which pictures are left.
    examined = tf.data.Dataset.range(count + 1).map(examine, num_parallel_calls=_AT_ONCE)
    places, faults, thumbnails, sizes = (
        examined.ignore_errors().batch(count + 1).get_single_element()
    )
    unread = tf.fill([count + 1], "is no JPEG or PNG that can be decoded")
    faults = tf.tensor_scatter_nd_update(unread, places[:, tf.newaxis], faults)
    bad = tf.where(faults != "")[:, 0]
    named = tf.strings.join(
        ["image_bytes[", tf.strings.as_string(bad), "] ", tf.gather(faults, bad)]
    )
    message = tf.strings.reduce_join(named, separator="; ")
    are_good = tf.debugging.Assert(tf.size(bad) == 0, [message])
    are_some = tf.debugging.Assert(count > 0, ["image_bytes holds no picture"])
    with tf.control_dependencies([are_good, are_some]):
        return tf.identity(image_bytes), tf.identity(thumbnails[:-1]), tf.identity(sizes[:-1])


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


def _blank() -> bytes:
    return bytes(cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes())
