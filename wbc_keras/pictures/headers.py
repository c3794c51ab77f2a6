"""What a picture's file says of itself: read from its first bytes, before anything is decoded.

A header is where a decompression bomb shows: a file of a few kilobytes may declare more pixels than
the memory holds. Formats: JPEG (ITU-T T.81), PNG (W3C, third edition, with animation), TIFF 6.0 and
BigTIFF, BMP.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

# A field of a smear scanner has 5 to 25 million pixels, a cell far fewer; 64 million are 192 MB.
MAX_PIXELS = 64_000_000

Kind = Literal["JPEG", "PNG", "TIFF", "BMP"]
Colour = Literal["grey", "RGB", "palette", "CMYK", "other"]

_FORMATS: tuple[tuple[bytes, Kind], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),
    (b"MM\x00+", "TIFF"),
    (b"BM", "BMP"),
)
_TIFF = tuple(start for start, kind in _FORMATS if kind == "TIFF")
_NOT_READ = "is not a JPEG, PNG, TIFF or BMP picture"
# Where another picture format is renamed, its name helps more than "is not".
_FOREIGN = ((0, b"GIF8", "GIF"), (8, b"WEBP", "WebP"), (4, b"ftyp", "HEIF or AVIF"))
_SOF = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN_OR_END = (0xD9, 0xDA)
_JPEG_COLOURS: dict[int, Colour] = {1: "grey", 3: "RGB", 4: "CMYK"}
_PNG_COLOURS: dict[int, Colour] = {0: "grey", 2: "RGB", 3: "palette", 4: "grey", 6: "RGB"}
_TIFF_COLOURS: dict[int, Colour] = {
    0: "grey",
    1: "grey",
    2: "RGB",
    3: "palette",
    5: "CMYK",
    6: "RGB",
}
# TIFF tags, and bytes of a value by its type.
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 254, 256, 257, 258, 262
_ORIENTATION, _EXTRA_SAMPLES = 274, 338
_NEEDED = frozenset((_SUBFILE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION, _EXTRA_SAMPLES))
_SIZES = {1: 1, 3: 2, 4: 4, 16: 8}
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}
_MOST_PAGES = 10_000
# What reading past the end, by an unknown code or at a place of 64 bits raises.
_BROKEN = (struct.error, LookupError, OverflowError, ValueError)


class HeaderError(ValueError):
    """The bytes are no picture that is read here; the message says why, in the words of a user."""


class HugeError(HeaderError):
    """The header declares more pixels than are read."""


@dataclass(frozen=True)
class Header:
    """What a picture says it is.

    Attributes:
        kind: the format, told by the first bytes and not by the file's name.
        width: pixels.
        height: pixels.
        colour: how colours are stored; a JPEG's YCbCr counts as RGB, its YCCK as CMYK.
        bits: of one channel, or of a palette's index.
        alpha: whether transparency is stored.
        frames: frames of an animation, full pages of a TIFF.
    """

    kind: Kind
    width: int
    height: int
    colour: Colour
    bits: int
    alpha: bool = False
    frames: int = 1


def read_header(encoded: bytes) -> Header:
    """Read what an encoded picture says of itself.

    Raises:
        HugeError: more than `MAX_PIXELS` pixels.
        HeaderError: another format, a damaged header, or colours that are not read here (CMYK,
            Lab): what they look like depends on a profile.
    """
    kind = _kind_of(encoded)
    try:
        header = _READERS[kind](encoded)
    except _BROKEN:
        raise HeaderError(f"the {kind} header is damaged or truncated") from None
    if header.width * header.height > MAX_PIXELS:
        raise HugeError(
            f"says it has {header.width}x{header.height} pixels, more than the "
            f"{MAX_PIXELS // 10**6} million that are read; cut out the cells"
        )
    if header.colour in ("CMYK", "other"):
        name = "CMYK" if header.colour == "CMYK" else "neither RGB nor grey"
        raise HeaderError(f"the {kind} colours are {name}; save the picture as RGB")
    if header.kind == "JPEG" and header.bits != 8:
        raise HeaderError(f"is a JPEG of {header.bits} bits a channel; save it with 8, or as PNG")
    return header


def as_stored(encoded: bytes) -> bytes:
    """Return a TIFF whose decoder gives the pixels as they are stored; other bytes unchanged.

    libtiff multiplies the colours by an unassociated alpha channel (TIFF 6.0, section 18), and
    OpenCV turns by the orientation tag. TensorFlow does neither to a PNG or JPEG, so here alpha is
    declared associated, and the orientation upright.
    """
    if not encoded.startswith(_TIFF):
        return encoded
    changed = bytearray(encoded)
    order = _order(encoded)
    try:
        for tag, value, offset in _entries(encoded, _first_directory(encoded)):
            if (tag, value) == (_EXTRA_SAMPLES, 2) or (tag == _ORIENTATION and value != 1):
                struct.pack_into(order + "H", changed, offset, 1)
    except _BROKEN:
        return encoded  # A broken directory: the decoder says so.
    return bytes(changed)


def _kind_of(encoded: bytes) -> Kind:
    if not encoded:
        raise HeaderError("the file is empty")
    for start, kind in _FORMATS:
        if encoded.startswith(start):
            return kind
    for offset, mark, name in _FOREIGN:
        if encoded.startswith(mark, offset):
            raise HeaderError(f"{_NOT_READ} but {name}, whatever its name; save it as PNG")
    raise HeaderError(_NOT_READ)


def _read_jpeg(encoded: bytes) -> Header:
    position = 2
    while True:
        position = encoded.index(b"\xff", position)
        while encoded[position] == 0xFF:  # Any number of them may stand before a marker.
            position += 1
        marker = encoded[position]
        if marker in _SOF:
            bits, height, width, channels = struct.unpack_from(">BHHB", encoded, position + 3)
            return Header("JPEG", width, height, _JPEG_COLOURS.get(channels, "other"), bits)
        if marker in _SCAN_OR_END:
            raise LookupError("no frame header")
        (length,) = struct.unpack_from(">H", encoded, position + 1)
        position += 1 + length


def _read_png(encoded: bytes) -> Header:
    width, height, bits, code = struct.unpack_from(">IIBB", encoded, 16)
    alpha, frames = code in (4, 6), 1
    for name, position in _png_chunks(encoded):
        alpha = alpha or name == b"tRNS"
        if name == b"acTL":
            (frames,) = struct.unpack_from(">I", encoded, position)
    return Header("PNG", width, height, _PNG_COLOURS[code], bits, alpha, frames)


def _png_chunks(encoded: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield name and place of the content of each chunk before the pixels."""
    position = 8
    while True:
        length, name = struct.unpack_from(">I4s", encoded, position)
        if name == b"IDAT":
            return
        yield name, position + 8
        position += 12 + length


def _read_bmp(encoded: bytes) -> Header:
    (size,) = struct.unpack_from("<I", encoded, 14)
    form = "<HHHH" if size == 12 else "<iiHH"
    width, height, _, bits = struct.unpack_from(form, encoded, 18)
    # A negative height only says that the rows run downwards.
    return Header(
        "BMP", width, abs(height), "palette" if bits <= 8 else "RGB", min(bits, 8), bits == 32
    )


def _read_tiff(encoded: bytes) -> Header:
    pages = [_read_page(encoded, start) for start in _directories(encoded)]
    first = pages[0]
    # Bit 0 marks a smaller copy of another page.
    frames = sum(not page.get(_SUBFILE, 0) & 1 for page in pages)
    return Header(
        "TIFF",
        first[_WIDTH],
        first[_HEIGHT],
        _TIFF_COLOURS.get(first.get(_PHOTOMETRIC, 1), "other"),
        first.get(_BITS, 1),
        _EXTRA_SAMPLES in first,
        max(frames, 1),
    )


def _read_page(encoded: bytes, start: int) -> dict[int, int]:
    page: dict[int, int] = {}
    for tag, value, _ in _entries(encoded, start):
        # Of a tag that stands twice the larger, lest a bomb hide behind the other.
        page[tag] = max(value, page.get(tag, 0))
    return page


def _order(encoded: bytes) -> str:
    return "<" if encoded[:2] == b"II" else ">"


def _is_big(encoded: bytes) -> bool:
    return b"+" in encoded[2:4]


def _first_directory(encoded: bytes) -> int:
    form, place = ("Q", 8) if _is_big(encoded) else ("I", 4)
    return int(struct.unpack_from(_order(encoded) + form, encoded, place)[0])


def _directories(encoded: bytes) -> Iterator[int]:
    """Yield where each page's directory starts; a circle or an endless chain ends."""
    big, order = _is_big(encoded), _order(encoded)
    start, seen = _first_directory(encoded), set[int]()
    while start and start not in seen and len(seen) < _MOST_PAGES:
        seen.add(start)
        yield start
        (count,) = struct.unpack_from(order + ("Q" if big else "H"), encoded, start)
        after = start + (8 + 20 * count if big else 2 + 12 * count)
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), encoded, after)


def _entries(encoded: bytes, start: int) -> Iterator[tuple[int, int, int]]:
    """Yield tag, first value and that value's place for the tags of a directory that matter."""
    big, order = _is_big(encoded), _order(encoded)
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), encoded, start)
    head, size, room = (8, 20, 8) if big else (2, 12, 4)
    for entry in range(start + head, start + head + size * min(count, 1 << 16), size):
        tag, kind, values = struct.unpack_from(order + ("HHQ" if big else "HHI"), encoded, entry)
        if tag not in _NEEDED:
            continue
        place = entry + size - room
        if _SIZES[kind] * values > room:
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), encoded, place)
        (value,) = struct.unpack_from(order + _CODES[kind], encoded, place)
        yield tag, value, place


_READERS = {"JPEG": _read_jpeg, "PNG": _read_png, "TIFF": _read_tiff, "BMP": _read_bmp}
