"""The model card: Mitchell et al. 2019's sections, with the metadata head that Hugging Face reads.

Source: Mitchell et al. 2019, "Model Cards for Model Reporting", FAT* 2019.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

import yaml

from wbc_keras.reporting.estimates import as_text, count, estimate
from wbc_keras.reporting.record import Record
from wbc_keras.reporting.report_page import describe_source, make_templates
from wbc_keras.reporting.report_tables import NAMES
from wbc_keras.reporting.summary import limits, say_split, summarise
from wbc_keras.reporting.tables import Table

_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "macro_auroc": "roc_auc"}


def render_card(record: Record, tables: Mapping[str, Table]) -> str:
    """Return the card as Markdown.

    Args:
        record: the run.
        tables: by name (`report_tables.make_tables`), and ``checklists``.
    """
    templates = make_templates(autoescape=False)
    templates.filters |= {"md": escape_markdown, "markdown": to_markdown}
    model, environment = record.run.config.model, record.environment or {}
    packages = environment.get("packages") or {}
    context: dict[str, Any] = {
        "head": _head(record),
        "name": record.run.folder.resolve().name,
        "kind": record.run.averaged or f"{model.backbone} with attention {model.attention}",
        "classes": record.run.class_names,
        "decisions": record.decisions,
        "thresholds": _list_thresholds(record),
        "trained_with": packages.get("wbc_keras") or "of unknown version",
        "software": ", ".join(f"{name} {number}" for name, number in packages.items() if number),
        "made": date.today().isoformat(),
        "source": describe_source(record),
        "own_cells": record.main is not None and record.main not in record.elsewhere,
        "split_sentence": " ".join(say_split(record)) or "How the cells were split is not known.",
        "resampled": _say_resampled(record),
        "summary": summarise(record),
        "elsewhere": [
            f"{one.name}: {count(int(one.metrics.get('samples') or 0), 'cell')}, accuracy "
            f"{estimate(one.metrics, 'accuracy').with_range}"
            for one in record.evaluations[1:]
        ],
        "tables": {**dict.fromkeys(NAMES), **tables},
        "limits": limits(record),
        "missing": record.missing,
    }
    return templates.get_template("model_card.md.j2").render(context) + "\n"


def escape_markdown(text: str) -> str:
    """Return a text that Markdown and HTML show as it stands, on one line."""
    escaped = re.sub(r"([\\`*\[\]|#~$])", r"\\\1", " ".join(text.split()))
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def to_markdown(table: Table) -> str:
    """Return a table in Markdown, with an empty line before it."""
    heads = [escape_markdown(column) for column in table.columns]
    rule = [":--" if table.is_text(c) else "--:" for c in range(len(heads))]
    rows = [[escape_markdown(as_text(cell)) for cell in row] for row in table.rows]
    return "\n" + "\n".join(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))


def _head(record: Record) -> str:
    """Return the metadata as YAML; the licence is the author's to add."""
    head: dict[str, Any] = {
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["white-blood-cells", "haematology", "research-use-only"],
        "metrics": list(_METRICS.values()),
    }
    if record.main:
        head["model-index"] = [_index(record, record.main.name, record.main.metrics)]
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _index(record: Record, name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    values = [
        {"type": kind, "name": key, "value": round(float(metrics[key]), 6)}
        for key, kind in _METRICS.items()
        if metrics.get(key) is not None
    ]
    data = describe_source(record, cells=False)
    return {
        "name": record.run.folder.resolve().name,
        "results": [
            {
                "task": {"type": "image-classification"},
                "dataset": {"type": data, "name": data, "split": name},
                "metrics": values,
            }
        ],
    }


def _list_thresholds(record: Record) -> str:
    one = record.decisions
    if one is None:
        return ""
    chosen = {
        "an answer is accepted from a confidence of": one.accept_threshold,
        "a cell is called abnormal, at least 95 % of such found, from": one.sensitive_threshold,
        "at least 95 % of the normal cells left alone, from": one.specific_threshold,
    }
    if one.blast_sensitive_threshold is not None:
        chosen["a blast, at least 95 % of such found, from"] = one.blast_sensitive_threshold
    return "; ".join(
        f"{what} {'none could be had' if value is None else f'{value:.3f}'}"
        for what, value in chosen.items()
    )


def _say_resampled(record: Record) -> str:
    by = record.main.metrics.get("resampled_by") if record.main else None
    return {"group": ", drawn by patient", "cell": ", drawn by cell"}.get(by or "", "")
