"""Heatmaps against their closed form: global pooling and a dense layer make gradients constants."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.utils.scores import CategoricalScore

from wbc_keras import gradcam
from wbc_keras.gradcam import METHODS, Heatmaps

SIZE = (16, 16)
CLASSES = 3


def build(stride):
    """``features`` -> mean -> dense, as in every classifier of ours."""
    keras.utils.set_random_seed(1)
    images = keras.Input((*SIZE, 3), name="image")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(5, 3, strides=stride, padding="same", activation="relu")(x)
    x = keras.layers.Activation("linear", name="features")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(CLASSES, name="logits")(x))


def make_heatmaps(model, images, classes, *, method="gradcam"):
    return Heatmaps(model, method).draw(images, classes)


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (7, *SIZE, 3)).astype(np.uint8)


CLASS_OF = [0, 1, 2, 0, 1, 2, 2]


def feature_maps(model, images):
    network = keras.Model(model.input, model.get_layer("features").output)
    return np.asarray(network(images.astype(np.float32)))


def weighted(model, images, weights_of_class):
    """Return ``max(0, sum_k w_kc A_k)`` for each picture's class c."""
    kernel = weights_of_class(np.asarray(model.get_layer("logits").kernel))
    maps = feature_maps(model, images)
    return np.stack([np.maximum(maps[i] @ kernel[:, label], 0) for i, label in enumerate(CLASS_OF)])


def enlarge(maps):
    """Interpolate linearly between the fields' centres, rows then columns."""

    def along(values, size):
        places = (np.arange(size) + 0.5) * len(values) / size - 0.5
        return np.interp(places, np.arange(len(values)), values)

    maps = np.apply_along_axis(along, 1, maps, SIZE[0])
    return np.apply_along_axis(along, 2, maps, SIZE[1])


def peak_of_one(maps):
    peak = maps.max(axis=(1, 2), keepdims=True)
    return np.where(peak > 0, maps / np.maximum(peak, 1e-30), 0)


@pytest.mark.parametrize("stride", [1, 4])
def test_gradcam_is_the_weighted_sum_of_the_feature_maps(images, stride):
    model = build(stride)
    expected = peak_of_one(enlarge(weighted(model, images, lambda kernel: kernel)))
    assert (expected.max(axis=(1, 2)) > 0).sum() >= 4  # or nothing would be tested
    np.testing.assert_allclose(make_heatmaps(model, images, CLASS_OF), expected, atol=1e-4)


def test_gradcam_plus_plus_takes_the_positive_weights(images):
    """Constant gradients make every alpha equal, and leave relu(w) as the weights."""
    model = build(4)
    expected = peak_of_one(enlarge(weighted(model, images, lambda kernel: np.maximum(kernel, 0))))
    out = make_heatmaps(model, images, CLASS_OF, method="gradcam++")
    np.testing.assert_allclose(out, expected, atol=1e-3)


def test_gradcam_is_tf_keras_vis_own(images):
    """On a head that is not linear, so that gradients differ from place to place."""
    model = build(4)
    features = model.get_layer("features").output
    hidden = keras.layers.Dense(6, activation="tanh")(keras.layers.Flatten()(features))
    model = keras.Model(model.input, keras.layers.Dense(CLASSES)(hidden))
    theirs = Gradcam(keras.Model(model.inputs, model.outputs), clone=False)(
        CategoricalScore(CLASS_OF),
        images.astype(np.float32),
        penultimate_layer="features",
        seek_penultimate_conv_layer=False,
        expand_cam=False,
        normalize_cam=False,
    )
    theirs = np.asarray(theirs)
    assert (theirs.max(axis=(1, 2)) > 0).sum() >= 3
    expected = peak_of_one(enlarge(np.maximum(theirs, 0)))
    np.testing.assert_allclose(make_heatmaps(model, images, CLASS_OF), expected, atol=1e-4)


def test_weights_that_change_change_the_maps(images):
    model = build(4)
    heatmaps = Heatmaps(model)
    before = heatmaps.draw(images, CLASS_OF)
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([-kernel, bias])
    after = heatmaps.draw(images, CLASS_OF)
    np.testing.assert_array_equal(after, make_heatmaps(model, images, CLASS_OF))
    assert np.abs(after - before).max() > 0.5


@pytest.mark.parametrize("method", METHODS)
def test_maps_lie_between_0_and_1_with_a_peak_of_1(images, method):
    maps = make_heatmaps(build(4), images, CLASS_OF, method=method)
    assert maps.shape == (7, *SIZE)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    assert set(np.round(maps.max(axis=(1, 2)), 5)) <= {0.0, 1.0}


@pytest.mark.parametrize("method", METHODS)
def test_more_pictures_than_a_batch(images, method, monkeypatch):
    model = build(4)
    together = make_heatmaps(model, images, CLASS_OF, method=method)
    monkeypatch.setattr(gradcam, "_BATCH", dict.fromkeys(METHODS, 3))
    apart = make_heatmaps(model, images, CLASS_OF, method=method)
    np.testing.assert_allclose(apart, together, atol=1e-4)


def test_where_nothing_speaks_for_the_class_the_map_is_0(images):
    model = build(4)
    kernel, bias = model.get_layer("logits").get_weights()
    model.get_layer("logits").set_weights([-np.abs(kernel), bias])
    np.testing.assert_array_equal(make_heatmaps(model, images, CLASS_OF), 0)


def test_model_is_left_as_it_was(images):
    model = build(4)
    before = [np.asarray(weight) for weight in model.weights]
    make_heatmaps(model, images, CLASS_OF)
    assert model.output_shape == (None, CLASSES)
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, b)
