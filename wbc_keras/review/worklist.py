"""The cells of a smear as a list to work on: whose turn it is, which are shown, their sums.

Works on the rows of a predictions table (`predictions`), one for each cell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.labels import abnormal_classes, blast_classes, counted_classes
from wbc_keras.manifest.reviews import Review
from wbc_keras.prediction.predictions import ACCEPTED, ERROR, NOVELTY
from wbc_keras.statistics.agreement import MODEL, PairAgreement, compare
from wbc_keras.statistics.bootstrap import Interval
from wbc_keras.statistics.proportions import wilson

FOREIGN = 0.99  # novelty from which a cell is unlike what the model has learned

ANSWERS = ("all", "decided", "not decided", "cannot be read")
STATES = ("all", "to do", "reviewed", "corrected", "flagged")

Bools = npt.NDArray[np.bool_]
Integers = npt.NDArray[np.intp]
Standing = Mapping[tuple[str, str], Sequence[Review]]


@dataclass(frozen=True)
class Filters:
    """Which cells are shown; "" and "all" let every cell pass.

    Attributes:
        predicted: the model's class.
        answer: one of `ANSWERS`.
        state: one of `STATES`.
        patient: whom the cell was taken from.
        at_most: confidence, 0 to 1, above which a cell is left out.
    """

    predicted: str = ""
    answer: str = "all"
    state: str = "all"
    patient: str = ""
    at_most: float = 1.0


def undecided(table: pd.DataFrame) -> Bools:
    """Return (n,), where the model would rather not decide: not sure enough, or a foreign cell."""
    unsure = ~table[ACCEPTED].to_numpy(bool) if ACCEPTED in table else np.zeros(len(table), bool)
    return (unsure | is_foreign(table)) & is_read(table)


def is_foreign(table: pd.DataFrame) -> Bools:
    """Return (n,), where a cell is unlike what the model has learned."""
    if NOVELTY not in table:
        return np.zeros(len(table), bool)
    return np.asarray(table[NOVELTY].to_numpy() >= FOREIGN)


def is_read(table: pd.DataFrame) -> Bools:
    """Return (n,), where there is a picture that can be used."""
    return np.asarray(table[ERROR].to_numpy() == "")


def order_by_need(table: pd.DataFrame, class_names: Sequence[str]) -> Integers:
    """Return the rows, those that need a look most first.

    What the model would rather not decide comes first, abnormal cells before normal ones, the least
    sure of each first; pictures that cannot be read are last.
    """
    abnormal = table["predicted"].isin(abnormal_classes(class_names) or []).to_numpy()
    keys = (table["confidence"].to_numpy(), ~abnormal, ~undecided(table), ~is_read(table))
    return np.lexsort(keys)


def choose(
    table: pd.DataFrame,
    filters: Filters,
    *,
    class_names: Sequence[str],
    reviews: Sequence[Sequence[Review]],
    patients: Sequence[str],
) -> Integers:
    """Return the rows that pass the filters, those that need a look most first.

    Args:
        table: n cells.
        filters: which of them.
        class_names: the model's.
        reviews: n, what reviewers say of each cell, the last one last.
        patients: n, "" where that is not known.
    """
    answers = {
        "decided": is_read(table) & ~undecided(table),
        "not decided": undecided(table),
        "cannot be read": ~is_read(table),
    }
    # A picture that cannot be read has no confidence, and is not left out by it.
    keep = ~(table["confidence"].to_numpy() > filters.at_most + 1e-9)
    keep &= answers.get(filters.answer, True)
    if filters.predicted:
        keep &= (table["predicted"] == filters.predicted).to_numpy()
    if filters.patient:
        keep &= np.array([name == filters.patient for name in patients], bool)
    if filters.state != "all":
        keep &= np.array([_is_in(filters.state, said) for said in reviews], bool)
    order = order_by_need(table, class_names)
    return order[keep[order]]


def _is_in(state: str, said: Sequence[Review]) -> bool:
    last = said[-1] if said else None
    return {
        "to do": last is None,
        "reviewed": last is not None,
        "corrected": last is not None and last.corrected not in ("", last.predicted),
        "flagged": last is not None and last.flagged,
    }[state]


@dataclass(frozen=True)
class Share:
    """So many cells of those that count: a fraction with its 95 % Wilson interval."""

    name: str
    count: int
    share: float | None
    interval: Interval


@dataclass(frozen=True)
class Differential:
    """A differential count.

    Attributes:
        classes: each class that counts.
        sums: abnormal cells and blasts, where the classes tell them.
        counted: cells that count, by `labels.counted_classes`.
        left_out: platelets and smudge cells.
        unread: pictures that cannot be read.
        by_reviewers: cells that are counted as a reviewer has them.
    """

    classes: tuple[Share, ...]
    sums: tuple[Share, ...]
    counted: int
    left_out: int
    unread: int
    by_reviewers: int


def count_cells(
    predicted: Sequence[str], reviews: Sequence[Sequence[Review]], class_names: Sequence[str]
) -> Differential:
    """Count cells as the last reviewer has them, or else as the model has them.

    Args:
        predicted: n classes, "" for a picture that cannot be read.
        reviews: n, what reviewers say of each cell, the last one last.
        class_names: the model's.
    """
    said = [one[-1].corrected if one else "" for one in reviews]
    labels = pd.Series([a or b for a, b in zip(said, predicted, strict=True)], dtype=object)
    counts = labels[labels != ""].value_counts()
    # A reviewer's class of an earlier model may be none of this one's.
    names = list(dict.fromkeys([*class_names, *counts.index]))
    counted = counted_classes(names)
    total = int(counts.reindex(counted, fill_value=0).sum())

    def share(name: str, members: Iterable[str]) -> Share:
        count = int(counts.reindex(list(members), fill_value=0).sum())
        return Share(name, count, count / total if total else None, wilson(count, total))

    sums = {"abnormal cells": abnormal_classes(names), "blasts": blast_classes(names)}
    return Differential(
        tuple(share(name, [name]) for name in counted),
        tuple(share(name, members) for name, members in sums.items() if members is not None),
        total,
        int(counts.sum()) - total,
        int((labels == "").sum()),
        sum(map(bool, said)),
    )


def agree(standing: Standing) -> list[PairAgreement]:
    """Compare reviewers with each other, and the model with each, on the cells that both answered.

    Cells without a class, those that were only flagged, are left out.
    """
    answers: dict[str, dict[tuple[str, str], str]] = {}
    model: dict[tuple[str, str], str] = {}
    for cell, reviews in standing.items():
        for review in reviews:
            if review.corrected:
                answers.setdefault(review.reviewer, {})[cell] = review.corrected
                model[cell] = review.predicted
    people: dict[str, dict[Any, str]] = dict(sorted(answers.items()))
    named = {**people, MODEL: {cell: name for cell, name in model.items() if name}}
    pairs = []
    for one, other in combinations(named, 2):
        both = [cell for cell in named[one] if cell in named[other]]
        if both:
            columns = ([named[who][cell] for cell in both] for who in (one, other))
            pairs.append(compare(*columns, names=(one, other)))
    return pairs
