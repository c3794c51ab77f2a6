"""Pictures as a server receives them: read as training reads them, the bad ones named by place."""

from __future__ import annotations

import io
import resource
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from wbc_keras.pictures.images import BadImage, decode_picture, read_image
from wbc_keras.pictures.localize import crop, make_thumbnail
from wbc_keras.prediction import intake
from wbc_keras.prediction.intake import crop_held, take_in


def save(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def ask(*pictures, max_pixels=1_000_000, work=lambda pictures: pictures[1:]):
    """Return the thumbnails and the sizes, or what ``work`` makes of the pictures."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def run(image_bytes):
        return take_in(image_bytes, max_pixels=max_pixels, work=work)

    return run(tf.constant(pictures, tf.string, shape=[len(pictures)]))


def refusal(*pictures, **options):
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        ask(*pictures, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def picture():
    """Colours that differ everywhere, 40 high and 60 wide."""
    rows, columns = np.mgrid[:40, :60]
    planes = [rows * 6, columns * 4, 255 - rows - columns]
    return Image.fromarray(np.stack(planes, axis=-1).astype(np.uint8))


def exif(orientation):
    note = Image.Exif()
    note[0x0112] = orientation
    return note


def forms(picture):
    deep = Image.fromarray((np.asarray(picture)[..., 0].astype(np.uint16) << 8) + 77)
    faint = picture.copy()
    faint.putalpha(40)
    return {
        "JPEG": save(picture, "JPEG"),
        "turned by EXIF": save(picture, "JPEG", exif=exif(6)),
        "progressive": save(picture, "JPEG", progressive=True),
        "grey JPEG": save(picture.convert("L"), "JPEG"),
        "PNG": save(picture),
        "grey PNG": save(picture.convert("L")),
        "one bit": save(picture.convert("1")),
        "palette": save(picture.convert("P")),
        "16 bits": save(deep),
        "alpha": save(faint),
        "grey and alpha": save(faint.convert("LA")),
        "bytes after the end": save(picture) + b"more",
        "another size": save(picture.resize((200, 31))),
    }


def test_every_form_is_read_as_in_training(picture, tmp_path):
    made = forms(picture)
    thumbnails, sizes = ask(*made.values())
    for row, (name, encoded) in enumerate(made.items()):
        path = tmp_path / "picture"
        path.write_bytes(encoded)
        image = read_image(path)
        assert sizes[row].numpy().tolist() == list(image.shape[:2]), name
        np.testing.assert_array_equal(thumbnails[row], make_thumbnail(image), err_msg=name)


def test_what_the_forms_look_like(picture):
    """Not only as in training, but as documented."""
    made = forms(picture)
    thumbnails, sizes = ask(*made.values())
    seen = dict(zip(made, thumbnails.numpy(), strict=True))
    lying = dict(zip(made, sizes.numpy().tolist(), strict=True))
    # Pixels stay as they are stored; alpha is dropped and does not blend; the upper 8 of 16 bits.
    assert lying["turned by EXIF"] == [40, 60]
    np.testing.assert_array_equal(seen["turned by EXIF"], seen["JPEG"])
    np.testing.assert_array_equal(seen["alpha"], seen["PNG"])
    np.testing.assert_array_equal(seen["16 bits"][..., 1], seen["PNG"][..., 0])
    for grey in ("grey JPEG", "grey PNG", "16 bits"):
        np.testing.assert_array_equal(seen[grey][..., 0], seen[grey][..., 2])


@pytest.mark.parametrize("held", [0, 3_000, 1_000_000])
def test_crops_of_more_than_a_chunk_in_order_held_or_decoded_again(picture, held, monkeypatch):
    monkeypatch.setattr(intake, "_HELD_PIXELS", held)
    sizes = [(60 + 5 * (number % 3), 40 + number) for number in range(40)]
    images = [picture.resize(size) for size in sizes]
    box = tf.constant([0.1, 0.2, 0.7, 0.9])

    def work(pictures):
        boxes = tf.tile(box[tf.newaxis], [tf.size(pictures.held), 1])
        return (crop_held(pictures, boxes, image_size=(16, 24)),)

    (cells,) = ask(*map(save, images), work=work)
    for cell, image in zip(cells.numpy(), images, strict=True):
        np.testing.assert_array_equal(cell, crop(np.asarray(image), box, image_size=(16, 24)))


def test_bad_pictures_are_all_named_by_their_place(picture):
    jpeg, png = save(picture, "JPEG"), save(picture)
    bad = {
        1: b"no picture at all",
        2: b"",
        4: jpeg[: len(jpeg) // 2],
        5: png[: len(png) // 2],
        6: save(picture, "GIF"),
        7: save(picture, "BMP"),
        8: b"\xff\xd8\xff and no more",
        9: b"\x89PNG\r\n\x1a\n",
    }
    message = refusal(*(bad.get(place, jpeg) for place in range(11)))
    for place in range(11):
        named = f"image_bytes[{place}] is no JPEG or PNG that can be decoded" in message
        assert named == (place in bad), place


def test_a_jpeg_altered_in_its_middle_is_taken_in_but_not_by_predict(picture):
    """What docs/serving.md says of damage: TensorFlow does not pass libjpeg's warning on."""
    whole = save(picture.resize((300, 300)), "JPEG")
    middle = len(whole) // 2
    altered = whole[:middle] + bytes(64) + whole[middle + 64 :]
    thumbnails, _ = ask(whole, altered)
    assert np.abs(thumbnails[0] - thumbnails[1]).max() > 5
    with pytest.raises(BadImage, match=r"cell\.jpg: the JPEG data are damaged or truncated"):
        decode_picture("cell.jpg", altered)
    assert decode_picture("cell.jpg", whole).shape == (300, 300, 3)


def test_colours_of_print_and_single_pixels_are_refused(picture):
    message = refusal(
        save(picture), save(picture.convert("CMYK"), "JPEG"), save(picture.resize((1, 50)))
    )
    assert "image_bytes[1] has CMYK colours; save it as RGB" in message
    assert "image_bytes[2] has 1x50 pixels, fewer than 2x2" in message
    assert "image_bytes[0]" not in message


def test_no_picture_is_said():
    assert "image_bytes holds no picture" in refusal()


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pixel_limit(picture, kind):
    ask(save(picture, kind), max_pixels=2400)
    message = refusal(save(picture, kind), max_pixels=2399)
    assert "image_bytes[0] has 60x40 pixels, over 2,399" in message


def png_bomb(picture, width, height):
    encoded = bytearray(save(picture))
    encoded[16:24] = struct.pack(">II", width, height)
    return bytes(encoded)


def jpeg_bomb(picture, width, height):
    encoded = bytearray(save(picture, "JPEG", progressive=True))
    place = encoded.index(b"\xff\xc2") + 5
    encoded[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(encoded)


def test_bombs_are_refused_by_their_headers(picture):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    message = refusal(
        png_bomb(picture, 40_000, 40_000),
        jpeg_bomb(picture, 65_000, 65_000),
        png_bomb(picture, 0xFFFFFFFF, 0x80000000),
        png_bomb(picture, 0, 3),
    )
    # Decoded, each of the first two would hold gigabytes.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB
    for place, size in enumerate(("40000x40000", "65000x65000", "4294967295x2147483648")):
        assert f"image_bytes[{place}] has {size} pixels, over 1,000,000" in message
    assert "image_bytes[3] has 0x3 pixels, fewer than 2x2" in message
