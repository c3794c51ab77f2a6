"""From encoded pictures to probabilities in one graph: what is exported is what `predict` runs."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from wbc_keras.config import RoiConfig
from wbc_keras.images import decode
from wbc_keras.localize import THUMBNAIL_SIZE, crop, locate, make_thumbnail


class CellClassifier(tf.Module):
    """A trained network with decoding, ROI, scaling and softmax around it.

    Args:
        model: takes float32 ``(batch, height, width, 3)``, RGB 0-255; gives logits.
        class_names: names of the logits.
        roi: how the cell is found, as in training.
        image_size: ``(height, width)`` of the network's input.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        class_names: Sequence[str],
        roi: RoiConfig,
        image_size: tuple[int, int],
    ) -> None:
        super().__init__(name="cell_classifier")
        self._model = model
        # The variables themselves: tf.Module saves what it finds, and Keras wraps its own.
        self.weights = [variable.value for variable in model.variables]
        self._class_names = list(class_names)
        self._roi = roi
        self._image_size = image_size

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classify encoded JPEGs or PNGs of any sizes.

        Returns:
            ``probabilities`` float32 ``(batch, classes)``, ``label`` string ``(batch,)`` and
            ``roi`` float32 ``(batch, 4)``: y0, x0, y1, x1 in shares of the picture.
        """
        boxes = self._find_cells(image_bytes)
        images = self._crop_cells(image_bytes, boxes)
        logits = self._model(tf.cast(images, tf.float32), training=False)
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
        names = tf.constant(self._class_names)
        label = tf.gather(names, tf.argmax(probabilities, axis=1))
        return {"probabilities": probabilities, "label": label, "roi": boxes}

    def _find_cells(self, image_bytes: tf.Tensor) -> tf.Tensor:
        def shrink(encoded: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image = decode(encoded)
            return make_thumbnail(image), tf.shape(image)[:2]

        signature = (
            tf.TensorSpec([THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3], tf.float32),
            tf.TensorSpec([2], tf.int32),
        )
        thumbnails, sizes = tf.map_fn(shrink, image_bytes, fn_output_signature=signature)
        return locate(thumbnails, sizes, mode=self._roi.mode, margin=self._roi.margin).boxes

    def _crop_cells(self, image_bytes: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
        # Decoding again costs less than a hundredth of the network, and only the pictures at work
        # are ever held whole, whatever their sizes.
        def cut(pair: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
            return crop(decode(pair[0]), pair[1], image_size=self._image_size)

        signature = tf.TensorSpec([*self._image_size, 3], tf.uint8)
        return tf.map_fn(cut, (image_bytes, boxes), fn_output_signature=signature)
