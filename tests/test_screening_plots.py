from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from wbc_keras.plots import save_figure
from wbc_keras.reporting import screening_plots as plots
from wbc_keras.statistics.comparison import compare_models
from wbc_keras.statistics.patients import count_patients
from wbc_keras.statistics.screening import screen

NAMES = ("blast", "lymphocyte", "monocyte", "promyelocyte")


def simulate(counts=(60, 200, 90, 15), seed=0, skill=1.5):
    rng = np.random.default_rng(seed)
    y_true = np.repeat(np.arange(len(counts)), counts)
    logits = rng.normal(size=(len(y_true), len(counts))) + skill * np.eye(len(counts))[y_true]
    return y_true, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def legend_of(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


@pytest.fixture(scope="module")
def patients():
    y, p = simulate()
    return count_patients(y, p, NAMES, [f"patient {cell % 7}" for cell in range(len(y))])


def test_screening_names_areas_points_and_prevalence():
    y, p = simulate()
    got = {
        "abnormal": screen(y, p, NAMES, ("blast", "promyelocyte"), thresholds={"sensitive": 0.25}),
        "blast": screen(y, p, NAMES, ("blast",), draws=0),
    }
    roc, precision = plots.plot_screening(got)
    low, high = got["abnormal"].intervals["auroc"]
    auroc = got["abnormal"].auroc
    assert legend_of(roc) == [
        f"abnormal cells, AUROC {auroc:.3f} [{low:.3f}, {high:.3f}]",
        "sensitive (from 0.250)",
        f"blasts, AUROC {got['blast'].auroc:.3f}",
        "chance",
    ]
    assert "blasts: 16.4% of 365 cells" in legend_of(precision)
    point = got["abnormal"].points["sensitive"]
    marks = [list(line.get_xydata()[0]) for line in roc.lines if line.get_marker() == "o"]
    assert marks == [[1 - point.specificity, point.sensitivity]]
    np.testing.assert_array_equal(roc.lines[0].get_ydata(), got["abnormal"].roc.y)
    assert len(roc.collections) == 1  # a band for the one with draws


def test_patients_show_shares_errors_and_who_is_on_the_wrong_side(patients, tmp_path):
    axes = plots.plot_patients(patients)
    assert axes.shape == (2, 2)
    table = patients.table
    for (shares, differences), name in zip(axes, ("abnormal", "blast"), strict=True):
        true, predicted = table[f"{name}_share_true"], table[f"{name}_share_predicted"]
        dots = next(line for line in shares.lines if line.get_marker() == "o")
        np.testing.assert_allclose(dots.get_xydata(), np.stack([true, predicted], axis=1))
        error = 100 * patients.shares[name].mean_absolute_error
        assert f"mean absolute error {error:.1f} [" in shares.get_title()
        dots = next(line for line in differences.lines if line.get_marker() == "o")
        np.testing.assert_allclose(dots.get_ydata(), predicted - true)
        heights = {round(line.get_ydata()[0], 9) for line in differences.lines}
        assert heights >= {round(limit, 9) for limit in patients.shares[name].limits}
    wrong = patients.detection.missed + patients.detection.false_alarms
    assert f"{len(wrong)} of 7 patients" in axes[1][0].get_title()
    assert len(axes[1][0].lines[-1].get_xdata()) == len(wrong)
    save_figure(axes[0][0].figure, tmp_path / "patients.png")


def test_one_patient_is_drawn_without_limits():
    y, p = simulate()
    one = count_patients(y, p, NAMES, ["only"] * len(y))
    axes = plots.plot_patients(one)
    assert [text.get_text()[:4] for text in axes[0][1].texts] == ["bias"]
    assert "limits of agreement (95 % of patients)" not in legend_of(plots.plot_differential(one))


def test_differential_has_the_largest_class_on_top(patients):
    ax = plots.plot_differential(patients)
    means = {name: patients.table[f"{name}_true"].mean() for name in NAMES}
    order = sorted(NAMES, key=means.get)
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels == [f"{name} ({means[name]:.1%})" for name in order]
    points = [line.get_xydata()[0] for line in ax.lines if line.get_marker() == "o"]
    biases = [patients.differential[name].bias for name in order]
    np.testing.assert_allclose(points, np.stack([biases, np.arange(4)], axis=1))


def test_differences_are_drawn_for_each_run_with_their_intervals():
    y, p = simulate((60, 200, 90, 0))
    models = {"a": p, "b": simulate((60, 200, 90, 0), seed=2)[1], "c": p[:, [0, 2, 1, 3]]}
    comparisons = compare_models(y, models, NAMES, draws=50)[:2]
    figures, classes = plots.plot_differences(comparisons)
    assert legend_of(classes) == ["b", "c"]
    labels = [label.get_text() for label in figures.get_yticklabels()]
    assert {"accuracy", "macro F1", "ECE (less is better)"} <= set(labels)
    lines = [tuple(line.get_xdata()) for line in figures.lines]
    assert comparisons[1].figures["accuracy"].interval in lines
    rows = [label.get_text() for label in classes.get_yticklabels()]
    assert rows[0] == "lymphocyte (n=200)"
    assert rows[-1] == "promyelocyte (n=0)"
    # The class without cells has no mark.
    marks = [line.get_ydata() for line in classes.lines if line.get_marker() in "os"]
    assert [len(mark) for mark in marks] == [3, 3]


def test_given_axes_are_drawn_on(patients):
    y, p = simulate()
    figure = Figure()
    left, right = figure.subplots(1, 2)
    screening = {"blast": screen(y, p, NAMES, ("blast",), draws=0)}
    assert plots.plot_screening(screening, ax=(left, right)) == (left, right)
    assert plots.plot_differential(patients, ax=left) is left
    grid = Figure().subplots(2, 2)
    assert plots.plot_patients(patients, ax=grid) is grid
    (pair,) = compare_models(y, {"a": p, "b": p}, NAMES, draws=0)
    assert plots.plot_differences([pair], ax=(left, right)) == (left, right)
