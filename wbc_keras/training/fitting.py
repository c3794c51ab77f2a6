"""The training loop: head first, then everything, resumable to the bit.

Keras's ``fit`` runs each phase once. After every epoch the whole state (weights, optimizer, seed
generators, history) is written to one file that replaces the last, so that a kill at any moment
leaves a state from which the run goes on exactly; order and augmentation of the data are functions
of seed and epoch (see `drawing`), and everything else that must survive is read off the history.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from sklearn.metrics import f1_score

from wbc_keras import runs
from wbc_keras.balance import class_weights
from wbc_keras.classifier import set_trainable
from wbc_keras.config import Config, TrainConfig
from wbc_keras.losses import MacroF1, build_loss
from wbc_keras.pictures.cells import Cells
from wbc_keras.progress import keras_verbosity
from wbc_keras.training.averaging import WeightAverage
from wbc_keras.training.depthwise import with_shifted_sums
from wbc_keras.training.devices import Devices
from wbc_keras.training.drawing import count_steps, is_mixed
from wbc_keras.training.feeds import TrainingFeed, augmented
from wbc_keras.training.state import HISTORY, TrainingState

logger = logging.getLogger(__name__)

_MONITOR = "val_macro_f1"


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
    devices: Devices,
) -> pd.DataFrame:
    """Train ``model`` and leave its best epoch by validation macro F1 in ``folder/model.keras``.

    A state of an earlier, interrupted call in ``folder`` is continued from its last whole epoch,
    whatever the number of devices was. Of several processes only the first reads and writes
    ``folder``. Under JAX the model is trained behind its augmentation (`feeds`).

    Returns:
        the history, one row an epoch, as in ``history.csv``.
    """
    state = TrainingState(folder / "training_state.npz", hosts=devices.hosts)
    # On a GPU, cuDNN's depthwise convolutions are the quicker ones.
    network = with_shifted_sums(model) if _on_jax() and devices.kind == "CPU" else model
    trainee = augmented(network, config.augment) if _on_jax() else model
    for phase in plan_phases(config.train):
        set_trainable(model, backbone=phase.backbone, batch_norm=not config.train.freeze_batch_norm)
        _compile(
            trainee,
            phase,
            config=config,
            counts=np.bincount(train.labels, minlength=model.output_shape[-1]),
            steps=count_steps(len(train.cells), config.train.batch_size),
            jit_compile=devices.jit_compile,
        )
        average = WeightAverage(model, config.train.ema_decay)
        state.restore(trainee, phase.name, average)
        stopped = should_stop(state.history, phase=phase.name, patience=config.train.patience)
        if state.last_epoch + 1 >= phase.epochs.stop or stopped:
            continue
        keeper = EpochKeeper(
            model,
            phase=phase.name,
            folder=folder,
            state=state,
            average=average,
            patience=config.train.patience,
        )
        _fit_phase(
            trainee,
            phase,
            network=network,
            train=train,
            validation=validation,
            config=config,
            devices=devices,
            keeper=keeper,
        )
    # A kill may have come between the last state and this file.
    if devices.hosts.is_first:
        write_history(folder, state)
    return state.history_table()


def write_history(folder: Path, state: TrainingState) -> None:
    """Write ``history.csv`` of the epochs done, whole or not at all."""
    runs.write_text(folder / "history.csv", state.history_table().to_csv(index=False))


def should_stop(history: list[dict[str, Any]], *, phase: str, patience: int) -> bool:
    """Tell whether none of the phase's last ``patience`` epochs bettered validation macro F1."""
    scores = [row[_MONITOR] for row in history if row["phase"] == phase]
    return bool(scores) and len(scores) - 1 - int(np.argmax(scores)) >= patience


class EpochKeeper(keras.callbacks.Callback):
    """After each epoch: keep the best model, the state and the history, and stop in time."""

    def __init__(
        self,
        network: keras.Model,
        *,
        phase: str,
        folder: Path,
        state: TrainingState,
        average: WeightAverage,
        patience: int,
    ) -> None:
        super().__init__()
        self.network = network
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
            # On all processes, or those that swap would wait for those that do not.
            with self.average.applied():
                if self.state.hosts.is_first:
                    save_model(self.network, self.folder / "model.keras")
        self.state.save(self.model, {name: row[name] for name in HISTORY}, self.average)
        if self.state.hosts.is_first:
            write_history(self.folder, self.state)
        if should_stop(self.state.history, phase=self.phase, patience=self.patience):
            logger.info("no better %s for %d epochs: stopping", _MONITOR, self.patience)
            self.model.stop_training = True


def save_model(model: keras.Model, path: Path) -> None:
    """Write the network alone, without the optimizer and in float32, whole or not at all.

    Mixed precision is a way to train. The weights are float32 all along, and so computes whoever
    loads the file, on any device and engine: in bfloat16 two of them would differ in the third
    digit.
    """
    mixed = [one for one in model.layers if one.compute_dtype != one.variable_dtype]
    policies = [layer.dtype_policy for layer in mixed]
    try:
        for layer in mixed:
            layer.dtype_policy = "float32"
        with runs.replacing(path) as temporary:
            keras.Model(model.input, model.output, name=model.name).save(temporary)
    finally:
        for layer, policy in zip(mixed, policies, strict=True):
            layer.dtype_policy = policy


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
    if is_mixed(config.augment):
        accuracy = keras.metrics.CategoricalAccuracy(name="accuracy")
    metrics = [accuracy, MacroF1(len(counts))]
    loss = build_loss(config.loss, counts)
    model.compile(optimizer, loss, metrics=metrics, jit_compile=jit_compile, auto_scale_loss=False)


def _fit_phase(
    model: keras.Model,
    phase: Phase,
    *,
    network: keras.Model,
    train: LabelledCells,
    validation: LabelledCells,
    config: Config,
    devices: Devices,
    keeper: EpochKeeper,
) -> None:
    size, classes = config.train.batch_size, model.output_shape[-1]
    first = max(phase.epochs.start, keeper.state.last_epoch + 1)
    epochs = range(first, phase.epochs.stop)
    callbacks: list[keras.callbacks.Callback] = [keeper]
    if config.train.ema_decay:
        # Not for nothing: after each step, Keras waits for what is to be called then.
        callbacks.insert(0, keeper.average)
    validation_data = None
    if not _on_jax():
        board = keras.callbacks.TensorBoard(keeper.folder / "tensorboard", write_graph=False)
        callbacks.append(board)
    if _on_jax() or devices.count > 1:
        # Keras would ask for batches that the devices can share, and count what fills them up.
        loss = build_loss(config.loss, np.bincount(train.labels, minlength=classes))
        ask = devices.answerer(network, size)
        callbacks.insert(0, Validation(validation, ask, loss=loss, average=keeper.average))
    else:
        from wbc_keras.pipeline import make_batches

        targets = _targets(validation.labels, config=config, classes=classes)
        validation_data = make_batches(validation.cells, targets, batch_size=size)
    model.fit(
        _draw_batches(train, config=config, devices=devices, classes=classes, epochs=epochs),
        initial_epoch=epochs.start,
        epochs=epochs.stop,
        steps_per_epoch=count_steps(len(train.cells), size),
        shuffle=False,  # the dataset is shuffled already
        validation_data=validation_data,
        callbacks=callbacks,
        verbose=keras_verbosity() if devices.hosts.is_first else 0,
    )


def _draw_batches(
    train: LabelledCells, *, config: Config, devices: Devices, classes: int, epochs: range
) -> Any:
    """Return what `fit` takes the batches of these epochs from."""
    targets = _targets(train.labels, config=config, classes=classes)
    weights = cell_weights(train.labels, config=config, classes=classes)
    drawing: dict[str, Any] = {
        "augment": config.augment,
        "weights_from": _first_weighted_epoch(config),
        "sampling_balance": config.train.sampling_balance,
        "batch_size": config.train.batch_size,
        "seed": config.train.seed,
        "epochs": epochs,
    }
    if _on_jax():
        return TrainingFeed(train.cells, targets, weights, hosts=devices.hosts, **drawing)
    from wbc_keras.pipeline import make_training_batches

    return make_training_batches(train.cells, targets, weights, **drawing)


def _targets(labels: np.ndarray, *, config: Config, classes: int) -> np.ndarray:
    # A mixture of two cells is of two classes, and metrics want one form throughout.
    return np.eye(classes, dtype=np.float32)[labels] if is_mixed(config.augment) else labels


class Validation(keras.callbacks.Callback):
    """After each epoch: what `fit` says of validation cells, each of them counted once."""

    def __init__(
        self,
        cells: LabelledCells,
        ask: Callable[[Cells], np.ndarray],
        *,
        loss: keras.losses.Loss,
        average: WeightAverage,
    ) -> None:
        super().__init__()
        self.cells = cells
        self.ask = ask
        self.loss = loss
        self.average = average

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        with self.average.applied():
            logits = self.ask(self.cells.cells)
        labels, answers = self.cells.labels, logits.argmax(axis=1)
        # Each cell's: called as a whole, within a strategy a loss is divided by its devices.
        losses = self.loss.call(labels, logits)
        figures = {
            "loss": float(np.mean(keras.ops.convert_to_numpy(losses))),
            "accuracy": float(np.mean(labels == answers)),
            "macro_f1": f1_score(labels, answers, labels=np.unique(labels), average="macro"),
        }
        assert logs is not None
        logs.update({f"val_{name}": value for name, value in figures.items()})


def _on_jax() -> bool:
    return bool(keras.backend.backend() == "jax")


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
