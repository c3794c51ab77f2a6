"""Class weights against scikit-learn and against numbers worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils.class_weight import compute_class_weight

from wbc_keras.balance import METHODS, class_weights

# Cells of the Munich set's 15 classes, from NGS to LYA.
MUNICH = np.array([8484, 3937, 3268, 1789, 424, 109, 79, 78, 70, 42, 26, 18, 15, 15, 11])


def test_balanced_equals_scikit_learn():
    labels = np.repeat(np.arange(len(MUNICH)), MUNICH)
    expected = compute_class_weight("balanced", classes=np.arange(len(MUNICH)), y=labels)
    np.testing.assert_allclose(class_weights(MUNICH, method="balanced"), expected, rtol=1e-12)


def test_balanced_weights_of_the_munich_set_run_from_0_14_to_111():
    weights = class_weights(MUNICH, method="balanced")
    assert weights.min() == pytest.approx(0.1443, abs=1e-4)  # 18365 / (15 * 8484)
    assert weights.max() == pytest.approx(111.303, abs=1e-3)  # 18365 / (15 * 11)


@pytest.mark.parametrize("method", METHODS)
def test_mean_weight_over_the_cells_is_one(method):
    weights = class_weights(MUNICH, method=method)
    assert (weights * MUNICH).sum() / MUNICH.sum() == pytest.approx(1.0)
    assert (np.diff(weights) >= 0).all(), "a rarer class never weighs less"


def test_none_weighs_every_class_alike():
    np.testing.assert_array_equal(class_weights([90, 9, 1], method="none"), [1, 1, 1])


def test_capped_by_hand():
    # 100 cells, 3 classes: balanced is 100/270, 100/27, 100/3; cut off at 5: 0.370, 3.704, 5.
    # Their mean over the cells is (33.33 + 33.33 + 5) / 100 = 0.7167, by which they are divided.
    expected = np.array([100 / 270, 100 / 27, 5.0]) / (2 / 3 + 0.05)
    np.testing.assert_allclose(class_weights([90, 9, 1], method="capped", cap=5.0), expected)


def test_cap_that_no_class_reaches_changes_nothing():
    capped = class_weights(MUNICH, method="capped", cap=112.0)
    np.testing.assert_allclose(capped, class_weights(MUNICH, method="balanced"))


def test_effective_number_by_hand():
    # beta 0.5: 1 + 1/2 + 1/4 = 1.75 effective cells of 3, 1 of 1; the weights are their inverses,
    # and 3 / 1.75 + 1 / 1 = 2.7143 over 4 cells is their mean.
    expected = np.array([1 / 1.75, 1.0]) * 4 / (3 / 1.75 + 1)
    weights = class_weights([3, 1], method="effective_number", beta=0.5)
    np.testing.assert_allclose(weights, expected)


@pytest.mark.parametrize(("beta", "method"), [(0.0, "none"), (0.999999999, "balanced")])
def test_effective_number_runs_from_none_to_balanced(beta, method):
    weights = class_weights(MUNICH, method="effective_number", beta=beta)
    np.testing.assert_allclose(weights, class_weights(MUNICH, method=method), rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_class_without_cells_weighs_one_and_changes_no_other(method):
    weights = class_weights([90, 0, 9, 1], method=method)
    assert weights[1] == 1.0
    np.testing.assert_allclose(weights[[0, 2, 3]], class_weights([90, 9, 1], method=method))


@pytest.mark.parametrize("counts", [[], [0, 0], [3, -1], [[1, 2]]])
def test_counts_that_cannot_be_are_refused(counts):
    with pytest.raises(ValueError, match="Received"):
        class_weights(counts, method="balanced")


def test_unknown_method_is_refused():
    with pytest.raises(ValueError, match=r"effective_number.*Received: method='inverse'"):
        class_weights([1, 2], method="inverse")
