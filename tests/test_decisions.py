"""What is fitted on validation: thresholds that keep what they promise, and a whole file."""

from __future__ import annotations

import json

import numpy as np
import pytest

from wbc_keras.errors import DataError, RunError
from wbc_keras.prediction.decisions import (
    Decisions,
    fit_decisions,
    read_decisions,
    write_decisions,
)
from wbc_keras.statistics.probabilities import softmax

NAMES = ["lymphocyte", "monocyte", "myeloblast", "promyelocyte"]  # two of them abnormal


def simulate(n=900, *, names=NAMES, signal=2.0, seed=0, decimals=9):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(names), n)
    logits = rng.normal(size=(n, len(names))) + signal * np.eye(len(names))[labels]
    return labels, np.round(logits, decimals)


def rates_at(threshold, labels, logits, temperature):
    """Return sensitivity and specificity of calling a cell abnormal."""
    score = softmax(logits, temperature=temperature)[:, 2:].sum(axis=1)
    abnormal = labels >= 2
    return np.mean(score[abnormal] >= threshold), np.mean(score[~abnormal] < threshold)


@pytest.mark.parametrize("decimals", [9, 0])
def test_of_a_poor_model_each_threshold_keeps_one_aim_and_is_the_furthest(decimals):
    labels, logits = simulate(decimals=decimals)
    got = fit_decisions(labels, logits, NAMES)
    shares = softmax(logits, temperature=got.temperature)
    accepted = got.accept(shares)
    right = shares.argmax(axis=1) == labels
    assert got.wanted_accuracy == pytest.approx((1 + right.mean()) / 2)
    assert right[accepted].mean() >= got.wanted_accuracy
    assert 0.3 < accepted.mean() < 1
    score = shares[:, 2:].sum(axis=1)
    assert rates_at(got.sensitive_threshold, labels, logits, got.temperature)[0] >= 0.95
    assert rates_at(got.specific_threshold, labels, logits, got.temperature)[1] >= 0.95
    higher = score[score > got.sensitive_threshold].min() + 1e-12
    assert rates_at(higher, labels, logits, got.temperature)[0] < 0.95
    lower = score[score < got.specific_threshold].max()
    assert rates_at(lower, labels, logits, got.temperature)[1] < 0.95
    assert got.sensitive_threshold < got.specific_threshold
    assert got.validation_cells == 900


@pytest.mark.parametrize("seed", range(5))
def test_of_a_good_model_both_thresholds_keep_both_aims_and_do_not_cross(seed):
    """Against every threshold that there is: the one that finds, and the one that spares, most."""
    labels, logits = simulate(signal=5.0, seed=seed)
    got = fit_decisions(labels, logits, NAMES)
    scores = np.unique(softmax(logits, temperature=got.temperature)[:, 2:].sum(axis=1))
    rates = [rates_at(score, labels, logits, got.temperature) for score in scores]
    both = [pair for pair in rates if min(pair) >= 0.95]
    assert both
    sensitive, specific = (
        rates_at(threshold, labels, logits, got.temperature)
        for threshold in (got.sensitive_threshold, got.specific_threshold)
    )
    assert sensitive == max(both)
    assert specific[::-1] == max(pair[::-1] for pair in both)
    assert got.sensitive_threshold <= got.specific_threshold
    assert np.abs(scores - got.sensitive_threshold).min() > 0


def test_cells_wide_apart_have_one_threshold_in_the_middle():
    labels = np.array([0, 1, 2, 3] * 5)
    logits = 4.0 * np.eye(4)[labels] + np.linspace(0, 1, 20)[:, np.newaxis] * [1, 1, 1, 0]
    got = fit_decisions(labels, logits, NAMES)
    score = softmax(logits, temperature=got.temperature)[:, 2:].sum(axis=1)
    middle = (score[labels < 2].max() + score[labels >= 2].min()) / 2
    assert got.sensitive_threshold == got.specific_threshold == pytest.approx(middle)


def test_another_accuracy_may_be_asked_for():
    labels, logits = simulate()
    got = fit_decisions(labels, logits, NAMES, wanted_accuracy=0.95)
    accepted = got.accept(softmax(logits, temperature=got.temperature))
    assert got.wanted_accuracy == 0.95
    assert np.mean((logits.argmax(axis=1) == labels)[accepted]) >= 0.95


def test_a_good_model_is_wanted_to_halve_its_errors():
    labels, logits = simulate(4000, signal=4.5)
    wrong = np.mean(logits.argmax(axis=1) != labels)
    assert 0 < wrong < 0.05
    got = fit_decisions(labels, logits, NAMES)
    assert got.wanted_accuracy == pytest.approx(1 - wrong / 2)
    shares = softmax(logits, temperature=got.temperature)
    accepted = got.accept(shares)
    assert np.mean((shares.argmax(axis=1) != labels)[accepted]) <= wrong / 2
    assert 0.8 < accepted.mean() < 1


def test_a_model_without_a_mistake_answers_everything():
    labels, logits = simulate(signal=40.0)
    got = fit_decisions(labels, logits, NAMES)
    assert (got.wanted_accuracy, got.accept_threshold) == (1, 0)


def test_blasts_have_thresholds_of_their_own():
    names = ["monocyte", "blast", "promyelocyte", "lymphocyte"]
    labels, logits = simulate(names=names)
    got = fit_decisions(labels, logits, names)
    score, blast = softmax(logits, temperature=got.temperature)[:, 1], labels == 1
    assert np.mean(score[blast] >= got.blast_sensitive_threshold) >= 0.95
    assert np.mean(score[~blast] < got.blast_specific_threshold) >= 0.95
    assert got.blast_sensitive_threshold != got.sensitive_threshold
    # Promyelocytes are abnormal, and no blasts.
    assert got.blast_sensitive_threshold <= got.blast_specific_threshold
    without = fit_decisions(labels[~blast], logits[~blast], names)
    assert without.blast_sensitive_threshold is None
    assert without.sensitive_threshold is not None


def test_unknown_classes_have_no_abnormal_thresholds():
    labels, logits = simulate(names=list("abcd"))
    got = fit_decisions(labels, logits, list("abcd"))
    assert (got.sensitive_threshold, got.specific_threshold) == (None, None)
    assert got.accept_threshold is not None


def test_validation_without_an_abnormal_cell_has_none_either():
    labels, logits = simulate()
    normal = labels < 2
    got = fit_decisions(labels[normal], logits[normal], NAMES)
    assert (got.sensitive_threshold, got.specific_threshold) == (None, None)


def test_specificity_that_no_threshold_reaches_is_none():
    """Normal and abnormal cells alike have an abnormal probability of 1."""
    labels, logits = np.array([0, 1, 2, 3] * 5), np.tile([-800.0, -800.0, 0.0, 0.0], (20, 1))
    got = fit_decisions(labels, logits, NAMES)
    assert got.specific_threshold is None
    assert got.sensitive_threshold is not None


def test_wanted_accuracy_that_cannot_be_had_accepts_nothing_and_refuses_nothing():
    labels, logits = simulate(signal=0.0, decimals=0)
    got = fit_decisions(labels, logits, NAMES, wanted_accuracy=0.999)
    assert got.accept_threshold is None
    assert got.accept(softmax(logits)) is None


def test_one_cell_is_enough():
    got = fit_decisions([2], [[0.0, 0.1, 3.0, 0.2]], NAMES)
    assert (got.accept_threshold, got.validation_cells) == (0.0, 1)


def test_bad_input_is_named():
    with pytest.raises(DataError, match="n at least 1"):
        fit_decisions([], np.zeros((0, 4)), NAMES)
    with pytest.raises(DataError, match="gone astray"):
        fit_decisions([0], [[np.nan] * 4], NAMES)


DECISIONS = Decisions(
    temperature=0.5,
    wanted_accuracy=0.95,
    accept_threshold=0.7,
    sensitive_threshold=None,
    specific_threshold=None,
    validation_cells=12,
)


def test_file_reads_back_equal_and_a_run_without_one_has_none(tmp_path):
    assert read_decisions(tmp_path) is None
    write_decisions(tmp_path, DECISIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["decision.json"]
    assert read_decisions(tmp_path) == DECISIONS


def test_file_of_an_earlier_version_is_read(tmp_path):
    write_decisions(tmp_path, DECISIONS)
    path = tmp_path / "decision.json"
    values = json.loads(path.read_text())
    earlier = {name: value for name, value in values.items() if not name.startswith("blast")}
    path.write_text(json.dumps(earlier))
    assert read_decisions(tmp_path) == DECISIONS
    path.write_text(json.dumps({"temperature": 1.0}))
    with pytest.raises(RunError, match="is damaged"):
        read_decisions(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0},
        {"temperature": None},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"accept_threshold": "0.7"},
        {"accept_threshold": True},
        {"surprise": 1},
    ],
)
def test_damaged_file_is_named_in_one_line(tmp_path, change):
    write_decisions(tmp_path, DECISIONS)
    path = tmp_path / "decision.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RunError, match=r"decision\.json: is damaged") as caught:
        read_decisions(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", '{"temperature": 1', "[]", "{}"])
def test_cut_file_is_named(tmp_path, text):
    (tmp_path / "decision.json").write_text(text)
    with pytest.raises(RunError, match="is damaged"):
        read_decisions(tmp_path)
