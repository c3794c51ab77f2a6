"""Whose turn it is, which cells are shown, and what they add up to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest
from sklearn.metrics import cohen_kappa_score

from wbc_keras.manifest.reviews import Review, standing
from wbc_keras.prediction.predictions import prediction_table
from wbc_keras.review.worklist import (
    Filters,
    agree,
    choose,
    count_cells,
    order_by_need,
    undecided,
)

CLASSES = ("basophil", "myeloblast", "platelet")
# Class, confidence, accepted, novelty, error.
CELLS = [
    ("basophil", 0.95, True, 0.2, ""),  # 0: sure and normal, last of those that are read
    ("basophil", 0.50, False, 0.2, ""),  # 1
    ("myeloblast", 0.60, False, 0.2, ""),  # 2
    ("myeloblast", 0.99, True, 0.2, ""),  # 3
    ("basophil", 0.97, True, 0.995, ""),  # 4: sure, but foreign
    ("", np.nan, False, np.nan, "is not a JPEG"),  # 5
    ("platelet", 0.90, True, 0.2, ""),  # 6
    ("myeloblast", 0.55, False, 0.2, ""),  # 7
]


@pytest.fixture
def table() -> pd.DataFrame:
    rows = []
    for name, confidence, *_ in CELLS:
        shares = dict.fromkeys(CLASSES, (1 - confidence) / 2)
        rows.append(list((shares | ({name: confidence} if name else {})).values()))
    return prediction_table(
        [f"{n}.png" for n in range(len(CELLS))],
        [""] * len(CELLS),
        rows,
        CLASSES,
        np.zeros((len(CELLS), 4)),
        accepted=np.array([cell[2] for cell in CELLS]),
        novelty=np.array([cell[3] for cell in CELLS]),
        errors=[cell[4] for cell in CELLS],
    )


def _review(row: int, corrected: str, reviewer: str = "A", *, flagged: bool = False) -> Review:
    return Review(f"{row}.png", CELLS[row][0], corrected, reviewer, "", flagged)


def test_unsure_and_abnormal_cells_come_first(table):
    assert undecided(table).tolist() == [False, True, True, False, True, False, False, True]
    assert order_by_need(table, CLASSES).tolist() == [7, 2, 1, 4, 3, 6, 0, 5]


def test_models_without_threshold_or_known_classes_are_ordered_too(table):
    plain = table.drop(columns=["accepted", "novelty"]).rename(columns={"basophil": "odd"})
    assert not undecided(plain).any()
    order = order_by_need(plain, ("odd", "myeloblast", "platelet")).tolist()
    assert order == [1, 7, 2, 6, 0, 4, 3, 5]


@pytest.mark.parametrize(
    ("filters", "rows"),
    [
        (Filters(), [7, 2, 1, 4, 3, 6, 0, 5]),
        (Filters(predicted="myeloblast"), [7, 2, 3]),
        (Filters(answer="decided"), [3, 6, 0]),
        (Filters(answer="not decided"), [7, 2, 1, 4]),
        (Filters(answer="cannot be read"), [5]),
        (Filters(at_most=0.6), [7, 2, 1, 5]),
        (Filters(patient="P1"), [2, 0]),
        (Filters(state="to do"), [7, 1, 4, 6, 5]),
        (Filters(state="reviewed"), [2, 3, 0]),
        (Filters(state="corrected"), [0]),
        (Filters(state="flagged"), [3]),
        (Filters(predicted="basophil", answer="decided", state="to do"), []),
    ],
)
def test_filters(table, filters, rows):
    said = [[] for _ in CELLS]
    said[0] = [_review(0, "basophil", "B"), _review(0, "platelet")]
    said[2] = [_review(2, "myeloblast")]
    said[3] = [_review(3, "", flagged=True)]
    patients = ["P1", "", "P1", "P2", "", "", "P2", ""]
    chosen = choose(table, filters, class_names=CLASSES, reviews=said, patients=patients)
    assert chosen.tolist() == rows


def test_count_takes_reviewers_before_the_model(table):
    said = [[] for _ in CELLS]
    said[0] = [_review(0, "myeloblast")]
    said[6] = [_review(6, "basophil")]  # a platelet that is none
    said[1] = [_review(1, "", flagged=True)]  # flagged alone: as the model has it
    found = count_cells(list(table["predicted"]), said, CLASSES)
    assert (found.counted, found.left_out, found.unread, found.by_reviewers) == (7, 0, 1, 2)
    counts = {one.name: one.count for one in (*found.classes, *found.sums)}
    assert counts == {"basophil": 3, "myeloblast": 4, "abnormal cells": 4, "blasts": 4}
    interval = binomtest(4, 7).proportion_ci(method="wilson")
    assert found.sums[0].interval == pytest.approx((interval.low, interval.high))
    assert found.sums[0].share == pytest.approx(4 / 7)


def test_count_of_nothing_and_of_a_class_of_another_model():
    found = count_cells([], [], CLASSES)
    assert found.counted == 0
    assert {one.share for one in found.classes} == {None}
    other = count_cells(["basophil"], [[replace(_review(0, ""), corrected="odd")]], CLASSES)
    assert {one.name: one.count for one in other.classes}["odd"] == 1
    assert other.sums == ()  # nobody knows whether it is abnormal


def test_agreement_between_reviewers_and_with_the_model():
    answers = {  # by row: reviewer A, reviewer B
        0: ("basophil", "basophil"),
        1: ("myeloblast", "basophil"),
        2: ("myeloblast", "myeloblast"),
        3: ("myeloblast", ""),
        4: ("platelet", "basophil"),
    }
    rows = [_review(row, a) for row, (a, _) in answers.items()]
    rows += [_review(row, b, "B", flagged=not b) for row, (_, b) in answers.items()]
    pairs = {(one.first, one.second): one for one in agree(standing(rows))}
    assert list(pairs) == [("A", "B"), ("A", "model"), ("B", "model")]
    both = [pair for pair in answers.values() if all(pair)]
    assert pairs["A", "B"].accuracy == 2 / 4
    assert pairs["A", "B"].kappa == pytest.approx(cohen_kappa_score(*zip(*both, strict=True)))
    assert pairs["A", "model"].accuracy == 3 / 5
    assert pairs["B", "model"].accuracy == 4 / 4
