"""The tables of a report: one form for the page, for CSV and for LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from wbc_keras.estimates import NONE, Cell, Estimate, estimate, make_estimate
from wbc_keras.labels import is_abnormal
from wbc_keras.latex import render_table
from wbc_keras.record import Json, Record, Scored
from wbc_keras.splits import SPLITS

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
}
_ABNORMAL = {
    "auroc": "abnormal cells: AUROC",
    "auprc": "abnormal cells: AUPRC",
    "sensitivity_at_95_specificity": "abnormal cells: sensitivity at 95 % specificity",
}
_CALIBRATION = {
    "ece": "expected calibration error, 15 equal bins",
    "adaptive_ece": "the same, bins of equal cells",
    "brier": "Brier score (0 to 2)",
    "nll": "negative log-likelihood",
}
RATES = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}
_CLASS_SCORES = {"recall": "recall", "precision": "precision", "f1": "F1"}
_CLASS_SCORES |= {"auroc": "AUROC", "auprc": "AUPRC"}


# All that may be made, with the checklists, which are a module of their own.
NAMES: tuple[str, ...] = (
    *("data", "settings", "evaluations", "figures", "per_class", "confusion_pairs", "screening"),
    *("operating_points", "calibration", "coverage", "patients", "experts", "checklists"),
)


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        name: of its files, e.g. ``per_class``.
        title: what it shows.
        note: how to read it.
        columns: their heads.
        rows: a cell for each column: a text, a count or an `Estimate`.
    """

    name: str
    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def to_csv(self) -> str:
        """Return the numbers in full; an interval's ends have columns of their own."""
        spread = [any(_interval(row[c]) for row in self.rows) for c in range(len(self.columns))]
        heads = zip(self.columns, spread, strict=True)
        names = [name for head, wide in heads for name in _names(head, wide)]
        rows = [
            [value for cell, wide in zip(row, spread, strict=True) for value in _values(cell, wide)]
            for row in self.rows
        ]
        text: str = pd.DataFrame(rows, columns=names, dtype=object).to_csv(index=False)
        return text

    def to_latex(self) -> str:
        """Return the table for LaTeX (`latex.render_table`)."""
        return render_table(
            self.rows,
            self.columns,
            title=self.title,
            label=f"tab:{self.name}",
            is_text=[self.is_text(column) for column in range(len(self.columns))],
        )

    def is_text(self, column: int) -> bool:
        """Tell whether a column holds texts, which stand on the left."""
        return any(isinstance(row[column], str) for row in self.rows)


def sort_key(cell: Cell) -> str:
    """Return what a column is sorted by: the number in full, "" where there is none."""
    value = cell.value if isinstance(cell, Estimate) else cell
    return "" if value is None else str(value)


def make_tables(record: Record) -> dict[str, Table]:
    """Return the tables that the run can fill, by name."""
    makers: list[Callable[[], Table | None]] = [
        lambda: _data(record),
        lambda: _settings(record),
        lambda: _evaluations(record.evaluations),
    ]
    if main := record.main:
        makers += [
            lambda: _figures(main.metrics),
            lambda: _per_class(main.metrics),
            lambda: _confusion_pairs(main.metrics),
            lambda: _screening(main),
            lambda: _operating_points(main),
            lambda: _calibration(main),
            lambda: _coverage(main),
            lambda: _patients(main),
            lambda: _experts(main),
        ]
    made = (make() for make in makers)
    return {table.name: table for table in made if table is not None and table.rows}


def _data(record: Record) -> Table | None:
    if record.splits is None:
        return None
    counts = pd.crosstab(record.splits["label"], record.splits["split"])
    counts = counts.reindex(columns=list(SPLITS), fill_value=0)
    rows: list[tuple[Cell, ...]] = [
        (str(name), *(int(n) for n in row), int(row.sum())) for name, row in counts.iterrows()
    ]
    rows.append(("all classes", *(int(n) for n in counts.sum()), int(counts.to_numpy().sum())))
    grouped = record.splits[record.splits["group"] != ""]
    if len(grouped):
        of = grouped.groupby("split")["group"].nunique()
        patients = [int(of.get(split, 0)) for split in SPLITS]
        rows.append(("patients (or groups)", *patients, int(grouped["group"].nunique())))
    note = "Cells of each class in each split."
    return Table("data", "Cells by class and split", note, ("class", *SPLITS, "all"), tuple(rows))


def _settings(record: Record) -> Table:
    config = record.run.config
    data, model, loss, train = config.data, config.model, config.loss, config.train
    height, width = data.image_size
    weighing = f"class weights {loss.class_weight}"
    rows: list[tuple[Cell, ...]] = [
        ("network", f"{model.backbone}, attention {model.attention}, dropout {model.dropout:g}"),
        ("first weights", _file_name(model.weights)),
        ("picture", f"{height} x {width} px, crop {config.roi.mode}, margin {config.roi.margin:g}"),
        ("loss", f"{loss.name}, gamma {loss.gamma:g}, {weighing}"),
        ("split", _describe_split(record)),
        ("unreadable pictures", "left out" if data.bad_images == "skip" else "refused"),
        ("copies of one picture", data.near_duplicates.replace("_", " ")),
        ("batch", train.batch_size),
        ("epochs at most", f"{train.head_epochs} of the head, {train.epochs} of everything"),
        ("learning rates", f"{train.head_learning_rate:g}, {train.learning_rate:g}"),
        ("weight decay", f"{train.weight_decay:g}"),
        ("seeds", f"{config.split.seed} of the split, {train.seed} of training"),
    ]
    packages = (record.environment or {}).get("packages") or {}
    versions = ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    rows += [("software", versions)] if versions else []
    note = "config.yaml of the run has all settings."
    return Table("settings", "How it was trained", note, ("setting", "value"), tuple(rows))


def _file_name(weights: str) -> str:
    # A path tells of the machine, and is of no use to a reader.
    return weights.replace("\\", "/").rsplit("/", 1)[-1]


def _describe_split(record: Record) -> str:
    split = record.run.config.split
    shares = f"{split.validation:.0%} validation, {split.test:.0%} test"
    rule = f"fold {split.fold}" if split.fold else shares
    by = {True: "by patient", False: "by picture", None: "unknown"}[record.by_patient]
    return f"{rule}, {by}"


def _evaluations(evaluations: Sequence[Scored]) -> Table | None:
    if len(evaluations) < 2:
        return None
    rows = tuple(
        (
            one.name,
            int(one.metrics.get("samples") or 0),
            estimate(one.metrics, "accuracy"),
            estimate(one.metrics, "macro_f1"),
            estimate(one.metrics, "macro_auroc"),
        )
        for one in evaluations
    )
    columns = ("cells of", "cells", "accuracy", "macro F1", "macro AUROC")
    note = "The rest of this report is about the first row."
    return Table("evaluations", "All evaluations of this run", note, columns, rows)


def _figures(metrics: Json) -> Table:
    rows = [(title, estimate(metrics, name)) for name, title in FIGURES.items() if name in metrics]
    abnormal = metrics.get("abnormal") or {}
    bounds = metrics.get("confidence_interval_95") or {}
    rows += [
        (title, make_estimate(abnormal[name], bounds.get(f"abnormal_{name}")))
        for name, title in _ABNORMAL.items()
        if abnormal.get(name) is not None
    ]
    note = "Fractions from 0 to 1, with 95 % bootstrap intervals."
    return Table("figures", "All figures", note, ("figure", "value"), tuple(rows))


def _per_class(metrics: Json) -> Table:
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


def _confusion_pairs(metrics: Json) -> Table:
    rows = tuple(
        (pair["true"], pair["predicted"], int(pair["cells"]), Estimate(pair["share"]))
        for pair in metrics.get("confusion_pairs") or ()
    )
    columns = ("true class", "taken for", "cells", "share of the class")
    return Table("confusion_pairs", "Most frequent mistakes", "Most cells first.", columns, rows)


def _questions(scored: Scored) -> Iterable[tuple[str, Json]]:
    for name, title in (("abnormal", "abnormal cells"), ("blast", "blasts")):
        found = scored.question(name)
        if found is not None:
            yield title, found


def _screening(scored: Scored) -> Table:
    rows = tuple(
        (
            title,
            ", ".join(found["classes"]),
            int(found["positives"]),
            int(found["cells"]) - int(found["positives"]),
            estimate(found, "auroc"),
            estimate(found, "average_precision"),
        )
        for title, found in _questions(scored)
    )
    columns = ("looked for", "classes", "such cells", "others", "AUROC", "average precision")
    note = "AUROC: how often such a cell scores above another one; 0.5 is a coin."
    return Table("screening", "Such cells told from all others", note, columns, rows)


def _operating_points(scored: Scored) -> Table:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            f"{title}, {name}",
            Estimate(point.get("threshold")),
            *(estimate(point, rate) for rate in RATES),
            int(point["false_negatives"]),
            int(point["false_positives"]),
        )
        for title, found in _questions(scored)
        for name, point in (found.get("operating_points") or {}).items()
        if point is not None
    )
    columns = ("point", "threshold", *RATES.values(), "missed", "false alarms")
    note = (
        "Thresholds chosen on validation: sensitive found at least 95 % of such cells there, "
        "specific left at least 95 % of the others alone; where thresholds did both, each is the "
        "best of these at its own aim. The rates are of the cells scored here."
    )
    return Table("operating_points", "Operating points", note, columns, rows)


def _calibration(scored: Scored) -> Table | None:
    if scored.calibration is None:
        return None
    before, after = scored.calibration["before"], scored.calibration["after"]
    rows = tuple(
        (title, estimate(before, name), estimate(after, name))
        for name, title in _CALIBRATION.items()
    )
    note = "Smaller is better. The temperature was fitted on validation."
    columns = ("figure", "as trained", "calibrated")
    return Table("calibration", "Do probabilities mean what they say?", note, columns, rows)


def _coverage(scored: Scored) -> Table | None:
    if scored.selective is None:
        return None
    rows = tuple(
        (Estimate(one["coverage"]), Estimate(one["accuracy"]), Estimate(one["threshold"]))
        for one in scored.selective.get("at_coverage") or ()
    )
    columns = ("cells answered", "of them right", "confidence from")
    note = "What withholding the least sure answers gives on these cells."
    return Table("coverage", "Knowing when not to answer", note, columns, rows)


def _patients(scored: Scored) -> Table | None:
    found = scored.question("patients")
    if found is None:
        return None
    rows: list[tuple[Cell, ...]] = [
        (f"{name} share", *_agreement(one)) for name, one in (found.get("shares") or {}).items()
    ]
    rows += [(name, *_agreement(one)) for name, one in (found.get("differential") or {}).items()]
    note = (
        "Predicted against true share of each patient's nucleated cells. Limits: where 95 % of "
        "the differences are expected (Bland and Altman 1986)."
    )
    columns = ("share of", "patients", "mean absolute error", "bias", "limits")
    return Table("patients", "Differential count by patient", note, columns, tuple(rows))


def _agreement(one: Mapping[str, Any]) -> tuple[Cell, ...]:
    limits = one.get("limits")
    return (
        int(one["patients"]),
        estimate(one, "mean_absolute_error"),
        estimate(one, "bias"),
        f"{limits[0]:+.3f} to {limits[1]:+.3f}" if limits else NONE,
    )


def _experts(scored: Scored) -> Table | None:
    rows: list[tuple[Cell, ...]] = []
    for key, cells in (("scored_cells", "scored here"), ("all_cells", "all of the source")):
        compared = (scored.experts or {}).get(key) or {"pairs": []}
        rows += [
            (
                f"{pair['first']} and {pair['second']}",
                cells,
                int(compared["cells"]),
                estimate(pair, "agreement"),
                Estimate(pair.get("kappa")),
            )
            for pair in compared["pairs"]
        ]
    columns = ("who", "cells", "number", "agreement", "kappa")
    note = "How often two give a cell the same name: the ceiling that a model is read against."
    return Table("experts", "Agreement, two by two", note, columns, tuple(rows))


def _interval(cell: Cell) -> bool:
    return isinstance(cell, Estimate) and cell.low is not None


def _names(head: str, wide: bool) -> list[str]:
    return [head, f"{head}, low", f"{head}, high"] if wide else [head]


def _values(cell: Cell, wide: bool) -> list[str | int | float | None]:
    if not isinstance(cell, Estimate):
        return [cell]
    return [cell.value, cell.low, cell.high] if wide else [cell.value]
