"""Focal loss against NumPy and scikit-learn; macro F1 against scikit-learn."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest
from sklearn.metrics import f1_score, log_loss

from wbc_keras.config import LossConfig
from wbc_keras.errors import ConfigError
from wbc_keras.losses import FocalLoss, MacroF1, build_loss

CLASSES = 5


@pytest.fixture
def labels():
    return np.random.default_rng(1).integers(0, CLASSES, 40)


@pytest.fixture
def logits():
    return np.random.default_rng(2).normal(scale=3, size=(40, CLASSES)).astype("float32")


def softmax(logits):
    powers = np.exp(logits.astype("float64") - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def expected_focal_loss(labels, logits, *, gamma, alpha, smoothing):
    """Lin et al. 2017, eq. 5, cell by cell and class by class."""
    losses = []
    for label, p in zip(labels, softmax(logits), strict=True):
        loss = 0.0
        for c in range(CLASSES):
            target = (1 - smoothing) * (c == label) + smoothing / CLASSES
            weight = 1.0 if alpha is None else alpha if isinstance(alpha, float) else alpha[c]
            loss -= target * weight * (1 - p[c]) ** gamma * np.log(p[c])
        losses.append(loss)
    return np.array(losses)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [None, 0.25, (0.1, 0.5, 1.0, 2.0, 4.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_focal_loss_equals_numpy(labels, logits, gamma, alpha, smoothing):
    loss = FocalLoss(gamma, alpha, smoothing, reduction="none")
    expected = expected_focal_loss(labels, logits, gamma=gamma, alpha=alpha, smoothing=smoothing)
    np.testing.assert_allclose(loss(labels, logits), expected, rtol=1e-4, atol=1e-6)


def test_without_focus_it_is_cross_entropy(labels, logits):
    loss = float(FocalLoss(gamma=0.0)(labels, logits))
    assert loss == pytest.approx(log_loss(labels, softmax(logits)), rel=1e-5)


def test_without_focus_smoothing_is_that_of_keras(labels, logits):
    one_hot = np.eye(CLASSES, dtype="float32")[labels]
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.2)
    ours = FocalLoss(gamma=0.0, label_smoothing=0.2)
    assert float(ours(labels, logits)) == pytest.approx(float(theirs(one_hot, logits)), rel=1e-5)


def test_focal_loss_equals_keras_where_keras_has_it(labels, logits):
    one_hot = np.eye(CLASSES, dtype="float32")[labels]
    theirs = keras.losses.CategoricalFocalCrossentropy(alpha=0.25, gamma=2.0, from_logits=True)
    ours = FocalLoss(gamma=2.0, alpha=0.25)
    assert float(ours(labels, logits)) == pytest.approx(float(theirs(one_hot, logits)), rel=1e-4)


@pytest.mark.parametrize(
    "shaped",
    [
        lambda labels: labels.astype("int64"),
        lambda labels: labels[:, None].astype("uint8"),
        lambda labels: labels.astype("float32"),
        lambda labels: np.eye(CLASSES, dtype="int32")[labels],
        lambda labels: np.eye(CLASSES, dtype="float32")[labels],
    ],
    ids=["integers", "column", "floats", "one-hot integers", "one-hot"],
)
def test_every_form_of_labels_gives_the_same_loss(labels, logits, shaped):
    loss = FocalLoss(2.0, (0.1, 0.5, 1.0, 2.0, 4.0), 0.1)
    assert float(loss(shaped(labels), logits)) == float(loss(labels, logits))


def test_probabilities_give_the_loss_of_their_logits(labels, logits):
    probabilities = softmax(logits).astype("float32")
    loss = FocalLoss(from_logits=False)(labels, probabilities)
    assert float(loss) == pytest.approx(float(FocalLoss()(labels, logits)), rel=1e-4)


def test_sample_weights_weigh_cells(labels, logits):
    weights = np.linspace(0, 2, len(labels))
    cells = expected_focal_loss(labels, logits, gamma=2.0, alpha=None, smoothing=0.0)
    loss = FocalLoss()(labels, logits, sample_weight=weights)
    assert float(loss) == pytest.approx((weights * cells).mean(), rel=1e-4)


def _gradient(loss, labels, logits):
    """Return d loss / d logits: the step of a layer whose weights are the logits, at rate 1."""
    layer = keras.layers.Embedding(len(logits), logits.shape[1])
    model = keras.Sequential([keras.Input((), dtype="int32"), layer])
    layer.set_weights([logits])
    model.compile(keras.optimizers.SGD(1.0), loss)
    model.train_on_batch(np.arange(len(logits)), labels)
    return logits - layer.get_weights()[0]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_equals_finite_differences(labels, logits, gamma, smoothing):
    def mean_loss(logits):
        return expected_focal_loss(
            labels[:4], logits, gamma=gamma, alpha=None, smoothing=smoothing
        ).mean()

    expected = np.zeros((4, CLASSES))
    for place in np.ndindex(4, CLASSES):
        step = np.zeros((4, CLASSES))
        step[place] = 1e-5
        expected[place] = (mean_loss(logits[:4] + step) - mean_loss(logits[:4] - step)) / 2e-5
    gradient = _gradient(FocalLoss(gamma, None, smoothing), labels[:4], logits[:4])
    np.testing.assert_allclose(gradient, expected, atol=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("size", [20.0, 1e4])
def test_extreme_logits_keep_loss_and_gradient_finite(gamma, smoothing, size):
    logits = np.array([[size, -size, 0], [-size, size, 0], [size, size, size]], "float32")
    labels = np.array([0, 0, 2])
    loss = FocalLoss(gamma, None, smoothing)
    value, gradient = float(loss(labels, logits)), _gradient(loss, labels, logits)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    # The second cell is as wrong as can be: it pulls with full strength, 1/3 of the mean.
    assert gradient[1, 0] == pytest.approx(-(1 - smoothing * 2 / 3) / 3, rel=0.1)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_computed_in_float32(labels, logits, dtype):
    rounded = keras.ops.cast(logits, dtype)
    loss = FocalLoss()(labels, rounded)
    exact = FocalLoss()(labels, keras.ops.cast(rounded, "float32"))
    assert keras.backend.standardize_dtype(loss.dtype) == "float32"
    assert float(loss) == float(exact)


def test_loss_config_round_trip():
    loss = FocalLoss(1.5, (0.5, 2.0), 0.1, name="thesis")
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert isinstance(again, FocalLoss)
    assert again.get_config() == loss.get_config()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"gamma": -1.0}, "Received: gamma=-1.0"), ({"label_smoothing": 1.0}, "label_smoothing=1.0")],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FocalLoss(**arguments)


def test_offsets_of_probabilities_are_refused():
    with pytest.raises(ValueError, match="offsets are for logits"):
        FocalLoss(offsets=[0.0, 1.0], from_logits=False)


def test_alpha_of_another_length_is_refused(labels, logits):
    with pytest.raises(ValueError, match=r"each of 5 classes\. Received: 2 weights"):
        FocalLoss(alpha=(1.0, 2.0))(labels, logits)


def test_build_loss_follows_the_settings(labels, logits):
    settings = LossConfig(gamma=3.0, alpha=(1.0, 2.0, 3.0, 4.0, 5.0), label_smoothing=0.1)
    expected = expected_focal_loss(
        labels, logits, gamma=3.0, alpha=settings.alpha, smoothing=0.1
    ).mean()
    loss = build_loss(settings, counts=[1] * CLASSES)
    assert float(loss(labels, logits)) == pytest.approx(expected, rel=1e-4)


def test_build_loss_gives_plain_cross_entropy(labels, logits):
    loss = build_loss(LossConfig(name="cross_entropy", gamma=2.0), counts=[1] * CLASSES)
    assert float(loss(labels, logits)) == pytest.approx(log_loss(labels, softmax(logits)), rel=1e-5)


@pytest.mark.parametrize("tau", [0.5, 1.0])
def test_logit_adjustment_weighs_the_softmax_by_the_classes_shares(labels, logits, tau):
    counts = [500, 300, 100, 90, 10]
    settings = LossConfig(name="cross_entropy", logit_adjustment=tau)
    # Balanced softmax (Ren et al. 2020, eq. 3): n_c exp(z_c) over the sum, here n_c to the tau.
    weighed = np.array(counts) ** tau * np.exp(logits.astype(np.float64))
    expected = log_loss(labels, weighed / weighed.sum(axis=1, keepdims=True))
    assert float(build_loss(settings, counts)(labels, logits)) == pytest.approx(expected, rel=1e-5)


def test_logit_adjustment_of_a_class_without_training_cells_is_finite(labels, logits):
    loss = build_loss(LossConfig(logit_adjustment=1.0), [50, 30, 20, 0, 10])
    assert np.isfinite(float(loss(labels, logits)))


def test_build_loss_names_the_setting_that_does_not_fit():
    settings = dataclasses.replace(LossConfig(), alpha=(1.0, 2.0))
    with pytest.raises(ConfigError, match=r"loss\.alpha.*5 classes.*Received: 2 weights"):
        build_loss(settings, counts=[1] * CLASSES)


def expected_macro_f1(y_true, y_pred, **kwargs):
    present = np.unique(y_true)
    return f1_score(y_true, y_pred, labels=present, average="macro", zero_division=0, **kwargs)


@pytest.mark.parametrize("absent", [(), (4,), (0, 2)])
def test_macro_f1_over_batches_equals_scikit_learn(labels, logits, absent):
    kept = ~np.isin(labels, absent)
    labels, logits = labels[kept], logits[kept]
    metric = MacroF1(CLASSES)
    for start in range(0, len(labels), 7):
        metric.update_state(labels[start : start + 7], logits[start : start + 7])
    expected = expected_macro_f1(labels, logits.argmax(axis=1))
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_macro_f1_of_every_form_of_input(labels, logits):
    expected = expected_macro_f1(labels, logits.argmax(axis=1))
    for y_true in (labels[:, None], np.eye(CLASSES)[labels]):
        metric = MacroF1(CLASSES)
        metric.update_state(y_true, softmax(logits))
        assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_macro_f1_counts_weighted_cells(labels, logits):
    weights = np.random.default_rng(3).uniform(0, 2, len(labels))
    metric = MacroF1(CLASSES)
    metric.update_state(labels, logits, sample_weight=weights)
    expected = expected_macro_f1(labels, logits.argmax(axis=1), sample_weight=weights)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-6)


def test_macro_f1_before_any_cell_and_after_a_reset_is_zero(labels, logits):
    metric = MacroF1(CLASSES)
    assert float(metric.result()) == 0.0
    metric.update_state(labels, logits)
    metric.reset_state()
    assert float(metric.result()) == 0.0


def test_macro_f1_config_round_trip():
    metric = MacroF1(7, name="f1")
    again = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert isinstance(again, MacroF1)
    assert again.get_config() == metric.get_config()


def test_fit_watches_unweighted_macro_f1_under_xla(labels, logits):
    # The images are the logits and the layer is the identity, so every figure is known.
    model = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Dense(CLASSES)])
    model.set_weights([np.eye(CLASSES), np.zeros(CLASSES)])
    metrics = [MacroF1(CLASSES)]
    model.compile(keras.optimizers.SGD(0.0), FocalLoss(), metrics=metrics, jit_compile=True)
    weights = np.linspace(0.1, 10, len(labels))
    history = model.fit(
        logits,
        labels,
        sample_weight=weights,
        batch_size=8,
        shuffle=False,
        validation_data=(logits[:20], labels[:20]),
        verbose=0,
    ).history
    cells = expected_focal_loss(labels, logits, gamma=2.0, alpha=None, smoothing=0.0)
    predicted = logits.argmax(axis=1)
    assert history["loss"][0] == pytest.approx((weights * cells).mean(), rel=1e-4)
    assert history["macro_f1"][0] == pytest.approx(expected_macro_f1(labels, predicted), abs=1e-6)
    expected = expected_macro_f1(labels[:20], predicted[:20])
    assert history["val_macro_f1"][0] == pytest.approx(expected, abs=1e-6)
