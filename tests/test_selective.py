from __future__ import annotations

import numpy as np
import pytest

from wbc_keras.errors import DataError
from wbc_keras.statistics.selective import find_threshold, measure_selective, trace_risk_coverage


def two_classes(confidence, correct):
    """Return labels and probabilities of cells that are all taken for class 0."""
    confidence = np.asarray(confidence, float)
    return 1 - np.asarray(correct, int), np.stack([confidence, 1 - confidence], axis=1)


def simulate(n=400, *, digits=9, seed=0):
    rng = np.random.default_rng(seed)
    confidence = np.round(rng.uniform(0.5, 1, n), digits)
    return confidence, rng.random(n) < confidence


def test_hand_worked_curve():
    curve = trace_risk_coverage([0.6, 0.9, 0.8, 0.6], [True, True, False, True])
    assert curve.thresholds.tolist() == [0.9, 0.8, 0.6]
    assert curve.coverage.tolist() == [0.25, 0.5, 1.0]
    assert curve.risk.tolist() == [0, 0.5, 0.25]
    # The two cells of one confidence have the risk of all four.
    assert curve.area == pytest.approx((0 + 0.5 + 0.25 + 0.25) / 4)
    assert curve.best_area == pytest.approx(0.25 / 4)
    assert curve.at_least(0.5) == {"coverage": 0.5, "threshold": 0.8, "accuracy": 0.5}
    assert curve.at_least(0.51)["coverage"] == 1


@pytest.mark.parametrize("digits", [9, 1])
def test_curve_agrees_with_a_loop(digits):
    confidence, correct = simulate(digits=digits)
    risks = [np.mean(~correct[confidence >= own]) for own in confidence]
    curve = trace_risk_coverage(confidence, correct)
    assert curve.area == pytest.approx(np.mean(risks), abs=1e-12)
    for threshold, coverage, risk in zip(curve.thresholds, curve.coverage, curve.risk, strict=True):
        assert coverage == np.mean(confidence >= threshold)
        assert risk == np.mean(~correct[confidence >= threshold])
    # Right before wrong, all apart.
    perfect = trace_risk_coverage(2.0 * correct - np.arange(len(correct)) / 1000, correct)
    assert curve.best_area == pytest.approx(perfect.area, abs=1e-12)


def test_all_right_and_all_wrong():
    confidence, _ = simulate(50)
    right = trace_risk_coverage(confidence, np.ones(50, bool))
    assert (right.area, right.best_area) == (0, 0)
    wrong = trace_risk_coverage(confidence, np.zeros(50, bool))
    assert (wrong.area, wrong.best_area) == (1, 1)
    for wanted in (0.5, 1.0):
        keywords = {"wanted_accuracy": wanted}
        assert find_threshold(confidence, np.ones(50, bool), **keywords) == 0
        assert find_threshold(confidence, np.zeros(50, bool), **keywords) is None


@pytest.mark.parametrize("digits", [9, 1])
@pytest.mark.parametrize("wanted", [0.8, 0.9, 0.95])
def test_threshold_keeps_the_accuracy_and_no_lower_one_does(wanted, digits):
    confidence, correct = simulate(digits=digits)
    threshold = find_threshold(confidence, correct, wanted_accuracy=wanted)
    assert np.mean(correct[confidence >= threshold]) >= wanted
    for lower in np.unique(confidence[confidence < threshold]):
        assert np.mean(correct[confidence >= lower]) < wanted
    # Halfway between two confidences: a last digit changes nothing.
    assert np.abs(confidence - threshold).min() > 1e-7


def test_accuracy_wanted_exactly_is_reached():
    confidence, correct = np.linspace(1, 0.5, 20), np.arange(20) != 7
    assert find_threshold(confidence, correct, wanted_accuracy=0.95) == 0


def test_figures_and_intervals_of_accepted_answers():
    confidence, correct = simulate(2000)
    accepted = confidence > 0.8
    got = measure_selective(*two_classes(confidence, correct), accepted=accepted)
    assert got.coverage == pytest.approx(accepted.mean())
    assert got.accuracy == pytest.approx(correct[accepted].mean())
    told = got.to_json()
    for name, value in (
        ("area", got.curve.area),
        ("coverage", got.coverage),
        ("accuracy", got.accuracy),
    ):
        low, high = told["confidence_interval_95"][name]
        assert low < value < high < low + 0.08
    assert [row["coverage"] for row in told["at_coverage"]] == [1, 0.95, 0.9, 0.8, 0.7, 0.5]
    assert told["at_coverage"][0]["accuracy"] == pytest.approx(correct.mean())
    assert told["at_coverage"][-1]["accuracy"] > told["at_coverage"][0]["accuracy"]


def test_without_a_threshold_and_with_nothing_accepted():
    cells = two_classes(*simulate(100))
    none = measure_selective(*cells, accepted=None)
    assert (none.coverage, none.accuracy, none.intervals["coverage"]) == (None, None, None)
    nothing = measure_selective(*cells, accepted=np.zeros(100, bool))
    assert (nothing.coverage, nothing.accuracy, nothing.intervals["accuracy"]) == (0, None, None)
    one = measure_selective([0], [[0.9, 0.1]], accepted=[True])
    assert (one.coverage, one.accuracy, one.intervals["area"]) == (1, 1, None)


def test_groups_widen_the_intervals():
    confidence, correct = simulate(800)
    cells = two_classes(confidence, correct)
    groups = [f"patient {int(c * 40)}" for c in confidence]  # alike within a patient
    widths = []
    for names in (None, groups):
        got = measure_selective(*cells, accepted=confidence > 0.8, groups=names)
        low, high = got.intervals["coverage"]
        widths.append(high - low)
    assert widths[1] > 3 * widths[0]


def test_accepted_of_another_length_is_refused():
    with pytest.raises(DataError, match=r"each of 3 cells\. Received: \(1,\)"):
        measure_selective(*two_classes([0.6] * 3, [True] * 3), accepted=[True])
