"""The experts' agreement, held against scikit-learn on the real annotations."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from wbc_keras.errors import DataError
from wbc_keras.statistics.agreement import (
    ExpertAgreement,
    PairAgreement,
    compare,
    expert_agreement,
    format_agreement,
)


@pytest.fixture(scope="module")
def agreement(lmu_metadata: Path) -> ExpertAgreement:
    return expert_agreement(lmu_metadata)


@pytest.fixture(scope="module")
def answers(lmu_metadata: Path) -> pd.DataFrame:
    """The 1,905 cells that carry both re-annotations: three columns of answers."""
    table = pd.read_csv(lmu_metadata / "annotations.dat", sep=" ", header=None)
    return table.dropna().drop(columns=0)


def hold_against_scikit_learn(pair: PairAgreement, truth: pd.Series, answer: pd.Series) -> None:
    labels = sorted({*truth, *answer})
    assert pair.accuracy == pytest.approx(metrics.accuracy_score(truth, answer))
    assert pair.kappa == pytest.approx(metrics.cohen_kappa_score(truth, answer))
    expected = metrics.precision_recall_fscore_support(
        truth, answer, labels=labels, zero_division=np.nan
    )
    rows = [pair.per_class[label] for label in labels]
    found = [[row.precision, row.recall, row.f1, row.support] for row in rows]
    np.testing.assert_allclose(np.array(found, float), np.transpose(expected))
    assert [row.answered for row in rows] == [(answer == label).sum() for label in labels]
    assert list(pair.per_class) == labels


def test_agreement_is_that_of_the_data_readme(agreement: ExpertAgreement) -> None:
    assert (agreement.cells, agreement.of) == (1905, 18365)
    shares = [round(100 * pair.accuracy, 1) for pair in agreement.classes]
    assert shares == [84.9, 80.3, 82.3]
    assert [(pair.first, pair.second) for pair in agreement.classes] == [
        ("label", "re-annotation 1"),
        ("label", "re-annotation 2"),
        ("re-annotation 1", "re-annotation 2"),
    ]


def test_figures_are_scikit_learns(agreement: ExpertAgreement, answers: pd.DataFrame) -> None:
    pairs = combinations(answers.columns, 2)
    for pair, (one, other) in zip(agreement.classes, pairs, strict=True):
        hold_against_scikit_learn(pair, answers[one], answers[other])


@pytest.mark.parametrize(
    ("name", "codes"), [("blast", "MYO MOB"), ("atypical", "LYA EBO MOB MYO MYB MMZ PMO")]
)
def test_groupings(
    agreement: ExpertAgreement, answers: pd.DataFrame, name: str, codes: str
) -> None:
    grouped = answers.map(
        lambda code: name if code in codes.split() else code if code == "UNC" else "other"
    )
    pairs = combinations(grouped.columns, 2)
    for pair, (one, other) in zip(agreement.groupings[name], pairs, strict=True):
        hold_against_scikit_learn(pair, grouped[one], grouped[other])


def test_a_figure_that_cannot_be_had_is_none() -> None:
    same = compare(["MON"] * 3, ["MON"] * 3, names=("a", "b"))
    assert (same.accuracy, same.kappa) == (1.0, None)
    apart = compare(["MON", "LYA"], ["MON", "UNC"], names=("a", "b"))
    assert apart.per_class["LYA"].precision is None
    assert apart.per_class["UNC"].recall is None
    assert apart.per_class["LYA"].f1 == 0


def test_cells_without_both_reannotations_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "annotations.dat"
    path.write_text("a/1 MON MON MON\na/2 MON LYT nan\na/3 LYT nan nan\na/4 LYT LYT MON\n")
    for source in (path, str(path), tmp_path):
        agreement = expert_agreement(source)
        assert (agreement.cells, agreement.of) == (2, 4)
        assert [pair.accuracy for pair in agreement.classes] == [1.0, 0.5, 0.5]
    path.write_text("a/1 MON MON nan\n")
    with pytest.raises(DataError, match="no cell carries two re-annotations"):
        expert_agreement(path)
    with pytest.raises(DataError, match="no such file"):
        expert_agreement(tmp_path / "elsewhere.dat")


def test_table_says_it_all(agreement: ExpertAgreement) -> None:
    text = format_agreement(agreement)
    assert text.startswith("1,905 of 18,365 cells")
    for line in (
        "  label, re-annotation 1               84.9%   0.800",
        "  label, re-annotation 2               80.3%   0.747",
        "  re-annotation 1, re-annotation 2     82.3%   0.773",
        "blast (MOB, MYO) or other",
        "  MYO      657       725      0.848   0.936  0.890",
        "  LYA        3         0          -   0.000  0.000",
    ):
        assert line in text.splitlines()
    assert max(map(len, text.splitlines())) <= 80
