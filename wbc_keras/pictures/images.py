"""Pictures from files: one RGB array whatever the format.

JPEG and PNG are decoded by TensorFlow, as in the exported model; TIFF and BMP, which TensorFlow
does not read or reads differently, by OpenCV. Both give the same RGB:

- the format is told by a file's first bytes, so a wrong suffix does no harm; other formats are
  refused, bytes after a picture's end are ignored;
- grey becomes RGB, a palette its colours; alpha is dropped and does not blend; of 16 bits the upper
  8 are kept; of several frames or pages the first is read;
- pixels stay as they are stored: a note on how to turn them (EXIF, the TIFF orientation) is not
  followed, since the exported model does not follow it either;
- CMYK and Lab are refused: their colours depend on a profile. So is a picture whose header
  declares more than `headers.MAX_PIXELS`, before it is decoded;
- JPEG data that do not fit their header are refused: libjpeg only warns of them and makes up the
  rest, and TensorFlow and OpenCV do not pass the warning on.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from wbc_keras.commands import silent_stderr
from wbc_keras.errors import DataError
from wbc_keras.pictures.headers import Header, HeaderError, as_stored, read_header

# Loaded when a picture is decoded: training on packed cells does without it.
if TYPE_CHECKING:
    import tensorflow as tf

_DECODED_BY_TENSORFLOW = ("JPEG", "PNG")
_PART = 4096
# How libjpeg's warnings of damage begin; others, of odd version numbers say, are let pass.
_JPEG_DAMAGE = ("Corrupt JPEG data: ", "Premature end of JPEG file")


class BadImage(DataError):
    """A picture that cannot be used: `path` says which, `reason` why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        """Keep both parts, so that many bad pictures can be listed together."""
        super().__init__(path, reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        """Return the one line a user sees."""
        return f"{self.path}: {self.reason}"


def decode(image_bytes: tf.Tensor) -> tf.Tensor:
    """Decode an encoded JPEG or PNG; works eagerly, in `tf.data` and in a SavedModel.

    Args:
        image_bytes: scalar string tensor.

    Returns:
        uint8 tensor (height, width, 3), RGB, 0-255. Grey becomes RGB, an alpha channel is dropped,
        16 bits are cut to the upper 8.

    Raises:
        tf.errors.InvalidArgumentError: the bytes are damaged, truncated or of another format.
    """
    import tensorflow as tf

    image = tf.io.decode_image(image_bytes, channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def read_image(path: str | Path) -> npt.NDArray[np.uint8]:
    """Read a JPEG, PNG, TIFF or BMP file.

    Returns:
        uint8 array (height, width, 3), RGB, 0-255.

    Raises:
        BadImage: missing, unreadable, damaged, truncated, other than its header says, less than 2
            pixels high or wide, or refused by `read_header`.
    """
    return decode_picture(path, read_file(path))


def decode_picture(path: str | Path, encoded: bytes) -> npt.NDArray[np.uint8]:
    """Decode what was read from ``path``, which names it in errors, as `read_image` does."""
    header = _sound_header(path, encoded)
    image = (
        _decode_jpeg_or_png(encoded)
        if header.kind in _DECODED_BY_TENSORFLOW
        else _decode_tiff_or_bmp(encoded)
    )
    if image is None:
        raise BadImage(path, f"the {header.kind} data are damaged or truncated")
    height, width = image.shape[:2]
    if (width, height) != (header.width, header.height):
        raise BadImage(
            path,
            f"decodes to {width}x{height} pixels where its header says "
            f"{header.width}x{header.height}; save it anew",
        )
    if min(height, width) < 2:
        raise BadImage(path, f"the picture is only {width}x{height} pixels")
    return image


def read_bytes(path: str | Path) -> bytes:
    """Return a picture as encoded JPEG or PNG, ready for `decode`.

    JPEG and PNG files come back as they are, a PNG not yet decoded; TIFF and BMP as PNG with the
    same RGB values as `read_image`.

    Raises:
        BadImage: missing, unreadable, refused by `read_header`, a damaged JPEG, or a TIFF or BMP
            that cannot be decoded.
    """
    return as_jpeg_or_png(path, read_file(path))


def as_jpeg_or_png(path: str | Path, encoded: bytes) -> bytes:
    """Return what was read from ``path``, which names it in errors, as `read_bytes` does."""
    if _sound_header(path, encoded).kind in _DECODED_BY_TENSORFLOW:
        return encoded
    image = cv2.cvtColor(decode_picture(path, encoded), cv2.COLOR_RGB2BGR)
    # Not compressed: it is decoded at once, and packing would take longer than all the rest.
    _, png = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, 0])
    return bytes(png.tobytes())


def find_bad_images(paths: Iterable[str | Path], *, workers: int = 4) -> list[BadImage]:
    """Decode every picture in full and return what is wrong with those that cannot be used.

    Args:
        paths: files to read.
        workers: threads; decoding runs outside Python's lock.

    Returns:
        One `BadImage` for each bad file, in the order of ``paths``; empty if all are good.
    """
    # libjpeg writes a line of its own for each damaged file.
    found, rest = [], iter(paths)
    with silent_stderr(), ThreadPoolExecutor(workers) as pool:
        # In parts: a million waiting calls would take a gigabyte.
        while part := list(itertools.islice(rest, _PART)):
            found += [fault for fault in pool.map(check_image, part) if fault is not None]
    return found


def require_readable(paths: Iterable[str | Path]) -> None:
    """Raise one DataError that names the pictures that cannot be used, if there are any."""
    bad = find_bad_images(paths)
    if bad:
        raise DataError(describe_bad(bad) + "; mend or remove them")


def describe_bad(bad: Collection[BadImage]) -> str:
    """Say in one line how many pictures cannot be used, and name them all."""
    names = "; ".join(map(str, bad))
    return f"{len(bad)} picture{'s' if len(bad) > 1 else ''} cannot be used: {names}"


def check_image(path: str | Path) -> BadImage | None:
    """Decode a picture in full and return what is wrong with it, if anything is."""
    try:
        read_image(path)
    except BadImage as fault:
        return fault
    return None


def read_file(path: str | Path) -> bytes:
    """Return a file's bytes, or raise BadImage.

    Never `cv2.imread`: it fails on names outside the system's code page.
    """
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise BadImage(path, "no such file") from None
    except OSError as error:
        raise BadImage(path, f"cannot be read ({error.strerror})") from error


def _sound_header(path: str | Path, encoded: bytes) -> Header:
    """Return the header of what was read, or raise BadImage; a JPEG's data are looked through."""
    try:
        header = read_header(encoded)
    except HeaderError as error:
        raise BadImage(path, str(error)) from None
    if header.kind == "JPEG" and (damage := _find_jpeg_damage(encoded)):
        raise BadImage(
            path,
            f"the JPEG data are damaged or truncated ({damage}); copy the file again, or save it "
            "anew if it looks whole",
        )
    return header


def _find_jpeg_damage(encoded: bytes) -> str:
    """Return what libjpeg warns of in a JPEG's data, or "".

    At an eighth of the size, all Huffman codes are read but little else is computed.
    """
    try:
        simplejpeg.decode_jpeg(encoded, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        words = str(error)
        # The rest is an error for TensorFlow's libjpeg too.
        return words.removeprefix(_JPEG_DAMAGE[0]) if words.startswith(_JPEG_DAMAGE) else ""
    return ""


def _decode_jpeg_or_png(encoded: bytes) -> npt.NDArray[np.uint8] | None:
    import tensorflow as tf

    try:
        return np.asarray(decode(tf.constant(encoded)).numpy(), np.uint8)
    except tf.errors.OpError:
        return None


def _decode_tiff_or_bmp(encoded: bytes) -> npt.NDArray[np.uint8] | None:
    _silence_opencv()
    buffer = np.frombuffer(as_stored(encoded), np.uint8)
    try:
        image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    return None if image is None else _as_rgb(image)


def _as_rgb(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8] | None:
    """Return OpenCV's grey, BGR or BGRA as 8-bit RGB, or None for depths pictures do not have."""
    if image.dtype == np.uint16:
        # The upper byte, as TensorFlow does for 16-bit PNG.
        image = image >> 8
    elif image.dtype != np.uint8:
        return None
    image = np.atleast_3d(image.astype(np.uint8))
    channels = [0, 0, 0] if image.shape[2] < 3 else [2, 1, 0]
    return np.ascontiguousarray(image[..., channels])


@functools.cache
def _silence_opencv() -> None:
    """Keep OpenCV from printing its own lines for each bad file: `BadImage` says it once."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
