"""The moving average of a network's weights: steadier than the weights of any one step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras

_EVERY = 4  # steps between two updates: each costs a hundredth of a step, not a twentieth


class WeightAverage(keras.callbacks.Callback):
    """Keeps an exponential moving average of the weights; validation is done with it.

    The averages of batch normalisation's statistics are kept too: those of the last step belong to
    the weights of the last step. The decay rises with the steps, so that the random weights of the
    start are soon forgotten (Polyak and Juditsky 1992; the warm-up is TensorFlow's,
    ``min(decay, (1 + step) / (10 + step))``).

    Args:
        model: whose weights are averaged; their average starts as they are.
        decay: of one step, at least 0 and below 1; with 0 the average is the weights themselves.
    """

    def __init__(self, model: keras.Model, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.pairs = [
            # A copy: under JAX a training step takes the weight's own memory for its results.
            (weight, keras.Variable(keras.ops.copy(weight), trainable=False, dtype=weight.dtype))
            for weight in (model.weights if decay else ())
            if keras.backend.is_float_dtype(weight.dtype)
        ]

    @property
    def variables(self) -> list[Any]:
        """The averages, as the state of a run holds them."""
        return [average for _, average in self.pairs]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the model have the average as its weights for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        if not self.pairs:
            return  # to ask for the step would make the device wait
        # Not the batch's number: an epoch may have fewer batches.
        step = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        if step % _EVERY:
            return
        share = 1.0 - min(self.decay, (1.0 + step) / (10.0 + step)) ** _EVERY
        for weight, average in self.pairs:
            average.assign_add(share * (weight - average))

    def on_test_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._swap()

    def on_test_end(self, logs: dict[str, Any] | None = None) -> None:
        self._swap()

    def _swap(self) -> None:
        for weight, average in self.pairs:
            kept = keras.ops.copy(weight)
            weight.assign(average)
            average.assign(kept)
