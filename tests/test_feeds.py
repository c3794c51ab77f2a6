"""Batches without `tf.data`: the same steps, the same pictures, each process its share."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

from wbc_keras.config import AugmentConfig
from wbc_keras.pictures.cells import Cells
from wbc_keras.pipeline import make_training_batches
from wbc_keras.training.feeds import CellFeed, TrainingFeed, augmented
from wbc_keras.training.hosts import Hosts
from wbc_keras.training.mixing import draw_mixing, mix, mix_targets

AUGMENT = AugmentConfig(stain=0.05, sharpness=0.5, tint=0.3)
MIXED = dataclasses.replace(AUGMENT, mixup=0.4, cutmix=1.0)


@pytest.fixture
def cells():
    images = np.random.default_rng(0).integers(0, 256, (11, 16, 16, 3)).astype(np.uint8)
    return Cells(images, np.zeros((11, 4), np.float32), np.ones(11, bool))


def drawing(augment, **more):
    return {"augment": augment, "batch_size": 4, "seed": 5, "epochs": range(1, 4), **more}


def targets(augment):
    labels = np.arange(11, dtype=np.int32) % 3
    return np.eye(3, dtype=np.float32)[labels] if augment.mixup else labels


def test_reading_past_the_end_is_not_a_mistake(cells):
    feed = TrainingFeed(cells, targets(AUGMENT), np.ones(11), **drawing(AUGMENT))
    last, past = feed[3 * feed.steps - 1], feed[3 * feed.steps]
    np.testing.assert_array_equal(last[0][0], past[0][0])


def bare(augment):
    """The changes alone: what the network behind them would see."""
    images = keras.Input((16, 16, 3))
    return augmented(keras.Model(images, keras.layers.Identity()(images)), augment)


@pytest.mark.parametrize("augment", [AUGMENT, MIXED])
@pytest.mark.parametrize("more", [{}, {"weights_from": 2}, {"sampling_balance": 0.7}])
def test_steps_are_those_of_tf_data(cells, augment, more):
    weights = np.arange(11) + 0.5
    options = drawing(augment, **more)
    feed = TrainingFeed(cells, targets(augment), weights, **options)
    batches = make_training_batches(cells, targets(augment), weights, **options)
    change, steps = bare(augment), 0
    for index, (images, labels, weighing) in enumerate(batches.as_numpy_iterator()):
        inputs, our_labels, our_weights = feed[index]
        assert inputs[0].dtype == np.uint8
        np.testing.assert_allclose(change(list(inputs)), images, atol=0.02)
        np.testing.assert_allclose(our_labels, labels, atol=1e-6)
        np.testing.assert_allclose(our_weights, weighing, rtol=1e-6)
        steps += 1
    assert steps == 3 * feed.steps == 6


def test_begun_anew_it_gives_the_same(cells):
    """Keras looks at the first batch before it trains."""
    feed = TrainingFeed(cells, targets(AUGMENT), np.ones(11), **drawing(AUGMENT))
    first = [feed[0], feed[1]]
    for index, ((images, uniforms), labels, _) in enumerate(first):
        again = feed[index]
        np.testing.assert_array_equal(again[0][0], images)
        np.testing.assert_array_equal(again[0][1], uniforms)
        np.testing.assert_array_equal(again[1], labels)


@pytest.mark.parametrize("augment", [AUGMENT, MIXED])
def test_shares_of_all_processes_are_the_batch(cells, augment):
    def feed(hosts):
        return TrainingFeed(cells, targets(augment), np.ones(11), hosts=hosts, **drawing(augment))

    whole, parts = feed(Hosts()), [feed(Hosts(k, 2)) for k in range(2)]
    for step in range(6):
        inputs, labels, weights = whole[step]
        shared = [part[step] for part in parts]
        assert all(len(part[1]) == 2 for part in shared)
        for place, expected in enumerate(inputs):
            np.testing.assert_array_equal(np.concatenate([p[0][place] for p in shared]), expected)
        np.testing.assert_array_equal(np.concatenate([p[1] for p in shared]), labels)
        np.testing.assert_array_equal(np.concatenate([p[2] for p in shared]), weights)


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.4, 0.0), (0.0, 1.0), (0.4, 1.0)])
def test_targets_are_mixed_as_on_the_device(mixup, cutmix):
    rng = np.random.default_rng(1)
    labels = np.eye(5, dtype=np.float32)[rng.integers(0, 5, 32)]
    weights = rng.uniform(0.5, 2, 32).astype(np.float32)
    mixing = draw_mixing(32, mixup=mixup, cutmix=cutmix, seed=0, epoch=0)
    images = np.zeros((32, 18, 26, 3), np.float32)
    _, expected, weighing = mix(images, labels, weights, mixing)
    ours = mix_targets(labels, weights, mixing, image_size=(18, 26))
    np.testing.assert_allclose(ours[0], expected, atol=1e-5)
    np.testing.assert_allclose(ours[1], weighing, atol=1e-5)


def test_nothing_in_it_turns_xla_off():
    model = bare(MIXED)
    model.compile("sgd", "mse", jit_compile=True)  # would warn, and be False
    assert model.jit_compile is True
    assert all(layer.supports_jit for layer in model.layers)
    assert model.count_params() == 0


def test_cells_come_once_and_in_order(cells):
    feed = CellFeed(cells, batch_size=4)
    parts = [feed[index][0] for index in range(feed.num_batches)]
    assert [len(part) for part in parts] == [4, 4, 3]
    np.testing.assert_array_equal(np.concatenate(parts), cells.images)
