"""What lies beside an exported model, for people and programs: its ``assets.extra/``.

``classes.json`` the class table, ``decision.json`` temperature and thresholds, ``export.json`` how
cells are found, what is absent, versions and hashes, ``model_card.md``, and the warm-up requests.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wbc_keras import runs
from wbc_keras.labels import cell_type
from wbc_keras.prediction.decisions import DECISION_FILE, Decisions, write_decisions
from wbc_keras.prediction.novelty import NOVELTY_FILE, Novelty
from wbc_keras.reporting.checklists import make_checklist
from wbc_keras.reporting.model_card import render_card
from wbc_keras.reporting.record import read_record
from wbc_keras.reporting.report_tables import make_tables
from wbc_keras.serving.warmup import WARMUP_FILE, write_warmup

_SOURCES = ("model.keras", "config.yaml", "classes.json", DECISION_FILE, NOVELTY_FILE, "splits.csv")


def write_extras(
    folder: Path,
    run: runs.Run,
    *,
    decisions: Decisions | None,
    max_pixels: int,
    absent: Sequence[str],
) -> None:
    """Fill the ``assets.extra/`` of a SavedModel of a run.

    Args:
        folder: made here.
        run: what was exported.
        decisions: the run's, where it has any.
        max_pixels: the largest picture that the model takes.
        absent: what `find_absent` tells.
    """
    folder.mkdir()
    runs.write_json(folder / "classes.json", _describe_classes(run.class_names))
    if decisions:
        write_decisions(folder, decisions)
    runs.write_json(folder / "export.json", _describe_export(run, max_pixels, absent))
    record = read_record(run.folder)
    tables = {**make_tables(record), "checklists": make_checklist(record)}
    runs.write_text(folder / "model_card.md", render_card(record, tables))
    write_warmup(folder / WARMUP_FILE)


def find_absent(decisions: Decisions | None, novelty: Novelty | None) -> list[str]:
    """Say, one sentence for each, which parts of a decision a run has nothing to make of."""
    absent = []
    if decisions is None:
        absent.append(
            f"no {DECISION_FILE}: probabilities are not calibrated, and there is no `accepted`"
        )
    elif decisions.accept_threshold is None:
        absent.append(
            "no threshold: none kept the wanted accuracy on validation, so there is no `accepted`"
        )
    if novelty is None:
        absent.append(f"no {NOVELTY_FILE}: there is no `novelty`")
    return absent


def _describe_classes(class_names: Sequence[str]) -> dict[str, Any]:
    """Return the names in the order of the probabilities, and what is known of each cell."""
    table = []
    for name in class_names:
        known = cell_type(name)
        table.append(
            {
                "class": name,
                "cell": known.name if known else None,
                "lineage": known.lineage if known else None,
                "abnormal": known.abnormal if known else None,
            }
        )
    return {"classes": list(class_names), "table": table}


def _describe_export(run: runs.Run, max_pixels: int, absent: Sequence[str]) -> dict[str, Any]:
    trained = run.folder / "environment.json"
    sources = [run.folder / name for name in _SOURCES if (run.folder / name).is_file()]
    return {
        "run": run.folder.resolve().name,
        "roi": dataclasses.asdict(run.config.roi),
        "image_size": list(run.config.data.image_size),
        "max_pixels": max_pixels,
        "absent": list(absent),
        "exported_with": runs.describe_environment(),
        "trained_with": json.loads(trained.read_text("utf-8")) if trained.is_file() else None,
        "sha256": {path.name: _hash(path) for path in sources},
    }


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        # hashlib.file_digest came with Python 3.11.
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
