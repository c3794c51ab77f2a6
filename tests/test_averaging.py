"""The moving average of the weights: worked out step by step in NumPy beside a real training."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from wbc_keras.training.averaging import WeightAverage


def build():
    keras.utils.set_random_seed(0)
    x = inputs = keras.Input((4,))
    x = keras.layers.Dense(3)(x)
    x = keras.layers.BatchNormalization(momentum=0.5)(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


def numbers(model):
    return [np.asarray(weight, np.float64) for weight in model.weights]


class Recorder(keras.callbacks.Callback):
    """Keeps the weights after each step, and those that validation saw."""

    def __init__(self):
        super().__init__()
        self.steps, self.validated = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(numbers(self.model))

    def on_test_batch_end(self, batch, logs=None):
        self.validated.append(numbers(self.model))


def expected_average(start, steps, decay):
    """Of every fourth step, with the decay of four steps and the warm-up of the docstring."""
    average = start
    for step in range(4, len(steps) + 1, 4):
        kept = min(decay, (1 + step) / (10 + step)) ** 4
        average = [kept * a + (1 - kept) * b for a, b in zip(average, steps[step - 1], strict=True)]
    return average


@pytest.fixture
def data():
    rng = np.random.default_rng(1)
    return rng.normal(size=(24, 4)).astype("float32"), rng.normal(size=(24, 1)).astype("float32")


def test_average_is_of_weights_and_statistics_and_validation_sees_it(data):
    model = build()
    start, recorder = numbers(model), Recorder()
    average = WeightAverage(model, 0.95)
    # Three steps an epoch: the count of steps goes on from one epoch to the next.
    model.fit(
        *data,
        batch_size=8,
        epochs=7,
        validation_data=data,
        validation_batch_size=24,
        callbacks=[average, recorder],
        verbose=0,
    )
    assert len(recorder.steps) == 21
    expected = expected_average(start, recorder.steps, 0.95)
    learnt = numbers(model)
    with average.applied():
        for found, wanted in zip(numbers(model), expected, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    for epoch, seen in enumerate(recorder.validated, start=1):
        wanted = expected_average(start, recorder.steps[: 3 * epoch], 0.95)
        for a, b in zip(seen, wanted, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    # What was swapped in was swapped out.
    for a, b in zip(numbers(model), learnt, strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(numbers(model), recorder.steps[-1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_without_decay_nothing_is_kept_and_nothing_changes(data):
    model = build()
    average = WeightAverage(model, 0.0)
    assert average.variables == []
    before = numbers(model)
    with average.applied():
        for a, b in zip(numbers(model), before, strict=True):
            np.testing.assert_array_equal(a, b)
