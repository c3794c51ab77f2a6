"""From encoded pictures to a decision in one graph: what is exported is what `predict` runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from wbc_keras.config import RoiConfig
from wbc_keras.pictures.headers import MAX_PIXELS
from wbc_keras.pictures.localize import THUMBNAIL_SIZE, crop, locate, make_thumbnail
from wbc_keras.prediction.decisions import Decisions
from wbc_keras.prediction.intake import Pictures, crop_held, take_in
from wbc_keras.prediction.novelty import NEIGHBOURS, Novelty
from wbc_keras.prediction.overlays import activation_maps, draw_overlays, lay_in_frame

Outputs = dict[str, tf.Tensor]

_BYTES = tf.TensorSpec([None], tf.string, name="image_bytes")
_IMAGES = tf.TensorSpec([None, None, None, 3], tf.uint8, name="images")
_CLASSES = tf.TensorSpec([None], tf.int32, name="class_index")
_CHOSEN = -1  # instead of a class: the one that the model has chosen


class CellClassifier(tf.Module):
    """A trained network with decoding, ROI, calibration and decision around it.

    Each signature answers with ``probabilities`` float32 ``(batch, classes)``, ``label`` string
    ``(batch,)``, ``confidence`` float32 ``(batch,)``, the largest probability, and ``roi`` float32
    ``(batch, 4)``: y0, x0, y1, x1 in shares of the picture. Where the run has a threshold
    there is ``accepted`` bool ``(batch,)``, whether the answer may be given, and where it has
    `Novelty` there is ``novelty`` float32 ``(batch,)``, 0 to 1.

    Args:
        model: takes float32 ``(batch, height, width, 3)``, RGB 0-255; gives logits.
        class_names: names of the logits.
        roi: how the cell is found, as in training.
        image_size: ``(height, width)`` of the network's input.
        decisions: temperature and threshold; without them probabilities are the softmax.
        novelty: what is foreign to the model.
        max_pixels: pictures with more are refused before they are decoded.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        class_names: Sequence[str],
        roi: RoiConfig,
        image_size: tuple[int, int],
        decisions: Decisions | None = None,
        novelty: Novelty | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(name="cell_classifier")
        self.decisions, self.novelty = decisions, novelty
        self._class_names = list(class_names)
        self._image_size = image_size
        self._score = NoveltyScore(novelty) if novelty else None
        self._max_pixels = max_pixels
        features = model.get_layer("features").output
        head = keras.Model(features, [model.get_layer("pooling").output, model.output])
        # Only functions are kept: a model would be saved with all its layers beside the weights.
        self._look = _freeze(keras.Model(model.input, features), image_size)
        self._answer = _finish(head)
        # The variables themselves: tf.Module saves what it finds, and Keras wraps its own.
        self.weights = [variable.value for variable in head.variables]
        self._locate = _make_locator(roi)

    def save(self, folder: str | Path) -> None:
        """Write this as a SavedModel, its signatures named as the design names them."""
        signatures = {
            "serving_default": self.serve,
            "images": self.serve_images,
            "explain": self.explain,
            "explain_class": self.explain_class,
            "explain_rest": self.explain_rest,
        }
        # The heatmaps' gradients are in the graph; nobody trains it further, and those of
        # EfficientNet's activation cannot be saved beside constants.
        options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
        tf.saved_model.save(self, str(folder), signatures=signatures, options=options)

    @tf.function(input_signature=[_BYTES])
    def serve(self, image_bytes: tf.Tensor) -> Outputs:
        """Classify encoded JPEGs or PNGs of any sizes."""
        cells, boxes, _ = self._take_in(image_bytes)
        return self._with_label(self.decide(cells)) | {"roi": boxes}

    @tf.function(input_signature=[_IMAGES])
    def serve_images(self, images: tf.Tensor) -> Outputs:
        """Classify decoded pictures, uint8 ``(batch, height, width, 3)``, RGB, all of one size."""
        thumbnail = tf.TensorSpec([THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3], tf.float32)
        thumbnails = tf.map_fn(make_thumbnail, images, fn_output_signature=thumbnail)
        count, size = tf.shape(images)[0], tf.shape(images)[1:3]
        boxes = self._locate(thumbnails, tf.tile(size[tf.newaxis], [count, 1]))
        cells = tf.map_fn(
            lambda pair: crop(*pair, image_size=self._image_size),
            (images, boxes),
            fn_output_signature=tf.TensorSpec([*self._image_size, 3], tf.uint8),
        )
        return self._with_label(self.decide(cells)) | {"roi": boxes}

    @tf.function(input_signature=[_BYTES])
    def explain(self, image_bytes: tf.Tensor) -> Outputs:
        """Classify, and show what speaks for the class that was chosen, see `explain_class`."""
        return self._explain(image_bytes, tf.fill(tf.shape(image_bytes), _CHOSEN))

    @tf.function(input_signature=[_BYTES, _CLASSES])
    def explain_class(self, image_bytes: tf.Tensor, class_index: tf.Tensor) -> Outputs:
        """Classify, and show what speaks for one class for each picture, int32 ``(batch,)``.

        Returns:
            what `serve` gives, ``heatmap`` float32 ``(batch, height, width)``, 0 to 1, see
            `overlays.lay_in_frame`, and ``overlay_png`` string ``(batch,)``, encoded PNGs of the
            pictures' own sizes. All heatmaps together may not hold more than ``max_pixels``.
        """
        return self._explain(image_bytes, self._check(image_bytes, class_index, lowest=0))

    @tf.function(input_signature=[_BYTES, _CLASSES])
    def explain_rest(self, image_bytes: tf.Tensor, class_index: tf.Tensor) -> Outputs:
        """Do the same for JSON: ``overlay_png_bytes``, and a class of -1 for the one chosen.

        Over REST TensorFlow Serving sends as base64 what is named ``_bytes``; all other strings
        must be text.
        """
        classes = self._check(image_bytes, class_index, lowest=_CHOSEN)
        outputs = dict(self._explain(image_bytes, classes))
        return {"overlay_png_bytes": outputs.pop("overlay_png")} | outputs

    def decide(self, images: tf.Tensor) -> Outputs:
        """Return what the network says of cropped cells, uint8 ``(batch, *image_size, 3)``.

        Numbers only, which XLA can compile: ``class_index`` int32 instead of ``label``.
        """
        return self._decide(*self._answer(self._look(images)))

    def _decide(self, pooled: tf.Tensor, logits: tf.Tensor) -> Outputs:
        temperature = self.decisions.temperature if self.decisions else 1.0
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32) / temperature)
        confidence = tf.reduce_max(probabilities, axis=1)
        outputs = {
            "probabilities": probabilities,
            "class_index": tf.argmax(probabilities, axis=1, output_type=tf.int32),
            "confidence": confidence,
        }
        if self.decisions and self.decisions.accept_threshold is not None:
            outputs["accepted"] = confidence >= self.decisions.accept_threshold
        if self._score:
            outputs["novelty"] = self._score(pooled)
        return outputs

    def _with_label(self, outputs: Outputs) -> Outputs:
        outputs = dict(outputs)
        names = tf.constant(self._class_names)
        return {"label": tf.gather(names, outputs.pop("class_index"))} | outputs

    def _take_in(self, image_bytes: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Return the cropped cells, their boxes and the pictures' sizes."""

        def work(pictures: Pictures) -> tuple[tf.Tensor, ...]:
            boxes = self._locate(pictures.thumbnails, pictures.sizes)
            cells = crop_held(pictures, boxes, image_size=self._image_size)
            return cells, boxes, pictures.sizes

        return take_in(image_bytes, max_pixels=self._max_pixels, work=work)

    @tf.function(input_signature=[_BYTES, _CLASSES])
    def _explain(self, image_bytes: tf.Tensor, class_index: tf.Tensor) -> Outputs:
        cells, boxes, sizes = self._take_in(image_bytes)
        features = self._look(cells)
        outputs = self._decide(*self._answer(features))
        classes = tf.where(class_index == _CHOSEN, outputs["class_index"], class_index)
        with tf.control_dependencies([self._check_room(sizes)]):
            maps = activation_maps(lambda one: self._answer(one)[1], features, classes)
        heatmaps = lay_in_frame(maps, boxes, sizes)
        return self._with_label(outputs) | {
            "roi": boxes,
            "heatmap": heatmaps,
            "overlay_png": draw_overlays(image_bytes, heatmaps, sizes),
        }

    def _check(self, image_bytes: tf.Tensor, class_index: tf.Tensor, *, lowest: int) -> tf.Tensor:
        highest = len(self._class_names) - 1
        are_classes = tf.reduce_all((class_index >= lowest) & (class_index <= highest))
        fits = tf.size(class_index) == tf.size(image_bytes)
        message = f"class_index: expected {lowest} to {highest} for each picture. Received:"
        sound = tf.debugging.Assert(fits & are_classes, [message, class_index], summarize=-1)
        with tf.control_dependencies([sound]):
            return tf.identity(class_index)

    def _check_room(self, sizes: tf.Tensor) -> tf.Operation:
        """Refuse heatmaps that would fill the memory: each has the size of the largest picture."""
        frame = tf.cast(tf.reduce_max(sizes, axis=0), tf.int64)
        total = tf.reduce_prod(frame) * tf.shape(sizes, tf.int64)[0]
        message = f"heatmaps of more than {self._max_pixels:,} pixels; explain fewer at a time"
        return tf.debugging.Assert(total <= self._max_pixels, [message])


class NoveltyScore(tf.Module):
    """`Novelty.score` in graph operations, float32 ``(batch,)`` of features ``(batch, d)``."""

    def __init__(self, novelty: Novelty) -> None:
        super().__init__(name="novelty")
        # Variables, as constants would stand in every signature's graph anew.
        self._means, self._axes, self._variances, self._rest = (
            tf.Variable(values, trainable=False, dtype=tf.float32)
            for values in (novelty.means, novelty.axes, novelty.variances, novelty.rest)
        )
        references = novelty.references.astype(np.float32)
        self._references, self._lengths, self._known, self._farther = (
            tf.Variable(values, trainable=False, dtype=tf.float32)
            for values in (
                references,
                np.sum(references**2, axis=1),
                np.sort(novelty.known.T),
                novelty.farther_known,
            )
        )

    def __call__(self, features: tf.Tensor) -> tf.Tensor:
        """Return the share of validation cells that are less foreign than each cell."""
        rows = tf.cast(features, tf.float64)
        distances = (self._to_classes(rows), self._to_neighbours(rows))
        shares = [
            _share_below(self._known[place], distance) for place, distance in enumerate(distances)
        ]
        return tf.cast(_share_below(self._farther, tf.maximum(*shares)), tf.float32)

    def _to_classes(self, rows: tf.Tensor) -> tf.Tensor:
        means, axes, variances, rest = (
            tf.cast(values, tf.float64)
            for values in (self._means, self._axes, self._variances, self._rest)
        )
        along = (rows @ axes)[:, tf.newaxis] - means @ axes
        lengths = tf.reduce_sum(rows**2, axis=1)[:, tf.newaxis] + tf.reduce_sum(means**2, axis=1)
        whole = tf.maximum(lengths - 2.0 * tf.matmul(rows, means, transpose_b=True), 0.0)
        across = tf.maximum(whole - tf.reduce_sum(along**2, axis=2), 0.0)
        squares = tf.reduce_sum(along**2 / variances, axis=2) + across / rest
        return tf.sqrt(tf.reduce_min(squares, axis=1))

    def _to_neighbours(self, rows: tf.Tensor) -> tf.Tensor:
        # In 32 bits: a million references' values in 64 would take most of a picture's time.
        unit = tf.cast(rows / tf.maximum(tf.norm(rows, axis=1, keepdims=True), 1e-12), tf.float32)
        products = tf.matmul(unit, self._references, transpose_b=True)
        squares = 1.0 - 2.0 * products + self._lengths
        nearest = tf.math.top_k(-squares, k=min(NEIGHBOURS, squares.shape[1])).values
        return tf.sqrt(tf.maximum(-nearest[:, -1], 0.0))


def _share_below(known: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Return the share of the rising ``known`` below each value, a tie counting half."""
    values = tf.cast(values, tf.float32)  # as the known ones are kept: a cell is as far as itself
    below, up_to = (tf.searchsorted(known, values, side=side) for side in ("left", "right"))
    return tf.cast(below + up_to, tf.float64) / (2.0 * known.shape[0])


def _make_locator(roi: RoiConfig) -> Any:
    """Return the cell finder as a function of its own, from thumbnails and sizes to boxes."""
    thumbnails = tf.TensorSpec([None, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3], tf.float32)

    @tf.function(input_signature=[thumbnails, tf.TensorSpec([None, 2], tf.int32)])
    def find(thumbnails: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
        return locate(thumbnails, sizes, mode=roi.mode, margin=roi.margin).boxes

    return find


def _freeze(model: keras.Model, image_size: tuple[int, int]) -> Any:
    """Return the network up to its feature map, weights as constants, of uint8 cells.

    Constants let TensorFlow fold each normalisation into the convolution before it, which saves a
    third of the time; as variables they stay apart.
    """
    cells = [tf.TensorSpec([None, *image_size, 3], tf.uint8)]

    @tf.function(input_signature=cells)
    def look(images: tf.Tensor) -> tf.Tensor:
        return model(tf.cast(images, tf.float32), training=False)

    frozen = convert_variables_to_constants_v2(look.get_concrete_function())
    # Inlined into a graph with the cell finder's loops, TensorFlow folds and fuses next to nothing.
    apart = tf.function(
        lambda images: frozen(images)[0],
        input_signature=cells,
        experimental_attributes={"_noinline": True},
    )
    return apart


def _finish(model: keras.Model) -> Any:
    """Return the rest of the network as a function, from the feature map on."""
    maps = tf.TensorSpec(model.input.shape, model.input.dtype)

    @tf.function(input_signature=[maps])
    def answer(maps: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        pooled, logits = model(maps, training=False)
        return pooled, logits

    return answer
