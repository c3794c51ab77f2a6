"""Comparisons, held against scikit-learn, SciPy, simulation and cases worked by hand."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from wbc_keras.errors import DataError
from wbc_keras.metrics import SCORES
from wbc_keras.statistics.comparison import class_table, compare_models, difference_table

NAMES = ("blast", "lymphocyte", "monocyte")


def simulate(skill=1.5, seed=1, counts=(40, 120, 60)):
    rng = np.random.default_rng(seed)
    y_true = np.repeat(np.arange(len(counts)), counts)
    logits = rng.normal(size=(len(y_true), len(counts))) + skill * np.eye(len(counts))[y_true]
    return y_true, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def certain(answers):
    return np.eye(len(NAMES))[answers]


def test_a_notebook_shows_figures_and_classes_and_what_is_clear():
    y, weak = simulate(0.5)
    _, strong = simulate(3.0, seed=2)
    (got,) = compare_models(y, {"weak": weak, "<strong>": strong}, NAMES)
    tables = ElementTree.fromstring(f"<div>{got._repr_html_()}</div>").findall("table")
    figures, classes = (
        {row[0].text: [one.text for one in row[1:]] for row in table.iter("tr")} for table in tables
    )
    assert figures["figure"] == ["weak", "<strong>", "difference", "clear"]
    assert len(figures) == len(got.figures) + 1
    f1 = got.figures["macro_f1"]
    bounds = f"{f1.difference:+.3f} [{f1.interval[0]:+.3f}, {f1.interval[1]:+.3f}]"
    assert figures["macro F1"] == [f"{f1.first:.3f}", f"{f1.second:.3f}", bounds, "yes"]
    blast = got.per_class["blast"]
    assert classes["blast"][:3] == ["40", str(blast.gained), str(blast.lost)]
    assert classes["blast"][-1] == ("yes" if blast.moved else None)


def test_differences_are_those_of_scikit_learns_figures():
    y, weak = simulate(1.0)
    _, strong = simulate(2.0, seed=2)
    (got,) = compare_models(y, {"weak": weak, "strong": strong}, NAMES)
    assert (got.first, got.second) == ("weak", "strong")
    figures = {
        "accuracy": lambda p: metrics.accuracy_score(y, p.argmax(1)),
        "macro_f1": lambda p: metrics.f1_score(y, p.argmax(1), average="macro"),
        "mcc": lambda p: metrics.matthews_corrcoef(y, p.argmax(1)),
        "kappa": lambda p: metrics.cohen_kappa_score(y, p.argmax(1)),
        "macro_auroc": lambda p: metrics.roc_auc_score(y, p, multi_class="ovr"),
        "abnormal_auroc": lambda p: metrics.roc_auc_score(y == 0, p[:, 0]),
    }
    for name, figure in figures.items():
        one = got.figures[name]
        assert one.first == pytest.approx(figure(weak), abs=1e-12)
        assert one.difference == pytest.approx(figure(strong) - figure(weak), abs=1e-12)
        assert one.interval[0] < one.difference < one.interval[1]
    assert got.figures["accuracy"].is_clear
    for c, name in enumerate(NAMES):
        change, right = got.per_class[name], [p.argmax(1) == y for p in (weak, strong)]
        assert change.support == (y == c).sum()
        assert change.gained == (right[1] & ~right[0] & (y == c)).sum()
        assert change.lost == (right[0] & ~right[1] & (y == c)).sum()
        f1 = [metrics.f1_score(y == c, p.argmax(1) == c) for p in (weak, strong)]
        assert change.figures["f1"].difference == pytest.approx(f1[1] - f1[0], abs=1e-12)
        recall = change.figures["recall"]
        assert recall.difference * change.support == pytest.approx(change.gained - change.lost)


def test_turned_round_the_differences_change_sign():
    y, weak = simulate(1.0)
    _, strong = simulate(2.0, seed=2)
    (one,) = compare_models(y, {"a": weak, "b": strong}, NAMES)
    (other,) = compare_models(y, {"b": strong, "a": weak}, NAMES)
    for name, figure in one.figures.items():
        turned = other.figures[name]
        assert turned.difference == pytest.approx(-figure.difference)
        low, high = turned.interval
        assert (-high, -low) == pytest.approx(figure.interval, abs=0.004)
    assert other.mcnemar.p == one.mcnemar.p


def test_pairing_makes_the_interval_of_like_models_narrow():
    """The second model differs in 6 cells only: the interval is that of these, not of all cells."""
    y, p = simulate(1.0)
    other = p.copy()
    wrong = np.flatnonzero(p.argmax(1) != y)[:6]
    other[wrong] = certain(y[wrong])
    (got,) = compare_models(y, {"a": p, "b": other}, NAMES)
    accuracy = got.figures["accuracy"]
    assert accuracy.difference == pytest.approx(6 / 220)
    deviation = np.sqrt(6 / 220 * (1 - 6 / 220) / 220)
    assert np.diff(accuracy.interval)[0] == pytest.approx(2 * 1.96 * deviation, rel=0.15)


def test_paired_interval_covers_the_true_difference():
    """Two models whose accuracies truly differ by 0.05, right on the same easy cells."""
    rng = np.random.default_rng(0)
    y, studies, covered = np.tile([0, 1, 2], 50), 150, 0
    for study in range(studies):
        ease = rng.random(150)
        right = [rng.random(150) < skill + 0.4 * (ease - 0.5) for skill in (0.7, 0.75)]
        models = {str(m): certain(np.where(one, y, (y + 1) % 3)) for m, one in enumerate(right)}
        (got,) = compare_models(y, models, NAMES, draws=200, seed=study)
        low, high = got.figures["accuracy"].interval
        covered += low <= 0.05 <= high
    assert 0.9 < covered / studies < 0.99  # 0.95 but for three standard errors


def test_mcnemar_is_scipys_and_holm_is_worked_by_hand():
    y = np.zeros(100, int)
    right = np.ones((3, 100), bool)
    right[0, :20] = False  # a: 20 wrong
    right[1, 15:30] = False  # b: 15 wrong, 5 of them with a
    right[2, :2] = False  # c: 2 wrong, both with a
    models = {name: certain(np.where(one, 0, 1)) for name, one in zip("abc", right, strict=True)}
    got = {(one.first, one.second): one.mcnemar for one in compare_models(y, models, NAMES)}
    assert list(got) == [("a", "b"), ("a", "c"), ("b", "c")]
    counts = [(one.only_first, one.only_second) for one in got.values()]
    assert counts == [(10, 15), (0, 18), (2, 15)]
    p = [stats.binomtest(first, first + second).pvalue for first, second in counts]
    np.testing.assert_allclose([one.p for one in got.values()], p, atol=1e-12)
    # The least of three times 3, the next times 2, the last as it is.
    assert p[1] < p[2] < p[0]
    corrected = [p[0], 3 * p[1], 2 * p[2]]
    np.testing.assert_allclose([one.p_holm for one in got.values()], corrected, atol=1e-12)


def test_holm_never_falls_and_never_passes_one():
    y = np.zeros(60, int)
    right = np.ones((4, 60), bool)
    for rank in range(4):
        right[rank, 10 * rank : 10 * rank + 10 + rank] = False
    models = {name: certain(np.where(one, 0, 1)) for name, one in zip("abcd", right, strict=True)}
    got = [one.mcnemar for one in compare_models(y, models, NAMES, draws=5)]
    assert len(got) == 6
    ordered = sorted(got, key=lambda one: one.p)
    corrected = [one.p_holm for one in ordered]
    assert corrected == sorted(corrected)
    assert max(corrected) == 1
    assert all(one.p_holm >= one.p for one in got)


def test_a_run_against_itself_does_not_differ():
    y, p = simulate()
    (got,) = compare_models(y, {"a": p, "b": p.copy()}, NAMES)
    assert (got.mcnemar.only_first, got.mcnemar.only_second, got.mcnemar.p) == (0, 0, 1)
    for one in got.figures.values():
        assert (one.difference, one.interval, one.is_clear) == (0, (0, 0), False)
    assert {one.moved for one in got.per_class.values()} == {""}


def test_which_classes_moved():
    """The second model learned monocytes and forgot some blasts; lymphocytes stay."""
    y, _ = simulate()
    first, second = y.copy(), y.copy()
    first[y == 2] = np.where(np.arange(60) < 30, 2, 1)
    second[y == 0] = np.where(np.arange(40) < 25, 0, 1)
    (got,) = compare_models(y, {"a": certain(first), "b": certain(second)}, NAMES)
    assert got.per_class["monocyte"].moved == "better"
    assert got.per_class["blast"].moved == "worse"
    assert (got.per_class["monocyte"].gained, got.per_class["blast"].lost) == (30, 15)


def test_a_class_without_cells_has_no_figures():
    y, p = simulate(counts=(0, 30, 30))
    (got,) = compare_models(y, {"a": p, "b": p[:, [0, 2, 1]]}, NAMES)
    change = got.per_class["blast"]
    assert (change.support, change.moved) == (0, "")
    for one in change.figures.values():
        assert (one.first, one.difference, one.interval) == (None, None, None)
    assert got.figures["abnormal_auroc"].difference is None
    json.dumps(got.to_json(), allow_nan=False)


@pytest.mark.parametrize("right", [True, False])
def test_all_right_against_all_wrong(right):
    y, _ = simulate()
    models = {"a": certain(y if right else (y + 1) % 3), "b": certain((y + 1) % 3 if right else y)}
    (got,) = compare_models(y, models, NAMES)
    change = -1.0 if right else 1.0
    assert got.figures["accuracy"].difference == change
    assert got.figures["accuracy"].interval == (change, change)
    assert got.mcnemar.p == pytest.approx(2 * 0.5**220)


def test_one_single_patient_has_no_intervals():
    y, p = simulate()
    models = {"a": p, "b": simulate(seed=2)[1]}
    (got,) = compare_models(y, models, NAMES, groups=["only"] * len(y))
    assert {one.interval for one in got.figures.values()} == {None}
    assert {one.moved for one in got.per_class.values()} == {""}


def test_patients_widen_the_interval():
    """All cells of a patient fare alike, so there are as many answers as patients."""
    y = np.tile([0, 1, 2], 100)
    patients = np.repeat(np.arange(15), 20)
    better = np.isin(patients, [1, 4, 6, 9, 12])
    models = {"a": certain(np.where(better, (y + 1) % 3, y)), "b": certain(y)}
    groups = [str(number) for number in patients]
    (by_patient,) = compare_models(y, models, NAMES, groups=groups)
    (by_cell,) = compare_models(y, models, NAMES)
    widths = [np.diff(one.figures["accuracy"].interval)[0] for one in (by_patient, by_cell)]
    assert widths[0] > 3 * widths[1]


def test_tables_hold_every_figure_of_every_pair():
    y, p = simulate(counts=(0, 30, 30))
    comparisons = compare_models(
        y, {"a": p, "b": simulate(seed=2, counts=(0, 30, 30))[1], "c": p[:, ::-1]}, NAMES, draws=50
    )
    table = difference_table(comparisons)
    assert len(table) == 3 * len(comparisons[0].figures)
    columns = ["first_run", "second_run", "figure", "first", "second", "difference", "low", "high"]
    assert list(table) == columns
    row = table.set_index(["first_run", "second_run", "figure"]).loc[("a", "c", "accuracy")]
    one = comparisons[1].figures["accuracy"]
    assert (row["difference"], row["low"], row["high"]) == (one.difference, *one.interval)
    classes = class_table(comparisons)
    assert len(classes) == 3 * 3
    for figure in SCORES:
        assert classes.loc[classes["class"] == "blast", f"{figure}_difference"].isna().all()


def test_one_model_is_refused():
    y, p = simulate()
    with pytest.raises(DataError, match="two models or more"):
        compare_models(y, {"a": p}, NAMES)
    with pytest.raises(DataError, match="expected labels"):
        compare_models(y, {"a": p, "b": p[1:]}, NAMES)
