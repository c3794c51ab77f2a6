"""The core of prediction: load a model once, map encoded pictures to a table, any number of times.

The `predict` command, a notebook, an app or a worker on another machine all call this.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import tensorflow as tf

from wbc_keras import runs
from wbc_keras.errors import RunError
from wbc_keras.pictures.cells import crop_encoded, screen_pictures, split_by_room
from wbc_keras.pictures.headers import MAX_PIXELS
from wbc_keras.pictures.images import BadImage
from wbc_keras.prediction.decisions import read_decisions
from wbc_keras.prediction.formats import load_engine
from wbc_keras.prediction.inference import CellClassifier
from wbc_keras.prediction.networks import load_model
from wbc_keras.prediction.novelty import read_novelty
from wbc_keras.prediction.predictions import prediction_table

# A SavedModel's folder for what TensorFlow Serving does not read.
EXTRA = "assets.extra"

# What a run's answers depend on.
_RUN_FILES = ("config.yaml", "classes.json", "model.keras", "decision.json", "novelty.npz")


@dataclass(frozen=True)
class Predictions:
    """What a model says of n pictures.

    Attributes:
        probabilities: float32 ``(n, classes)``, NaN for a picture that cannot be used.
        boxes: float32 ``(n, 4)``, y0, x0, y1, x1 in shares of the picture, NaN likewise.
        errors: n texts, what is wrong with a picture, "" with none.
        accepted: bool ``(n,)``, whether the answer is sure enough; None where the model has no
            threshold.
        novelty: float32 ``(n,)``, 0 to 1, how foreign the cell is; None where the model cannot say.
        overlays: n encoded PNGs, each picture under its heatmap, b"" for a bad one; None unless
            asked for.
    """

    probabilities: np.ndarray
    boxes: np.ndarray
    errors: tuple[str, ...]
    accepted: np.ndarray | None = None
    novelty: np.ndarray | None = None
    overlays: tuple[bytes, ...] | None = None


# From the pictures' names and bytes.
_Answer = Callable[[Sequence[str], Sequence[bytes]], Predictions]


class Predictor:
    """A loaded model; ``class_names`` are the columns of its probabilities.

    Threads may share it.
    """

    def __init__(self, answer: _Answer, class_names: Sequence[str]) -> None:
        self._answer = answer
        self.class_names = tuple(class_names)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        engine: str = "auto",
        workers: int = 1,
        heatmaps: bool = False,
    ) -> Predictor:
        """Load what `find_model` finds.

        Args:
            model: a run folder, a SavedModel, a model folder (its highest version), or the name of
                a shipped model.
            engine: one of `formats.ENGINES`; what runs a run's network.
            workers: threads that will call it at once.
            heatmaps: whether predictions have overlays; TensorFlow alone draws them.

        Raises:
            RunError: ``model`` is none of these, lacks its class names, or does not go with the
                engine.
        """
        folder = find_model(model)
        if engine not in ("auto", "tensorflow") and heatmaps:
            raise RunError(f"--engine {engine}: draws no heatmaps; leave --engine out")
        if (folder / "model.keras").exists():
            run = runs.open_run(folder)
            if heatmaps:
                classifier = load_classifier(run)
                return cls(_through_graph(classifier.explain, classifier), run.class_names)
            return cls(_through_engine(run, engine, workers), run.class_names)
        if engine not in ("auto", "tensorflow"):
            raise RunError(f"{folder}: a SavedModel runs in TensorFlow; give the run folder")
        return cls(_load_saved_model(folder, heatmaps), _read_class_names(folder))

    def predict(
        self, image_bytes: Sequence[bytes], *, names: Sequence[str] | None = None
    ) -> Predictions:
        """Classify encoded JPEGs, PNGs, TIFFs or BMPs, of any sizes; a bad one stops no other.

        Args:
            image_bytes: n pictures.
            names: what they are called in errors; their places if None.
        """
        if not image_bytes:
            return Predictions(
                np.empty((0, len(self.class_names)), np.float32), np.empty((0, 4), np.float32), ()
            )
        places = [f"[{place}]" for place in range(len(image_bytes))]
        return self._answer(names if names is not None else places, image_bytes)

    def tabulate(
        self,
        files: Sequence[str],
        image_bytes: Sequence[bytes],
        *,
        labels: Sequence[str] | None = None,
    ) -> pd.DataFrame:
        """Classify as `predict` does, into the rows of a predictions table with its ``error``.

        Args:
            files: n names.
            image_bytes: n encoded pictures.
            labels: n labels, "" where unknown; all unknown if None.
        """
        return self.table_of(
            self.predict(image_bytes, names=files), files, labels or [""] * len(files)
        )

    def table_of(
        self, predictions: Predictions, files: Sequence[str], labels: Sequence[str]
    ) -> pd.DataFrame:
        """Return predictions as the rows of a table."""
        return prediction_table(
            files,
            labels,
            predictions.probabilities,
            self.class_names,
            predictions.boxes,
            accepted=predictions.accepted,
            novelty=predictions.novelty,
            errors=predictions.errors,
        )


def find_model(model: str | Path) -> Path:
    """Return the run folder or the SavedModel that ``--model`` names.

    A model folder means its highest version; a shipped model is known by its name.

    Raises:
        RunError: it is none of these.
    """
    path = runs.find_folder(model)
    if not path.is_dir():
        raise RunError(
            f"{path}: no such run folder or SavedModel; give what train or export wrote"
            f"{runs.say_shipped()}"
        )
    if (path / "saved_model.pb").is_file() or (path / "model.keras").exists():
        return path
    versions = [folder for folder in path.iterdir() if (folder / "saved_model.pb").is_file()]
    numbered = [folder for folder in versions if folder.name.isdigit()]
    if not numbered:
        raise RunError(
            f"{path}: is neither a run folder with a model.keras nor a SavedModel; give "
            "what train or export wrote"
        )
    return max(numbered, key=lambda folder: int(folder.name))


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model of `find_model` that its answers depend on."""
    if (folder / "saved_model.pb").is_file():
        return sorted(path for path in folder.rglob("*") if path.is_file())
    return [folder / name for name in _RUN_FILES if (folder / name).is_file()]


def load_classifier(run: runs.Run, *, max_pixels: int = MAX_PIXELS) -> CellClassifier:
    """Load a run's model with what surrounds it: temperature, threshold and novelty too."""
    return CellClassifier(
        load_model(run),
        class_names=run.class_names,
        roi=run.config.roi,
        image_size=run.config.data.image_size,
        decisions=read_decisions(run.folder),
        novelty=read_novelty(run.folder),
        max_pixels=max_pixels,
    )


def _through_engine(run: runs.Run, name: str, workers: int) -> _Answer:
    """Find and crop the cells, then ask the network alone, in whatever runs it."""
    engine = load_engine(run, name, workers=workers)
    decisions, novelty = read_decisions(run.folder), read_novelty(run.folder)

    def answer(names: Sequence[str], image_bytes: Sequence[bytes]) -> Predictions:
        chunk = crop_encoded(
            names, image_bytes, roi=run.config.roi, image_size=run.config.data.image_size
        )
        probabilities, features = engine(np.asarray(chunk.cells.images))
        outputs = {"probabilities": probabilities, "roi": chunk.cells.boxes}
        accepted = decisions.accept(probabilities) if decisions else None
        if accepted is not None:
            outputs["accepted"] = accepted
        if novelty is not None:
            outputs["novelty"] = novelty.score(features).astype(np.float32)
        return _predictions(outputs, chunk.bad)

    return answer


def _through_graph(serve: Any, owner: Any) -> _Answer:
    """Let one graph do everything; ``owner`` is kept alive, which a graph function does not."""

    def run(pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
        parts = [
            serve(image_bytes=tf.constant(part, tf.string)) for part in split_by_room(pictures)
        ]
        # A heatmap's frame is that of its part's largest picture.
        names = parts[0].keys() - {"heatmap", "label"}
        return {name: np.concatenate([part[name].numpy() for part in parts]) for name in names}

    def answer(
        names: Sequence[str], image_bytes: Sequence[bytes], owner: Any = owner
    ) -> Predictions:
        pictures, bad = screen_pictures(names, image_bytes)
        try:
            outputs = run(pictures)
        except tf.errors.InvalidArgumentError:
            # Seldom: only now is each picture looked at by itself.
            pictures, worse = screen_pictures(names, pictures, thorough=True)
            bad = worse | bad
            outputs = run(pictures)
        return _predictions(outputs, bad)

    return answer


def _predictions(outputs: Mapping[str, np.ndarray], bad: Mapping[int, BadImage]) -> Predictions:
    """Blot out what was said of the black pictures that stand in for bad ones."""
    places = list(bad)
    values = {name: np.array(array) for name, array in outputs.items()}
    for name in values.keys() & {"probabilities", "roi", "novelty"}:
        values[name][places] = np.nan
    if "accepted" in values:
        values["accepted"][places] = False
    overlays = values.get("overlay_png")
    count = len(values["probabilities"])
    return Predictions(
        values["probabilities"],
        values["roi"],
        tuple(bad[place].reason if place in bad else "" for place in range(count)),
        accepted=values.get("accepted"),
        novelty=values.get("novelty"),
        overlays=None
        if overlays is None
        else tuple(b"" if place in bad else png for place, png in enumerate(overlays)),
    )


def _load_saved_model(folder: Path, heatmaps: bool) -> _Answer:
    try:
        loaded = tf.saved_model.load(str(folder))
        signature = loaded.signatures["explain" if heatmaps else "serving_default"]
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"{folder}: cannot be loaded as a SavedModel ({reason}); export the run again"
        ) from error
    return _through_graph(signature, loaded)


def _read_class_names(saved_model: Path) -> list[str]:
    path = saved_model / EXTRA / "classes.json"
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["classes"])
    except (OSError, ValueError, KeyError) as error:
        raise RunError(
            f"{path}: cannot be read, so the classes have no names; "
            "export the run again: python -m wbc_keras.export --run RUN_DIR"
        ) from error
