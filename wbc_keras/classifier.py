"""The classifier: backbone, attention and head in one flat graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras

from wbc_keras.backbones import build_backbone, copy_weights, is_head, load_weights
from wbc_keras.config import ModelConfig
from wbc_keras.layers import CBAM, SqueezeExcitation
from wbc_keras.symmetries import MakeViews, MergeViews


def build_classifier(
    settings: ModelConfig, *, num_classes: int, image_size: tuple[int, int], symmetries: int = 1
) -> keras.Model:
    """Build the network and load the weights it starts from.

    Args:
        settings: backbone, attention, dropout and weights.
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
    features = build_backbone(settings.backbone, views, between=between)
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
