"""Are heatmaps explanations? Three checks of what they show of a model.

Where the heat lies (in nucleus and cell), and CBAM's attention with it; what the answer does when
the hottest places are taken away or given back (deletion and insertion, Petsiuk et al. 2018); and
whether the maps change when the model's weights are lost (Adebayo et al. 2018): a map that survives
that explains nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import keras
import numpy as np
import tensorflow as tf
from scipy import stats

from wbc_keras.backbones import is_head
from wbc_keras.gradcam import Heatmaps, enlarge
from wbc_keras.layers import CBAM
from wbc_keras.pictures.localize import crop, locate, make_thumbnail
from wbc_keras.prediction.symmetries import MergeViews
from wbc_keras.statistics.bootstrap import Interval, bootstrap_intervals, plan_resampling
from wbc_keras.statistics.probabilities import softmax

STEPS = 10  # of the pixels, from none to all
_BATCH = 64
_BLUR = 1 / 6  # of the side: a cell's shape is gone, its colour is not
# The head, its attention, then the backbone from its end; each stage keeps what was lost before.
_STAGES = ("logits", "attention", "half of backbone", "all")


@dataclass(frozen=True)
class Regions:
    """Where the nucleus and the cell are in n crops: bool ``(n, height, width)``.

    found: bool ``(n,)``, whether there was a nucleus at all.
    """

    nucleus: np.ndarray
    cell: np.ndarray
    found: np.ndarray


@dataclass(frozen=True)
class Curves:
    """The class's probability after each step of taking pixels away, or of giving them back.

    Each ``(n, STEPS + 1)``; the hottest pixels of the map go first.
    """

    deletion: np.ndarray
    insertion: np.ndarray


@dataclass(frozen=True)
class Checks:
    """What the checks found on n cells, all of them by cell.

    energy, area: region -> ``(n,)``, the share of the heat in it and of the crop that it covers;
    NaN where nothing was found, or nothing is hot. attention: the same share of CBAM's weights by
    place; no region where the model has no CBAM. own, control: the curves of each cell's own map,
    and of another cell's map. similarity: stage -> ``(n,)``, rank correlation with the map of the
    model whose weights are lost from the head down to there. between_cells: ``(n,)``, that of two
    cells' maps under the model as it is.
    """

    method: str
    energy: dict[str, np.ndarray]
    area: dict[str, np.ndarray]
    attention: dict[str, np.ndarray]
    own: Curves
    control: Curves
    between_cells: np.ndarray
    similarity: dict[str, np.ndarray]

    def to_json(self, groups: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the means with their 95 % intervals, by patient if ``groups`` names them."""
        columns: dict[str, np.ndarray] = {}
        for region, energy in self.energy.items():
            columns[f"{region}_energy"] = energy
            columns[f"{region}_area"] = self.area[region]
        columns |= {f"{region}_attention": share for region, share in self.attention.items()}
        for name in ("deletion", "insertion"):
            own, control = (getattr(curves, name).mean(axis=1) for curves in self._curves)
            columns |= {name: own, f"{name}_control": control, f"{name}_gain": own - control}
        for stage, similarity in self.similarity.items():
            columns[f"similarity_{stage.replace(' ', '_')}"] = similarity
        columns["similarity_between_cells"] = self.between_cells
        means, intervals = _average(columns, groups)
        about = {"method": self.method, "cells": len(self.between_cells)}
        return about | means | {"confidence_interval_95": intervals}

    @property
    def _curves(self) -> tuple[Curves, Curves]:
        return self.own, self.control


def check_heatmaps(
    heatmaps: Heatmaps, images: np.ndarray, classes: Sequence[int], regions: Regions
) -> Checks:
    """Check a model's heatmaps on n cells. The model is useless afterwards: its weights are lost.

    Args:
        heatmaps: of the model.
        images: ``(n, height, width, 3)``, RGB 0-255.
        classes: n class indices, those that the maps are of.
        regions: of `find_regions`.
    """
    maps, model = heatmaps.draw(images, classes), heatmaps.model
    attention, others = draw_attention(model, images), np.roll(maps, 1, axis=0)
    masks = {"nucleus": regions.nucleus, "cell": regions.cell}

    def shares(of: np.ndarray) -> dict[str, np.ndarray]:
        return {
            name: np.where(regions.found, measure_energy(of, mask), np.nan)
            for name, mask in masks.items()
        }

    return Checks(
        heatmaps.method,
        energy=shares(maps),
        area={
            name: np.where(regions.found, mask.mean(axis=(1, 2)), np.nan)
            for name, mask in masks.items()
        },
        attention={} if attention is None else shares(attention),
        own=measure_curves(model, images, maps, classes),
        control=measure_curves(model, images, others, classes),
        between_cells=correlate(maps, others),
        similarity={
            stage: correlate(maps, heatmaps.draw(images, classes))
            for stage in lose_weights(model, images)
        },
    )


def find_regions(
    pictures: Sequence[np.ndarray], boxes: np.ndarray, *, image_size: tuple[int, int]
) -> Regions:
    """Find nucleus and cell in n whole pictures, and cut them out as the cells were cut.

    The cell is taken as the ellipse in its tightest box.

    Args:
        pictures: each ``(h, w, 3)``, RGB 0-255.
        boxes: ``(n, 4)``, y0, x0, y1, x1 in shares of the picture, of the crops.
        image_size: of the crops.
    """
    thumbnails = tf.stack([make_thumbnail(picture) for picture in pictures])
    sizes = tf.constant([picture.shape[:2] for picture in pictures], tf.int32)
    roi = locate(thumbnails, sizes, mode="nucleus", margin=0.0)
    planes = [roi.masks.numpy(), _ellipses(roi.boxes.numpy(), thumbnails.shape[1])]
    nucleus, cell = (
        np.stack([_cut(mask, box, image_size) for mask, box in zip(masks, boxes, strict=True)])
        for masks in planes
    )
    return Regions(nucleus, cell | nucleus, roi.found.numpy())


def measure_energy(heatmaps: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the share of each map's heat inside its mask, ``(n,)``, NaN for a map of nothing."""
    inside, total = (heatmaps * masks).sum(axis=(1, 2)), heatmaps.sum(axis=(1, 2))
    return np.divide(inside, total, out=np.full(len(total), np.nan), where=total > 0)


def draw_attention(model: keras.Model, images: np.ndarray) -> np.ndarray | None:
    """Return how much each place of n crops counts for the model's last CBAM.

    Args:
        model: a classifier.
        images: ``(n, height, width, 3)``, RGB 0-255.

    Returns:
        float32 ``(n, height, width)`` in (0, 1), as large as the crops; None if there is no CBAM.
    """
    blocks = [layer for layer in model.layers if isinstance(layer, CBAM)]
    if not blocks:
        return None
    weights = blocks[-1].weigh(blocks[-1].input)
    for merge in (layer for layer in model.layers if isinstance(layer, MergeViews)):
        weights = merge(weights)
    weights = keras.Model(model.input, weights)
    maps = weights.predict(np.asarray(images, np.float32), batch_size=_BATCH, verbose=0)
    return enlarge(maps[..., 0].astype(np.float32), images.shape[1:3])


def measure_curves(
    model: keras.Model, images: np.ndarray, heatmaps: np.ndarray, classes: Sequence[int]
) -> Curves:
    """Take the hottest pixels away, or give them back, step by step, and ask the model.

    What is taken away leaves the picture's own blur, not a hole with an edge of its own.
    """
    images = np.asarray(images, np.float32)
    sigma = _BLUR * images.shape[1]
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), sigma) for image in images])
    order = np.argsort(-heatmaps.reshape(len(images), -1), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(order.shape[1])[np.newaxis], axis=1)
    shares = (ranks / order.shape[1]).reshape(*heatmaps.shape, 1)
    deletion, insertion = [], []
    for step in range(STEPS + 1):
        hot = shares < step / STEPS
        deletion.append(_ask(model, np.where(hot, blurred, images), classes))
        insertion.append(_ask(model, np.where(hot, images, blurred), classes))
    return Curves(np.stack(deletion, axis=1), np.stack(insertion, axis=1))


def lose_weights(model: keras.Model, images: np.ndarray) -> Iterator[str]:
    """Shuffle ever more of the model's weights, from the head downwards; yield after each stage.

    Each weight keeps its values, in another order. Normalisation then takes the statistics of
    ``images``: with those of before, activations would run out of range.
    """
    rng = np.random.default_rng(0)
    model.trainable = True
    layers = [layer for layer in model.layers if layer.trainable_weights]
    rest = [layer for layer in layers if not is_head(layer.name)]
    head = [layer for layer in layers if is_head(layer.name)]
    middle = len(rest) // 2
    losses = [[layer for layer in head if layer.name == "logits"]]
    losses += [[layer for layer in head if layer.name != "logits"]]
    losses += [rest[middle:], rest[:middle]]
    for layer in model.layers:
        layer.trainable = False  # or its normalisation would take new statistics now
    for stage, lost in zip(_STAGES, losses, strict=True):
        if not lost:
            continue
        for layer in lost:
            _lose(layer, rng)
        model(np.asarray(images, np.float32), training=True)
        yield stage


def _lose(layer: keras.layers.Layer, rng: np.random.Generator) -> None:
    layer.trainable = True
    if isinstance(layer, keras.layers.BatchNormalization):
        layer.momentum = 0.0
    for weight in layer.trainable_weights:
        weight.assign(rng.permuted(keras.ops.convert_to_numpy(weight)))


def correlate(heatmaps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return Spearman's rank correlation of each map with another, ``(n,)``.

    0 where the other is even, as nothing is left of the map then, and NaN where the map itself is.
    """
    pairs = zip(heatmaps.reshape(len(heatmaps), -1), others.reshape(len(others), -1), strict=True)
    return np.array(
        [
            (stats.spearmanr(one, other).statistic if np.ptp(other) else 0.0)
            if np.ptp(one)
            else np.nan
            for one, other in pairs
        ]
    )


def _ask(model: keras.Model, images: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    logits = model.predict(images, batch_size=_BATCH, verbose=0)
    return softmax(logits)[np.arange(len(images)), np.asarray(classes)]


def _ellipses(boxes: np.ndarray, side: int) -> np.ndarray:
    """Return the ellipse in each box as a plane, float32 ``(n, side, side)``."""
    place = (np.arange(side) + 0.5) / side
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    down, across = (((place - middle[:, [axis]]) / half[:, [axis]]) ** 2 for axis in range(2))
    return (down[:, :, np.newaxis] + across[:, np.newaxis] <= 1).astype(np.float32)


def _cut(mask: np.ndarray, box: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    picture = np.repeat(255 * mask[..., np.newaxis], 3, axis=2)
    return crop(picture, box, image_size=image_size).numpy()[..., 0] > 127


def _average(
    columns: dict[str, np.ndarray], groups: Sequence[str] | None
) -> tuple[dict[str, float | None], dict[str, Interval]]:
    """Return the mean of each column over the cells that have it, None if none has, and its end."""
    had = {name: ~np.isnan(values) for name, values in columns.items()}
    filled = {name: np.nan_to_num(values) for name, values in columns.items()}

    def average(weights: np.ndarray) -> dict[str, np.ndarray]:
        totals = {name: weights @ mask for name, mask in had.items()}
        return {
            name: np.divide(
                weights @ filled[name],
                total,
                out=np.full(len(weights), np.nan),
                where=total > 0,
            )
            for name, total in totals.items()
        }

    cells = len(next(iter(columns.values())))
    intervals = bootstrap_intervals(average, plan_resampling(np.zeros(cells, int), groups=groups))
    means = {name: float(value[0]) for name, value in average(np.ones((1, cells))).items()}
    return {name: None if np.isnan(mean) else mean for name, mean in means.items()}, intervals
