"""The core of prediction: load a model once, map encoded pictures to a table, any number of times.

The `predict` command, a notebook, an app or a worker on another machine all call this.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from wbc_keras import runs
from wbc_keras.cells import Cells
from wbc_keras.decisions import Decisions, read_decisions
from wbc_keras.errors import RunError
from wbc_keras.inference import CellClassifier
from wbc_keras.pipeline import make_batches

_BATCH = 64

# A SavedModel's folder for what TensorFlow Serving does not read.
EXTRA = "assets.extra"


@dataclass(frozen=True)
class Predictions:
    """What a model says of n cells.

    probabilities: float32 ``(n, classes)``. boxes: float32 ``(n, 4)``, y0, x0, y1, x1 in shares of
    the picture.
    """

    probabilities: np.ndarray
    boxes: np.ndarray


class Predictor:
    """A loaded model.

    ``class_names`` are the columns of its probabilities; ``decisions``, where the model has any,
    tell which answers are accepted (``decisions.accept(probabilities)``).
    """

    def __init__(
        self,
        serve: Any,
        class_names: Sequence[str],
        *,
        decisions: Decisions | None = None,
        owner: Any = None,
    ) -> None:
        self._serve = serve
        self.class_names = tuple(class_names)
        self.decisions = decisions
        # A graph function does not keep the model that it belongs to alive.
        self._owner = owner

    @classmethod
    def load(cls, path: str | Path) -> Predictor:
        """Load a run folder, a SavedModel, a model folder (its highest version) or a shipped model.

        Raises:
            RunError: ``path`` is none of these, or lacks its class names.
        """
        path = runs.find_model(path)
        if not path.is_dir():
            raise RunError(
                f"{path}: no such run folder or SavedModel; give what train or export wrote"
                f"{runs.say_shipped()}"
            )
        saved_model = _find_saved_model(path)
        if saved_model is None:
            if not (path / "model.keras").exists():
                raise RunError(
                    f"{path}: is neither a run folder with a model.keras nor a SavedModel; give "
                    "what train or export wrote"
                )
            run = runs.open_run(path)
            classifier, decisions = load_classifier(run), read_decisions(path)
            return cls(classifier.serve, run.class_names, decisions=decisions, owner=classifier)
        names = _read_class_names(saved_model)
        decisions = read_decisions(saved_model / EXTRA)
        try:
            loaded = tf.saved_model.load(str(saved_model))
            serve = loaded.signatures["serving_default"]
            return cls(serve, names, decisions=decisions, owner=loaded)
        except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
            reason = str(error).strip().splitlines()[0]
            raise RunError(
                f"{saved_model}: cannot be loaded as a SavedModel ({reason}); export the run again"
            ) from error

    def predict(self, image_bytes: Sequence[bytes]) -> Predictions:
        """Classify encoded JPEGs or PNGs, of any sizes, as one batch."""
        outputs = self._serve(image_bytes=tf.constant(list(image_bytes), tf.string))
        return Predictions(outputs["probabilities"].numpy(), outputs["roi"].numpy())


def load_classifier(run: runs.Run) -> CellClassifier:
    """Load a run's model with what surrounds it, its temperature too."""
    decisions = read_decisions(run.folder)
    return CellClassifier(
        load_model(run),
        class_names=run.class_names,
        roi=run.config.roi,
        image_size=run.config.data.image_size,
        temperature=decisions.temperature if decisions else 1.0,
    )


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
    batches = make_batches(cells, batch_size=_BATCH)
    logits, features = network.predict(batches, verbose=0)
    return Answers(logits, np.asarray(features, np.float32))


def load_model(run: runs.Run) -> keras.Model:
    """Load a run's Keras model: RGB 0-255 in, logits out.

    Raises:
        RunError: the file cannot be read as a model of ours.
    """
    if not zipfile.is_zipfile(run.model_path):
        raise RunError(f"{run.model_path}: is damaged; train the run again, or restore it")
    # Registers our layers under their names.
    import wbc_keras.classifier  # noqa: F401

    try:
        return keras.models.load_model(run.model_path, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"{run.model_path}: cannot be loaded as a model ({reason}); train the run again"
        ) from error


def _find_saved_model(path: Path) -> Path | None:
    if (path / "saved_model.pb").is_file():
        return path
    if (path / "model.keras").exists() or not path.is_dir():
        return None
    versions = [folder for folder in path.iterdir() if (folder / "saved_model.pb").is_file()]
    numbered = [folder for folder in versions if folder.name.isdigit()]
    return max(numbered, key=lambda folder: int(folder.name), default=None)


def _read_class_names(saved_model: Path) -> list[str]:
    path = saved_model / EXTRA / "classes.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["classes"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{path}: cannot be read, so the classes have no names; "
            "export the run again: python -m wbc_keras.export --run RUN_DIR"
        ) from error
