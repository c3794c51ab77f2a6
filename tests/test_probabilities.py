from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from wbc_keras.errors import DataError
from wbc_keras.statistics.probabilities import check_probabilities, divide, softmax


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_softmax_is_scipys_and_a_temperature_keeps_the_largest(temperature):
    logits = np.random.default_rng(0).normal(scale=30, size=(200, 9))
    shares = softmax(logits, temperature=temperature)
    np.testing.assert_allclose(shares, special.softmax(logits / temperature, axis=1), atol=1e-12)
    np.testing.assert_array_equal(shares.argmax(axis=1), logits.argmax(axis=1))


def test_divide_has_no_figure_for_nothing():
    np.testing.assert_array_equal(
        divide(np.array([1, 0, 2]), np.array([2, 0, 0])), [0.5, np.nan, np.nan]
    )
    assert divide(np.ones((2, 3)), np.array(2.0)).shape == (2, 3)


def test_rows_may_miss_one_by_rounding_only():
    truth, shares = check_probabilities([1], [[0.3, 0.7004]])
    assert (truth.dtype, shares.dtype) == (np.int64, np.float64)
    with pytest.raises(DataError, match=r"sum to one .*0\.71\d* ?\] at cell 0"):
        check_probabilities([1], [[0.3, 0.71]])
