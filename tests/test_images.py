"""Pictures from files: the same RGB from every format, and nothing damaged passes."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from wbc_keras.errors import DataError
from wbc_keras.pictures.headers import read_header
from wbc_keras.pictures.images import BadImage, decode, find_bad_images, read_bytes, read_image


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


@pytest.fixture
def smooth() -> np.ndarray:
    """Return a picture as JPEG keeps it: slow changes, one edge."""
    rows, columns = np.mgrid[:96, :80]
    channels = [rows * 2, columns * 3, 250 - rows - columns]
    image = np.stack(channels, axis=-1).astype(np.uint8)
    image[20:50, 30:60] = (120, 40, 160)
    return image


def write(path: Path, rgb: np.ndarray) -> Path:
    """Write RGB or RGBA with OpenCV, whose order is BGR."""
    order = [2, 1, 0, 3][: rgb.shape[2]]
    path.write_bytes(encode(path.suffix, rgb[..., order]))
    return path


def encode(suffix: str, bgr: np.ndarray) -> bytes:
    done, buffer = cv2.imencode(suffix, bgr)
    assert done
    return buffer.tobytes()


def make_tiff(image: np.ndarray, *, order: str = "<") -> bytes:
    """Make an uncompressed TIFF with its directory in front and unassociated alpha (TIFF 6.0)."""
    height, width, channels = image.shape
    data = image.astype(image.dtype.newbyteorder(order)).tobytes()
    bits = 8 * image.dtype.itemsize
    entries = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, 2),
        (273, 0),
        (277, channels),
        (278, height),
        (279, len(data)),
    ]
    entries += [(338, 2)] if channels == 4 else []
    start = 8 + 2 + 12 * len(entries) + 4
    parts = [(b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)]
    parts.append(struct.pack(order + "H", len(entries)))
    for tag, value in entries:
        if tag == 258:
            parts.append(struct.pack(order + "HHII", tag, 3, channels, start))
        elif tag in (273, 279):
            value = value or start + 2 * channels
            parts.append(struct.pack(order + "HHII", tag, 4, 1, value))
        else:
            parts.append(struct.pack(order + "HHIHH", tag, 3, 1, value, 0))
    parts.append(struct.pack(order + f"I{channels}H", 0, *[bits] * channels))
    return b"".join([*parts, data])


def with_alpha(rgb: np.ndarray, alpha: int | None = None) -> np.ndarray:
    values = np.random.default_rng(1).integers(0, 256, (*rgb.shape[:2], 1), dtype=np.uint8)
    return np.concatenate([rgb, values if alpha is None else np.full_like(values, alpha)], axis=-1)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".tiff"])
def test_lossless_formats_give_the_same_rgb(tmp_path: Path, rgb: np.ndarray, suffix: str) -> None:
    image = read_image(write(tmp_path / f"cell{suffix}", rgb))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, rgb)


@pytest.mark.parametrize("alpha", [255, 128, 0, None])
@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_fourth_channel_is_dropped(
    tmp_path: Path, rgb: np.ndarray, suffix: str, alpha: int | None
) -> None:
    path = write(tmp_path / f"cell{suffix}", with_alpha(rgb, alpha))
    np.testing.assert_array_equal(read_image(path), rgb)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("alpha", [255, 7, None])
def test_tiff_alpha_does_not_blend(
    tmp_path: Path, rgb: np.ndarray, alpha: int | None, order: str
) -> None:
    path = tmp_path / "cell.tiff"
    path.write_bytes(make_tiff(with_alpha(rgb, alpha), order=order))
    np.testing.assert_array_equal(read_image(path), rgb)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff"])
def test_grey_becomes_rgb(tmp_path: Path, rgb: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"cell{suffix}"
    path.write_bytes(encode(suffix, rgb[..., 0]))
    np.testing.assert_array_equal(read_image(path), np.repeat(rgb[..., :1], 3, axis=-1))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_keep_the_upper_byte(tmp_path: Path, suffix: str) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    path = tmp_path / f"cell{suffix}"
    path.write_bytes(encode(suffix, deep[..., ::-1]))
    np.testing.assert_array_equal(read_image(path), deep // 256)


def test_float_tiff_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cell.tiff"
    path.write_bytes(encode(".tiff", np.zeros((20, 30, 3), np.float32)))
    with pytest.raises(BadImage, match=r"cell\.tiff: the TIFF data"):
        read_image(path)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpeg_is_decoded_by_tensorflow(tmp_path: Path, smooth: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"cell{suffix}"
    encoded = encode(".jpg", smooth[..., ::-1])
    path.write_bytes(encoded)
    image = read_image(path)
    np.testing.assert_array_equal(image, tf.io.decode_jpeg(encoded, channels=3).numpy())
    opencv = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    # TensorFlow's inverse cosine transform is the fast one: a few grey levels at a hard edge.
    difference = np.abs(image.astype(int) - opencv)
    assert difference.max() <= 12
    assert difference.mean() < 1.5


def test_content_counts_and_not_the_suffix(tmp_path: Path, rgb: np.ndarray) -> None:
    path = tmp_path / "cell.jpg"
    path.write_bytes(make_tiff(rgb))
    np.testing.assert_array_equal(read_image(path), rgb)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tiff", ".jpg"])
def test_names_may_hold_any_letter(tmp_path: Path, smooth: np.ndarray, suffix: str) -> None:
    folder = tmp_path / "Zellen ä 血"
    folder.mkdir()
    path = folder / f"лимфоцит é{suffix}"
    path.write_bytes(encode(suffix, smooth[..., ::-1]))
    assert read_image(path).shape == smooth.shape
    assert find_bad_images([path]) == []


def test_read_bytes_gives_what_decode_reads(tmp_path: Path, rgb: np.ndarray) -> None:
    for suffix in (".tiff", ".bmp"):
        path = write(tmp_path / f"cell{suffix}", with_alpha(rgb))
        np.testing.assert_array_equal(decode(tf.constant(read_bytes(path))), rgb)
    for suffix in (".png", ".jpg"):
        path = write(tmp_path / f"cell{suffix}", rgb)
        assert read_bytes(path) == path.read_bytes()


def test_decode_in_tf_data_and_map_fn(smooth: np.ndarray) -> None:
    encoded = [encode(".png", smooth), encode(".jpg", smooth)]
    expected = [decode(tf.constant(item)).numpy() for item in encoded]
    dataset = tf.data.Dataset.from_tensor_slices(encoded).map(decode)
    assert dataset.element_spec == tf.TensorSpec((None, None, 3), tf.uint8)
    np.testing.assert_array_equal(np.stack(list(dataset.as_numpy_iterator())), expected)
    mapped = tf.function(lambda batch: tf.map_fn(decode, batch, fn_output_signature=tf.uint8))
    np.testing.assert_array_equal(mapped(tf.constant(encoded)), expected)


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "tiff", "tiff with its directory in front"])
def test_truncated_at_any_place_is_refused(
    tmp_path: Path, smooth: np.ndarray, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = make_tiff(smooth) if " " in kind else encode(f".{kind}", smooth)
    path = tmp_path / "cell.img"
    path.write_bytes(whole)
    assert read_image(path).shape == smooth.shape
    capfd.readouterr()
    # A cut of the last bytes alone hurts least and is missed first.
    cuts = [*range(1, len(whole) - 40, len(whole) // 25), *range(len(whole) - 40, len(whole))]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(BadImage, match=r"damaged or truncated|is not a JPEG"):
            read_image(path)
    assert "grfmt" not in capfd.readouterr().err, "OpenCV is silent: one line says it"


def test_truncated_real_cells_are_refused(pbc: Path, tmp_path: Path) -> None:
    for index, path in enumerate(sorted(pbc.glob("*/*.jpg"))[::600]):
        whole = path.read_bytes()
        copy = tmp_path / path.name
        copy.write_bytes(whole)
        assert read_image(copy).shape == (160, 160, 3)
        copy.write_bytes(whole[: -2 - 37 * index])
        with pytest.raises(BadImage):
            read_image(copy)


def find(encoded: bytes, *markers: bytes) -> int:
    """Return where the first of these JPEG markers is."""
    return min(place for marker in markers if (place := encoded.find(marker)) >= 0)


def cut_and_closed(encoded: bytes) -> bytes:
    """Half of the entropy-coded data, ended as a whole JPEG is."""
    scan = find(encoded, b"\xff\xda")
    return encoded[: (scan + len(encoded)) // 2] + b"\xff\xd9"


def taller(encoded: bytes) -> bytes:
    """More rows in the frame header than there are."""
    changed = bytearray(encoded)
    place = find(encoded, b"\xff\xc0", b"\xff\xc2") + 5
    changed[place : place + 2] = (2 * int.from_bytes(encoded[place : place + 2], "big")).to_bytes(
        2, "big"
    )
    return bytes(changed)


def overwritten(encoded: bytes) -> bytes:
    """A quarter of the data replaced by zeros, as a lost block leaves it."""
    scan = find(encoded, b"\xff\xda") + 20
    size = (len(encoded) - scan) // 4
    return encoded[: scan + size] + bytes(size) + encoded[scan + 2 * size :]


@pytest.mark.parametrize("alter", [cut_and_closed, taller, overwritten])
@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True, "subsampling": 0}],
)
def test_altered_jpeg_is_refused_though_it_decodes(
    tmp_path: Path, smooth: np.ndarray, alter: Callable[[bytes], bytes], options: dict[str, object]
) -> None:
    whole = save(Image.fromarray(smooth).resize((160, 160)), "JPEG", **options)
    read(tmp_path, whole)
    altered = alter(whole)
    path = tmp_path / "cell.jpg"
    path.write_bytes(altered)
    # TensorFlow has nothing to say.
    assert decode(tf.constant(altered)).shape[1:] == (160, 3)
    for read_it in (read_image, read_bytes):
        with pytest.raises(BadImage, match=r"cell\.jpg: the JPEG data are damaged .*copy the file"):
            read_it(path)


def test_altered_real_cells(pbc: Path, tmp_path: Path) -> None:
    path = tmp_path / "cell.jpg"
    for original in sorted(pbc.glob("*/*.jpg"))[::600]:
        for alter in (cut_and_closed, taller):
            path.write_bytes(alter(original.read_bytes()))
            assert find_bad_images([original, path])[0].path == path


def test_what_libjpeg_remarks_without_damage_is_let_pass(
    tmp_path: Path, smooth: np.ndarray
) -> None:
    """A revision of JFIF that is not known, and fill bytes before the end."""
    whole = save(Image.fromarray(smooth), "JPEG")
    later = bytearray(whole)
    later[whole.index(b"JFIF\0") + 5] = 7
    for encoded in (bytes(later), whole[:-2] + b"\xff\xff" + whole[-2:]):
        np.testing.assert_array_equal(read(tmp_path, encoded), read(tmp_path, whole))


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (1, 1)])
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tiff", ".bmp"])
def test_one_pixel_is_refused(tmp_path: Path, shape: tuple[int, int], suffix: str) -> None:
    path = write(tmp_path / f"cell{suffix}", np.zeros((*shape, 3), np.uint8))
    with pytest.raises(BadImage, match=rf"only {shape[1]}x{shape[0]} pixels"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"GIF89a" + bytes(50), "is not a JPEG"), (b"file,label\n", "is not a JPEG")],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "cell.png"
    path.write_bytes(content)
    for read in (read_image, read_bytes):
        with pytest.raises(BadImage, match=reason):
            read(path)


def save(image: Image.Image, kind: str, **options: object) -> bytes:
    """Encode with Pillow, which writes what OpenCV does not."""
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def read(tmp_path: Path, encoded: bytes, name: str = "cell.img") -> np.ndarray:
    (tmp_path / name).write_bytes(encoded)
    return read_image(tmp_path / name)


def test_palette_gives_its_colours(tmp_path: Path, smooth: np.ndarray) -> None:
    drawn = Image.fromarray(smooth).quantize(64)
    expected = np.asarray(drawn.convert("RGB"))
    for kind, options in (("PNG", {}), ("PNG", {"transparency": 3}), ("TIFF", {}), ("BMP", {})):
        np.testing.assert_array_equal(read(tmp_path, save(drawn, kind, **options)), expected)


def test_animation_and_pages_give_the_first(tmp_path: Path, smooth: np.ndarray) -> None:
    first, other = Image.fromarray(smooth), Image.fromarray(255 - smooth)
    for kind in ("PNG", "TIFF"):
        encoded = save(first, kind, save_all=True, append_images=[other, other])
        assert read_header(encoded).frames == 3
        np.testing.assert_array_equal(read(tmp_path, encoded), smooth)


@pytest.mark.parametrize("turn", range(2, 9))
def test_notes_on_orientation_are_not_followed(
    tmp_path: Path, smooth: np.ndarray, turn: int
) -> None:
    image, note = Image.fromarray(smooth), Image.Exif()
    note[274] = turn
    upright = read(tmp_path, save(image, "JPEG"))
    np.testing.assert_array_equal(read(tmp_path, save(image, "JPEG", exif=note)), upright)
    turned = save(image, "TIFF", tiffinfo={274: turn})
    np.testing.assert_array_equal(read(tmp_path, turned), smooth)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_refused(tmp_path: Path, smooth: np.ndarray, kind: str) -> None:
    encoded = save(Image.fromarray(smooth).convert("CMYK"), kind)
    with pytest.raises(BadImage, match=f"the {kind} colours are CMYK; save the picture as RGB"):
        read(tmp_path, encoded)
    with pytest.raises(BadImage, match="CMYK"):
        read_bytes(tmp_path / "cell.img")


def test_lab_is_refused(tmp_path: Path, smooth: np.ndarray) -> None:
    lab = Image.fromarray(smooth).convert("LAB")
    with pytest.raises(BadImage, match="neither RGB nor grey"):
        read(tmp_path, save(lab, "TIFF"))


def test_grey_and_progressive_jpeg(tmp_path: Path, smooth: np.ndarray) -> None:
    image = Image.fromarray(smooth)
    grey = read(tmp_path, save(image.convert("L"), "JPEG", quality=95))
    assert np.ptp(grey, axis=-1).max() == 0
    np.testing.assert_allclose(grey[..., 0], np.asarray(image.convert("L")), atol=24)
    progressive = save(image, "JPEG", progressive=True)
    np.testing.assert_array_equal(read(tmp_path, progressive), read(tmp_path, save(image, "JPEG")))
    with pytest.raises(BadImage, match="damaged or truncated"):
        read(tmp_path, progressive[:-60])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP"])
def test_bytes_after_the_end_are_ignored(tmp_path: Path, smooth: np.ndarray, kind: str) -> None:
    encoded = save(Image.fromarray(smooth), kind)
    np.testing.assert_array_equal(
        read(tmp_path, encoded + b"scanner 3 \xff\xd8" * 99), read(tmp_path, encoded)
    )


@pytest.mark.parametrize(("kind", "name"), [("GIF", "GIF"), ("WEBP", "WebP")])
def test_a_renamed_picture_is_named(
    tmp_path: Path, smooth: np.ndarray, kind: str, name: str
) -> None:
    with pytest.raises(BadImage, match=rf"cell\.jpg: is not a JPEG.* but {name}, whatever"):
        read(tmp_path, save(Image.fromarray(smooth), kind), "cell.jpg")


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """Thirty kilobytes that would become 7.5 GB."""
    rows = zlib.compress(bytes(50_000 * 600), 9)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)), (b"IDAT", rows)]
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*chunks, (b"IEND", b"")]
    )
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb)
    start = time.perf_counter()
    for read_it in (read_image, read_bytes):
        with pytest.raises(BadImage, match="50000x50000 pixels, more than the 64 million"):
            read_it(path)
    assert time.perf_counter() - start < 1


def test_a_picture_other_than_its_header_says(tmp_path: Path, rgb: np.ndarray) -> None:
    """The width stands twice: libtiff takes the first, the larger one counts here."""
    encoded = bytearray(make_tiff(rgb))
    entry = 8 + 2 + 12 * 7  # of the rows of a strip: all, if they are not given
    struct.pack_into("<HHIHH", encoded, entry, 256, 3, 1, 60, 0)
    with pytest.raises(BadImage, match=r"decodes to 53x37 pixels where its header says 60x37"):
        read(tmp_path, bytes(encoded))


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="no such file") as caught:
        read_image(tmp_path / "cell.png")
    assert caught.value.path == tmp_path / "cell.png"
    assert isinstance(caught.value, DataError)
    with pytest.raises(BadImage, match="cannot be read"):
        read_image(tmp_path)


def test_bad_image_is_one_line_and_travels_between_processes() -> None:
    fault = pickle.loads(pickle.dumps(BadImage("a/b.jpg", "the file is empty")))
    assert (fault.path, fault.reason) == (Path("a/b.jpg"), "the file is empty")
    assert str(fault) == "a/b.jpg: the file is empty"


def test_find_bad_images_names_all_in_order(tmp_path: Path, smooth: np.ndarray) -> None:
    good = [write(tmp_path / f"{i}.jpg", smooth) for i in range(20)]
    cut = tmp_path / "cut.png"
    cut.write_bytes(encode(".png", smooth)[:300])
    small = write(tmp_path / "small.tiff", smooth[:1])
    missing = tmp_path / "missing.bmp"
    bad = find_bad_images([*good[:5], small, *good[5:], missing, cut])
    assert [fault.path for fault in bad] == [small, missing, cut]
    assert "truncated" in bad[2].reason
    assert find_bad_images(good) == []
