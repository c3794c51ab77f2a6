"""The card: a head that parses, Mitchell's sections, names that cannot break it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import yaml

from wbc_keras.reporting.checklists import make_checklist
from wbc_keras.reporting.model_card import escape_markdown, render_card
from wbc_keras.reporting.record import read_record
from wbc_keras.reporting.report_tables import make_tables

# Mitchell et al. 2019, figure 1.
SECTIONS = (
    "Model details",
    "Intended use",
    "Factors",
    "Metrics",
    "Evaluation data",
    "Training data",
    "Quantitative analyses",
    "Ethical considerations",
    "Caveats and recommendations",
)


def _card(run: Path) -> str:
    record = read_record(run)
    return render_card(record, {**make_tables(record), "checklists": make_checklist(record)})


def test_head_is_what_hugging_face_reads(scored_run):
    _, head, _ = _card(scored_run).split("---\n", 2)
    values = yaml.safe_load(head)
    assert values["pipeline_tag"] == "image-classification"
    result = values["model-index"][0]["results"][0]
    assert result["dataset"] == {"type": "cells", "name": "cells", "split": "test"}
    metrics = json.loads((scored_run / "evaluation/test/metrics.json").read_text())
    given = {one["name"]: one["value"] for one in result["metrics"]}
    assert given["accuracy"] == round(metrics["accuracy"], 6)


def test_sections_in_their_order(scored_run):
    heads = re.findall(r"^## (.+)$", _card(scored_run), re.MULTILINE)
    assert heads == [*SECTIONS, "Reporting checklists"]


def test_research_use_and_the_authors_part(scored_run):
    card = _card(scored_run)
    assert "**Research use only. Not a medical device, not for diagnosis.**" in card
    assert "Out of scope: diagnosis" in card
    assert card.count("**The author must say**") >= 5


def test_tables_have_as_many_bars_in_each_row(scored_run, hostile_run):
    for card in map(_card, (scored_run, hostile_run)):
        for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1
        assert "<b>" not in card


def test_unscored_run_says_so(scored_run, tmp_path):
    run = Path(shutil.copytree(scored_run, tmp_path / "run"))
    for name in ("evaluation", "decision.json", "splits.csv", "environment.json"):
        shutil.rmtree(run / name, ignore_errors=True)
        (run / name).unlink(missing_ok=True)
    card = _card(run)
    assert "This run was not scored yet" in card
    assert "which cells were trained on is not known" in card
    assert "model-index" not in card


def test_escaping():
    assert escape_markdown("a|b\n[c] <d> & `e`") == r"a\|b \[c\] &lt;d&gt; &amp; \`e\`"
