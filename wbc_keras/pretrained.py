"""Models that come with the project, by name."""

from __future__ import annotations

import keras

from wbc_keras.prediction.networks import load_model
from wbc_keras.runs import open_run


def load_pretrained(name: str) -> keras.Model:
    """Return a model that comes with the project, such as ``"pbc-efficientnetb0-cbam"``.

    Its name also stands for it where a command takes a model: ``predict --model NAME``,
    ``evaluate --run NAME --data PATH``, and ``model.weights: NAME`` to start a training from.

    Returns:
        a model from cropped cells, RGB 0-255 ``(batch, height, width, 3)``, to logits, float32
        ``(batch, classes)``. For whole pictures, with the crop, calibrated probabilities and the
        classes' names, there is ``wbc_keras.prediction.predictor.Predictor.load(name)``.

    Raises:
        RunError: there is no such model; those there are are named.
    """
    return load_model(open_run(name))
