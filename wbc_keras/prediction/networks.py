"""A run's Keras model: loaded, and asked about cropped cells."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass

import keras
import numpy as np

from wbc_keras import runs
from wbc_keras.errors import RunError
from wbc_keras.pictures.cells import Cells
from wbc_keras.training.feeds import predict_all

_BATCH = 64


@dataclass(frozen=True)
class Answers:
    """What a network gives for n cropped cells.

    logits: float32 ``(n, classes)``. features: float32 ``(n, channels)``, the pooled feature map
    that the logits are made of.
    """

    logits: np.ndarray
    features: np.ndarray


def load_network(run: runs.Run) -> keras.Model:
    """Load a run's model with its pooled features as a second output, as `ask` takes it.

    Raises:
        RunError: the file cannot be read as a model of ours.
    """
    model = load_model(run)
    return keras.Model(model.input, [model.output, model.get_layer("pooling").output])


def ask(network: keras.Model, cells: Cells) -> Answers:
    """Put cropped cells through a network of `load_network`, which compiles once."""
    logits, features = predict_all(network, cells, batch_size=_BATCH)
    return Answers(logits, np.asarray(features, np.float32))


def load_model(run: runs.Run) -> keras.Model:
    """Load a run's Keras model: RGB 0-255 in, logits out, averaged over ``model.symmetries``.

    Raises:
        RunError: the file cannot be read as a model of ours.
    """
    if not zipfile.is_zipfile(run.model_path):
        raise RunError(f"{run.model_path}: is damaged; train the run again, or restore it")
    # Also registers our layers under their names.
    from wbc_keras.classifier import average_symmetries

    try:
        model = keras.models.load_model(run.model_path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"{run.model_path}: cannot be loaded as a model ({reason}); train the run again"
        ) from error
    return average_symmetries(model, run.config.model)
