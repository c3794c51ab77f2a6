"""Screening, held against scikit-learn, SciPy and cases worked by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from wbc_keras.errors import DataError
from wbc_keras.statistics.screening import screen

NAMES = ("blast", "lymphocyte", "monocyte", "promyelocyte")
ABNORMAL = ("blast", "promyelocyte")
THRESHOLDS = {"sensitive": 0.3, "specific": 0.7}


def simulate(counts=(60, 200, 90, 15), seed=0, skill=1.5, steps=None):
    """Return labels and probabilities; with ``steps``, coarse ones, so that scores are tied."""
    rng = np.random.default_rng(seed)
    y_true = np.repeat(np.arange(len(counts)), counts)
    logits = rng.normal(size=(len(y_true), len(counts))) + skill * np.eye(len(counts))[y_true]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if steps:
        shares = np.round(shares * steps) / steps
        shares[:, 1] += 1 - shares.sum(axis=1)
        shares = np.abs(shares) / np.abs(shares).sum(axis=1, keepdims=True)
    return y_true, shares


def certain(answers, names=NAMES):
    return np.eye(len(names))[answers]


@pytest.mark.parametrize("steps", [None, 8])
@pytest.mark.parametrize("classes", [ABNORMAL, ("blast",)])
def test_areas_and_curves_are_scikit_learns(classes, steps):
    y, p = simulate(steps=steps)
    got = screen(y, p, NAMES, classes, draws=0)
    looked_for = np.isin(NAMES, classes)
    positive, scores = looked_for[y], p[:, looked_for].sum(axis=1)
    assert got.auroc == pytest.approx(metrics.roc_auc_score(positive, scores), abs=1e-12)
    precision = metrics.average_precision_score(positive, scores)
    assert got.average_precision == pytest.approx(precision, abs=1e-12)
    assert (got.cells, got.positives) == (365, positive.sum())
    false, true, _ = metrics.roc_curve(positive, scores, drop_intermediate=False)
    np.testing.assert_allclose(got.roc.x, false, atol=1e-12)
    np.testing.assert_allclose(got.roc.y, true, atol=1e-12)
    precisions, recalls, _ = metrics.precision_recall_curve(positive, scores)
    np.testing.assert_allclose(got.precision_recall.x[1:], recalls[-2::-1], atol=1e-12)
    np.testing.assert_allclose(got.precision_recall.y[1:], precisions[-2::-1], atol=1e-12)


def test_operating_point_is_scikit_learns_at_the_threshold():
    y, p = simulate()
    got = screen(y, p, NAMES, ABNORMAL, thresholds={**THRESHOLDS, "none": None}, draws=0)
    assert got.points["none"] is None
    positive, scores = np.isin(y, [0, 3]), p[:, 0] + p[:, 3]
    for name, threshold in THRESHOLDS.items():
        point, called = got.points[name], scores >= threshold
        tn, fp, fn, tp = metrics.confusion_matrix(positive, called).ravel()
        assert (point.true_positives, point.false_positives) == (tp, fp)
        assert (point.true_negatives, point.false_negatives) == (tn, fn)
        assert point.threshold == threshold
        for figure, truth, answer, label in (
            ("sensitivity", positive, called, True),
            ("specificity", positive, called, False),
            ("ppv", called, positive, True),
            ("npv", called, positive, False),
        ):
            expected = metrics.recall_score(truth, answer, pos_label=label)
            assert getattr(point, figure) == pytest.approx(expected, abs=1e-12)


def test_a_cell_exactly_at_the_threshold_is_called():
    p = np.array([[0.5, 0.5, 0, 0], [0.25, 0.75, 0, 0]])
    point = screen([0, 1], p, NAMES, ABNORMAL, thresholds={"x": 0.5}, draws=0).points["x"]
    assert (point.sensitivity, point.specificity) == (1.0, 1.0)


def test_intervals_and_bands_hold_the_figures():
    y, p = simulate()
    got = screen(y, p, NAMES, ABNORMAL, thresholds=THRESHOLDS)
    for name, (low, high) in got.intervals.items():
        assert low < getattr(got, name) < high
    for point in got.points.values():
        for name, (low, high) in point.intervals.items():
            assert low < getattr(point, name) < high
    for curve in (got.roc, got.precision_recall):
        assert curve.low.shape == curve.high.shape == curve.grid.shape
        assert (curve.low <= curve.high).all()
        assert 0 <= curve.low.min() <= curve.high.max() <= 1
    own = np.interp(got.roc.grid, got.roc.x, got.roc.y)
    inside = (own >= got.roc.low - 1e-9) & (own <= got.roc.high + 1e-9)
    assert inside.mean() > 0.95
    again = screen(y, p, NAMES, ABNORMAL, thresholds=THRESHOLDS)
    assert again.to_json() == got.to_json()


def test_a_rate_of_cells_has_wilsons_interval_and_the_bootstrap_agrees():
    """With each cell a patient of its own, the draws have to find what the formula says."""
    y, p = simulate((400, 900, 300, 100))
    cells = [str(cell) for cell in range(len(y))]
    ours, drawn = (
        screen(y, p, NAMES, ABNORMAL, thresholds={"x": 0.4}, groups=groups).points["x"]
        for groups in (None, cells)
    )
    positives = ours.true_positives + ours.false_negatives
    wilson = stats.binomtest(ours.true_positives, positives).proportion_ci(method="wilson")
    assert ours.intervals["sensitivity"] == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    assert drawn.intervals["sensitivity"] == pytest.approx((wilson.low, wilson.high), abs=0.008)


def test_patients_are_drawn_whole():
    """Each patient's cells are all right or all wrong: 20 answers, however many cells."""
    right = np.arange(20) < 14
    y = np.tile([0, 1], 500)
    patients = np.repeat(np.arange(20), 50)
    p = certain(np.where(right[patients], y, 1 - y))
    names = [f"patient {number}" for number in patients]
    point = screen(y, p, NAMES, ABNORMAL, thresholds={"x": 0.5}, groups=names).points["x"]
    alone = screen(y, p, NAMES, ABNORMAL, thresholds={"x": 0.5}).points["x"]
    assert point.sensitivity == alone.sensitivity == 0.7
    width, narrow = (np.diff(one.intervals["sensitivity"])[0] for one in (point, alone))
    assert width == pytest.approx(narrow * np.sqrt(25), rel=0.25)


# Bad or bare input.


@pytest.mark.parametrize("right", [True, False])
def test_all_right_and_all_wrong(right):
    y = np.repeat([0, 1], [30, 50])
    p = certain(y if right else 1 - y)
    got = screen(y, p, NAMES, ABNORMAL, thresholds={"x": 0.5})
    point = got.points["x"]
    value = float(right)
    assert got.auroc == point.sensitivity == point.specificity == value
    assert got.intervals["auroc"] == (value, value)
    for name, cells in (("sensitivity", 30), ("specificity", 50)):
        wilson = stats.binomtest(int(right) * cells, cells).proportion_ci(method="wilson")
        assert point.intervals[name] == pytest.approx((wilson.low, wilson.high), abs=1e-12)


def test_at_all_right_the_units_are_patients():
    y = np.repeat([0, 1], [30, 50])
    patients = [f"{cell % 10}" for cell in range(80)]
    point = screen(y, certain(y), NAMES, ABNORMAL, thresholds={"x": 0.5}, groups=patients)
    wilson = stats.binomtest(10, 10).proportion_ci(method="wilson")
    assert point.points["x"].intervals["sensitivity"] == pytest.approx((wilson.low, 1.0), abs=1e-12)


def test_models_of_several_folds_have_thresholds_of_their_own():
    y = np.array([0, 0, 1, 1])
    p = certain(y) * 0.2 + 0.2
    thresholds = np.array([0.4, 0.5, 0.1, 0.3])
    point = screen(y, p, NAMES, ("blast",), thresholds={"x": thresholds}, draws=0).points["x"]
    assert (point.sensitivity, point.specificity, point.threshold) == (0.5, 0.5, None)


def test_one_single_patient_leaves_nothing_to_draw():
    y, p = simulate()
    got = screen(y, p, NAMES, ABNORMAL, thresholds=THRESHOLDS, groups=["only"] * len(y))
    assert got.intervals == {"auroc": None, "average_precision": None}
    assert got.points["specific"].intervals["sensitivity"] is None
    assert got.roc.low is None
    assert got.auroc == pytest.approx(screen(y, p, NAMES, ABNORMAL, draws=0).auroc)
    json.dumps(got.to_json(), allow_nan=False)


@pytest.mark.parametrize(("counts", "positives"), [((0, 9, 9, 0), 0), ((9, 0, 0, 9), 18)])
def test_a_side_without_cells_has_no_figures(counts, positives):
    y, p = simulate(counts)
    got = screen(y, p, NAMES, ABNORMAL, thresholds={"x": 0.5})
    assert (got.positives, got.auroc, got.average_precision) == (positives, None, None)
    assert got.roc is None
    assert got.precision_recall is None
    point = got.points["x"]
    missing = "specificity" if positives else "sensitivity"
    assert getattr(point, missing) is None
    assert point.intervals[missing] is None
    json.dumps(got.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p * np.nan, "sum to one .* at cell 0"),
        (lambda p: p * 0.5, "sum to one .* at cell 0"),
        (lambda p: p[:-1], "expected labels"),
        (lambda p: np.zeros((len(p), 0)), "expected labels"),
    ],
)
def test_probabilities_that_are_none_are_refused(change, message):
    y, p = simulate()
    with pytest.raises(DataError, match=message):
        screen(y, change(p), NAMES, ABNORMAL)


@pytest.mark.parametrize("classes", [("plum",), ()])
def test_unknown_classes_are_refused(classes):
    y, p = simulate()
    with pytest.raises(DataError, match="expected some of blast, lymphocyte"):
        screen(y, p, NAMES, classes)
