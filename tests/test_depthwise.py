"""Depthwise convolutions written out: the same answers and gradients from the same weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from wbc_keras.classifier import build_classifier, set_trainable
from wbc_keras.config import ModelConfig
from wbc_keras.training.depthwise import ShiftedSum, is_plain, with_shifted_sums


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 7), (3, 2, 8), (5, 2, 7), (5, 1, 5)])
def test_is_the_convolution(padding, kernel, stride, side):
    layer = keras.layers.DepthwiseConv2D(kernel, stride, padding, use_bias=False)
    images = keras.random.normal((2, side, side + 1, 6), seed=0)
    expected = layer(images)
    np.testing.assert_allclose(ShiftedSum(layer)(images), expected, atol=1e-5)


def test_under_bfloat16_it_is_rounded_once():
    layer = keras.layers.DepthwiseConv2D(5, use_bias=False, dtype="mixed_bfloat16")
    images = keras.random.normal((2, 9, 9, 6), seed=0)
    layer(images)
    ours = ShiftedSum(layer)(images)
    assert keras.backend.standardize_dtype(ours.dtype) == "bfloat16"
    # Its operands are rounded before, and nothing between.
    given, kernel = (
        keras.ops.cast(keras.ops.cast(one, "bfloat16"), "float32") for one in (images, layer.kernel)
    )
    exact = keras.ops.depthwise_conv(given, kernel)
    # Half a unit in the last of 8 bits, at most.
    np.testing.assert_allclose(keras.ops.cast(ours, "float32"), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{"use_bias": True}, {"depth_multiplier": 2}, {"dilation_rate": 2}, {"activation": "relu"}],
)
def test_others_are_left_as_they_are(options):
    layer = keras.layers.DepthwiseConv2D(3, **({"use_bias": False} | options))
    assert not is_plain(layer)
    assert is_plain(keras.layers.DepthwiseConv2D(3, use_bias=False))


@pytest.mark.parametrize("backbone", ["efficientnetb0", "mobilenetv2"])
def test_a_network_keeps_its_answers_gradients_and_file(backbone, tmp_path):
    settings = ModelConfig(backbone, attention="cbam", weights="none", stochastic_depth=0.0)
    network = build_classifier(settings, num_classes=3, image_size=(64, 64))
    written_out = with_shifted_sums(network)
    sums = [layer for layer in written_out.layers if isinstance(layer, ShiftedSum)]
    assert len(sums) == sum(is_plain(layer) for layer in network.layers) > 10
    # In the same order: the state of a run is a list, and may go on on another device.
    assert [id(w) for w in written_out.weights] == [id(w) for w in network.weights]

    images = keras.random.uniform((2, 64, 64, 3), 0, 255, seed=1)
    # Random networks give next to nothing, in which no difference would show.
    faint = keras.Model(network.input, network.get_layer("pooling").output)(images)
    network.get_layer("logits").kernel.assign(
        keras.random.normal((1280, 3), seed=2) / keras.ops.std(faint)
    )
    gradients = []
    for one in (network, written_out):
        with tf.GradientTape() as tape:
            logits = one(images, training=False)
        variables = sorted(one.trainable_variables, key=lambda v: v.path)
        gradients.append((logits, tape.gradient(logits, [v.value for v in variables])))
    (ours, our_gradients), (expected, their_gradients) = gradients[1], gradients[0]
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)
    for mine, theirs in zip(our_gradients, their_gradients, strict=True):
        scale = np.abs(theirs).max()
        np.testing.assert_allclose(mine, theirs, rtol=1e-2, atol=1e-3 * scale + 1e-9)

    set_trainable(network, backbone=False, batch_norm=False)
    assert len(written_out.trainable_variables) == len(network.trainable_variables) < 10
    network.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert len(again.layers) == len(network.layers)
    np.testing.assert_allclose(again(images), expected, rtol=1e-5)
