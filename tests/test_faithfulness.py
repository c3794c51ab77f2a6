"""Checks of heatmaps against cases where the answer is known."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from scipy import stats

from wbc_keras.gradcam import Heatmaps
from wbc_keras.layers import CBAM
from wbc_keras.reporting.faithfulness_plots import plot_checks
from wbc_keras.statistics.faithfulness import (
    STEPS,
    Regions,
    check_heatmaps,
    correlate,
    draw_attention,
    find_regions,
    lose_weights,
    measure_curves,
    measure_energy,
)
from wbc_keras.synthetic import draw_cell

SIZE = (24, 24)


def corner_model():
    """Looks for bright red in the upper left quarter, and nowhere else: class 1 if there is any."""
    images = keras.Input((*SIZE, 3), name="image")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(2, 1, activation="relu", name="red")(x)
    mask = np.zeros((1, *SIZE, 1), np.float32)
    mask[:, :12, :12] = 1
    x = keras.layers.Activation("linear", name="features")(x * mask)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    model = keras.Model(images, keras.layers.Dense(2, name="logits")(pooled))
    red = np.array([[[[1, 0], [0, 0], [0, 1]]]], np.float32)
    model.get_layer("red").set_weights([red, np.array([-0.6, 0], np.float32)])
    kernel = np.array([[0, 200], [0, 0]], np.float32)
    model.get_layer("logits").set_weights([kernel, np.array([0, -2], np.float32)])
    return model


def red_corners(count=6):
    images = np.random.default_rng(0).integers(0, 30, (count, *SIZE, 3)).astype(np.uint8)
    images[:, 2:8, 2:8, 0] = 250
    return images


def deep_model():
    """With normalisation and attention by their names, as in a classifier of ours."""
    keras.utils.set_random_seed(3)
    images = keras.Input((*SIZE, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(images)
    for number in range(4):
        x = keras.layers.Conv2D(16, 3, padding="same", strides=1 + (number == 1))(x)
        x = keras.layers.BatchNormalization()(x)
        x = keras.layers.Activation("relu")(x)
    x = CBAM(reduction_ratio=4, kernel_size=3, name="cbam")(x)
    x = keras.layers.Activation("linear", name="features")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    return keras.Model(images, keras.layers.Dense(3, name="logits")(x))


def test_energy_is_the_share_inside():
    maps = np.zeros((3, 4, 4), np.float32)
    maps[0, 0] = [1, 1, 1, 1]
    maps[1, 2:, :2] = 0.5
    masks = np.zeros((3, 4, 4), bool)
    masks[:, :, :2] = True
    np.testing.assert_allclose(measure_energy(maps, masks), [0.5, 1.0, np.nan])


def test_taking_away_what_the_model_sees_lowers_its_answer_and_giving_it_back_raises_it():
    model, images = corner_model(), red_corners()
    right = np.zeros((6, *SIZE), np.float32)
    right[:, :12, :12] = 1
    good = measure_curves(model, images, right, [1] * 6)
    bad = measure_curves(model, images, 1 - right, [1] * 6)
    assert good.deletion.shape == good.insertion.shape == (6, STEPS + 1)
    # A quarter of the pixels is hot: gone after three of ten steps, back after three.
    assert (good.deletion[:, 3] < bad.deletion[:, 3]).all()
    assert (good.insertion[:, 3] > bad.insertion[:, 3]).all()
    for curves in (good, bad):
        np.testing.assert_allclose(curves.deletion[:, 0], curves.insertion[:, -1], atol=1e-6)
        np.testing.assert_allclose(curves.deletion[:, -1], curves.insertion[:, 0], atol=1e-6)


def test_correlation_is_scipys_and_nothing_is_left_in_an_even_map():
    rng = np.random.default_rng(0)
    maps, others = rng.random((2, 3, 5, 5))
    others[1] = maps[1] ** 3  # the same ranks
    others[2] = 0.5
    found = correlate(maps, others)
    assert found[0] == pytest.approx(stats.spearmanr(maps[0].ravel(), others[0].ravel())[0])
    assert found[1] == pytest.approx(1)
    assert found[2] == 0
    assert np.isnan(correlate(others, maps)[2])


def test_weights_are_lost_stage_by_stage_from_the_head():
    model, images = deep_model(), red_corners()
    kept = {layer.name: [w.numpy() for w in layer.trainable_weights] for layer in model.layers}

    def lost():
        return [
            name
            for name, before in kept.items()
            if any(
                not np.array_equal(one, weight.numpy())
                for one, weight in zip(before, model.get_layer(name).weights, strict=False)
            )
        ]

    changed = {stage: lost() for stage in lose_weights(model, images)}
    assert changed["logits"] == ["logits"]
    assert set(changed["attention"]) == {"logits", "cbam"}
    assert len(changed["half of backbone"]) < len(changed["all"])
    convolutions = {name for name in kept if name.startswith("conv")}
    assert convolutions <= set(changed["all"])
    for name, before in kept.items():
        for one, weight in zip(before, model.get_layer(name).weights, strict=False):
            np.testing.assert_array_equal(np.sort(one, axis=None), np.sort(weight, axis=None))
    answers = np.asarray(model(images.astype(np.float32)))
    assert np.isfinite(answers).all()
    assert np.abs(answers).max() < 1e3


def test_a_map_of_the_picture_alone_is_caught_surviving():
    """Heatmaps that look at no weight, as an edge detector, against those of a real Grad-CAM."""

    class Edges(Heatmaps):
        def draw(self, images, classes):
            return np.abs(np.gradient(images.astype(np.float32).mean(axis=3), axis=1))

    images = np.random.default_rng(1).integers(0, 256, (8, *SIZE, 3)).astype(np.uint8)
    nothing = Regions(*np.zeros((2, 8, *SIZE), bool), found=np.zeros(8, bool))
    figures = check_heatmaps(Edges(deep_model()), images, [0] * 8, nothing).to_json()
    assert figures["similarity_all"] == pytest.approx(1)
    figures = check_heatmaps(Heatmaps(deep_model()), images, [0] * 8, nothing).to_json()
    assert figures["similarity_all"] < 0.6
    assert figures["nucleus_energy"] is None
    assert figures["confidence_interval_95"]["nucleus_energy"] is None


def test_attention_is_cbams_own_at_the_fields_of_its_map():
    model, images = deep_model(), red_corners()
    maps = draw_attention(model, images)
    assert maps.shape == (len(images), *SIZE)
    cbam = model.get_layer("cbam")
    inner = keras.Model(model.input, [cbam.input, cbam.output])
    before, after = (np.asarray(one) for one in inner(images.astype(np.float32)))
    weighed = np.asarray(cbam.channel_attention(before))
    largest = np.abs(weighed).argmax(axis=-1)[..., np.newaxis]
    pair = (np.take_along_axis(one, largest, axis=-1) for one in (after, weighed))
    shares = np.divide(*pair)  # one channel, not 0, tells a place's weight
    assert 0 < maps.min() <= maps.max() < 1
    assert maps.mean() == pytest.approx(shares.mean(), abs=0.02)
    figures = check_heatmaps(
        Heatmaps(model), images, [0] * 6, Regions(*np.ones((2, 6, *SIZE), bool), np.ones(6, bool))
    ).to_json()
    assert figures["cell_attention"] == pytest.approx(1)
    assert draw_attention(corner_model(), images) is None


@pytest.fixture(scope="module")
def regions():
    rngs = (np.random.default_rng([1, number]) for number in range(6))
    cells = [draw_cell("lymphocyte", size=96, rng=rng) for rng in rngs]
    boxes = np.tile([0.125, 0.125, 0.875, 0.875], (6, 1)).astype(np.float32)
    found = find_regions([cell.image for cell in cells], boxes, image_size=(72, 72))
    return found, np.stack([cell.mask[12:84, 12:84] for cell in cells])


def test_regions_are_where_nucleus_and_cell_were_drawn(regions):
    found, drawn = regions
    assert found.found.all()
    assert found.nucleus.shape == found.cell.shape == (6, 72, 72)
    for mask, truth in ((found.nucleus, drawn == 255), (found.cell, drawn > 0)):
        overlap = (mask & truth).sum(axis=(1, 2)) / (mask | truth).sum(axis=(1, 2))
        assert np.median(overlap) > 0.75
    assert (found.cell | ~found.nucleus).all()


def test_checks_are_told_and_drawn():
    mask = np.zeros((6, *SIZE), bool)
    mask[:, :12] = True
    seen = Regions(mask, mask, np.ones(6, bool))
    checks = check_heatmaps(Heatmaps(corner_model()), red_corners(), [1] * 6, seen)
    figures = checks.to_json()
    assert figures["nucleus_energy"] > 0.95  # the model looks into the upper half alone
    assert figures["nucleus_area"] == 0.5
    assert (figures["method"], figures["cells"]) == ("gradcam", 6)
    gain = figures["deletion"] - figures["deletion_control"]
    assert figures["deletion_gain"] == pytest.approx(gain)
    json.dumps(figures, allow_nan=False)
    axes = plot_checks(checks)
    assert len({ax.get_title() for ax in axes}) == 4
    axes[0].figure.savefig("/dev/null", format="png")
