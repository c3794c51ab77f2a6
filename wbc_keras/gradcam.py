"""Where the model looked: class activation maps.

Grad-CAM (Selvaraju et al. 2017) in one graph, Grad-CAM++ (Chattopadhyay et al. 2018) and Score-CAM
(Wang et al. 2020) through tf-keras-vis; all read at the layer ``features``: the feature map that
the attention has weighed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
from tf_keras_vis.scorecam import Scorecam
from tf_keras_vis.utils.scores import CategoricalScore

from wbc_keras.prediction.overlays import activation_maps

METHODS = ("gradcam", "gradcam++", "scorecam")
FEATURES = "features"
_VISUALIZERS = {"gradcam++": GradcamPlusPlus, "scorecam": Scorecam}
# Pictures at a time. Score-CAM holds a masked copy of each picture for every channel.
_BATCH = {"gradcam": 64, "gradcam++": 32, "scorecam": 1}


class Heatmaps:
    """Heatmaps of one model: how much each place of a picture speaks for a class.

    Args:
        model: a classifier of `classifier.build_classifier`, giving logits. It is compiled once;
            weights that change later change the maps.
        method: gradcam, gradcam++ or scorecam.
    """

    def __init__(self, model: keras.Model, method: str = "gradcam") -> None:
        self.model, self.method = model, method
        gradcam = method == "gradcam"
        self._draw = _make_gradcam(model) if gradcam else _wrap_visualizer(model, method)

    def draw(self, images: np.ndarray, classes: Sequence[int]) -> np.ndarray:
        """Return the maps of n pictures.

        Args:
            images: ``(n, height, width, 3)``, RGB 0-255.
            classes: ``n`` class indices, one a picture.

        Returns:
            float32 ``(n, height, width)`` in [0, 1], each picture's largest value 1 (or all 0).
        """
        size, images = _BATCH[self.method], np.asarray(images, np.float32)
        asked = [int(index) for index in classes]
        parts = [
            self._draw(images[start : start + size], asked[start : start + size])
            for start in range(0, len(images), size)
        ]
        return _normalise(enlarge(np.concatenate(parts), images.shape[1:3]))


_Draw = Callable[[np.ndarray, list[int]], np.ndarray]


def _make_gradcam(model: keras.Model) -> _Draw:
    """Compile Grad-CAM: the gradient goes no further down than the feature map it is read at."""
    features = model.get_layer(FEATURES).output
    body, head = keras.Model(model.input, features), keras.Model(features, model.output)
    signature = [
        tf.TensorSpec([None, *model.input.shape[1:]], tf.float32),
        tf.TensorSpec([None], tf.int32),
    ]

    @tf.function(input_signature=signature)
    def draw(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        maps = body(images, training=False)
        return activation_maps(lambda one: head(one, training=False), maps, classes)

    return lambda images, classes: draw(images, tf.constant(classes, tf.int32)).numpy()


def _wrap_visualizer(model: keras.Model, method: str) -> _Draw:
    # tf-keras-vis calls a model with a list of inputs.
    visualizer = _VISUALIZERS[method](keras.Model(model.inputs, model.outputs), clone=False)
    return lambda images, classes: visualizer(
        CategoricalScore(classes),
        images,
        penultimate_layer=FEATURES,
        seek_penultimate_conv_layer=False,
        expand_cam=False,
        normalize_cam=False,
    )


def enlarge(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Interpolate between the centres of the map's fields.

    tf-keras-vis lays the outer fields' centres on the picture's edge: on a map of 3 x 3 that is a
    shift of a sixth of the picture.
    """
    enlarged = keras.ops.image.resize(maps[..., np.newaxis], size, interpolation="bilinear")
    return keras.ops.convert_to_numpy(enlarged)[..., 0]


def _normalise(heatmaps: np.ndarray) -> np.ndarray:
    """Scale each map to a largest value of 1, keeping 0 where nothing speaks for the class.

    tf-keras-vis stretches between each map's least and largest value, which would show a map that
    is even all over as one with a hole.
    """
    heatmaps = np.maximum(heatmaps, 0)
    peak = heatmaps.max(axis=(1, 2), keepdims=True)
    return np.divide(heatmaps, peak, out=np.zeros_like(heatmaps), where=peak > 0)
