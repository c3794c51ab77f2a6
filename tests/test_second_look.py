"""Planted label errors come first; the rule by hand and against what it must not do."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from wbc_keras.errors import DataError
from wbc_keras.statistics.second_look import rank_labels

NAMES = ("a", "b", "c")


def test_rule_by_hand():
    # Mean of a over the cells labelled a: 0.6; of b 0.5; of c 0.9.
    labels = [0, 0, 0, 1, 1, 2]
    shares = [
        [0.80, 0.10, 0.10],
        [0.70, 0.20, 0.10],
        [0.30, 0.55, 0.15],  # b is 0.05 over its mean, a 0.30 below
        [0.20, 0.70, 0.10],
        [0.62, 0.30, 0.08],  # a is 0.02 over its mean, b 0.20 below
        [0.05, 0.05, 0.90],
    ]
    table = rank_labels(labels, shares, NAMES)
    assert table["cell"].tolist() == [2, 4]
    assert table["label"].tolist() == ["a", "b"]
    assert table["suggested"].tolist() == ["b", "a"]
    np.testing.assert_allclose(table["margin"], [0.35, 0.22])
    np.testing.assert_allclose(table["label_probability"], [0.30, 0.30])
    np.testing.assert_allclose(table["suggested_probability"], [0.55, 0.62])


def test_a_class_that_is_always_unsure_is_not_all_contradicted():
    """The mean of b is low: a cell of b that leans to a a little is not called an error."""
    labels = [0] * 4 + [1] * 4
    shares = np.array([[0.95, 0.05]] * 4 + [[0.55, 0.45]] * 4)
    assert rank_labels(labels, shares, NAMES[:2]).empty
    # The same answers contradict a plain argmax four times.
    assert (shares.argmax(axis=1) != labels).sum() == 4


def simulate(cells, planted, seed):
    """Noisy but calibrated answers; the labels of ``planted`` cells are changed."""
    rng = np.random.default_rng(seed)
    truth = np.arange(cells) % 4
    logits = rng.normal(size=(cells, 4)) + 4.0 * np.eye(4)[truth]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    recognised = np.flatnonzero(shares.argmax(axis=1) == truth)
    wrong = rng.choice(recognised, planted, replace=False)
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, 4, planted)) % 4
    return labels, shares, wrong


def test_planted_errors_rank_among_the_first():
    labels, shares, wrong = simulate(2000, 20, seed=0)
    table = rank_labels(labels, shares, list("abcd"))
    ranks = {cell: rank for rank, cell in enumerate(table["cell"])}
    assert all(cell in ranks for cell in wrong)
    assert np.isin(table["cell"][:20], wrong).mean() >= 0.7
    assert max(ranks[cell] for cell in wrong) < 100
    assert table["margin"].is_monotonic_decreasing


@pytest.mark.parametrize("seed", range(5))
def test_one_planted_error_is_among_the_first_ten(seed):
    labels, shares, wrong = simulate(1000, 1, seed=seed)
    assert wrong[0] in rank_labels(labels, shares, list("abcd"))["cell"][:10].tolist()


def test_all_right_all_wrong_and_absent_classes():
    sure = np.full((6, 3), 0.05) + 0.85 * np.eye(3)[[0, 0, 0, 1, 1, 1]]
    assert rank_labels([0, 0, 0, 1, 1, 1], sure, NAMES).empty
    # No cell is labelled c, so nothing tells how sure of c is sure.
    assert rank_labels([0, 0], np.array([[0.1, 0.1, 0.8], [0.9, 0.05, 0.05]]), NAMES).empty
    swapped = rank_labels([1, 1, 1, 0, 0, 0], sure, NAMES)
    assert len(swapped) == 6
    assert set(zip(swapped["label"], swapped["suggested"], strict=True)) == {("a", "b"), ("b", "a")}


def test_table_is_the_same_when_empty():
    columns = rank_labels([0], np.array([[1.0, 0.0, 0.0]]), NAMES).columns
    expected = ["cell", "label", "suggested", "label_probability", "suggested_probability"]
    pd.testing.assert_index_equal(columns, pd.Index([*expected, "margin"]))


def test_logits_are_refused():
    with pytest.raises(DataError, match="sum to one"):
        rank_labels([0], np.array([[4.0, -1.0, 0.0]]), NAMES)
