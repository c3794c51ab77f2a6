"""The assembled classifier: its graph, its parameters by hand, what learns, and round trips."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from wbc_keras.backbones import BACKBONES, copy_weights
from wbc_keras.classifier import build_classifier, set_trainable
from wbc_keras.config import ModelConfig
from wbc_keras.losses import FocalLoss

SIZE = (64, 96)
CLASSES = 5
# Channels of the feature map, and parameters without the top as keras.applications publishes them.
BACKBONE_FACTS = {
    "resnet50": (2048, 23_587_712),
    "efficientnetb0": (1280, 4_049_571),
    "mobilenetv2": (1280, 2_257_984),
}


def build(backbone="mobilenetv2", size=SIZE, **settings):
    config = ModelConfig(backbone=backbone, weights="none", **settings)
    return build_classifier(config, num_classes=CLASSES, image_size=size)


def run(model, images):
    """Return the model's output as NumPy; eagerly, since tracing a network takes much longer."""
    return keras.ops.convert_to_numpy(model(images))


def settle(model, images):
    """Make the moving statistics those of a batch; unlearned, they let the features vanish."""
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    for layer in norms:
        layer.momentum = 0.0
    model(images, training=True)
    for layer in norms:
        layer.momentum = 0.9
    return model


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3)).astype("float32")


@pytest.fixture(scope="session")
def built(images):
    """Each backbone with attention, built once."""
    return {name: settle(build(name), images) for name in BACKBONES}


@pytest.fixture(params=BACKBONES)
def model(request, built):
    set_trainable(built[request.param], backbone=True, batch_norm=True)
    return built[request.param]


def test_takes_pictures_and_gives_float32_logits(model, images):
    assert model.input.name == "image"
    assert model.input_shape == (None, *SIZE, 3)
    assert model.output_shape == (None, CLASSES)
    logits = run(model, images)
    assert logits.dtype == np.float32
    assert model.get_layer("logits").activation is keras.activations.linear


def test_parameters_are_backbone_attention_and_head(model):
    channels, backbone = BACKBONE_FACTS[model.name.removesuffix("_classifier")]
    attention = 2 * channels * (channels // 16) + 7 * 7 * 2
    head = channels * CLASSES + CLASSES
    assert model.count_params() == backbone + attention + head


def test_without_attention_only_its_parameters_are_missing():
    channels, backbone = BACKBONE_FACTS["mobilenetv2"]
    model = build(attention="none")
    assert "cbam" not in {layer.name for layer in model.layers}
    assert model.count_params() == backbone + channels * CLASSES + CLASSES


def test_squeeze_and_excitation_has_the_channels_kernels_alone():
    channels, backbone = BACKBONE_FACTS["mobilenetv2"]
    model = build(attention="se")
    attention = 2 * channels * (channels // 16)
    assert model.count_params() == backbone + attention + channels * CLASSES + CLASSES
    assert model.get_layer("features").input is model.get_layer("se").output


# Channels after the stages at 1/4, 1/8 and 1/16, of the papers' tables.
STAGES = {
    "resnet50": (256, 512, 1024),
    "efficientnetb0": (24, 40, 112),
    "mobilenetv2": (24, 32, 96),
}


@pytest.mark.parametrize("backbone", STAGES)
def test_attention_at_stages_stands_before_each_halving_in_one_flat_graph(backbone):
    model = build(backbone=backbone, attention_at="stages")
    found = [layer for layer in model.layers if layer.name.startswith("after_")]
    shapes = [tuple(layer.output.shape[1:]) for layer in found]
    assert shapes == [
        (SIZE[0] // step, SIZE[1] // step, width)
        for step, width in zip((4, 8, 16), STAGES[backbone], strict=True)
    ]
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    # Each is on the way: what follows the stage takes the attention's output.
    for layer in found:
        stage = model.get_layer(layer.name.removeprefix("after_"))
        assert [node.operation for node in stage._outbound_nodes] == [layer]


def test_attention_at_stages_learns_with_the_head(tmp_path):
    model = build(attention_at="stages")
    set_trainable(model, backbone=False, batch_norm=False)
    learning = {weight.path.split("/")[0] for weight in model.trainable_variables}
    stages = {"after_block_2_add", "after_block_5_add", "after_block_12_add"}
    assert learning == {"cbam", "logits", *stages}


@pytest.mark.parametrize("backbone", STAGES)
def test_stochastic_depth_leaves_blocks_out_in_training_alone(backbone):
    model = build(backbone=backbone, size=(32, 32), stochastic_depth=0.6)
    adds = [layer for layer in model.layers if isinstance(layer, keras.layers.Add)]
    place = len(adds) // 2
    block = adds[place - 1]
    shortcut = next(one for one in block.input if "_drop" not in one._keras_history.operation.name)
    both = keras.Model(model.input, [shortcut, block.output])
    cells = np.random.default_rng(0).integers(0, 256, (200, 32, 32, 3)).astype("float32")
    before, after = (keras.ops.convert_to_numpy(one) for one in both(cells, training=True))
    left_out = np.all(before == after, axis=(1, 2, 3))
    expected = 0.6 * place / len(adds)  # eq. 4 of Huang et al. 2016, as a share left out
    assert left_out.mean() == pytest.approx(expected, abs=4 * (expected / 200) ** 0.5)

    plain = build(backbone=backbone, size=(32, 32))
    copy_weights(model, plain, ModelConfig(backbone=backbone, weights="none"))
    np.testing.assert_allclose(run(plain, cells[:4]), run(model, cells[:4]), atol=1e-5)


def test_without_the_setting_stochastic_depth_is_the_backbone_s_own():
    def rates(**settings):
        layers = build(**settings).layers
        return [layer.rate for layer in layers if layer.name.endswith("_drop")]

    assert rates(backbone="mobilenetv2") == []
    assert 0.17 < max(rates(backbone="efficientnetb0")) < 0.2
    assert max(rates(backbone="efficientnetb0", stochastic_depth=0.0)) == 0


def test_settings_reach_their_layers():
    model = build(reduction_ratio=8, kernel_size=3, dropout=0.4)
    config = model.get_layer("cbam").get_config()
    assert (config["reduction_ratio"], config["kernel_size"]) == (8, 3)
    assert model.get_layer("dropout").rate == 0.4


def test_logits_are_the_dense_layer_over_the_mean_features(model, images):
    layer = model.get_layer("features")
    features = run(keras.Model(model.input, layer.output), images)
    channels, _ = BACKBONE_FACTS[model.name.removesuffix("_classifier")]
    assert features.shape == (4, SIZE[0] // 32, SIZE[1] // 32, channels)
    kernel, bias = model.get_layer("logits").get_weights()
    expected = features.mean(axis=(1, 2)) @ kernel + bias
    np.testing.assert_allclose(run(model, images), expected, rtol=1e-3, atol=1e-4)


def test_features_are_what_the_attention_gives(model):
    assert model.get_layer("features").input is model.get_layer("cbam").output


def test_head_starts_without_a_preference(model):
    assert not model.get_layer("logits").bias.numpy().any()


def test_saved_and_loaded_model_gives_equal_logits(model, images, tmp_path):
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(again, images), run(model, images))


def split_weights(model):
    """Return the trainable weights: of the head, of batch normalisation, all others."""
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    norm_ids = {id(weight) for layer in norms for weight in layer.weights}
    paths = [weight.path for weight in model.trainable_variables]
    head = [path for path in paths if path.startswith(("cbam/", "logits/"))]
    norm = [w.path for w in model.trainable_variables if id(w) in norm_ids]
    return head, norm, [path for path in paths if path not in {*head, *norm}]


@pytest.mark.parametrize("loaded", [False, True], ids=["built", "loaded"])
def test_set_trainable_chooses_what_learns(built, tmp_path, loaded):
    model = built["mobilenetv2"]
    if loaded:
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
    set_trainable(model, backbone=True, batch_norm=True)
    head, norm, backbone = split_weights(model)
    assert len(head) == 5  # the attention's three kernels, the head's kernel and bias
    assert len(norm) == 2 * 52
    assert backbone

    set_trainable(model, backbone=False, batch_norm=True)
    assert split_weights(model) == (head, [], [])
    set_trainable(model, backbone=True, batch_norm=False)
    assert split_weights(model) == (head, [], backbone)
    set_trainable(model, backbone=True, batch_norm=True)
    assert split_weights(model) == (head, norm, backbone)


@pytest.mark.parametrize("backbone", [False, True], ids=["head", "fine-tuning"])
def test_step_changes_what_learns_and_nothing_else(images, backbone):
    model = settle(build(), images)
    set_trainable(model, backbone=backbone, batch_norm=False)
    model.compile("sgd", FocalLoss())
    before = {weight.path: weight.numpy() for weight in model.weights}
    model.train_on_batch(images, np.arange(4))
    changed = {w.path for w in model.weights if (w.numpy() != before[w.path]).any()}
    learning = {weight.path for weight in model.trainable_variables}
    assert changed <= learning, "also the moving statistics of frozen normalisation stay"
    assert {"logits/kernel", "logits/bias"} <= changed
    assert any(path.startswith("Conv1/") for path in changed) == backbone


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_gives_nearly_the_same_float32_logits(built, images, policy):
    model = built["mobilenetv2"]
    keras.config.set_dtype_policy(policy)
    mixed = build()
    keras.config.set_dtype_policy("float32")
    mixed.set_weights(model.get_weights())
    assert mixed.get_layer("cbam").compute_dtype == policy.removeprefix("mixed_")
    logits, expected = (run(m, images) for m in (mixed, model))
    assert logits.dtype == np.float32
    # A random network of fifty layers multiplies rounding: only the likeness can be asked.
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.8
