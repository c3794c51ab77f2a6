from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sk

from wbc_keras import metrics
from wbc_keras.errors import DataError
from wbc_keras.metrics import confusion_pairs, evaluate_predictions, per_class_table
from wbc_keras.prediction.predictions import prediction_table, write_predictions
from wbc_keras.runs import write_json
from wbc_keras.statistics import bootstrap
from wbc_keras.statistics.bootstrap import plan_resampling

NAMES = [f"class {c}" for c in range(6)]
ABNORMAL = NAMES[:2]


def simulate(n=1500, classes=6, *, seed=0, signal=2.0, ties=False):
    """Draw labels with a strong imbalance, and probabilities that follow them in part."""
    rng = np.random.default_rng(seed)
    shares = 0.45 ** np.arange(classes)
    y_true = np.append(
        np.arange(classes), rng.choice(classes, n - classes, p=shares / shares.sum())
    )
    logits = rng.normal(size=(n, classes)) + signal * np.eye(classes)[y_true]
    if ties:
        logits = np.round(logits)
    exponentials = np.exp(logits)
    return y_true, exponentials / exponentials.sum(axis=1, keepdims=True)


def evaluate(y_true, probabilities, *, names=NAMES, abnormal=ABNORMAL, draws=50, **keywords):
    return evaluate_predictions(
        y_true, probabilities, names, abnormal=abnormal, draws=draws, **keywords
    )


def ece_by_loop(y_true, probabilities, weights=None):
    total = 0.0
    weights = np.ones(len(y_true)) if weights is None else weights
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if weights[inside].any():
            gaps = ((predicted == y_true) - confidence)[inside]
            total += weights[inside].sum() * abs(np.average(gaps, weights=weights[inside]))
    return total / weights.sum()


def sensitivity_by_sklearn(positive, score, weights=None):
    false, true, _ = sk.roc_curve(positive, score, drop_intermediate=False, sample_weight=weights)
    return true[false <= 0.05 + 1e-12].max()


@pytest.mark.parametrize("ties", [False, True])
def test_every_figure_agrees_with_scikit_learn(ties):
    y, p = simulate(ties=ties)
    got = evaluate(y, p)
    q = p.argmax(axis=1)
    abnormal, score = y < 2, p[:, :2].sum(axis=1)
    one_hot = np.eye(6)[y]
    expected = {
        "accuracy": sk.accuracy_score(y, q),
        "macro_f1": sk.f1_score(y, q, average="macro"),
        "balanced_accuracy": sk.balanced_accuracy_score(y, q),
        "mcc": sk.matthews_corrcoef(y, q),
        "kappa": sk.cohen_kappa_score(y, q),
        "top2_accuracy": sk.top_k_accuracy_score(y, p, k=2),
        "macro_f1_at_least_20_cells": sk.f1_score(y, q, average="macro", labels=range(5)),
        "macro_auroc": sk.roc_auc_score(y, p, multi_class="ovr", average="macro"),
        "macro_auprc": sk.average_precision_score(one_hot, p, average="macro"),
        "ece": ece_by_loop(y, p),
        "brier": np.mean(np.sum((p - one_hot) ** 2, axis=1)),
        "nll": sk.log_loss(y, p),
        "abnormal_auroc": sk.roc_auc_score(abnormal, score),
        "abnormal_auprc": sk.average_precision_score(abnormal, score),
        "abnormal_sensitivity_at_95_specificity": sensitivity_by_sklearn(abnormal, score),
    }
    assert np.bincount(y)[4] >= 20 > np.bincount(y)[5]
    assert expected.keys() | {"adaptive_ece"} == got.intervals.keys()
    for name, value in expected.items():
        assert getattr(got, name) == pytest.approx(value, abs=1e-9), name
    precision, recall, f1, support = sk.precision_recall_fscore_support(y, q)
    for c, name in enumerate(NAMES):
        one = got.per_class[name]
        auroc = sk.roc_auc_score(y == c, p[:, c])
        np.testing.assert_allclose(
            [one.precision, one.recall, one.f1, one.auroc, one.auprc],
            [precision[c], recall[c], f1[c], auroc, sk.average_precision_score(y == c, p[:, c])],
            atol=1e-9,
        )
        assert one.support == support[c]
    np.testing.assert_array_equal(got.confusion, sk.confusion_matrix(y, q))
    assert got.samples == len(y)


def test_macro_figures_are_over_the_classes_with_cells():
    y, p = simulate()
    keep = (y != 1) & (y != 4)
    y, p = y[keep], p[keep]
    q, present = p.argmax(axis=1), [0, 2, 3, 5]
    assert 1 in q  # predicted, though no cell has it
    got = evaluate(y, p)
    f1 = sk.f1_score(y, q, labels=present, average="macro")
    recall = sk.recall_score(y, q, labels=present, average="macro")
    aurocs = [sk.roc_auc_score(y == c, p[:, c]) for c in present]
    assert got.macro_f1 == pytest.approx(f1, abs=1e-9)
    assert got.balanced_accuracy == pytest.approx(recall, abs=1e-9)
    assert got.macro_auroc == pytest.approx(np.mean(aurocs), abs=1e-9)
    absent = got.per_class[NAMES[4]]
    assert (absent.precision, absent.recall, absent.f1, absent.auroc, absent.auprc) == (None,) * 5
    assert absent.support == 0
    assert set(absent.intervals.values()) == {None}
    over = got.to_json()["macro_over"]
    assert (over["classes"], over["without_cells"]) == (4, [NAMES[1], NAMES[4]])


def test_a_class_never_predicted_scores_zero():
    p = np.array([[0.6, 0.4], [0.9, 0.1], [0.8, 0.2]])
    got = evaluate([0, 0, 1], p, names=["a", "b"], abnormal=None)
    rare = got.per_class["b"]
    assert (rare.precision, rare.recall, rare.f1, rare.auroc) == (0.0, 0.0, 0.0, 0.5)


def test_all_right_and_all_wrong():
    y = np.repeat(np.arange(3), 5)
    right = evaluate(y, np.eye(3)[y], names=NAMES[:3], abnormal=NAMES[:1])
    figures = {name: getattr(right, name) for name in right.intervals}
    worst = dict.fromkeys(["ece", "adaptive_ece", "brier", "nll"], 0.0)
    few = {"macro_f1_at_least_20_cells": None}
    assert figures == {**dict.fromkeys(figures, 1.0), **worst, **few}
    assert right.intervals["macro_f1"] == (1.0, 1.0)
    assert right.to_json()["confusion_pairs"] == []
    wrong = evaluate(y, np.eye(3)[(y + 1) % 3], names=NAMES[:3], abnormal=NAMES[:1])
    assert (wrong.accuracy, wrong.macro_f1, wrong.brier, wrong.ece) == (0.0, 0.0, 2.0, 1.0)
    assert wrong.kappa == pytest.approx(-0.5)


def test_one_class_present_has_no_kappa_and_no_auroc():
    p = np.array([[0.9, 0.1], [0.8, 0.2]])
    got = evaluate([0, 0], p, names=["a", "b"], abnormal=["b"])
    assert (got.accuracy, got.macro_f1, got.mcc) == (1.0, 1.0, 0.0)
    missing = ["kappa", "macro_auroc", "macro_auprc", "macro_f1_at_least_20_cells"]
    missing += ["abnormal_auroc", "abnormal_auprc", "abnormal_sensitivity_at_95_specificity"]
    assert all(getattr(got, name) is None for name in missing)
    assert all(got.intervals[name] is None for name in missing)
    assert got.intervals["accuracy"] == (1.0, 1.0)


def test_one_cell_and_one_group_have_figures_but_no_interval():
    one = evaluate([1], [[0.3, 0.7]], names=["a", "b"], abnormal=["b"])
    assert (one.accuracy, one.samples) == (1.0, 1)
    assert set(one.intervals.values()) == {None}
    assert one.resampled_by is None
    y, p = simulate()
    group = evaluate(y, p, groups=["patient 1"] * len(y))
    assert group.macro_f1 == evaluate(y, p).macro_f1
    assert set(group.intervals.values()) == {None}


def test_abnormal_is_missing_where_it_is_not_known():
    y, p = simulate()
    got = evaluate(y, p, abnormal=None).to_json()
    assert got["abnormal"] == dict.fromkeys(["auroc", "auprc", "sensitivity_at_95_specificity"])
    assert got["confidence_interval_95"]["abnormal_auroc"] is None
    assert evaluate(y, p, abnormal=[]).abnormal_auroc is None
    assert evaluate(y, p, abnormal=NAMES).abnormal_auroc is None
    with pytest.raises(DataError, match="Received: blast"):
        evaluate(y, p, abnormal=["blast"])


@pytest.mark.parametrize("negatives", [19, 20, 21, 39, 40])
def test_sensitivity_counts_the_allowed_negatives_exactly(negatives):
    rng = np.random.default_rng(negatives)
    score = rng.permutation(np.linspace(0.01, 0.99, negatives + 15))
    y = np.append(np.ones(15, int), np.zeros(negatives, int))
    got = evaluate(y, np.stack([1 - score, score], axis=1), names=["normal", "b"], abnormal=["b"])
    expected = sensitivity_by_sklearn(y == 1, score)
    assert got.abnormal_sensitivity_at_95_specificity == pytest.approx(expected, abs=1e-12)


def test_bootstrap_figures_are_scikit_learns_with_the_draws_weights():
    y, p = simulate(400, ties=True)
    scorer = metrics.Scorer(y, p, np.arange(6) < 2)
    weights = plan_resampling(y).draw(5, np.random.default_rng(3))
    drawn = scorer.figures(weights)
    q, score = p.argmax(axis=1), p[:, :2].sum(axis=1)
    for i, w in enumerate(weights):
        weighted = {"sample_weight": w}
        aurocs = [sk.roc_auc_score(y == c, p[:, c], **weighted) for c in range(6)]
        auprcs = [sk.average_precision_score(y == c, p[:, c], **weighted) for c in range(6)]
        expected = {
            "macro_auroc": np.mean(aurocs),
            "macro_auprc": np.mean(auprcs),
            "auprc/3": auprcs[3],
            "recall/2": sk.recall_score(y, q, labels=[2], average="macro", **weighted),
            "abnormal_auroc": sk.roc_auc_score(y < 2, score, **weighted),
            "abnormal_auprc": sk.average_precision_score(y < 2, score, **weighted),
            "abnormal_sensitivity_at_95_specificity": sensitivity_by_sklearn(y < 2, score, w),
            "top2_accuracy": sk.top_k_accuracy_score(y, p, k=2, **weighted),
            "macro_f1": sk.f1_score(y, q, average="macro", **weighted),
            "balanced_accuracy": sk.balanced_accuracy_score(y, q, **weighted),
            "mcc": sk.matthews_corrcoef(y, q, **weighted),
            "kappa": sk.cohen_kappa_score(y, q, **weighted),
            "accuracy": sk.accuracy_score(y, q, **weighted),
            "nll": sk.log_loss(y, p, **weighted),
            "brier": np.average(np.sum((p - np.eye(6)[y]) ** 2, axis=1), weights=w),
            "ece": ece_by_loop(y, p, w),
        }
        assert {name: drawn[name][i] for name in expected} == pytest.approx(expected, abs=1e-9)


def test_group_draws_take_whole_groups_and_leave_out_absent_classes():
    y, p = simulate(60, classes=3)
    groups = [f"p{i % 7}" if i % 5 else "" for i in range(60)]
    weights = plan_resampling(y, groups=groups).draw(200, np.random.default_rng(0))
    for name in set(groups) - {""}:
        inside = weights[:, [i for i, group in enumerate(groups) if group == name]]
        assert (inside == inside[:, :1]).all()
    alone = weights[:, [i for i, group in enumerate(groups) if group == ""]]
    assert (alone != alone[:, :1]).any()
    absent = np.array([[1.0 if c != 2 else 0.0 for c in y]])
    drawn = metrics.Scorer(y, p, None).figures(absent)
    q = p.argmax(axis=1)
    expected = sk.f1_score(y, q, labels=[0, 1], average="macro", sample_weight=absent[0])
    assert drawn["macro_f1"][0] == pytest.approx(expected)


def test_intervals_hold_the_figure_and_follow_the_seed():
    y, p = simulate()
    got = evaluate(y, p, draws=200)
    for name, (low, high) in got.intervals.items():
        assert low <= getattr(got, name) <= high, name
        assert high - low < 0.35, name
    assert evaluate(y, p, draws=200).intervals == got.intervals
    assert evaluate(y, p, draws=200, seed=1).intervals != got.intervals
    assert set(evaluate(y, p, draws=0).intervals.values()) == {None}


def test_blocks_do_not_change_the_draws(monkeypatch):
    y, p = simulate(300)
    whole = evaluate(y, p, draws=64, groups=[str(i % 40) for i in range(300)])
    monkeypatch.setattr(bootstrap, "_BLOCK_CELLS", 300 * 7)
    split = evaluate(y, p, draws=64, groups=[str(i % 40) for i in range(300)])
    for name, bounds in whole.intervals.items():
        assert split.intervals[name] == pytest.approx(bounds)


def test_groups_widen_the_interval_of_clustered_cells():
    rng = np.random.default_rng(2)
    patient = np.repeat(np.arange(20), 40)
    y = rng.integers(0, 3, 800)
    right = rng.random(800) < rng.choice([0.5, 1.0], 20)[patient]
    p = np.eye(3)[np.where(right, y, (y + 1) % 3)]
    names = [f"patient {i}" for i in patient]
    width = {}
    for key, groups in (("cells", None), ("patients", names), ("empty", [""] * 800)):
        got = evaluate(y, p, names=NAMES[:3], abnormal=None, draws=300, groups=groups)
        low, high = got.intervals["accuracy"]
        width[key] = high - low
    assert width["patients"] > 2.5 * width["cells"]
    assert width["empty"] == width["cells"]


def test_json_has_the_contracts_form_and_no_nan():
    y, p = simulate()
    keep = y != 4
    got = evaluate(y[keep], p[keep], abnormal=None).to_json()
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert list(got) == [
        "samples", "classes", "accuracy", "top2_accuracy", "macro_f1", "macro_f1_at_least_20_cells",
        "balanced_accuracy", "mcc", "kappa", "macro_auroc", "macro_auprc", "ece", "adaptive_ece",
        "brier", "nll", "abnormal", "macro_over", "per_class", "confusion_pairs",
        "confidence_interval_95", "resampled_by",
    ]  # fmt: skip
    assert got["classes"] == NAMES == list(got["per_class"])
    scores = ["precision", "recall", "f1", "auroc", "auprc"]
    one = got["per_class"][NAMES[0]]
    assert list(one) == [*scores, "support", "confidence_interval_95"]
    assert list(one["confidence_interval_95"]) == scores
    assert got["per_class"][NAMES[4]]["f1"] is None


def test_per_class_table_is_per_class_csv():
    y, p = simulate()
    keep = y != 4
    got = evaluate(y[keep], p[keep])
    table = per_class_table(got)
    figures = ["precision", "recall", "f1", "auroc", "auprc"]
    ends = [f"{figure}_{end}" for figure in figures for end in ("low", "high")]
    assert list(table.columns) == ["class", *figures, "support", *ends]
    assert table["class"].tolist() == NAMES
    assert table["support"].tolist() == got.confusion.sum(axis=1).tolist()
    assert table.loc[4, [*figures, *ends]].isna().all()
    low, high = got.per_class[NAMES[0]].intervals["auprc"]
    assert table.loc[0, ["auprc_low", "auprc_high"]].tolist() == [low, high]
    assert low < got.per_class[NAMES[0]].auprc < high
    assert table.loc[0, "recall"] == got.per_class[NAMES[0]].recall


def test_confusion_pairs_name_what_is_taken_for_what_the_most_first():
    q = [0, 1, 1, 2, 2, 2, 2, 0, 0]
    y = [0, 0, 0, 0, 1, 1, 1, 1, 2]
    got = evaluate(y, np.eye(3)[q], names=["a", "b", "c"], abnormal=None, draws=0)
    table = confusion_pairs(got)
    assert table[["true", "predicted", "cells", "share"]].to_numpy().tolist() == [
        ["b", "c", 3, 0.75],
        ["a", "b", 2, 0.5],
        ["c", "a", 1, 1.0],
        ["a", "c", 1, 0.25],
        ["b", "a", 1, 0.25],
    ]
    assert got.to_json()["confusion_pairs"] == table.to_dict("records")


@pytest.mark.parametrize(
    ("y_true", "probabilities", "names", "said"),
    [
        ([0, 1], [[0.5, 0.5]], ["a", "b"], r"Received: \(2,\) and \(1, 2\)"),
        ([], np.zeros((0, 2)), ["a", "b"], "n at least 1"),
        ([[0]], [[0.5, 0.5]], ["a", "b"], r"expected labels \(n,\)"),
        ([0], [[0.5, 0.5]], ["a"], "expected 2 different names"),
        ([0], [[0.5, 0.5]], ["a", "a"], "expected 2 different names"),
        ([0.0], [[0.5, 0.5]], ["a", "b"], "whole numbers"),
        ([0, 2], [[0.5, 0.5]] * 2, ["a", "b"], "Received: 2 at cell 1"),
        ([-1], [[0.5, 0.5]], ["a", "b"], "Received: -1 at cell 0"),
        ([0], [[np.nan, 0.5]], ["a", "b"], "sum to one"),
        ([0], [[2.0, -1.0]], ["a", "b"], "sum to one"),
        ([0, 0], [[0.5, 0.5], [0.5, 0.6]], ["a", "b"], "at cell 1"),
    ],
)
def test_bad_input_is_named_in_one_line(y_true, probabilities, names, said):
    with pytest.raises(DataError, match=said) as caught:
        evaluate_predictions(y_true, probabilities, names, abnormal=None)
    assert "\n" not in str(caught.value)


def test_groups_of_another_length_are_refused():
    y, p = simulate(20)
    with pytest.raises(DataError, match=r"each of 20 cells\. Received: 1"):
        evaluate(y, p, groups=["a"])


@pytest.mark.parametrize("kind", ["all classes", "a class absent", "never predicted", "all right"])
def test_the_acceptance_script_agrees(root, tmp_path, kind):
    script = root.parent / "shared" / "acceptance" / "check_metrics.py"
    if not script.exists():
        pytest.skip("the acceptance script is not on this machine: ../shared/acceptance")
    y, p = simulate(300, seed=4)
    if kind == "a class absent":
        y, p = y[y != 3], p[y != 3]
    if kind == "never predicted":
        p[:, 5] = 0
        p /= p.sum(axis=1, keepdims=True)
    if kind == "all right":
        p = np.eye(6)[y]
    p = p.astype(np.float32)
    labels = [NAMES[c] for c in y]
    table = prediction_table(labels, labels, p, NAMES, np.zeros((len(y), 4)))
    write_predictions(tmp_path / "predictions.csv", table)
    write_json(tmp_path / "metrics.json", evaluate(y, p).to_json())
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "agrees" in done.stdout


def test_a_notebook_shows_every_figure_with_its_interval():
    y_true, probabilities = simulate()
    got = evaluate(y_true, probabilities)
    html = got._repr_html_()
    low, high = got.intervals["macro_f1"]
    text = re.sub("<[^>]*>", "", html)
    assert f"macro F1{got.macro_f1:.3f} [{low:.3f}, {high:.3f}]" in text
    assert f"abnormal cells: AUROC{got.abnormal_auroc:.3f} [" in text
    for name, one in got.per_class.items():
        assert f">{name}</td>" in html
        assert f">{one.support:,}</td>" in html
