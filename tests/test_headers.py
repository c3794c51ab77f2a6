"""Headers are read as Pillow reads them, from the first bytes alone, and lies are refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wbc_keras.pictures.headers import Header, HeaderError, as_stored, read_header

_MODES = {"L": "grey", "LA": "grey", "1": "grey", "RGB": "RGB", "RGBA": "RGB", "P": "palette"}


def encode(mode: str, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(np.arange(30 * 20 * 3, dtype=np.uint8).reshape(30, 20, 3))
    image.convert(mode).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("kind", "modes"),
    [
        ("JPEG", ["L", "RGB"]),
        ("PNG", ["1", "L", "LA", "P", "RGB", "RGBA"]),
        ("TIFF", ["1", "L", "LA", "P", "RGB", "RGBA"]),
        ("BMP", ["RGB", "P"]),
    ],
)
def test_every_form(kind: str, modes: list[str]) -> None:
    for mode in modes:
        alpha = mode in ("LA", "RGBA")
        bits = 1 if mode == "1" else 8
        expected = Header(kind, 20, 30, _MODES[mode], bits, alpha)  # type: ignore[arg-type]
        assert read_header(encode(mode, kind)) == expected
    assert read_header(encode("RGB", "JPEG", progressive=True)).width == 20


def test_big_tiff_and_deep_png() -> None:
    big = encode("RGBA", "TIFF", big_tiff=True)
    assert big[2:3] == b"+"
    assert read_header(big) == Header("TIFF", 20, 30, "RGB", 8, alpha=True)
    stream = io.BytesIO()
    Image.fromarray(np.zeros((30, 20), np.uint16)).save(stream, "PNG")
    assert read_header(stream.getvalue()) == Header("PNG", 20, 30, "grey", 16)


def test_small_copies_are_no_pages() -> None:
    pages = [Image.new("RGB", size) for size in ((20, 30), (10, 15))]
    stream = io.BytesIO()
    pages[0].save(stream, "TIFF", save_all=True, append_images=pages[1:])
    encoded = bytearray(stream.getvalue())
    assert read_header(bytes(encoded)).frames == 2
    # The second page's first tag becomes NewSubfileType 1: a reduced copy.
    second = encoded.rindex(struct.pack("<HHI", 256, 4, 1))
    struct.pack_into("<HHII", encoded, second, 254, 4, 1, 1)
    assert read_header(bytes(encoded)).frames == 1


def test_a_circle_of_pages_ends() -> None:
    encoded = bytearray(encode("L", "TIFF"))
    (start,) = struct.unpack_from("<I", encoded, 4)
    (count,) = struct.unpack_from("<H", encoded, start)
    struct.pack_into("<I", encoded, start + 2 + 12 * count, start)
    assert read_header(bytes(encoded)).frames == 1


def test_real_cells_as_pillow_reads_them(pbc: Path, lmu_smoke: Path) -> None:
    for path in [*sorted(pbc.glob("*/*.jpg"))[::400], *lmu_smoke.glob("*/*.jpg")]:
        header = read_header(path.read_bytes())
        with Image.open(path) as image:
            assert (header.kind, header.width, header.height) == (image.format, *image.size)


@pytest.mark.parametrize(
    ("encoded", "match"),
    [
        (b"", "the file is empty"),
        (b"text", "is not a JPEG, PNG, TIFF or BMP picture$"),
        (b"\xff\xd8\xff\xe0\x00", "the JPEG header is damaged or truncated"),
        (b"\xff\xd8\xff\xd9", "the JPEG header is damaged"),
        (encode("RGB", "PNG")[:30], "the PNG header is damaged"),
        (b"II*\x00\xff\xff\xff\x00", "the TIFF header is damaged"),
        (b"II+\x00\x08\x00\x00\x00" + b"\xff" * 8, "the TIFF header is damaged"),
        (b"BM", "the BMP header is damaged"),
        (encode("CMYK", "JPEG"), "CMYK"),
    ],
)
def test_what_is_refused(encoded: bytes, match: str) -> None:
    with pytest.raises(HeaderError, match=match):
        read_header(encoded)


def test_twelve_bit_jpeg_and_a_bomb() -> None:
    encoded = bytearray(encode("RGB", "JPEG"))
    frame = encoded.index(b"\xff\xc0")
    encoded[frame + 4] = 12
    with pytest.raises(HeaderError, match="a JPEG of 12 bits a channel"):
        read_header(bytes(encoded))
    encoded[frame + 4] = 8
    struct.pack_into(">HH", encoded, frame + 5, 60_000, 60_000)
    with pytest.raises(HeaderError, match="60000x60000 pixels, more than the 64 million"):
        read_header(bytes(encoded))


def test_only_a_tiff_is_changed() -> None:
    jpeg = encode("RGB", "JPEG")
    assert as_stored(jpeg) is jpeg
    upright = encode("RGB", "TIFF")
    assert as_stored(upright) == upright
    turned = encode("RGB", "TIFF", tiffinfo={274: 6})
    assert as_stored(turned) == encode("RGB", "TIFF", tiffinfo={274: 1})
    big = encode("RGB", "TIFF", tiffinfo={274: 6}, big_tiff=True)
    assert as_stored(big) == encode("RGB", "TIFF", tiffinfo={274: 1}, big_tiff=True)
    broken = b"II*\x00\xff\xff\xff\x00"
    assert as_stored(broken) == broken
