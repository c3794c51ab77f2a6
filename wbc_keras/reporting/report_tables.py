"""The tables of a report, from what lies in a run folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from wbc_keras.reporting.estimates import NONE, Cell, Estimate, estimate
from wbc_keras.reporting.record import Json, Record, Scored
from wbc_keras.reporting.score_tables import (
    CALIBRATION,
    tabulate_classes,
    tabulate_figures,
    tabulate_pairs,
)
from wbc_keras.reporting.tables import Table
from wbc_keras.splits import SPLITS

_METHODS = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "scorecam": "Score-CAM"}
RATES = {"sensitivity": "sensitivity", "specificity": "specificity", "ppv": "PPV", "npv": "NPV"}


# All that may be made, with the checklists, which are a module of their own.
NAMES: tuple[str, ...] = (
    *("data", "settings", "evaluations", "figures", "per_class", "confusion_pairs", "screening"),
    *("operating_points", "calibration", "coverage", "novelty", "patients", "experts"),
    *("heatmaps", "checklists"),
)


def make_tables(record: Record) -> dict[str, Table]:
    """Return the tables that the run can fill, by name."""
    makers: list[Callable[[], Table | None]] = [
        lambda: _data(record),
        lambda: _settings(record),
        lambda: _evaluations(record.evaluations),
        lambda: _heatmaps(record.checks),
    ]
    if main := record.main:
        makers += [
            lambda: tabulate_figures(main.metrics),
            lambda: tabulate_classes(main.metrics),
            lambda: tabulate_pairs(main.metrics),
            lambda: _screening(main),
            lambda: _operating_points(main),
            lambda: _calibration(main),
            lambda: _coverage(main),
            lambda: _novelty(main),
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
        ("network", _describe_network(record)),
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


def _describe_network(record: Record) -> str:
    model, averaged = record.run.config.model, record.run.averaged
    if averaged:
        return f"{averaged}; what follows is the first one's"
    return f"{model.backbone}, attention {model.attention}, dropout {model.dropout:g}"


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
        for name, title in CALIBRATION.items()
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


def _novelty(scored: Scored) -> Table | None:
    if scored.novelty is None:
        return None
    of = {"cells scored here": scored.novelty["scored"]}
    for source, what in (("left_out", "cells of"), ("drawn", "drawn:")):
        found = (scored.novelty.get(source) or {}).items()
        of |= {f"{what} {name.replace('_', ' ')}": one for name, one in found}
    rows = tuple(
        (name, int(one["cells"]), estimate(one, "auroc"), estimate(one, "share_over_99"))
        for name, one in of.items()
    )
    columns = ("pictures", "number", "AUROC", "share over 0.99")
    note = (
        "Novelty tells how far a picture lies from what the model was trained on. AUROC: how often "
        "it lies farther than a validation cell, 0.5 where it is at home. Of the validation cells "
        "1 % are over 0.99. Drawn cells show how much drawing alone makes foreign."
    )
    return Table("novelty", "What is foreign to the model", note, columns, rows)


def _heatmaps(checks: Json | None) -> Table | None:
    if checks is None:
        return None
    stages = [name for name in checks if name.startswith("similarity_")]
    last = [name for name in stages if name != "similarity_between_cells"][-1:]
    beside = {
        "nucleus_energy": ("heat in the nucleus, beside its share of the crop", "nucleus_area"),
        "cell_energy": ("heat in the cell, beside its share of the crop", "cell_area"),
        "nucleus_attention": ("CBAM's attention in the nucleus, beside the same", "nucleus_area"),
        "cell_attention": ("CBAM's attention in the cell, beside the same", "cell_area"),
        "deletion": ("the hottest parts taken away: probability left", "deletion_control"),
        "insertion": ("the hottest parts given back: probability reached", "insertion_control"),
        **dict.fromkeys(last, ("likeness to the map after all weights are shuffled", "")),
        "similarity_between_cells": ("likeness of the maps of two cells", ""),
    }
    rows = tuple(
        (title, estimate(checks, name), estimate(checks, other) if other else Estimate(None))
        for name, (title, other) in beside.items()
        if name in checks
    )
    note = (
        f"{_METHODS[checks['method']]} on {checks['cells']} cells. A map that explains has more "
        "heat in the cell than the cell's share, leaves less probability when its parts go, and "
        "brings back more, than another cell's map does; and it is unlike (near 0) the map of "
        "shuffled weights and those of other cells."
    )
    columns = ("check", "heatmap", "to compare with")
    return Table("heatmaps", "Do the heatmaps explain anything?", note, columns, rows)


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
