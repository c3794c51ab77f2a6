"""Backbones by name: network, input rule and pretrained weights.

A backbone is built on the model's own input, so that each of its layers stands in the classifier's
one flat graph. Its input rule is part of that graph: models take RGB 0-255 whatever the backbone.
"""

from __future__ import annotations

import logging
import re
import socket
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

from wbc_keras import runs
from wbc_keras.config import ModelConfig
from wbc_keras.errors import ConfigError
from wbc_keras.layers import CaffeInput

logger = logging.getLogger(__name__)

# What the classifier puts on a backbone, by layer name; every other layer is the backbone's.
_HEAD_LAYERS = ("cbam", "se", "features", "pooling", "dropout", "logits")
# Attention between the stages is named for the layer it follows: after_block2b_add.
_BETWEEN = "after_"

# Of the batch statistics' moving averages. The 0.99 and 0.999 of keras.applications suit ImageNet's
# epochs; on thousands of cells, averages that slow lag behind the network for most of a training.
_MOMENTUM = 0.9
_TIMEOUT = 20.0  # seconds without an answer from the network
_MAGIC = {".keras": b"PK\x03\x04", ".h5": b"\x89HDF\r\n\x1a\n"}
_IMAGENET_DEVIATION = np.array([0.229, 0.224, 0.225])  # RGB 0-1, as EfficientNet was trained


@dataclass(frozen=True)
class Backbone:
    """A network of keras.applications with the rule that makes its input of RGB 0-255."""

    network: Callable[..., keras.Model]
    input_rule: Callable[[], keras.layers.Layer] | None
    stages: tuple[str, ...]  # the last layer before each halving of the map from 1/4 to 1/32


def _scale_to_one() -> keras.layers.Layer:
    return keras.layers.Rescaling(1 / 127.5, offset=-1.0, dtype="float32", name="input_rule")


def _caffe_input() -> keras.layers.Layer:
    return CaffeInput(dtype="float32", name="input_rule")


# EfficientNet scales inside its own graph.
BACKBONES = {
    "resnet50": Backbone(
        keras.applications.ResNet50,
        _caffe_input,
        ("conv2_block3_out", "conv3_block4_out", "conv4_block6_out"),
    ),
    "efficientnetb0": Backbone(
        keras.applications.EfficientNetB0, None, ("block2b_add", "block3b_add", "block5c_add")
    ),
    "mobilenetv2": Backbone(
        keras.applications.MobileNetV2,
        _scale_to_one,
        ("block_2_add", "block_5_add", "block_12_add"),
    ),
}


def is_head(layer: str) -> bool:
    """Tell whether the layer of this name is the classifier's own, not the backbone's."""
    return layer in _HEAD_LAYERS or layer.startswith(_BETWEEN)


def build_backbone(
    name: str,
    images: Any,
    *,
    stochastic_depth: float | None = None,
    between: Callable[[str], keras.layers.Layer] | None = None,
) -> Any:
    """Return the feature map of the backbone ``name``, with random weights.

    Args:
        name: a key of `BACKBONES`.
        images: the model's input, a Keras tensor ``(batch, height, width, 3)``, RGB 0-255.
        stochastic_depth: how often training leaves out the last residual block; earlier ones
            linearly less (Huang et al. 2016, "Deep networks with stochastic depth", eq. 4). None:
            as keras.applications has it, up to 0.2 in EfficientNet, 0 in the others.
        between: makes a layer of a given name that is put after each stage but the last.

    Returns:
        a Keras tensor ``(batch, height / 32, width / 32, channels)``.
    """
    backbone = BACKBONES[name]
    if backbone.input_rule is not None:
        images = backbone.input_rule()(images)
    network = backbone.network(include_top=False, weights=None, input_tensor=images)
    rates = {} if stochastic_depth is None else _rates(network, stochastic_depth)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = _MOMENTUM
        elif isinstance(layer, keras.layers.Dropout) and rates:
            layer.rate = rates.pop(layer.name.replace("_drop", "_add"))
    if not rates and between is None:
        return network.output
    return _insert(network, rates, backbone.stages, between)


def _rates(network: keras.Model, last: float) -> dict[str, float]:
    """Return how often each residual block is left out, by the layer that adds it."""
    names = [layer.name for layer in network.layers if isinstance(layer, keras.layers.Add)]
    return {name: last * place / len(names) for place, name in enumerate(names, start=1)}


def _insert(
    network: keras.Model,
    rates: Mapping[str, float],
    stages: tuple[str, ...],
    between: Callable[[str], keras.layers.Layer] | None,
) -> Any:
    """Build the network again with more layers in it; one flat graph still.

    The blocks of ``rates`` are left out so often; a layer of ``between`` follows each stage.
    """

    def call(layer: keras.layers.Layer, *args: Any, **kwargs: Any) -> Any:
        if rate := rates.get(layer.name):
            (shortcut, block), *_ = args
            name = layer.name.replace("_add", "_drop")
            drop = keras.layers.Dropout(rate, noise_shape=(None, 1, 1, 1), name=name)
            args = ([shortcut, drop(block)],)
        output = layer(*args, **kwargs)
        if between is None or layer.name not in stages:
            return output
        return between(_BETWEEN + layer.name)(output)

    # From the picture on, so that the input rule is built again too.
    again = keras.models.clone_model(network, input_tensors=network.input, call_function=call)
    return again.output


def check_weights(settings: ModelConfig) -> None:
    """Find out early, before data is read, whether ``model.weights`` can be had.

    ImageNet weights are downloaded here, unless an earlier run has; a file is only looked at.

    Raises:
        ConfigError: no network, no such file, or not a file of weights or a model.
    """
    if settings.weights == "imagenet":
        _download(settings.backbone)
    elif settings.weights != "none":
        _find_file(settings.weights)


def load_weights(model: keras.Model, settings: ModelConfig) -> None:
    """Load ``model.weights`` into a classifier whose backbone is ``settings.backbone``.

    ``imagenet`` and a ``.h5`` file hold a backbone alone; a run folder or ``.keras`` file holds a
    classifier, of which the attention and the head are taken where their shapes agree.

    Raises:
        ConfigError: as `check_weights`, or the file's network is another one.
    """
    if settings.weights == "none":
        return
    if settings.weights == "imagenet":
        source = _download(settings.backbone)
    else:
        path = _find_file(settings.weights)
        source = _load_classifier(path) if path.suffix == ".keras" else _load_bare(path, settings)
    copy_weights(source, model, settings)


def _download(name: str) -> keras.Model:
    """Return the network with ImageNet weights, from Keras's own cache if they are there."""
    try:
        with _network_timeout(_TIMEOUT):
            source = _build_bare(name, weights="imagenet")
    except Exception as error:  # keras.utils.get_file raises no narrower one
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"model.weights: the imagenet weights of {name} cannot be downloaded ({reason}); "
            "connect to the network once, or set model.weights to a weights file or to none "
            "(random weights)"
        ) from error
    _fold_normalization(source)
    return source


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _find_file(weights: str) -> Path:
    """Return the file that ``model.weights`` names; a run folder stands for its model."""
    path = runs.find_folder(weights)
    if path.is_dir():
        path = path / "model.keras"
    if not path.is_file():
        raise ConfigError(
            f"model.weights: no such file: {path}; expected imagenet, none, a .h5 file of the "
            f"backbone's weights, a run folder or a .keras file{runs.say_shipped()}. "
            f"Received: {weights!r}"
        )
    if path.suffix not in _MAGIC:
        raise ConfigError(f"model.weights: expected a .h5 or .keras file. Received: {weights!r}")
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith(_MAGIC[path.suffix]):
        raise ConfigError(
            f"model.weights: {path} is damaged or no {path.suffix} file; fetch it again"
        )
    return path


def _build_bare(name: str, *, weights: str | None) -> keras.Model:
    """Build the network alone, at the size of the ImageNet files; weights fit any size."""
    return BACKBONES[name].network(include_top=False, weights=weights, input_shape=(224, 224, 3))


def _load_bare(path: Path, settings: ModelConfig) -> keras.Model:
    source = _build_bare(settings.backbone, weights=None)
    try:
        with warnings.catch_warnings():
            # Keras 3.15 warns of this for every layer of an older file, and then loads it rightly.
            warnings.filterwarnings("ignore", "Skipping nested container")
            source.load_weights(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"model.weights: {path} does not fit {settings.backbone} without its top "
            f"({_first_sentence(error)}); choose its backbone as model.backbone, or another file"
        ) from error
    _fold_normalization(source)
    return source


def _load_classifier(path: Path) -> keras.Model:
    try:
        return keras.saving.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"model.weights: {path} cannot be loaded as a model ({_first_sentence(error)}); "
            "expected one that wbc_keras.train wrote"
        ) from error


def _first_sentence(error: Exception) -> str:
    return re.split(r"[.\n]\s", " ".join(str(error).split()) + " ")[0]


def _fold_normalization(source: keras.Model) -> None:
    """Make EfficientNet's ImageNet input scale part of its normalisation.

    ImageNet files hold the deviation where Normalization expects its square. keras.applications
    mends that by one more Rescaling, (x - mean) / sqrt(variance) / sqrt(deviation), but only in the
    graph of ``weights="imagenet"``. A variance times the deviation gives the same in every graph.
    """
    for layer in source.layers:
        if isinstance(layer, keras.layers.Normalization):
            mean, variance, count = layer.get_weights()
            if not np.all(variance == 1.0):  # 1: never adapted, so not from ImageNet
                _set_weights(layer, [mean, variance * _IMAGENET_DEVIATION, count])


def copy_weights(source: keras.Model, model: keras.Model, settings: ModelConfig) -> None:
    """Give a model's layers the weights of those of the same name in another one.

    Layers of the head that the other lacks, or has in another shape, keep their own.

    Raises:
        ConfigError: the backbones differ.
    """
    sources = _weighted(source.layers)
    targets = _weighted(model.layers)
    names = {name for name in (*sources, *targets) if not is_head(name)}
    differing = [name for name in names if _shapes(sources, name) != _shapes(targets, name)]
    if differing:
        raise ConfigError(
            f"model.weights: {settings.weights} holds another network than {settings.backbone}: "
            f"{len(differing)} of {len(names)} layers differ, such as {min(differing)}; "
            "choose its backbone as model.backbone"
        )
    for name, layer in targets.items():
        if _shapes(sources, name) == _shapes(targets, name):
            _set_weights(layer, sources[name].get_weights())
        else:
            logger.info("%s: starts from random weights", name)


def _weighted(layers: Iterable[keras.layers.Layer]) -> dict[str, keras.layers.Layer]:
    """Return the layers with weights by name."""
    return {_stable_name(layer): layer for layer in layers if layer.weights}


def _stable_name(layer: keras.layers.Layer) -> str:
    """EfficientNet leaves its normalisation's name to a counter of the process."""
    return "normalization" if isinstance(layer, keras.layers.Normalization) else layer.name


def _shapes(layers: dict[str, keras.layers.Layer], name: str) -> list[tuple[int, ...]] | None:
    return [tuple(weight.shape) for weight in layers[name].weights] if name in layers else None


def _set_weights(layer: keras.layers.Layer, weights: list[np.ndarray]) -> None:
    layer.set_weights(weights)
    if isinstance(layer, keras.layers.Normalization):
        layer.finalize_state()  # it computes with constants made of its weights
