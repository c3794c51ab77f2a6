"""Checklists: every item of both once, and answered only by what is there."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from wbc_keras.reporting.checklists import CLAIM, ITEMS, TRIPOD, make_checklist
from wbc_keras.reporting.record import read_record


def _numbers(checklist: str) -> list[int]:
    """Return the whole numbers that a checklist's items cover, "14-17" spread."""
    found = []
    for item in ITEMS:
        if item.checklist == checklist:
            for part in item.number.split(", "):
                ends = [int(n) for n in re.findall(r"\d+", part)]
                found += list(range(ends[0], ends[-1] + 1))
    return found


def test_no_item_is_forgotten():
    assert sorted(_numbers(CLAIM)) == list(range(1, 45))
    assert sorted(set(_numbers(TRIPOD))) == list(range(1, 28))


def test_an_item_is_answered_only_where_the_file_is(scored_run, tmp_path):
    run = Path(shutil.copytree(scored_run, tmp_path / "run"))
    whole = {row[:2]: row for row in make_checklist(read_record(run)).rows}
    assert whole[CLAIM, "19"][3:] == ("splits.csv", "-")
    assert whole[CLAIM, "33"][3:] == ("-", "all of it")
    (run / "splits.csv").unlink()
    shutil.copytree(run / "evaluation/test", run / "evaluation/other_lab")
    less = {row[:2]: row for row in make_checklist(read_record(run)).rows}
    assert less[CLAIM, "19"][3:] == ("-", "all of it")
    assert less[CLAIM, "33"][3] == "evaluation/other_lab"


def test_ethics_are_always_the_authors(scored_run):
    rows = {row[:2]: row for row in make_checklist(read_record(scored_run)).rows}
    assert rows[TRIPOD, "17"][3:] == ("-", "all of it")
