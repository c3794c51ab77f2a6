"""From cells to batches: every cell once, an epoch a function of its number."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from wbc_keras.augment import draw_uniforms, make_augmentation
from wbc_keras.config import AugmentConfig
from wbc_keras.pictures.cells import Cells, StoredImages
from wbc_keras.pipeline import make_batches, make_training_batches
from wbc_keras.training.drawing import count_steps

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


def numbered(count, size=8):
    """Cells whose every pixel tells their number."""
    images = np.zeros((count, size, size, 3), np.uint8)
    images += np.arange(count, dtype=np.uint8)[:, None, None, None]
    return Cells(images, np.zeros((count, 4), np.float32), np.ones(count, bool))


def training(cells, *, epochs, batch_size=4, seed=5, augment=AUGMENT, **options):
    numbers = np.arange(len(cells), dtype=np.int32)
    batches = make_training_batches(
        cells,
        numbers % 3,
        numbers + 0.5,
        augment=augment,
        batch_size=batch_size,
        seed=seed,
        epochs=epochs,
        **options,
    )
    return list(batches.as_numpy_iterator())


@pytest.fixture
def cells():
    images = np.random.default_rng(0).integers(0, 256, (10, 16, 16, 3)).astype(np.uint8)
    return Cells(images, np.zeros((10, 4), np.float32), np.ones(10, bool))


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


def test_cells_on_disk_give_the_batches_of_cells_in_memory(cells, tmp_path):
    cells.images.tofile(tmp_path / "images.bin")
    rows = np.array([7, 1, 4, 9, 0, 2])
    images = StoredImages(tmp_path / "images.bin", image_size=(16, 16), rows=rows)
    on_disk = Cells(images, cells.boxes[rows], cells.found[rows])
    in_memory = Cells(cells.images[rows], cells.boxes[rows], cells.found[rows])
    one, other = (training(part, epochs=range(2)) for part in (on_disk, in_memory))
    for batch, expected in zip(one, other, strict=True):
        np.testing.assert_array_equal(batch[0], expected[0])
    (images,) = next(make_batches(on_disk, batch_size=16).as_numpy_iterator())
    np.testing.assert_array_equal(images, in_memory.images)


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
    layer = make_augmentation(AUGMENT)
    for epoch in (0, 3):
        by_hand = layer(cells.images, draw_uniforms(10, seed=5, epoch=epoch))
        batches = training(cells, epochs=range(epoch, epoch + 1), batch_size=10)
        ((images, _, weights),) = batches
        numbers = (weights - 0.5).astype(int)
        np.testing.assert_allclose(images, np.asarray(by_hand)[numbers], atol=0.02)


def test_weights_count_from_their_epoch_on(cells):
    batches = training(cells, epochs=range(1, 4), batch_size=10, weights_from=2)
    (early, *late) = [weights for *_, weights in batches]
    np.testing.assert_array_equal(early, 1)
    for weights in late:
        np.testing.assert_array_equal(np.sort(weights), np.arange(10) + np.float32(0.5))


@pytest.mark.parametrize(("balance", "shares"), [(1.0, [1 / 2, 1 / 2]), (0.5, [3 / 4, 1 / 4])])
def test_balanced_sampling_draws_classes_by_a_power_of_their_counts(balance, shares):
    # 90 cells against 10: their square roots are as 3 to 1.
    labels = np.repeat([0, 1], [90, 10])
    batches = make_training_batches(
        numbered(100),
        labels,
        np.ones(100),
        augment=STILL,
        batch_size=50,
        seed=0,
        epochs=range(40),
        sampling_balance=balance,
    )
    drawn, numbers = [], []
    for images, found, _ in batches.as_numpy_iterator():
        cell = np.rint(images[:, 0, 0, 0]).astype(int)
        np.testing.assert_array_equal(found, labels[cell])
        drawn += found.tolist()
        numbers += cell.tolist()
    # 4,000 draws: five standard errors of a half are 0.04.
    np.testing.assert_allclose(np.bincount(drawn) / len(drawn), shares, atol=0.04)
    assert set(numbers) == set(range(100))


def test_a_cell_drawn_twice_in_an_epoch_is_changed_in_two_ways(cells):
    ((images, _, weights),) = training(cells, epochs=range(1), batch_size=10, sampling_balance=1.0)
    values, counts = np.unique(weights, return_counts=True)
    twice = images[weights == values[counts > 1][0]]
    assert np.abs(twice[0] - twice[1]).mean() > 5


def test_mixed_cells_carry_the_shares_of_two_classes(cells):
    labels = np.eye(3, dtype=np.float32)[np.arange(10) % 3]
    mixing = dataclasses.replace(AUGMENT, mixup=1.0)
    batches = make_training_batches(
        cells, labels, np.ones(10), augment=mixing, batch_size=10, seed=0, epochs=range(1)
    )
    ((_, targets, weights),) = batches.as_numpy_iterator()
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(weights, 1, rtol=1e-5)
    assert ((targets > 0).sum(axis=1) == 2).sum() >= 4
    with pytest.raises(ValueError, match="one-hot"):
        make_training_batches(
            cells,
            np.arange(10),
            np.ones(10),
            augment=mixing,
            batch_size=10,
            seed=0,
            epochs=range(1),
        )


def test_two_epochs_show_a_cell_differently(cells):
    first, second = training(cells, epochs=range(2), batch_size=10)
    by_cell = [images[np.argsort(weights)] for images, _, weights in (first, second)]
    assert (np.abs(by_cell[0] - by_cell[1]).mean(axis=(1, 2, 3)) > 5).all()
