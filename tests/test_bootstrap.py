"""Drawing cells again: weights, units, and whether an interval covers the truth as it claims."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from wbc_keras.errors import DataError
from wbc_keras.statistics import bootstrap
from wbc_keras.statistics.bootstrap import (
    bootstrap_intervals,
    draw_figures,
    interval_of,
    plan_resampling,
)


def share_of(values):
    """Return the function from weights to the weighted mean of ``values``."""
    return lambda weights: {"share": weights @ values / weights.sum(axis=1)}


def test_cells_are_drawn_within_their_class_and_classes_keep_their_weight():
    labels = np.array(["a"] * 5 + ["b"] * 2 + ["c"])
    weights = plan_resampling(labels).draw(2000, np.random.default_rng(0))
    for label, count in (("a", 5), ("b", 2), ("c", 1)):
        np.testing.assert_allclose(weights[:, labels == label].sum(axis=1), count)
    assert (weights[:, 7] == 1).all()  # a class of one cell leaves nothing to draw
    # The variance of a mean of m cells is theirs over m - 1, what an unbiased estimate has.
    np.testing.assert_allclose(weights.mean(axis=0), 1, atol=0.08)
    values = np.arange(5.0)
    means = weights[:, :5] @ values / 5
    assert means.var() == pytest.approx(values.var(ddof=1) / 5, rel=0.1)


def test_groups_are_drawn_whole_and_a_cell_without_one_alone():
    groups = [f"p{i % 7}" if i % 5 else "" for i in range(60)]
    plan = plan_resampling(["x"] * 60, groups=groups)
    assert (plan.by, plan.degrees_of_freedom) == ("group", 7 + 12 - 1)
    weights = plan.draw(200, np.random.default_rng(0))
    for name in {f"p{i}" for i in range(7)}:
        inside = weights[:, [i for i, group in enumerate(groups) if group == name]]
        assert (inside == inside[:, :1]).all()
    alone = weights[:, ::5]
    assert (alone != alone[:, :1]).any()
    assert (weights == weights.astype(int)).all()


def test_no_group_named_is_as_no_groups():
    labels = [0, 0, 1, 1]
    plan = plan_resampling(labels, groups=[""] * 4)
    assert (plan.by, len(plan.strata)) == ("cell", 2)


def test_groups_of_another_length_are_refused():
    with pytest.raises(DataError, match=r"each of 3 cells\. Received: 1"):
        plan_resampling([0, 1, 1], groups=["a"])


def test_blocks_do_not_change_the_draws(monkeypatch):
    values, plan = np.arange(50.0), plan_resampling([0] * 30 + [1] * 20, groups=["a", "b"] * 25)
    whole = draw_figures(share_of(values), plan, draws=64)["share"]
    monkeypatch.setattr(bootstrap, "_BLOCK_CELLS", 50 * 7)
    np.testing.assert_array_equal(draw_figures(share_of(values), plan, draws=64)["share"], whole)


@pytest.mark.parametrize(
    ("labels", "groups"), [([0, 1, 2], None), ([0, 0, 1], ["p"] * 3), ([0], None)]
)
def test_nothing_to_draw_is_no_interval(labels, groups):
    plan = plan_resampling(labels, groups=groups)
    assert bootstrap_intervals(share_of(np.ones(len(labels))), plan) == {"share": None}


def test_interval_of_a_symmetric_figure_is_that_of_student():
    drawn = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    low, high = interval_of(0.0, drawn, degrees_of_freedom=9)
    reach = stats.t.ppf(0.975, 9)
    assert (low, high) == pytest.approx((-reach, reach), abs=2e-3)
    # A figure below the middle of its draws: Efron's correction moves both ends by twice as much.
    low, high = interval_of(-0.2, drawn, degrees_of_freedom=10**6)
    assert (low, high) == pytest.approx((-0.4 - 1.96, -0.4 + 1.96), abs=2e-3)


def test_figure_that_half_of_the_draws_lack_has_no_interval():
    assert interval_of(0.5, np.array([0.4, 0.6, np.nan, np.nan]), degrees_of_freedom=9) is None
    assert interval_of(0.5, np.array([0.4, 0.6, 0.5, np.nan]), degrees_of_freedom=9) is not None
    assert interval_of(np.nan, np.array([0.4, 0.6]), degrees_of_freedom=9) is None


def test_figure_that_never_changes_has_its_own_value_as_interval():
    assert interval_of(1.0, np.full(100, 1.0), degrees_of_freedom=99) == (1.0, 1.0)


# 500 simulated studies: the interval covers the truth in 93 to 97 % of them.


def coverage(simulate, truth, studies=500):
    rng, covered = np.random.default_rng(11), 0
    for study in range(studies):
        values, labels, groups = simulate(rng)
        plan = plan_resampling(labels, groups=groups)
        low, high = bootstrap_intervals(share_of(values), plan, seed=study)["share"]
        covered += low <= truth <= high
    return covered / studies


def test_interval_by_cell_covers_the_truth():
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    chance = np.array([0.9, 0.7, 0.5])[labels]
    covered = coverage(lambda rng: (rng.random(100) < chance, labels, None), truth=0.8)
    assert 0.93 <= covered <= 0.97


@pytest.mark.parametrize("patients", [12, 40])
def test_interval_by_patient_covers_the_truth(patients):
    """Patients whose cells are classified well or badly; accuracy 0.8 in the long run."""

    def simulate(rng):
        patient = np.repeat(np.arange(patients), rng.integers(5, 30, patients))
        chance = rng.beta(6.4, 1.6, patients)[patient]
        names = [f"patient {i}" for i in patient]
        return rng.random(len(patient)) < chance, np.zeros(len(patient)), names

    assert 0.93 <= coverage(simulate, truth=0.8) <= 0.97
