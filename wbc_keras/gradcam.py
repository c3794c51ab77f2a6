"""Where the model looked: class activation maps through tf-keras-vis.

Grad-CAM (Selvaraju et al. 2017), Grad-CAM++ (Chattopadhyay et al. 2018), Score-CAM (Wang et al.
2020), read at the layer ``features``: the feature map that the attention has weighed.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
from tf_keras_vis.scorecam import Scorecam
from tf_keras_vis.utils.scores import CategoricalScore

METHODS = {"gradcam": Gradcam, "gradcam++": GradcamPlusPlus, "scorecam": Scorecam}
FEATURES = "features"
# Pictures at a time. Score-CAM holds a masked copy of each picture for every channel.
_BATCH = {"gradcam": 32, "gradcam++": 32, "scorecam": 1}


def make_heatmaps(
    model: keras.Model, images: np.ndarray, classes: Sequence[int], *, method: str = "gradcam"
) -> np.ndarray:
    """Return how much each place of a picture speaks for a class.

    Args:
        model: a classifier of `classifier.build_classifier`, giving logits.
        images: ``(n, height, width, 3)``, RGB 0-255.
        classes: ``n`` class indices, one a picture.
        method: gradcam, gradcam++ or scorecam.

    Returns:
        float32 ``(n, height, width)`` in [0, 1], each picture's largest value 1 (or all 0).
    """
    # tf-keras-vis calls a model with a list of inputs.
    visualizer = METHODS[method](keras.Model(model.inputs, model.outputs), clone=False)
    images, size = np.asarray(images, np.float32), _BATCH[method]
    parts = [
        visualizer(
            CategoricalScore([int(index) for index in classes[start : start + size]]),
            images[start : start + size],
            penultimate_layer=FEATURES,
            seek_penultimate_conv_layer=False,
            expand_cam=False,
            normalize_cam=False,
        )
        for start in range(0, len(images), size)
    ]
    return _normalise(_enlarge(np.concatenate(parts), images.shape[1:3]))


def _enlarge(maps: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
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
