"""The classifier: backbone, attention and head in one flat graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import keras
import numpy as np

from wbc_keras.backbones import build_backbone, copy_weights, is_head, load_weights
from wbc_keras.config import ModelConfig
from wbc_keras.errors import RunError
from wbc_keras.layers import CBAM, SqueezeExcitation
from wbc_keras.prediction.symmetries import MakeViews, MergeViews


def build_classifier(
    settings: ModelConfig, *, num_classes: int, image_size: tuple[int, int], symmetries: int = 1
) -> keras.Model:
    """Build the network and load the weights it starts from.

    Args:
        settings: backbone, attention, dropout, stochastic depth and weights.
        num_classes: width of the output.
        image_size: height and width of the input.
        symmetries: 1, or how many views of each picture are averaged (`symmetries`). Training
            takes one: `average_symmetries` adds the others to what was trained.

    Returns:
        a model from ``image``, RGB 0-255 ``(batch, height, width, 3)``, to ``logits``, float32
        ``(batch, num_classes)``. Its layer ``features`` gives the feature map that is pooled: what
        Grad-CAM reads.

    Raises:
        ConfigError: ``model.weights`` cannot be had or does not fit.
    """
    images = keras.Input((*image_size, 3), dtype="float32", name="image")
    attention = _make_attention(settings)
    between = attention if settings.attention_at == "stages" else None
    views = MakeViews(symmetries, name="views")(images) if symmetries > 1 else images
    features = build_backbone(
        settings.backbone, views, stochastic_depth=settings.stochastic_depth, between=between
    )
    if attention is not None:
        features = attention(settings.attention)(features)
    if symmetries > 1:
        features = MergeViews(symmetries, name="merged_views")(features)
    # Gives Grad-CAM one name to read at, with attention or without.
    features = keras.layers.Activation("linear", name="features")(features)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooling")(features)
    pooled = keras.layers.Dropout(settings.dropout, name="dropout")(pooled)
    # Under mixed precision too, the loss and the probabilities deserve float32.
    logits = keras.layers.Dense(num_classes, dtype="float32", name="logits")(pooled)
    model = keras.Model(images, logits, name=f"{settings.backbone}_classifier")
    load_weights(model, settings)
    return model


def average_symmetries(model: keras.Model, settings: ModelConfig) -> keras.Model:
    """Return a trained model that averages over ``settings.symmetries`` views; with 1, itself."""
    if settings.symmetries == 1:
        return model
    averaging = build_classifier(
        dataclasses.replace(settings, weights="none"),
        num_classes=model.output.shape[-1],
        image_size=model.input.shape[1:3],
        symmetries=settings.symmetries,
    )
    copy_weights(model, averaging, settings)
    return averaging


def merge_classifiers(models: Sequence[keras.Model]) -> keras.Model:
    """Return one model that gives the mean of trained models' logits.

    Their feature maps lie side by side as channels: as pooling and the last layer are linear, one
    layer over all of them gives exactly the mean, and what reads the feature map (heatmaps,
    novelty) sees all of it.

    Args:
        models: of `build_classifier`, with inputs and classes alike.

    Raises:
        RunError: their feature maps have other heights and widths.
    """
    images = keras.Input(models[0].input.shape[1:], dtype="float32", name="image")
    maps = [
        keras.Model(one.input, one.get_layer("features").output, name=f"member_{place}")(images)
        for place, one in enumerate(models)
    ]
    sides = {one.shape[1:3] for one in maps}
    if len(sides) > 1:
        raise RunError(f"networks with feature maps of {sorted(sides)} cannot be averaged in one")
    features = keras.layers.Concatenate(name="features")(maps)
    pooled = keras.layers.GlobalAveragePooling2D(name="pooling")(features)
    classes = models[0].output.shape[-1]
    model = keras.Model(images, keras.layers.Dense(classes, name="logits")(pooled), name="merged")
    weights = zip(*(one.get_layer("logits").get_weights() for one in models), strict=True)
    kernels, biases = weights
    kernel = np.concatenate(kernels) / len(models)
    model.get_layer("logits").set_weights([kernel, np.mean(biases, axis=0)])
    return model


def average_weights(models: Sequence[keras.Model], shares: Sequence[float]) -> keras.Model:
    """Return the first of the trained models with the weighted mean of all their weights.

    One network of one network's time. It works for a run and the one it was trained on from, whose
    weights lie near each other: what lies between is often better than both, at home and away
    (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", eq. 1). It does not for runs
    from different random weights.

    Args:
        models: of `build_classifier`, all of one architecture. The first is changed.
        shares: how much each counts, relative to the sum.

    Raises:
        RunError: their weights have other shapes.
    """
    first = models[0]
    shapes = [[weight.shape for weight in one.weights] for one in models]
    if any(one != shapes[0] for one in shapes):
        raise RunError(
            "the weights of networks of other architectures cannot be averaged; without --weights "
            "their logits are"
        )
    kinds = zip(*(one.get_weights() for one in models), strict=True)
    first.set_weights([np.average(weights, axis=0, weights=shares) for weights in kinds])
    return first


def _make_attention(settings: ModelConfig) -> Callable[[str], keras.layers.Layer] | None:
    """Return what makes an attention layer of a given name, or None."""
    if settings.attention == "cbam":
        return lambda name: CBAM(settings.reduction_ratio, settings.kernel_size, name=name)
    if settings.attention == "se":
        return lambda name: SqueezeExcitation(settings.reduction_ratio, name=name)
    return None


def set_trainable(model: keras.Model, *, backbone: bool, batch_norm: bool) -> None:
    """Choose what learns; attention and head always do. Compile the model afterwards.

    Args:
        model: of `build_classifier`, also after saving and loading.
        backbone: whether the backbone learns.
        batch_norm: whether its batch normalisation learns too. If not, it also keeps its moving
            statistics and normalises by them, as in inference.
    """
    for layer in model.layers:
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = is_head(layer.name) or (backbone and (batch_norm or not is_norm))
