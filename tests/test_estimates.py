"""Figures as people read them: no rounding that lies."""

from __future__ import annotations

import pytest

from wbc_keras.reporting.estimates import Estimate, count, estimate, percent

GAP = "\N{NO-BREAK SPACE}"


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0, "0"),
        (1, "1" + "00"),
        (0.9996, ">99.9"),
        (0.0002, "<0.1"),
        (0.971, "97.1"),
        (0.5, "50.0"),
    ],
)
def test_percent_is_all_or_nothing_only_if_it_is(share, text):
    assert percent(share) == f"{text}{GAP}%"


def test_figure_with_its_interval_in_a_table_and_in_a_sentence():
    figure = Estimate(0.9712, 0.9621, 1.0)
    assert figure.text == "0.971 [0.962, 1.000]"
    assert figure.with_range == f"97.1{GAP}% (95{GAP}% CI 96.2 to 100)"


def test_figure_that_cannot_be_had():
    assert Estimate(None).text == Estimate(None).with_range == "n/a"
    assert Estimate(0.5).text == "0.500"


def test_interval_is_found_under_another_name():
    figures = {"auroc": 0.9, "confidence_interval_95": {"abnormal_auroc": [0.8, 0.95]}}
    assert estimate(figures, "auroc") == Estimate(0.9)
    assert estimate(figures, "auroc", interval="abnormal_auroc") == Estimate(0.9, 0.8, 0.95)
    assert estimate({}, "auroc") == Estimate(None)


def test_counting():
    assert [count(n, "cell") for n in (0, 1, 2386)] == ["no cell", "1 cell", "2,386 cells"]
    assert count(2, "class", "classes") == "2 classes"
