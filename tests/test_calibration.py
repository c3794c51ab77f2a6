"""Temperature and figures of calibration, against scikit-learn, SciPy, loops and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import optimize, special
from sklearn import metrics as sk

from wbc_keras.calibration import bin_reliability, fit_temperature, measure_calibration
from wbc_keras.errors import DataError
from wbc_keras.statistics.probabilities import softmax


def simulate(n=1500, classes=6, *, temperature=1.0, seed=0):
    """Draw logits, and labels from their softmax at a temperature: that is the true one."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(n, classes)) + 2 * np.arange(classes)[::-1] / classes
    shares = special.softmax(logits / temperature, axis=1)
    labels = (rng.random((n, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(0, classes - 1)
    return labels, logits


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_is_recovered(temperature):
    found = [
        fit_temperature(*simulate(20_000, temperature=temperature, seed=seed)) for seed in range(3)
    ]
    assert np.mean(found) == pytest.approx(temperature, rel=0.02)


def test_temperature_is_the_likeliest_one():
    labels, logits = simulate(5000, temperature=1.7)
    found = optimize.minimize(
        lambda t: sk.log_loss(labels, special.softmax(logits / t[0], axis=1)),
        [1.0],
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-12},
    )
    # The prior, one cell's worth, stays below a thousandth.
    assert fit_temperature(labels, logits) == pytest.approx(found.x[0], rel=1e-3)


@pytest.mark.parametrize("right", [True, False])
@pytest.mark.parametrize("n", [1, 300])
def test_all_right_or_all_wrong_has_a_finite_temperature(right, n):
    _, logits = simulate(n)
    labels = logits.argmax(axis=1) if right else logits.argmin(axis=1)
    found = fit_temperature(labels, logits)
    assert (0.02 < found < 1) if right else (1 < found < 50)
    shares = softmax(logits, temperature=found)
    assert np.isfinite(np.log(shares)).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_of_a_training_gone_astray_are_named(value):
    with pytest.raises(DataError, match=r"logits: .* lower train\.learning_rate"):
        fit_temperature([0, 1], [[0.0, 1.0], [value, 0.0]])


def test_no_cell_is_refused():
    with pytest.raises(DataError, match="n at least 1"):
        fit_temperature([], np.zeros((0, 3)))


def ece_by_loop(labels, shares, edges):
    confidence, correct = shares.max(axis=1), shares.argmax(axis=1) == labels
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            total += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return total


def test_figures_agree_with_scikit_learn_and_a_loop():
    labels, logits = simulate()
    shares = softmax(logits)
    got = measure_calibration(labels, shares, draws=0)
    assert got.ece == pytest.approx(ece_by_loop(labels, shares, np.arange(16) / 15), abs=1e-9)
    # A hundred cells in each bin.
    ranked = np.sort(shares.max(axis=1))
    edges = [0, *(ranked[99:-1:100] + ranked[100::100]) / 2, 1]
    assert got.adaptive_ece == pytest.approx(ece_by_loop(labels, shares, edges), abs=1e-9)
    assert got.nll == pytest.approx(sk.log_loss(labels, shares), abs=1e-9)
    brier = sum(sk.brier_score_loss(labels == c, shares[:, c]) for c in range(6))
    assert got.brier == pytest.approx(brier, abs=1e-9)


def test_hand_worked_figures():
    # Confidences 0.8, 0.8, 0.6: two right, then a wrong one.
    got = measure_calibration([0, 1, 1], [[0.8, 0.2], [0.2, 0.8], [0.6, 0.4]], draws=0)
    assert got.ece == pytest.approx((2 * 0.2 + 0.6) / 3)
    assert got.brier == pytest.approx((0.08 + 0.08 + 0.72) / 3)
    assert got.nll == pytest.approx(-(2 * np.log(0.8) + np.log(0.4)) / 3)


def test_ece_by_chance_is_what_a_calibrated_model_shows():
    """On few cells its ECE is far from 0, though nothing is wrong with it."""
    shown, told = [], []
    for seed in range(100):
        labels, logits = simulate(150, seed=seed)
        got = measure_calibration(labels, softmax(logits), draws=0)
        shown.append(got.ece)
        told.append(got.ece_by_chance)
    assert np.mean(told) == pytest.approx(np.mean(shown), rel=0.1)
    assert np.mean(told) > 0.04
    sure = measure_calibration(np.zeros(90, int), np.eye(2)[np.zeros(90, int)], draws=0)
    assert (sure.ece, sure.ece_by_chance) == (0, 0)


def test_equal_confidences_share_an_adaptive_bin():
    """Whatever the order of the cells: else half of a constant confidence would look too sure."""
    labels = np.repeat([0, 1], 300)
    got = measure_calibration(labels, np.full((600, 2), 0.5), draws=0)
    assert (got.ece, got.adaptive_ece) == (0.0, 0.0)


def test_a_certain_wrong_answer_is_bounded():
    got = measure_calibration([1], [[1.0, 0.0]], draws=0)
    assert got.nll == pytest.approx(-np.log(np.finfo(float).eps))


def test_the_temperature_mends_what_is_too_sure():
    labels, logits = simulate(4000, temperature=2.5)
    held_out, held_logits = simulate(4000, temperature=2.5, seed=1)
    temperature = fit_temperature(held_out, held_logits)
    before = measure_calibration(labels, softmax(logits), draws=50)
    after = measure_calibration(labels, softmax(logits, temperature=temperature), draws=50)
    for name in ("ece", "adaptive_ece", "brier", "nll"):
        assert getattr(after, name) < getattr(before, name)
        low, high = after.intervals[name]
        assert low <= getattr(after, name) <= high
    assert after.ece < 0.02 < 0.2 < before.ece
    told = after.to_json()
    assert told["confidence_interval_95"]["nll"] == list(after.intervals["nll"])
    assert sum(one["cells"] for one in told["reliability"]) == 4000


def test_reliability_bins_add_up_to_the_ece():
    labels, logits = simulate()
    shares = softmax(logits)
    bins = bin_reliability(labels, shares)
    assert bins.counts.sum() == len(labels)
    filled = bins.counts > 0
    gaps = np.abs(bins.accuracy - bins.confidence)[filled]
    ece = measure_calibration(labels, shares, draws=0).ece
    assert (gaps @ bins.counts[filled]) / len(labels) == pytest.approx(ece)
    assert np.isnan(bins.accuracy[~filled]).all()
    low, high = bins.edges[:-1][filled], bins.edges[1:][filled]
    assert ((low <= bins.confidence[filled]) & (bins.confidence[filled] <= high)).all()
