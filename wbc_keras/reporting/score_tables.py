"""The figures of metrics.json as tables for people, in a report and in a notebook."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wbc_keras.labels import is_abnormal
from wbc_keras.reporting.estimates import Estimate, estimate
from wbc_keras.reporting.tables import Table

Json = Mapping[str, Any]

# JSON name -> what people call it; areas, errors and shares alike are fractions.
FIGURES = {
    "accuracy": "accuracy",
    "top2_accuracy": "true class among the two first",
    "macro_f1": "macro F1",
    "macro_f1_at_least_20_cells": "macro F1, classes of at least 20 cells",
    "balanced_accuracy": "balanced accuracy (mean recall)",
    "mcc": "Matthews correlation",
    "kappa": "Cohen's kappa",
    "macro_auroc": "macro AUROC",
    "macro_auprc": "macro AUPRC",
    "abnormal_auroc": "abnormal cells: AUROC",
    "abnormal_auprc": "abnormal cells: AUPRC",
    "abnormal_sensitivity_at_95_specificity": "abnormal cells: sensitivity at 95 % specificity",
}
CALIBRATION = {
    "ece": "expected calibration error, 15 equal bins",
    "adaptive_ece": "the same, bins of equal cells",
    "brier": "Brier score (0 to 2)",
    "nll": "negative log-likelihood",
}
_CLASS_SCORES = {"recall": "recall", "precision": "precision", "f1": "F1"}
_CLASS_SCORES |= {"auroc": "AUROC", "auprc": "AUPRC"}


def tabulate_figures(metrics: Json) -> Table:
    """Return every figure of all cells; those of abnormal cells only where they can be had."""
    abnormal = metrics.get("abnormal") or {}
    known = {f"abnormal_{name}": value for name, value in abnormal.items() if value is not None}
    flat = {**metrics, **known}
    rows = [(title, estimate(flat, name)) for name, title in FIGURES.items() if name in flat]
    note = "Fractions from 0 to 1, with 95 % bootstrap intervals."
    return Table("figures", "All figures", note, ("figure", "value"), tuple(rows))


def tabulate_classes(metrics: Json) -> Table:
    """Return the scores of each class."""
    scores = metrics.get("per_class") or {}
    named = [name for name in _CLASS_SCORES if any(name in one for one in scores.values())]
    kinds = {True: "abnormal", False: "normal", None: "not known"}
    rows = tuple(
        (
            name,
            int(one["support"]),
            *(estimate(one, score) for score in named),
            kinds[is_abnormal(name)],
        )
        for name, one in scores.items()
    )
    columns = ("class", "cells", *(_CLASS_SCORES[name] for name in named), "kind")
    note = (
        "Each class against all others, with 95 % intervals. Recall (sensitivity): share of the "
        "class's cells that are named right; precision: share of the cells so named that are of "
        "the class."
    )
    return Table("per_class", "Scores of each class", note, columns, rows)


def tabulate_pairs(metrics: Json) -> Table:
    """Return which class is taken for which."""
    rows = tuple(
        (pair["true"], pair["predicted"], int(pair["cells"]), Estimate(pair["share"]))
        for pair in metrics.get("confusion_pairs") or ()
    )
    columns = ("true class", "taken for", "cells", "share of the class")
    return Table("confusion_pairs", "Most frequent mistakes", "Most cells first.", columns, rows)
