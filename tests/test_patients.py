"""Patients: shares by hand, intervals by SciPy, the real table of patients by pandas."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import mean_absolute_error

from wbc_keras.errors import DataError
from wbc_keras.statistics.patients import count_patients

NAMES = ("blast", "lymphocyte", "promyelocyte", "smudge_cell")


def certain(answers, names=NAMES):
    return np.eye(len(names))[answers]


@pytest.fixture
def three():
    """Three patients: label and answer of each cell, by class index."""
    cells = {
        # 2 of 5 counted cells are blasts, 3 of 5 are so called; the smudge cell is not counted.
        "a": ([0, 0, 1, 1, 2, 3], [0, 0, 0, 1, 2, 3]),
        # 1 of 5: exactly the threshold. Called a smudge cell, a blast falls out of the count.
        "b": ([0, 1, 1, 1, 1], [3, 1, 1, 1, 1]),
        "c": ([1, 1, 1, 1], [1, 1, 1, 0]),
    }
    patients = [name for name, (truth, _) in cells.items() for _ in truth]
    truth, answers = (np.concatenate([pair[i] for pair in cells.values()]) for i in range(2))
    return truth, certain(answers), patients


def test_table_by_hand(three):
    truth, p, patients = three
    got = count_patients(truth, p, NAMES, patients)
    expected = pd.DataFrame(
        {
            "patient": ["a", "b", "c"],
            "cells": [6, 5, 4],
            "counted_true": [5, 5, 4],
            "counted_predicted": [5, 4, 4],
            "abnormal_share_true": [0.6, 0.2, 0],
            "abnormal_share_predicted": [0.8, 0, 0.25],
            "blast_share_true": [0.4, 0.2, 0],
            "blast_share_predicted": [0.6, 0, 0.25],
            "blast_true": [0.4, 0.2, 0],
            "blast_predicted": [0.6, 0, 0.25],
            "lymphocyte_true": [0.4, 0.8, 1],
            "lymphocyte_predicted": [0.2, 1, 0.75],
            "promyelocyte_true": [0.2, 0, 0],
            "promyelocyte_predicted": [0.2, 0, 0],
        }
    )
    pd.testing.assert_frame_equal(got.table, expected, check_exact=False, rtol=0, atol=1e-12)
    assert list(got.differential) == ["blast", "lymphocyte", "promyelocyte"]


def test_agreement_by_hand(three):
    truth, p, patients = three
    blast = count_patients(truth, p, NAMES, patients).shares["blast"]
    differences = np.array([0.2, -0.2, 0.25])
    assert blast.patients == 3
    assert blast.mean_absolute_error == pytest.approx(0.65 / 3, abs=1e-12)
    assert blast.bias == pytest.approx(0.25 / 3, abs=1e-12)
    spread = 1.96 * stats.tstd(differences)
    limits = (0.25 / 3 - spread, 0.25 / 3 + spread)
    assert blast.limits == pytest.approx(limits, abs=1e-12)


def test_detection_names_the_patients(three):
    truth, p, patients = three
    detection = count_patients(truth, p, NAMES, patients).detection
    assert (detection.found, detection.missed) == (("a",), ("b",))
    assert (detection.false_alarms, detection.cleared) == (("c",), ())
    assert (detection.sensitivity, detection.specificity) == (0.5, 0.0)
    for name, (count, total) in {"sensitivity": (1, 2), "specificity": (0, 1)}.items():
        wilson = stats.binomtest(count, total).proportion_ci(method="wilson")
        assert detection.intervals[name] == pytest.approx((wilson.low, wilson.high), abs=1e-12)
    lower = count_patients(truth, p, NAMES, patients, blast_share=0.41).detection
    assert (lower.found, lower.missed, lower.false_alarms) == ((), (), ("a",))


def test_real_patients_are_counted_as_pandas_counts_them(aml_jhu):
    cells = pd.read_csv(aml_jhu / "manifest.csv")
    names = sorted(cells["label"].unique())
    truth = cells["label"].map({name: c for c, name in enumerate(names)}).to_numpy()
    rng = np.random.default_rng(0)
    answers = np.where(
        rng.random(len(cells)) < 0.7, truth, rng.integers(len(names), size=len(cells))
    )
    got = count_patients(truth, certain(answers, names), names, list(cells["patient"]))
    cells["answer"] = np.array(names)[answers]
    platelets_and_smudges = ["giant_thrombocyte", "smudge_cell", "thrombocyte_aggregation"]
    for kind, column in (("true", "label"), ("predicted", "answer")):
        counted = cells[~cells[column].isin(platelets_and_smudges)]
        shares = pd.crosstab(counted["patient"], counted[column], normalize="index")
        ours = got.table.set_index("patient")
        for name in shares:
            np.testing.assert_allclose(ours[f"{name}_{kind}"], shares[name], atol=1e-12)
        abnormal = shares.drop(columns=[
            "basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil_band",
            "neutrophil_segmented",
        ]).sum(axis=1)  # fmt: skip
        np.testing.assert_allclose(ours[f"abnormal_share_{kind}"], abnormal, atol=1e-12)
    columns = got.table["blast_share_true"], got.table["blast_share_predicted"]
    blast = got.shares["blast"]
    assert blast.patients == 82
    assert blast.mean_absolute_error == pytest.approx(mean_absolute_error(*columns), abs=1e-12)
    low, high = blast.intervals["mean_absolute_error"]
    assert low < blast.mean_absolute_error < high
    # The bias is a mean of 82 patients: the bootstrap has to find what Student's formula says.
    student = stats.ttest_rel(*columns[::-1]).confidence_interval()
    assert blast.intervals["bias"] == pytest.approx((student.low, student.high), abs=0.004)
    over = columns[0] >= 0.2
    assert got.detection.sensitivity == pytest.approx((columns[1][over] >= 0.2).mean(), abs=1e-12)
    json.dumps(got.to_json(), allow_nan=False)


def test_one_single_patient(three):
    truth, p, _ = three
    got = count_patients(truth, p, NAMES, ["only"] * len(truth))
    blast = got.shares["blast"]
    assert (blast.patients, blast.limits) == (1, None)
    assert set(blast.intervals.values()) == {None}
    assert blast.mean_absolute_error == pytest.approx(abs(3 / 14 - 4 / 13), abs=1e-12)
    assert got.detection.specificity is None
    assert got.detection.intervals["specificity"] is None
    json.dumps(got.to_json(), allow_nan=False)


def test_all_right_leaves_no_error(three):
    truth, _, patients = three
    got = count_patients(truth, certain(truth), NAMES, patients)
    for one in (*got.shares.values(), *got.differential.values()):
        assert (one.mean_absolute_error, one.bias, one.limits) == (0, 0, (0, 0))
    assert (got.detection.missed, got.detection.false_alarms) == ((), ())


def test_patient_without_a_counted_cell_has_no_share(three):
    truth, p, patients = three
    got = count_patients([*truth, 3], [*p, certain(0)], NAMES, [*patients, "d"])
    row = got.table.set_index("patient").loc["d"]
    assert (row["cells"], row["counted_true"], row["counted_predicted"]) == (1, 0, 1)
    assert np.isnan(row["blast_share_true"])
    assert row["blast_share_predicted"] == 1
    assert got.shares["blast"].patients == 3
    assert "d" not in got.detection.false_alarms
    only = count_patients([3, 3], certain([3, 3]), NAMES, ["d", "e"])
    assert (only.shares["blast"].patients, only.shares["blast"].bias) == (0, None)
    assert only.detection.sensitivity is None
    json.dumps(only.to_json(), allow_nan=False)


def test_cells_without_a_patient_are_counted_apart(three):
    truth, p, patients = three
    got = count_patients([*truth, 0], [*p, certain(0)], NAMES, [*patients, ""])
    assert got.ungrouped == 1
    assert list(got.table["patient"]) == ["a", "b", "c"]


def test_classes_that_are_not_known_leave_the_differential(three):
    truth, p, patients = three
    got = count_patients(truth, p, ("apple", "pear", "plum", "fig"), patients)
    assert (dict(got.shares), got.detection) == ({}, None)
    assert list(got.differential) == ["apple", "pear", "plum", "fig"]


@pytest.mark.parametrize("patients", [["", ""], ["a"]])
def test_names_that_do_not_fit_are_refused(patients):
    with pytest.raises(DataError, match="a name for each of 2 cells"):
        count_patients([0, 1], certain([0, 1]), NAMES, patients)
