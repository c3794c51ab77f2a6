"""The training loop on a tiny network: phases, schedule, best model, and resuming to the bit."""

from __future__ import annotations

import keras
import numpy as np
import pandas as pd
import pytest

from wbc_keras.classifier import build_classifier
from wbc_keras.config import ModelConfig, load_config
from wbc_keras.errors import RunError
from wbc_keras.pictures.cells import Cells
from wbc_keras.training import fitting
from wbc_keras.training.devices import Devices
from wbc_keras.training.fitting import (
    EpochKeeper,
    LabelledCells,
    Phase,
    cell_weights,
    fit,
    plan_phases,
    should_stop,
)
from wbc_keras.training.state import TrainingState

CLASSES = 3
COLUMNS = "epoch,phase,learning_rate,loss,accuracy,macro_f1,val_loss,val_accuracy,val_macro_f1"


class Killed(BaseException):
    """What no handler catches, as SIGKILL."""


def make_config(*overrides):
    base = ["model.weights=somewhere", "train.batch_size=8", "train.head_epochs=2"]
    base += ["train.epochs=3", "train.freeze_batch_norm=false", "train.learning_rate=0.01"]
    return load_config(overrides=[*base, *overrides])


CONFIG = make_config()


def build():
    """A classifier in small: convolution and normalisation as backbone, dropout, head."""
    keras.utils.set_random_seed(4)
    images = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(4, 3, strides=4, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Activation("relu", name="features")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    x = keras.layers.Dropout(0.3, name="dropout")(x)
    return keras.Model(images, keras.layers.Dense(CLASSES, name="logits")(x))


def make_cells(count, seed):
    """Cells of one colour a class, with noise."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % CLASSES).astype(np.int32)
    colours = np.array([[180, 60, 60], [60, 180, 60], [60, 60, 180]])[labels]
    images = rng.normal(colours[:, None, None], 40, (count, 32, 32, 3)).clip(0, 255)
    cells = Cells(images.astype(np.uint8), np.zeros((count, 4)), np.ones(count, bool))
    return LabelledCells(cells, labels)


def train(folder, config=CONFIG):
    model = build()
    history = fit(
        model,
        train=make_cells(30, 0),
        validation=make_cells(12, 1),
        config=config,
        folder=folder,
        devices=Devices("CPU", 1, "float32", jit_compile=False),
    )
    return model, history


def weights_of(folder):
    model = keras.models.load_model(folder / "model.keras", compile=False)
    return [np.asarray(weight) for weight in model.weights]


def assert_same_run(folder, reference, model, reference_model):
    kept, expected = (
        pd.read_csv(path / "history.csv").drop(columns="seconds") for path in (folder, reference)
    )
    pd.testing.assert_frame_equal(kept, expected, check_exact=True)
    for a, b in zip(weights_of(folder), weights_of(reference), strict=True):
        np.testing.assert_array_equal(a, b)
    # Of the last epoch too, not only of the best.
    for a, b in zip(model.weights, reference_model.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """An uninterrupted run: folder, model after its last epoch, history."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, *train(folder)


# Phases and stopping


def test_phases_count_epochs_through_the_run():
    head, fine_tune = plan_phases(CONFIG.train)
    assert head == Phase("head", range(2), CONFIG.train.head_learning_rate, backbone=False)
    assert fine_tune == Phase("fine_tune", range(2, 5), 0.01, backbone=True)


@pytest.mark.parametrize(("head", "epochs", "names"), [(0, 2, ["fine_tune"]), (2, 0, ["head"])])
def test_phase_without_epochs_is_left_out(head, epochs, names):
    config = make_config(f"train.head_epochs={head}", f"train.epochs={epochs}")
    assert [phase.name for phase in plan_phases(config.train)] == names


@pytest.mark.parametrize(
    ("scores", "stop"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, 0.4], False),
        ([0.5, 0.4, 0.3], True),
        ([0.5, 0.5, 0.5], True),  # equal is not better
        ([0.5, 0.4, 0.6], False),
        ([0.5, 0.4, 0.6, 0.1, 0.6], True),
    ],
)
def test_stops_after_two_epochs_without_a_better_score(scores, stop):
    other = [{"phase": "head", "val_macro_f1": 0.9}]
    history = other + [{"phase": "fine_tune", "val_macro_f1": score} for score in scores]
    assert should_stop(history, phase="fine_tune", patience=2) is stop


def test_cells_weigh_what_their_class_weighs():
    labels = np.array([0, 0, 0, 1, 2, 2])
    weights = cell_weights(labels, config=make_config("loss.class_weight=balanced"), classes=3)
    # n / (classes * count), as scikit-learn's "balanced".
    np.testing.assert_allclose(weights, [2 / 3] * 3 + [2] + [1] * 2)
    assert weights.dtype == np.float32
    even = cell_weights(labels, config=make_config("loss.class_weight=none"), classes=3)
    np.testing.assert_array_equal(even, 1)


# An uninterrupted run


def test_history_has_a_row_an_epoch(reference):
    folder, _, history = reference
    written = pd.read_csv(folder / "history.csv")
    assert list(written.columns) == [*COLUMNS.split(","), "seconds"]
    assert written["epoch"].tolist() == [0, 1, 2, 3, 4]
    assert written["phase"].tolist() == ["head"] * 2 + ["fine_tune"] * 3
    pd.testing.assert_frame_equal(written, history)
    assert written["loss"].iloc[-1] < written["loss"].iloc[0]


def test_learning_rate_warms_up_and_falls_along_a_cosine(reference):
    _, _, history = reference
    steps = 3  # 30 cells in batches of 8
    head = CONFIG.train.head_learning_rate

    def after(epochs, top, total):
        """The rate after whole epochs, the first of them the warm-up."""
        done = (epochs - 1) * steps / (total * steps - steps)
        return top * (1 + np.cos(np.pi * done)) / 2

    expected = [after(1, head, 2), after(2, head, 2)]
    expected += [after(epochs, 0.01, 3) for epochs in (1, 2, 3)]
    np.testing.assert_allclose(history["learning_rate"], expected, atol=1e-9)


def test_head_phase_leaves_the_backbone_as_it_was(tmp_path):
    start = build()
    model, _ = train(tmp_path, make_config("train.epochs=0"))
    for name in ("conv", "norm"):
        for a, b in zip(start.get_layer(name).weights, model.get_layer(name).weights, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(start.get_layer("logits").kernel, model.get_layer("logits").kernel)


def test_fine_tuning_moves_the_backbone_and_its_statistics(reference):
    start, (_, model, _) = build(), reference
    for name in ("conv", "norm"):
        for a, b in zip(start.get_layer(name).weights, model.get_layer(name).weights, strict=True):
            assert not np.array_equal(a, b)


def test_frozen_batch_norm_keeps_its_statistics_while_the_rest_is_tuned(tmp_path):
    config = make_config("train.head_epochs=0", "train.epochs=1", "train.freeze_batch_norm=true")
    start, (model, _) = build(), train(tmp_path, config)
    for a, b in zip(start.get_layer("norm").weights, model.get_layer("norm").weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(start.get_layer("conv").kernel, model.get_layer("conv").kernel)


def test_kept_model_is_that_of_the_best_epoch(reference):
    """Scored again by scikit-learn, the kept model has the history's best macro F1."""
    from sklearn.metrics import f1_score

    folder, _, history = reference
    cells = make_cells(12, 1)
    kept = keras.models.load_model(folder / "model.keras", compile=False)
    assert getattr(kept, "optimizer", None) is None
    logits = kept.predict(cells.cells.images.astype(np.float32), verbose=0)
    score = f1_score(cells.labels, logits.argmax(axis=1), average="macro")
    assert score == pytest.approx(history["val_macro_f1"].max(), abs=1e-6)


# Interrupted and resumed: every moment of the loop once


def kill_in(monkeypatch, owner, name, *, call, before):
    """Let the ``call``-th call of a function (from 1) die before or after its work."""
    original = getattr(owner, name)
    calls = []

    def dying(*arguments, **options):
        calls.append(name)
        if before and len(calls) == call:
            raise Killed
        result = original(*arguments, **options)
        if len(calls) == call:
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying)


def interrupt(folder, monkeypatch, owner, name, *, call, before, config=CONFIG):
    with monkeypatch.context() as patch:
        kill_in(patch, owner, name, call=call, before=before)
        with pytest.raises(Killed):
            train(folder, config)


# In turn, each in a new call on the same folder; the calls are counted from its start.
MOMENTS = [
    (fitting, "save_model", 1, True),  # nothing is written yet: begins anew
    (fitting, "save_model", 1, False),  # a model, but no state: begins anew
    (TrainingState, "save", 1, False),  # a state, but no history.csv
    (TrainingState, "save", 1, True),  # in the last epoch of the head
    (TrainingState, "save", 1, False),  # between the phases
    (EpochKeeper, "on_epoch_begin", 2, False),  # in the second epoch of fine-tuning
    (fitting, "write_history", 1, True),  # the state is ahead of history.csv
    (TrainingState, "save", 1, False),  # all is trained, history.csv is not whole
]


def test_run_killed_at_every_moment_ends_as_the_uninterrupted_one(reference, tmp_path, monkeypatch):
    rows = []
    for owner, name, call, before in MOMENTS:
        interrupt(tmp_path, monkeypatch, owner, name, call=call, before=before)
        rows.append(len(TrainingState(tmp_path / "training_state.npz").history))
    assert rows == [0, 0, 1, 1, 2, 3, 4, 5]
    model, _ = train(tmp_path)
    assert_same_run(tmp_path, reference[0], model, reference[1])


def test_early_stopping_ends_a_phase_and_a_resumed_run_keeps_the_epochs_numbers(
    tmp_path, monkeypatch
):
    # A rate too small to change an answer: the first epoch of the head stays its best.
    settings = ["train.head_learning_rate=1e-8", "train.patience=1", "train.head_epochs=5"]
    config = make_config(*settings, "train.epochs=3", "train.learning_rate=0.02")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    model, history = train(whole, config)
    assert history["epoch"].tolist()[:4] == [0, 1, 5, 6]
    # After epoch 5 there are fewer rows than epochs.
    interrupt(resumed, monkeypatch, TrainingState, "save", call=3, before=False, config=config)
    again, _ = train(resumed, config)
    assert_same_run(resumed, whole, again, model)


EMA = make_config("train.ema_decay=0.9")


def test_killed_run_with_averaged_weights_ends_as_the_uninterrupted_one(
    reference, tmp_path, monkeypatch
):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    model, _ = train(whole, EMA)
    interrupt(resumed, monkeypatch, TrainingState, "save", call=4, before=False, config=EMA)
    again, _ = train(resumed, EMA)
    assert_same_run(resumed, whole, again, model)
    # Averaging is for validation and the kept model: the weights that learn are untouched.
    for a, b in zip(model.weights, reference[1].weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_training_on_mixtures_is_validated_on_whole_cells(tmp_path):
    _, history = train(tmp_path, make_config("augment.mixup=0.4", "augment.cutmix=1"))
    # Validation cells are one class each: their accuracy is a count of twelve.
    counts = 12 * history["val_accuracy"]
    np.testing.assert_allclose(counts, counts.round(), atol=1e-4)
    assert history["val_macro_f1"].between(0, 1).all()


def test_damaged_state_is_named(tmp_path):
    (tmp_path / "training_state.npz").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(RunError, match=r"training_state\.npz: cannot be read.*another --output"):
        train(tmp_path)


# Mixed precision


def test_a_model_trained_in_mixed_precision_is_kept_in_float32(tmp_path):
    """Another device or engine would round bfloat16 otherwise, to probabilities 1e-2 apart."""
    images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    config = ModelConfig(backbone="mobilenetv2", weights="none", attention="cbam")
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_classifier(config, num_classes=CLASSES, image_size=(32, 32))
    before = model(images, training=False).numpy()
    fitting.save_model(model, tmp_path / "model.keras")
    np.testing.assert_array_equal(model(images, training=False).numpy(), before)

    keras.config.set_dtype_policy("float32")
    kept = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert {layer.compute_dtype for layer in kept._flatten_layers()} == {"float32"}
    plain = build_classifier(config, num_classes=CLASSES, image_size=(32, 32))
    plain.set_weights(model.get_weights())
    after = kept(images, training=False).numpy()
    scale = np.abs(before).max()  # logits of random weights are tiny
    expected = plain(images, training=False).numpy()
    np.testing.assert_allclose(after / scale, expected / scale, atol=1e-5)
    assert np.abs(after - before).max() / scale > 1e-3  # so the policy did something
