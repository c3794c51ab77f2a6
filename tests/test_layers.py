"""CBAM against NumPy, computed from its weights."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from wbc_keras.layers import CBAM, CaffeInput, ChannelAttention, SpatialAttention, SqueezeExcitation

TOLERANCE = {"float32": 1e-5, "mixed_bfloat16": 0.03, "mixed_float16": 0.005}


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(3, 5, 7, 24)).astype("float32")


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def expected_channel_attention(features, reduce, expand):
    """Woo et al. 2018, eq. 2."""
    pools = [features.mean(axis=(1, 2)), features.max(axis=(1, 2))]
    weights = sigmoid(sum(np.maximum(pool @ reduce, 0) @ expand for pool in pools))
    return features * weights[:, None, None, :]


def expected_spatial_attention(features, kernel):
    """Woo et al. 2018, eq. 3, the convolution written out."""
    maps = np.stack([features.mean(axis=-1), features.max(axis=-1)], axis=-1)
    side = kernel.shape[0]
    before, after = (side - 1) // 2, side // 2
    padded = np.pad(maps, ((0, 0), (before, after), (before, after), (0, 0)))
    _, height, width, _ = features.shape
    weights = sum(
        padded[:, dy : dy + height, dx : dx + width] @ kernel[dy, dx]
        for dy in range(side)
        for dx in range(side)
    )
    return features * sigmoid(weights)


def expected_cbam(features, layer):
    reduce, expand, kernel = layer.get_weights()
    return expected_spatial_attention(expected_channel_attention(features, reduce, expand), kernel)


@pytest.mark.parametrize("policy", TOLERANCE)
def test_cbam_equals_numpy(features, policy):
    layer = CBAM(reduction_ratio=4, kernel_size=7, dtype=policy)
    output = layer(features)
    assert keras.backend.standardize_dtype(output.dtype) == layer.compute_dtype
    assert {weight.dtype for weight in layer.weights} == {"float32"}
    output = keras.ops.convert_to_numpy(keras.ops.cast(output, "float32"))
    np.testing.assert_allclose(
        output, expected_cbam(features, layer), atol=TOLERANCE[policy], rtol=TOLERANCE[policy]
    )


def test_squeeze_and_excitation_equals_numpy(features):
    layer = SqueezeExcitation(reduction_ratio=4)
    output = layer(features)
    reduce, expand = layer.get_weights()
    weights = sigmoid(np.maximum(features.mean(axis=(1, 2)) @ reduce, 0) @ expand)
    np.testing.assert_allclose(output, features * weights[:, None, None, :], atol=1e-5)


@pytest.mark.parametrize("kernel_size", [1, 3, 7])
def test_spatial_attention_equals_numpy(features, kernel_size):
    layer = SpatialAttention(kernel_size)
    output = layer(features)
    expected = expected_spatial_attention(features, *layer.get_weights())
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_channel_attention_has_at_least_one_hidden_unit(features):
    layer = ChannelAttention(reduction_ratio=100)
    output = layer(features)
    assert layer.count_params() == 24 * 1 + 1 * 24
    expected = expected_channel_attention(features, *layer.get_weights())
    np.testing.assert_allclose(output, expected, atol=1e-5)


def test_weights_carry_the_names_of_their_parts():
    layer = CBAM(reduction_ratio=8, name="cbam")
    layer.build((None, 6, 6, 64))
    assert {weight.path: tuple(weight.shape) for weight in layer.weights} == {
        "cbam/channel_attention/reduce/kernel": (64, 8),
        "cbam/channel_attention/expand/kernel": (8, 64),
        "cbam/spatial_attention/convolution/kernel": (7, 7, 2, 1),
    }


def test_config_round_trip():
    layer = CBAM(reduction_ratio=4, kernel_size=5, name="cbam", dtype="mixed_bfloat16")
    again = CBAM.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.channel_attention.reduction_ratio, again.spatial_attention.kernel_size) == (4, 5)
    assert again.compute_dtype == again.spatial_attention.compute_dtype == "bfloat16"


def test_saved_and_loaded_layers_give_equal_outputs(features, tmp_path):
    inputs = keras.Input((None, None, 24))
    model = keras.Model(inputs, CBAM(reduction_ratio=4, kernel_size=5)(inputs))
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(again(features), model(features))


@pytest.mark.parametrize("policy", TOLERANCE)
def test_training_step_under_xla_moves_every_weight(features, policy):
    keras.config.set_dtype_policy(policy)
    inputs = keras.Input(features.shape[1:])
    layer = CBAM(reduction_ratio=4, kernel_size=3)
    pooled = keras.layers.GlobalAveragePooling2D()(layer(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, dtype="float32")(pooled))
    model.compile("sgd", "mse", jit_compile=True)
    before = layer.get_weights()
    loss = model.train_on_batch(features, np.ones((3, 2)))
    assert np.isfinite(loss)
    after = layer.get_weights()
    assert all((new != old).any() for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CBAM(reduction_ratio=0), "Received: reduction_ratio=0"),
        (lambda: CBAM(kernel_size=0), "Received: kernel_size=0"),
    ],
)
def test_impossible_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_caffe_input_equals_preprocess_input():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3)).astype("float32")
    expected = keras.applications.resnet50.preprocess_input(images.copy())
    np.testing.assert_allclose(CaffeInput()(images), expected, atol=1e-4)
