"""Focal loss, and macro F1 as a metric that `fit` can watch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from wbc_keras.config import LossConfig
from wbc_keras.errors import ConfigError


@keras.saving.register_keras_serializable(package="wbc_keras")
class FocalLoss(keras.losses.Loss):
    """Cross-entropy that cares less about cells already recognised.

    ``-alpha_t (1 - p_t)^gamma log p_t`` over the softmax of the logits (Lin et al. 2017, eq. 5).
    For soft targets y, from smoothing or given as such, it is the sum over the classes
    ``-sum_c y_c alpha_c (1 - p_c)^gamma log p_c``. Computed in float32 whatever the predictions'
    dtype; finite, also its gradient, for logits of any size.

    Args:
        gamma: focus; 0 is cross-entropy.
        alpha: one weight a class, or one for all, which merely scales the loss.
        label_smoothing: share s of the target spread evenly: ``(1 - s) y + s / classes``.
        from_logits: False for predictions that are probabilities.
        offsets: one number a class, added to the logits within the loss alone: with tau times the
            log of the classes' shares in training, the logits learn to do without these shares
            (Menon et al. 2021, eq. 10; with tau 1 the balanced softmax of Ren et al. 2020).
        reduction: as of every Keras loss.
        name: as of every Keras loss.
        dtype: as of every Keras loss.

    Shapes: ``y_true`` integers ``(n,)`` or ``(n, 1)``, or one-hot ``(n, classes)``; ``y_pred``
    ``(n, classes)``.

    Example:
        >>> float(FocalLoss(gamma=0.0)([0], [[0.0, 0.0]]))  # ln 2
        0.6931471824645996
    """

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        from_logits: bool = True,
        offsets: Sequence[float] | None = None,
        reduction: str = "sum_over_batch_size",
        name: str = "focal_loss",
        dtype: Any = None,
    ) -> None:
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if gamma < 0:
            raise ValueError(f"gamma must be at least 0. Received: gamma={gamma}")
        if not 0 <= label_smoothing < 1:
            raise ValueError(
                "label_smoothing must be at least 0 and below 1. "
                f"Received: label_smoothing={label_smoothing}"
            )
        self.gamma = gamma
        self.alpha = alpha if alpha is None or isinstance(alpha, (int, float)) else list(alpha)
        if offsets is not None and not from_logits:
            raise ValueError("offsets are for logits; set from_logits=True")
        self.offsets = None if offsets is None else [float(offset) for offset in offsets]
        self.label_smoothing = label_smoothing
        self.from_logits = from_logits

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y_pred = ops.cast(y_pred, "float32")
        if self.offsets is not None:
            y_pred = y_pred + ops.convert_to_tensor(self.offsets, dtype="float32")
        targets = _one_hot(y_true, y_pred.shape[-1])
        if self.label_smoothing:
            even = self.label_smoothing / y_pred.shape[-1]
            targets = (1.0 - self.label_smoothing) * targets + even
        if self.alpha is not None:
            targets = targets * self._class_weights(y_pred.shape[-1])
        log_p = self._log_probabilities(y_pred)
        losses = -targets * log_p
        if self.gamma:
            # The floor keeps the power's gradient finite at p = 1 for gamma below 1.
            distance = ops.maximum(-ops.expm1(log_p), keras.config.epsilon())
            losses = losses * ops.power(distance, self.gamma)
        return ops.sum(losses, axis=-1)

    def _log_probabilities(self, y_pred: Any) -> Any:
        if self.from_logits:
            return ops.log_softmax(y_pred, axis=-1)
        return ops.log(ops.clip(y_pred, keras.config.epsilon(), 1.0))

    def _class_weights(self, classes: int) -> Any:
        if isinstance(self.alpha, list) and len(self.alpha) != classes:
            raise ValueError(
                f"alpha needs one weight for each of {classes} classes. "
                f"Received: {len(self.alpha)} weights"
            )
        return ops.convert_to_tensor(self.alpha, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "gamma": self.gamma,
            "alpha": self.alpha,
            "offsets": self.offsets,
            "label_smoothing": self.label_smoothing,
            "from_logits": self.from_logits,
        }


@keras.saving.register_keras_serializable(package="wbc_keras")
class MacroF1(keras.metrics.Metric):
    """Mean F1 over the classes with at least one true cell, over all batches since the last reset.

    Args:
        num_classes: width of the predictions.
        name: as of every Keras metric.
        dtype: as of every Keras metric.

    Shapes: ``y_true`` integers ``(n,)`` or ``(n, 1)``, or one-hot ``(n, num_classes)``; ``y_pred``
    logits or probabilities ``(n, num_classes)``. A ``sample_weight`` ``(n,)`` counts a cell that
    many times; `fit` gives none to what is compiled as ``metrics``.
    """

    def __init__(self, num_classes: int, name: str = "macro_f1", dtype: Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        self.num_classes = num_classes
        self.correct = self._add_counts("correct")
        self.actual = self._add_counts("actual")
        self.predicted = self._add_counts("predicted")

    def _add_counts(self, name: str) -> Any:
        return self.add_weight(shape=(self.num_classes,), initializer="zeros", name=name)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        actual = _one_hot(y_true, self.num_classes)
        predicted = ops.one_hot(ops.argmax(y_pred, axis=-1), self.num_classes)
        weights: Any = 1.0
        if sample_weight is not None:
            weights = ops.reshape(ops.cast(sample_weight, "float32"), (-1, 1))
        self.correct.assign_add(ops.sum(weights * actual * predicted, axis=0))
        self.actual.assign_add(ops.sum(weights * actual, axis=0))
        self.predicted.assign_add(ops.sum(weights * predicted, axis=0))

    def result(self) -> Any:
        # An absent class may have been predicted, its F1 is then 0, but it is not counted.
        f1 = ops.divide_no_nan(2.0 * self.correct, self.actual + self.predicted)
        present = ops.cast(self.actual > 0, f1.dtype)
        return ops.divide_no_nan(ops.sum(f1 * present), ops.sum(present))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "num_classes": self.num_classes}


def build_loss(settings: LossConfig, counts: Sequence[int] | np.ndarray) -> FocalLoss:
    """Return the loss that the settings name; cross-entropy is the focal loss of gamma 0.

    Args:
        settings: the ``loss`` section.
        counts: training cells of each class, ``(classes,)``.

    Raises:
        ConfigError: ``loss.alpha`` does not fit the number of classes.
    """
    alpha, tau = settings.alpha, settings.logit_adjustment
    if isinstance(alpha, tuple) and len(alpha) != len(counts):
        raise ConfigError(
            f"loss.alpha: expected one weight for each of the {len(counts)} classes, or a single "
            f"number. Received: {len(alpha)} weights"
        )
    gamma = settings.gamma if settings.name == "focal" else 0.0
    # A class without a cell is no target; any finite number will do.
    shares = np.maximum(counts, 1) / np.sum(counts)
    offsets = (tau * np.log(shares)).tolist() if tau else None
    return FocalLoss(gamma, alpha, settings.label_smoothing, offsets=offsets, name=settings.name)


def _one_hot(y_true: Any, classes: int) -> Any:
    """Return float32 ``(n, classes)`` of integers ``(n,)`` or ``(n, 1)``, or one-hot labels."""
    y_true = ops.convert_to_tensor(y_true)
    if len(y_true.shape) == 2 and y_true.shape[-1] == classes:
        return ops.cast(y_true, "float32")
    labels = ops.cast(ops.reshape(y_true, (-1,)), "int32")
    return ops.one_hot(labels, classes, dtype="float32")
