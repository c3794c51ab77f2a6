"""Tables hold the numbers of the run's files, in full in CSV, escaped in LaTeX."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from wbc_keras.reporting.estimates import Estimate
from wbc_keras.reporting.record import read_record
from wbc_keras.reporting.report_tables import NAMES, make_tables
from wbc_keras.reporting.tables import Table, sort_key


@pytest.fixture(scope="module")
def tables(scored_run: Path) -> dict[str, Table]:
    return make_tables(read_record(scored_run))


@pytest.fixture(scope="module")
def metrics(scored_run: Path) -> dict:
    return json.loads((scored_run / "evaluation/test/metrics.json").read_text())


def test_every_part_has_its_table(tables):
    assert set(NAMES) - set(tables) == {
        *("checklists", "evaluations", "experts", "heatmaps", "novelty"),
    }


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


def test_novelty_and_heatmaps_stand_beside_what_they_are_read_against(scored_run, tmp_path):
    run = Path(shutil.copytree(scored_run, tmp_path / "run"))
    one = {"cells": 36, "auroc": 0.9, "auroc_neighbours": 0.8, "share_over_99": 0.3}
    one["confidence_interval_95"] = {"auroc": [0.8, 1.0], "share_over_99": None}
    novelty = {"scored": one, "left_out": {"giant_platelet": one}, "drawn": {"dirt": one}}
    (run / "evaluation/test/novelty.json").write_text(json.dumps(novelty))
    names = ("nucleus", "cell")
    checks = {f"{name}_{what}": 0.4 for name in names for what in ("energy", "area")}
    for number, name in enumerate(("deletion", "insertion")):
        checks |= {name: 0.1 * number, f"{name}_control": 0.7}
    checks |= {"similarity_head": 0.9, "similarity_everything": 0.05}
    checks |= {"similarity_between_cells": 0.2, "method": "gradcam", "cells": 64}
    (run / "explanations").mkdir()
    (run / "explanations/checks.json").write_text(json.dumps(checks))
    tables = make_tables(read_record(run))
    assert [row[0] for row in tables["novelty"].rows] == [
        *("cells scored here", "cells of giant platelet", "drawn: dirt"),
    ]
    assert tables["novelty"].rows[0][1:] == (36, Estimate(0.9, 0.8, 1.0), Estimate(0.3))
    rows = {row[0]: row[1:] for row in tables["heatmaps"].rows}
    assert (Estimate(0.1), Estimate(0.7)) in rows.values()
    assert rows["likeness to the map after all weights are shuffled"][0] == Estimate(0.05)
