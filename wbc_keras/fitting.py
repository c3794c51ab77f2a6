"""The training loop: head first, then everything, resumable to the bit.

Keras's ``fit`` runs each phase once. After every epoch the whole state (weights, optimizer, seed
generators, history) is written to one file that replaces the last, so that a kill at any moment
leaves a state from which the run goes on exactly; order and augmentation of the data are functions
of seed and epoch (see `pipeline`), and everything else that must survive is read off the history.
"""

from __future__ import annotations

import json
import logging
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from wbc_keras import runs
from wbc_keras.averaging import WeightAverage
from wbc_keras.balance import class_weights
from wbc_keras.cells import Cells
from wbc_keras.classifier import set_trainable
from wbc_keras.config import Config, TrainConfig
from wbc_keras.errors import RunError
from wbc_keras.losses import MacroF1, build_loss
from wbc_keras.pipeline import count_steps, make_batches, make_training_batches
from wbc_keras.progress import keras_verbosity

logger = logging.getLogger(__name__)

_MONITOR = "val_macro_f1"
_HISTORY = ["epoch", "phase", "learning_rate", "loss", "accuracy", "macro_f1"]
_HISTORY += ["val_loss", "val_accuracy", "val_macro_f1", "seconds"]


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs trained in one way. Epochs are counted through the whole run."""

    name: str
    epochs: range
    learning_rate: float
    backbone: bool


@dataclass(frozen=True)
class LabelledCells:
    """Cells with their labels, int32 ``(n,)``, indices into the class names."""

    cells: Cells
    labels: np.ndarray


def plan_phases(settings: TrainConfig) -> list[Phase]:
    """Return the phases that have epochs: the head alone, then the fine-tuning of all layers."""
    head, total = settings.head_epochs, settings.head_epochs + settings.epochs
    phases = [
        Phase("head", range(head), settings.head_learning_rate, backbone=False),
        Phase("fine_tune", range(head, total), settings.learning_rate, backbone=True),
    ]
    return [phase for phase in phases if len(phase.epochs)]


def fit(
    model: keras.Model,
    *,
    train: LabelledCells,
    validation: LabelledCells,
    config: Config,
    folder: Path,
    jit_compile: bool,
) -> pd.DataFrame:
    """Train ``model`` and leave its best epoch by validation macro F1 in ``folder/model.keras``.

    A state of an earlier, interrupted call in ``folder`` is continued from its last whole epoch.

    Returns:
        the history, one row an epoch, as in ``history.csv``.
    """
    state = TrainingState(folder / "training_state.npz")
    for phase in plan_phases(config.train):
        set_trainable(model, backbone=phase.backbone, batch_norm=not config.train.freeze_batch_norm)
        _compile(
            model,
            phase,
            config=config,
            counts=np.bincount(train.labels, minlength=model.output_shape[-1]),
            steps=count_steps(len(train.cells), config.train.batch_size),
            jit_compile=jit_compile,
        )
        average = WeightAverage(model, config.train.ema_decay)
        state.restore(model, phase.name, average)
        stopped = should_stop(state.history, phase=phase.name, patience=config.train.patience)
        if state.last_epoch + 1 >= phase.epochs.stop or stopped:
            continue
        _fit_phase(
            model,
            phase,
            train=train,
            validation=validation,
            config=config,
            folder=folder,
            state=state,
            average=average,
        )
    # A kill may have come between the last state and this file.
    write_history(folder, state)
    return state.history_table()


def write_history(folder: Path, state: TrainingState) -> None:
    """Write ``history.csv`` of the epochs done, whole or not at all."""
    runs.write_text(folder / "history.csv", state.history_table().to_csv(index=False))


def should_stop(history: list[dict[str, Any]], *, phase: str, patience: int) -> bool:
    """Tell whether none of the phase's last ``patience`` epochs bettered validation macro F1."""
    scores = [row[_MONITOR] for row in history if row["phase"] == phase]
    return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= patience


class TrainingState:
    """All that a killed run needs to go on: one file, replaced whole after each epoch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.history: list[dict[str, Any]] = []
        if path.exists():
            self.history = self._read()[0]["history"]

    def save(self, model: keras.Model, row: dict[str, Any], average: WeightAverage) -> None:
        """Add the epoch's history row and write weights, averages, optimizer and seeds with it."""
        self.history.append(row)
        variables = _state_variables(model) + average.variables
        arrays: dict[str, Any] = {f"v{i}": _to_numpy(v) for i, v in enumerate(variables)}
        about = json.dumps({"history": self.history})
        with runs.replacing(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, about=np.array(about), **arrays)

    @property
    def last_epoch(self) -> int:
        """The last epoch done, or -1. Early stopping leaves gaps: not the number of rows."""
        return int(self.history[-1]["epoch"]) if self.history else -1

    def restore(self, model: keras.Model, phase: str, average: WeightAverage) -> None:
        """Load the state if it is of this phase: the optimizer's variables differ by phase."""
        if self.history and self.history[-1]["phase"] == phase:
            variables = _state_variables(model) + average.variables
            for variable, array in zip(variables, self._read()[1], strict=True):
                variable.assign(array)

    def history_table(self) -> pd.DataFrame:
        """Return the history as it stands in ``history.csv``."""
        return pd.DataFrame(self.history, columns=_HISTORY)

    def _read(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        try:
            # Opened here: NumPy leaves a file that it cannot read open.
            with self.path.open("rb") as stream, np.load(stream) as file:
                about = json.loads(str(file["about"]))
                return about, [file[f"v{i}"] for i in range(len(file.files) - 1)]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise RunError(
                f"{self.path}: cannot be read, so the run cannot go on ({error}); "
                "start again with another --output"
            ) from error


class EpochKeeper(keras.callbacks.Callback):
    """After each epoch: keep the best model, the state and the history, and stop in time."""

    def __init__(
        self,
        *,
        phase: str,
        folder: Path,
        state: TrainingState,
        average: WeightAverage,
        patience: int,
    ) -> None:
        super().__init__()
        self.phase = phase
        self.folder = folder
        self.state = state
        self.average = average
        self.patience = patience
        self.started = 0.0

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        figures = {name: float(value) for name, value in (logs or {}).items()}
        row: dict[str, Any] = {"epoch": epoch, "phase": self.phase, **figures}
        row["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        row["seconds"] = round(time.monotonic() - self.started, 2)
        best = max((old[_MONITOR] for old in self.state.history), default=-1.0)
        # Before the state: a kill between the two repeats the epoch and writes the same model.
        if row[_MONITOR] > best:
            with self.average.applied():
                save_model(self.model, self.folder / "model.keras")
        self.state.save(self.model, {name: row[name] for name in _HISTORY}, self.average)
        write_history(self.folder, self.state)
        if should_stop(self.state.history, phase=self.phase, patience=self.patience):
            logger.info("no better %s for %d epochs: stopping", _MONITOR, self.patience)
            self.model.stop_training = True


def save_model(model: keras.Model, path: Path) -> None:
    """Write the network alone, without the optimizer, whole or not at all."""
    with runs.replacing(path) as temporary:
        keras.Model(model.input, model.output, name=model.name).save(temporary)


def _compile(
    model: keras.Model,
    phase: Phase,
    *,
    config: Config,
    counts: np.ndarray,
    steps: int,
    jit_compile: bool,
) -> None:
    settings = config.train
    total = steps * len(phase.epochs)
    warmup = min(round(steps * settings.warmup_epochs), total - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else phase.learning_rate,
        decay_steps=total - warmup,
        warmup_target=phase.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=settings.weight_decay)
    # Decay pulls kernels only; shrinking a normalisation's scale has no regularising sense.
    optimizer.exclude_from_weight_decay(var_names=["bias", "beta", "gamma"])
    optimizer.build(model.trainable_variables)
    if keras.mixed_precision.dtype_policy().name == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
    accuracy: Any = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
    if _is_mixed(config):
        accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    metrics = [accuracy, MacroF1(len(counts))]
    loss = build_loss(config.loss, counts)
    model.compile(optimizer, loss, metrics=metrics, jit_compile=jit_compile, auto_scale_loss=False)


def _fit_phase(
    model: keras.Model,
    phase: Phase,
    *,
    train: LabelledCells,
    validation: LabelledCells,
    config: Config,
    folder: Path,
    state: TrainingState,
    average: WeightAverage,
) -> None:
    settings, mixed = config.train, _is_mixed(config)
    first = max(phase.epochs.start, state.last_epoch + 1)

    def targets(labels: np.ndarray) -> np.ndarray:
        # A mixture of two cells is of two classes, and metrics want one form throughout.
        return np.eye(model.output_shape[-1], dtype=np.float32)[labels] if mixed else labels

    batches = make_training_batches(
        train.cells,
        targets(train.labels),
        cell_weights(train.labels, config=config, classes=model.output_shape[-1]),
        augment=config.augment,
        weights_from=_first_weighted_epoch(config),
        sampling_balance=settings.sampling_balance,
        batch_size=settings.batch_size,
        seed=settings.seed,
        epochs=range(first, phase.epochs.stop),
    )
    keeper = EpochKeeper(
        phase=phase.name,
        folder=folder,
        state=state,
        average=average,
        patience=settings.patience,
    )
    board = keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False)
    model.fit(
        batches,
        initial_epoch=first,
        epochs=phase.epochs.stop,
        steps_per_epoch=count_steps(len(train.cells), settings.batch_size),
        shuffle=False,  # the dataset is shuffled already
        validation_data=make_batches(
            validation.cells, targets(validation.labels), batch_size=settings.batch_size
        ),
        callbacks=[average, keeper, board],
        verbose=keras_verbosity(),
    )


def _is_mixed(config: Config) -> bool:
    return config.augment.mixup > 0 or config.augment.cutmix > 0


def _first_weighted_epoch(config: Config) -> int:
    """Return from which epoch class weights count: features first, then balance (Cao et al. 2019).

    Deferred re-weighting learns from all cells alike before it turns to the rare ones.
    """
    without = config.loss.weights_after
    settings = config.train
    return settings.head_epochs + round(without * settings.epochs) if without else 0


def cell_weights(labels: np.ndarray, *, config: Config, classes: int) -> np.ndarray:
    """Return each training cell's weight in the loss, float32 ``(n,)``: that of its class."""
    counts = np.bincount(labels, minlength=classes)
    loss = config.loss
    by_class = class_weights(counts, method=loss.class_weight, beta=loss.beta, cap=loss.cap)
    return by_class[labels].astype(np.float32)


def _state_variables(model: keras.Model) -> list[Any]:
    """Weights, seed generators and optimizer; metrics start anew with each epoch."""
    metrics = {id(variable) for variable in model.metrics_variables}
    own = [variable for variable in model.variables if id(variable) not in metrics]
    return own + list(model.optimizer.variables)


def _to_numpy(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))
