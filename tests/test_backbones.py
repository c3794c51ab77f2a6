"""Backbones in the flat graph against the same networks of keras.applications."""

from __future__ import annotations

import socket
import warnings
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pytest
from keras.src.utils import file_utils

from wbc_keras.backbones import BACKBONES, check_weights, is_head
from wbc_keras.classifier import build_classifier
from wbc_keras.config import ModelConfig
from wbc_keras.errors import ConfigError

SIZE = (64, 64)
NETWORKS = {
    "resnet50": (keras.applications.ResNet50, keras.applications.resnet50),
    "efficientnetb0": (keras.applications.EfficientNetB0, keras.applications.efficientnet),
    "mobilenetv2": (keras.applications.MobileNetV2, keras.applications.mobilenet_v2),
}


@dataclass(frozen=True)
class Case:
    """A network of keras.applications with weights of its own, and the file they are saved in."""

    name: str
    network: keras.Model
    file: Path

    def features(self, images: np.ndarray) -> np.ndarray:
        rule = NETWORKS[self.name][1].preprocess_input
        return run(self.network, rule(images.copy()))


@pytest.fixture(scope="session", params=BACKBONES)
def case(request, tmp_path_factory):
    network = NETWORKS[request.param][0](
        include_top=False, weights=None, input_shape=(*SIZE, 3), name="network"
    )
    randomise(network)
    file = tmp_path_factory.mktemp(request.param) / "backbone.weights.h5"
    network.save_weights(file)
    return Case(request.param, network, file)


@pytest.fixture(scope="session")
def classifier(case):
    return build(case.name, weights=str(case.file))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A saved MobileNetV2 classifier of four classes."""
    model = build("mobilenetv2", weights="none", num_classes=4)
    randomise(model)
    folder = tmp_path_factory.mktemp("run")
    model.save(folder / "model.keras")
    return model, folder


@pytest.fixture(scope="session")
def images():
    return np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype("float32")


def build(backbone, *, weights, num_classes=3, attention="cbam"):
    settings = ModelConfig(backbone=backbone, weights=weights, attention=attention)
    return build_classifier(settings, num_classes=num_classes, image_size=SIZE)


def run(model, images):
    """Return the model's output as NumPy; eagerly, since tracing a network takes much longer."""
    return keras.ops.convert_to_numpy(model(images))


def randomise(model):
    """Shake every weight, so that one left at its initial value is noticed, and keep signals alive.

    With statistics never learned, a random network's features all but vanish; one pass in training
    mode with momentum 0 makes the statistics those of a batch.
    """
    rng = np.random.default_rng(0)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    for layer in model.layers:
        if layer.weights and not isinstance(layer, keras.layers.Normalization):
            layer.set_weights([w * rng.uniform(0.8, 1.2, w.shape) for w in layer.get_weights()])
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(rng.uniform(0, 255, (4, *SIZE, 3)).astype("float32"), training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def backbone_features(model, images):
    following = next(layer for layer in model.layers if is_head(layer.name))
    return run(keras.Model(model.input, following.input), images)


def assert_close(actual, expected):
    assert np.abs(expected).max() > 0.01, "a map of zeros would prove nothing"
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_weights_file_gives_the_network_of_keras_applications(case, classifier, images):
    assert_close(backbone_features(classifier, images), case.features(images))


def test_every_layer_stands_in_one_flat_graph(case, classifier):
    assert not any(isinstance(layer, keras.Model) for layer in classifier.layers)
    own = {layer.name for layer in classifier.layers}
    theirs = {layer.name for layer in case.network.layers if layer.weights}
    # The only name left to a counter.
    assert {name for name in theirs if not name.startswith("normalization")} < own


def test_batch_statistics_are_followed_within_tens_of_steps(classifier):
    norms = [x for x in classifier.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert norms
    assert {layer.momentum for layer in norms} == {0.9}


def test_real_mobilenet_weights_give_the_features_of_keras_applications(mobilenet_weights, images):
    network = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=(*SIZE, 3)
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Skipping nested container")
        network.load_weights(mobilenet_weights)
    expected = Case("mobilenetv2", network, mobilenet_weights).features(images)
    settings = ModelConfig(backbone="mobilenetv2", weights=str(mobilenet_weights))
    check_weights(settings)
    model = build("mobilenetv2", weights=str(mobilenet_weights))
    assert_close(backbone_features(model, images), expected)


@pytest.fixture(scope="session")
def imagenet_file(tmp_path_factory):
    """Weights in the form of EfficientNet's official file."""
    network = keras.applications.EfficientNetB0(
        include_top=False, weights=None, input_shape=(*SIZE, 3)
    )
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    set_normalization(network, mean, deviation**2)
    randomise(network)
    # The official file has the deviation in the variance's place.
    set_normalization(network, mean, deviation)
    file = tmp_path_factory.mktemp("imagenet") / "efficientnetb0.weights.h5"
    network.save_weights(file)
    return file


def set_normalization(network, mean, variance):
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.set_weights([mean, variance, np.array(1)])
            layer.finalize_state()


@pytest.fixture
def imagenet_like(imagenet_file, monkeypatch):
    """Have keras.applications find a file of ours instead of downloading EfficientNet's."""
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: str(imagenet_file))
    return imagenet_file


@pytest.mark.parametrize("by_path", [False, True], ids=["imagenet", "its file"])
def test_efficientnet_normalises_as_its_imagenet_graph_does(imagenet_like, images, by_path):
    network = keras.applications.EfficientNetB0(
        include_top=False, weights="imagenet", input_shape=(*SIZE, 3)
    )
    expected = run(network, images)
    model = build("efficientnetb0", weights=str(imagenet_like) if by_path else "imagenet")
    assert_close(backbone_features(model, images), expected)


def test_folded_normalisation_survives_saving_and_a_second_start(imagenet_like, images, tmp_path):
    model = build("efficientnetb0", weights="imagenet")
    model.save(tmp_path / "model.keras")
    second = build("efficientnetb0", weights=str(tmp_path))
    np.testing.assert_array_equal(
        backbone_features(second, images), backbone_features(model, images)
    )


@pytest.mark.parametrize("backbone", BACKBONES)
def test_unreachable_imagenet_weights_are_an_early_error(backbone, monkeypatch):
    timeouts = []

    def get_file(*_, **__):
        timeouts.append(socket.getdefaulttimeout())
        raise Exception("URL fetch failure on https://example.org:\n Name or service not known")

    monkeypatch.setattr(file_utils, "get_file", get_file)
    with pytest.raises(ConfigError) as caught:
        check_weights(ModelConfig(backbone=backbone, weights="imagenet"))
    message = str(caught.value)
    assert message.startswith(f"model.weights: the imagenet weights of {backbone} cannot be")
    assert "Name or service not known" in message
    assert "set model.weights to a weights file or to none" in message
    assert "\n" not in message
    assert timeouts == [20.0], "a network that never answers must not hang"
    assert socket.getdefaulttimeout() is None


def test_random_weights_need_no_network(monkeypatch):
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: pytest.fail("went to the network"))
    check_weights(ModelConfig(weights="none"))


def test_run_is_continued_with_attention_and_head(small, images):
    model, folder = small
    check_weights(ModelConfig(backbone="mobilenetv2", weights=str(folder)))
    again = build("mobilenetv2", weights=str(folder), num_classes=4)
    np.testing.assert_array_equal(run(again, images), run(model, images))


def test_run_of_other_classes_gives_all_but_the_head(small):
    model, folder = small
    other = build("mobilenetv2", weights=str(folder / "model.keras"), num_classes=6)
    for layer in other.layers:
        if layer.name != "logits":
            expected = model.get_layer(layer.name).get_weights()
            for actual, weight in zip(layer.get_weights(), expected, strict=True):
                np.testing.assert_array_equal(actual, weight)
    assert not other.get_layer("logits").bias.numpy().any()


def test_run_with_attention_gives_its_backbone_to_a_model_without(small, images):
    model, folder = small
    plain = build("mobilenetv2", weights=str(folder), attention="none")
    expected = backbone_features(model, images)
    np.testing.assert_array_equal(backbone_features(plain, images), expected)


def test_run_of_another_backbone_is_refused(small):
    _, folder = small
    with pytest.raises(ConfigError, match=r"model\.weights: .* holds another network than resnet"):
        build("resnet50", weights=str(folder))


def test_weights_of_another_backbone_are_refused(case):
    other = "mobilenetv2" if case.name == "resnet50" else "resnet50"
    with pytest.raises(ConfigError, match=r"model\.weights: .* does not fit") as caught:
        build(other, weights=str(case.file))
    assert "\n" not in str(caught.value)
    assert other in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.h5", None, "no such file.*missing.h5.*expected imagenet, none,"),
        ("weights.ckpt", b"", "expected a .h5 or .keras file"),
        ("weights.h5", b"<html>not found</html>", "damaged or no .h5 file"),
        ("model.keras", b"", "damaged or no .keras file"),
    ],
)
def test_unusable_path_is_an_early_error(tmp_path, name, content, message):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"model\.weights: .*{message}"):
        check_weights(ModelConfig(weights=str(path)))


def test_folder_without_a_model_is_an_early_error(tmp_path):
    with pytest.raises(ConfigError, match=r"no such file: .*model\.keras"):
        check_weights(ModelConfig(weights=str(tmp_path)))


@pytest.mark.parametrize("name", ["model.keras", "backbone.weights.h5"])
def test_truncated_file_is_one_line(small, tmp_path, name):
    path = tmp_path / name
    if name.endswith(".keras"):
        whole = (small[1] / name).read_bytes()
    else:
        small[0].save_weights(path)
        whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConfigError, match=r"model\.weights: ") as caught:
        build("mobilenetv2", weights=str(path))
    assert "\n" not in str(caught.value)
