"""From encoded pictures to probabilities in one graph: what is exported is what `predict` runs."""

from __future__ import annotations

from collections.abc import Sequence

import keras
import tensorflow as tf

from wbc_keras.cells import crop_cells, find_cells
from wbc_keras.config import RoiConfig


class CellClassifier(tf.Module):
    """A trained network with decoding, ROI, scaling and softmax around it.

    Args:
        model: takes float32 ``(batch, height, width, 3)``, RGB 0-255; gives logits.
        class_names: names of the logits.
        roi: how the cell is found, as in training.
        image_size: ``(height, width)`` of the network's input.
        temperature: the logits are divided by it.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        class_names: Sequence[str],
        roi: RoiConfig,
        image_size: tuple[int, int],
        temperature: float = 1.0,
    ) -> None:
        super().__init__(name="cell_classifier")
        self._model = model
        # The variables themselves: tf.Module saves what it finds, and Keras wraps its own.
        self.weights = [variable.value for variable in model.variables]
        self._class_names = list(class_names)
        self._roi = roi
        self._image_size = image_size
        self._temperature = temperature

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        """Classify encoded JPEGs or PNGs of any sizes.

        Returns:
            ``probabilities`` float32 ``(batch, classes)``, ``label`` string ``(batch,)`` and
            ``roi`` float32 ``(batch, 4)``: y0, x0, y1, x1 in shares of the picture.
        """
        boxes = find_cells(image_bytes, roi=self._roi)[0].boxes
        images = crop_cells(image_bytes, boxes, image_size=self._image_size)
        logits = self._model(tf.cast(images, tf.float32), training=False)
        probabilities = tf.nn.softmax(tf.cast(logits, tf.float32) / self._temperature)
        names = tf.constant(self._class_names)
        label = tf.gather(names, tf.argmax(probabilities, axis=1))
        return {"probabilities": probabilities, "label": label, "roi": boxes}
