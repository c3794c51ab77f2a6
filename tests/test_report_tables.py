"""Tables hold the numbers of the run's files, in full in CSV, escaped in LaTeX."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from wbc_keras.estimates import Estimate
from wbc_keras.record import read_record
from wbc_keras.report_tables import NAMES, Table, make_tables, sort_key


@pytest.fixture(scope="module")
def tables(scored_run: Path) -> dict[str, Table]:
    return make_tables(read_record(scored_run))


@pytest.fixture(scope="module")
def metrics(scored_run: Path) -> dict:
    return json.loads((scored_run / "evaluation/test/metrics.json").read_text())


def test_every_part_has_its_table(tables):
    assert set(NAMES) - set(tables) == {"checklists", "evaluations", "experts"}


def test_classes_are_those_of_the_metrics_to_the_last_digit(tables, metrics):
    table = pd.read_csv(io.StringIO(tables["per_class"].to_csv()), index_col="class")
    for name, one in metrics["per_class"].items():
        assert table.loc[name, "F1"] == one["f1"]
        assert table.loc[name, "recall, low"] == one["confidence_interval_95"]["recall"][0]
        assert table.loc[name, "cells"] == one["support"]
    assert table.loc["myeloblast", "kind"] == "abnormal"


def test_figures_with_intervals(tables, metrics):
    rows = dict(tables["figures"].rows)
    bounds = metrics["confidence_interval_95"]
    assert rows["macro F1"] == Estimate(metrics["macro_f1"], *bounds["macro_f1"])
    auroc = Estimate(metrics["abnormal"]["auroc"], *bounds["abnormal_auroc"])
    assert rows["abnormal cells: AUROC"] == auroc


def test_cells_are_counted_by_split(tables, scored_run):
    splits = pd.read_csv(scored_run / "splits.csv")
    rows = {row[0]: row[1:] for row in tables["data"].rows}
    for name in ("monocyte", "myeloblast"):
        of = splits[splits["label"] == name]["split"].value_counts()
        assert rows[name] == (of["train"], of["validation"], of["test"], of.sum())
    assert rows["all classes"][-1] == len(splits)
    assert rows["patients (or groups)"][-1] == splits["group"].nunique()


def test_second_evaluation_gets_a_row(scored_run, tmp_path):
    run = Path(shutil.copytree(scored_run, tmp_path / "run"))
    shutil.copytree(run / "evaluation" / "test", run / "evaluation" / "elsewhere")
    rows = make_tables(read_record(run))["evaluations"].rows
    assert [row[0] for row in rows] == ["test", "elsewhere"]


def test_numbers_sort_by_their_full_value():
    assert sort_key(Estimate(0.97123, 0.9, 1.0)) == "0.97123"
    assert (sort_key(Estimate(None)), sort_key(1200), sort_key("x")) == ("", "1200", "x")
