"""How far experts agree on the Munich set: the ceiling that a model is read against.

1,905 of its cells carry a label and two re-annotations (Matek et al. 2019). A re-annotator who
could assign no class wrote UNC: that counts as an answer of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.errors import DataError
from wbc_keras.labels import MUNICH as VOCABULARY
from wbc_keras.labels import MUNICH_GROUPINGS
from wbc_keras.manifest.munich import read_annotations
from wbc_keras.manifest.table import MUNICH, REANNOTATIONS
from wbc_keras.statistics.bootstrap import Interval
from wbc_keras.statistics.proportions import wilson

UNCLASSED = "UNC"
ANNOTATIONS = ("label", "re-annotation 1", "re-annotation 2")
MODEL = "model"


@dataclass(frozen=True)
class ClassAgreement:
    """One class, the first annotation taken as the truth; a figure that cannot be had is None.

    Attributes:
        support: cells that the first annotation puts in the class.
        answered: cells that the second annotation puts in the class.
        precision: share of the second annotation's cells of the class that are the first's too.
        recall: share of the first annotation's cells of the class that are the second's too.
        f1: twice the cells that both put in the class over the sum of those that each puts there,
            the same whichever annotation comes first (Dice 1945).
    """

    support: int
    answered: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True)
class PairAgreement:
    """Two annotations of the same cells.

    Attributes:
        first, second: two of `ANNOTATIONS` and `MODEL`.
        accuracy: share of the cells with one answer, 0 to 1.
        interval: 95 % Wilson interval of the accuracy, cells counting as independent.
        kappa: Cohen 1960; None where both give one and the same answer throughout.
        per_class: by answer, sorted.
    """

    first: str
    second: str
    accuracy: float
    interval: Interval
    kappa: float | None
    per_class: Mapping[str, ClassAgreement]


@dataclass(frozen=True)
class ExpertAgreement:
    """The annotations of a set, two by two.

    Attributes:
        cells: how many carry both re-annotations; all figures are theirs.
        of: how many cells there are.
        classes: each pair, on the set's classes.
        groupings: the same on each question of `labels.MUNICH_GROUPINGS`, where an answer is the
            grouping's name or "other".
    """

    cells: int
    of: int
    classes: tuple[PairAgreement, ...]
    groupings: Mapping[str, tuple[PairAgreement, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return the figures as experts.json holds them."""
        return {
            "cells": self.cells,
            "of": self.of,
            "pairs": [_pair_json(pair) for pair in self.classes],
            "groupings": {
                name: [_pair_json(pair) for pair in pairs] for name, pairs in self.groupings.items()
            },
        }


def expert_agreement(path: str | Path) -> ExpertAgreement:
    """Compare the annotations of the Munich set.

    Args:
        path: the Munich folder, or its annotations.dat; pictures are not needed.

    Raises:
        DataError: the file cannot be used, or no cell in it carries two re-annotations.
    """
    path = Path(path) / MUNICH if Path(path).is_dir() else Path(path)
    annotations = read_annotations(path)
    again = zip(*annotations.reannotations, strict=True)
    columns = dict(zip(ANNOTATIONS, (annotations.labels, *again), strict=True))
    agreement = compare_annotations(columns)
    if agreement is None:
        raise DataError(
            f"{path}: no cell carries two re-annotations, so there is nothing to compare; "
            "take annotations.dat from the Munich set's own archive"
        )
    return agreement


def compare_annotations(columns: Mapping[str, Sequence[str]]) -> ExpertAgreement | None:
    """Compare annotations of the same n cells, a model's answers among them perhaps.

    Args:
        columns: by who gave them, n answers each, "" where there is none.

    Returns:
        the agreement on the cells that everyone gave an answer to, the groupings only if every
        answer is one of the Munich set's codes; None if there is no such cell.
    """
    rows = list(zip(*columns.values(), strict=True))
    answered = [row for row in rows if all(row)]
    if not answered:
        return None
    named = dict(zip(columns, map(list, zip(*answered, strict=True)), strict=True))
    codes = {*VOCABULARY.labels, UNCLASSED}
    groupings = MUNICH_GROUPINGS if all(codes.issuperset(row) for row in answered) else ()
    return ExpertAgreement(
        len(answered),
        len(rows),
        _compare_all(named),
        {
            name: _compare_all({who: _group(column, name) for who, column in named.items()})
            for name in groupings
        },
    )


def compare_reannotations(table: pd.DataFrame, **answers: Sequence[str]) -> ExpertAgreement | None:
    """Compare a manifest's labels, its re-annotations and further answers, all two by two.

    Args:
        table: n cells; without columns of re-annotations no one was asked twice, and it is None.
        answers: n answers each, a model's for instance.
    """
    columns = ["label", *REANNOTATIONS]
    if not set(columns) <= set(table):
        return None
    named = {who: list(table[column]) for who, column in zip(ANNOTATIONS, columns, strict=True)}
    return compare_annotations({**named, **answers})


def compare(
    first: Sequence[str], second: Sequence[str], *, names: tuple[str, str]
) -> PairAgreement:
    """Compare two annotations of n cells, at least one; ``names`` are kept in the result."""
    answers = sorted({*first, *second})
    index = {answer: i for i, answer in enumerate(answers)}
    table = np.zeros((len(answers), len(answers)), np.int64)
    np.add.at(table, ([index[a] for a in first], [index[a] for a in second]), 1)
    both, ours, theirs = np.diagonal(table), table.sum(axis=1), table.sum(axis=0)
    per_class = {
        answer: ClassAgreement(
            int(ours[i]),
            int(theirs[i]),
            _ratio(both[i], theirs[i]),
            _ratio(both[i], ours[i]),
            _ratio(2 * both[i], ours[i] + theirs[i]),
        )
        for i, answer in enumerate(answers)
    }
    same, cells = int(both.sum()), int(table.sum())
    return PairAgreement(*names, same / cells, wilson(same, cells), _kappa(table), per_class)


def format_agreement(agreement: ExpertAgreement) -> str:
    """Return the figures as plain text, as a command prints them."""
    return "\n".join(_lines(agreement))


def _compare_all(columns: Mapping[str, Sequence[str]]) -> tuple[PairAgreement, ...]:
    return tuple(
        compare(first, second, names=(one, other))
        for (one, first), (other, second) in combinations(columns.items(), 2)
    )


def _group(answers: Sequence[str], grouping: str) -> list[str]:
    members = {**dict.fromkeys(MUNICH_GROUPINGS[grouping], grouping), UNCLASSED: UNCLASSED}
    return [members.get(answer, "other") for answer in answers]


def _kappa(table: npt.NDArray[np.int64]) -> float | None:
    """Return Cohen's kappa, multiplied out by the square of the cells: whole numbers until last."""
    total = int(table.sum())
    chance = int(table.sum(axis=1) @ table.sum(axis=0))
    return _ratio(total * int(np.trace(table)) - chance, total**2 - chance)


def _pair_json(pair: PairAgreement) -> dict[str, Any]:
    figures = asdict(pair)
    return {
        "first": pair.first,
        "second": pair.second,
        "agreement": pair.accuracy,
        "kappa": pair.kappa,
        "confidence_interval_95": {"agreement": figures["interval"]},
        "per_class": figures["per_class"],
    }


def _ratio(over: int, under: int) -> float | None:
    return float(over / under) if under else None


def _lines(agreement: ExpertAgreement) -> Iterator[str]:
    yield f"{agreement.cells:,} of {agreement.of:,} cells carry a label and two re-annotations"
    yield f"({UNCLASSED}, no class could be assigned, counts as an answer of its own)"
    yield ""
    yield f"{'':34}  agreement  kappa"
    yield from _pair_lines("all classes", agreement.classes)
    for name, pairs in agreement.groupings.items():
        members = ", ".join(MUNICH_GROUPINGS[name])
        yield from _pair_lines(f"{name} ({members}) or other", pairs)
    for pair in agreement.classes:
        yield from _class_lines(pair)


def _pair_lines(title: str, pairs: Sequence[PairAgreement]) -> Iterator[str]:
    yield title
    for pair in pairs:
        names = f"{pair.first}, {pair.second}"
        yield f"  {names:32}  {pair.accuracy:8.1%}   {_cell(pair.kappa)}"


def _class_lines(pair: PairAgreement) -> Iterator[str]:
    yield ""
    yield f"{pair.second}, read against {pair.first}"
    yield "  class  cells  answered  precision  recall     f1"
    for name, row in pair.per_class.items():
        figures = f"{_cell(row.precision):>9}  {_cell(row.recall):>6}  {_cell(row.f1)}"
        yield f"  {name:5}  {row.support:5}  {row.answered:8}  {figures}"


def _cell(value: float | None) -> str:
    return "    -" if value is None else f"{value:5.3f}"
