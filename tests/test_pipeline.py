"""From files to batches: the same crop from every format, an epoch a function of its number."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
import tensorflow as tf

from wbc_keras.augment import CellAugmentation, draw_uniforms
from wbc_keras.config import AugmentConfig, RoiConfig
from wbc_keras.images import BadImage
from wbc_keras.localize import crop, locate, make_thumbnail
from wbc_keras.pipeline import (
    Cells,
    count_steps,
    crop_cells,
    iter_cells,
    load_cells,
    make_batches,
    make_training_batches,
)
from wbc_keras.synthetic import draw_cell

SIZE = (40, 48)
ROI = RoiConfig()
AUGMENT = AugmentConfig()
STILL = AugmentConfig(
    flip=False,
    quarter_turns=False,
    rotation=0,
    shift=0,
    zoom=0,
    brightness=0,
    contrast=0,
    hue=0,
    saturation=0,
)


def write(path, image):
    _, encoded = cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1]))
    path.write_bytes(encoded.tobytes())
    return path


def drawn(size, seed=0):
    return draw_cell("monocyte", size=size, rng=np.random.default_rng(seed)).image


def numbered(count, size=8):
    """Cells whose every pixel tells their number."""
    images = np.zeros((count, size, size, 3), np.uint8)
    images += np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Cells(images, np.zeros((count, 4), np.float32), np.ones(count, bool))


def training(cells, *, epochs, batch_size=4, seed=5, augment=AUGMENT):
    numbers = np.arange(len(cells), dtype=np.int32)
    batches = make_training_batches(
        cells,
        numbers % 3,
        numbers + 0.5,
        augment=augment,
        batch_size=batch_size,
        seed=seed,
        epochs=epochs,
    )
    return list(batches.as_numpy_iterator())


@pytest.fixture
def cells():
    images = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3)).astype(np.uint8)
    return Cells(images, np.zeros((10, 4), np.float32), np.ones(10, bool))


# Reading and cropping


def test_same_picture_in_each_format_gives_the_same_crop(tmp_path):
    image = drawn(100)
    paths = [write(tmp_path / f"cell{suffix}", image) for suffix in (".png", ".tiff", ".bmp")]
    cells = load_cells(paths, roi=ROI, image_size=SIZE)
    assert cells.images.shape == (3, *SIZE, 3)
    assert cells.images.dtype == np.uint8
    for i in (1, 2):
        np.testing.assert_array_equal(cells.images[i], cells.images[0])
        np.testing.assert_array_equal(cells.boxes[i], cells.boxes[0])


def test_pictures_of_several_sizes_come_out_in_order(tmp_path):
    # 70 cells are more than one chunk.
    sizes = [50 + 3 * (i % 11) for i in range(70)]
    images = [drawn(size, seed) for seed, size in enumerate(sizes)]
    paths = [write(tmp_path / f"{i}.png", image) for i, image in enumerate(images)]
    cells = load_cells(paths, roi=ROI, image_size=SIZE)
    assert (len(cells), cells.boxes.shape, cells.found.shape) == (70, (70, 4), (70,))
    for i in (0, 1, 63, 64, 69):
        alone = locate(
            make_thumbnail(images[i])[None],
            tf.constant([images[i].shape[:2]]),
            mode=ROI.mode,
            margin=ROI.margin,
        )
        np.testing.assert_allclose(cells.boxes[i], alone.boxes[0], atol=1e-6)
        assert cells.found[i] == bool(alone.found[0])
        expected = crop(tf.constant(images[i]), tf.constant(cells.boxes[i]), image_size=SIZE)
        np.testing.assert_array_equal(cells.images[i], expected)


def test_whole_picture_of_the_right_size_is_untouched(tmp_path):
    image = drawn(64)
    path = write(tmp_path / "cell.png", image)
    cells = load_cells([path], roi=RoiConfig(mode="none"), image_size=(64, 64))
    np.testing.assert_array_equal(cells.images[0], image)
    np.testing.assert_array_equal(cells.boxes[0], [0, 0, 1, 1])


def test_crop_is_the_box_of_the_picture():
    # A picture of the pixel's own place shows which part was taken.
    rows, columns = np.mgrid[:120, :200]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    with ThreadPoolExecutor(1) as pool:
        cells = crop_cells([image], roi=RoiConfig(mode="center"), image_size=(32, 32), pool=pool)
    y0, x0, y1, x1 = cells.boxes[0] * [120, 200, 120, 200]
    assert y1 - y0 == pytest.approx(x1 - x0, abs=0.01)
    step = (y1 - y0) / 32
    centers = (np.arange(32) + 0.5) * step - 0.5
    np.testing.assert_allclose(cells.images[0, :, 16, 0], y0 + centers, atol=0.6)
    np.testing.assert_allclose(cells.images[0, 16, :, 1], x0 + centers, atol=0.6)


def test_cells_are_yielded_in_chunks(tmp_path):
    path = write(tmp_path / "cell.png", drawn(40))
    parts = [len(part) for part in iter_cells([path] * 130, roi=ROI, image_size=SIZE)]
    assert sum(parts) == 130
    assert max(parts) <= 64


def test_threads_that_crop_first_are_not_warned_of_retracing(tmp_path, caplog):
    paths = [write(tmp_path / f"{i}.png", drawn(40 + i)) for i in range(16)]
    load_cells(paths, roi=ROI, image_size=(33, 37))
    assert not caplog.text


def test_unreadable_picture_is_named(tmp_path):
    good, bad = write(tmp_path / "good.png", drawn(40)), tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:200])
    with pytest.raises(BadImage, match=r"bad\.png"):
        load_cells([good, bad], roi=ROI, image_size=SIZE)


# Validation, test, prediction


def test_batches_hold_every_cell_once_in_order_and_unchanged(cells):
    labels = np.arange(10, dtype=np.int32)
    batches = list(make_batches(cells, labels, batch_size=4).as_numpy_iterator())
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    images = np.concatenate([images for images, _ in batches])
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images, cells.images)
    np.testing.assert_array_equal(np.concatenate([part for _, part in batches]), labels)


def test_batches_without_labels_are_images_alone(cells):
    (images,) = next(make_batches(cells, batch_size=16).as_numpy_iterator())
    np.testing.assert_array_equal(images, cells.images)


# Training


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(10, 4, 2), (8, 4, 2), (3, 4, 1)])
def test_steps_are_the_full_batches(count, batch_size, steps):
    assert count_steps(count, batch_size) == steps
    images = [len(batch[0]) for batch in training(numbered(count), epochs=range(2))]
    assert images == [min(batch_size, count)] * 2 * steps


def test_an_epoch_holds_no_cell_twice_and_labels_and_weights_follow():
    batches = training(numbered(11), epochs=range(6), augment=STILL)
    left_out = set()
    for epoch in range(6):
        images, labels, weights = (
            np.concatenate(parts) for parts in zip(*batches[2 * epoch : 2 * epoch + 2], strict=True)
        )
        numbers = np.rint(images[:, 0, 0, 0]).astype(int)
        assert len(set(numbers)) == len(numbers) == 8
        np.testing.assert_array_equal(labels, numbers % 3)
        np.testing.assert_array_equal(weights, numbers + np.float32(0.5))
        assert labels.dtype == np.int32
        left_out |= set(range(11)) - set(numbers)
    assert len(left_out) > 3  # not the same cells each time


def test_epochs_are_shuffled_each_in_its_own_way():
    batches = training(numbered(16), epochs=range(3), batch_size=16, augment=STILL)
    orders = [np.rint(images[:, 0, 0, 0]).tolist() for images, *_ in batches]
    assert all(sorted(order) == list(range(16)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(16)]}) == 4


def test_starting_later_gives_the_tail_of_starting_at_0(cells):
    whole = training(cells, epochs=range(5))
    tail = training(cells, epochs=range(2, 5))
    assert len(tail) == 6
    for one, other in zip(whole[4:], tail, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_other_seed_gives_another_order(cells):
    one, other = (training(cells, epochs=range(1), seed=seed) for seed in (5, 6))
    assert not np.array_equal(one[0][0], other[0][0])


def test_pictures_are_those_of_seed_epoch_and_cell(cells):
    """Whatever their order, cells change as the layer says when called by hand."""
    layer = CellAugmentation(**dataclasses.asdict(AUGMENT))
    for epoch in (0, 3):
        by_hand = layer(cells.images, draw_uniforms(10, seed=5, epoch=epoch))
        batches = training(cells, epochs=range(epoch, epoch + 1), batch_size=10)
        ((images, _, weights),) = batches
        numbers = (weights - 0.5).astype(int)
        np.testing.assert_allclose(images, np.asarray(by_hand)[numbers], atol=0.02)


def test_two_epochs_show_a_cell_differently(cells):
    first, second = training(cells, epochs=range(2), batch_size=10)
    by_cell = [images[np.argsort(weights)] for images, _, weights in (first, second)]
    assert (np.abs(by_cell[0] - by_cell[1]).mean(axis=(1, 2, 3)) > 5).all()
