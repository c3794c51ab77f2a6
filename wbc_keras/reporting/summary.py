"""What a clinician reads in a minute: the main figures of a run, in plain words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from wbc_keras.reporting.estimates import Estimate, count, estimate, percent
from wbc_keras.reporting.record import Json, Record, Scored

_WEAKEST = 3
_FEW = 20  # cells; a class of fewer makes a figure noisy


@dataclass(frozen=True)
class Headline:
    """One large figure: what it is, its value, and its interval or what it rests on."""

    title: str
    value: str
    detail: str


@dataclass(frozen=True)
class Point:
    """One main point: what it is about, in a word or two, and a sentence or two."""

    lead: str
    text: str


def headlines(record: Record) -> list[Headline]:
    """Return the figures to be seen first, of the run's main evaluation."""
    if record.main is None:
        return []
    metrics = record.main.metrics
    accuracy, macro = estimate(metrics, "accuracy"), estimate(metrics, "macro_f1")
    found = [
        Headline("cells named right", accuracy.percent, _interval(accuracy)),
        Headline("all classes alike (macro F1)", macro.percent, _interval(macro)),
    ]
    if point := _point(record.main, "sensitive"):
        rate = estimate(point, "sensitivity")
        found.append(Headline("abnormal cells found", rate.percent, _interval(rate)))
    if (withheld := _withheld(record.main)) is not None:
        found.append(
            Headline("would rather not decide", percent(withheld), _detail_withheld(record.main))
        )
    return found


def summarise(record: Record) -> list[Point]:
    """Return the main points, the ground they stand on first."""
    if record.main is None:
        return [Point("Tested", "This run was not scored yet: there are no figures.")]
    points = {
        "Tested": [_say_tested(record, record.main)],
        "Split": say_split(record),
        "Accuracy": [_say_accuracy(record.main.metrics)],
        "Abnormal cells": _say_abnormal(record.main),
        "Unsure": _say_withheld(record.main),
        "Weakest": _say_weakest(record.main.metrics),
        "Hardly known": _say_small(record.main.metrics),
    }
    said = {lead: " ".join(sentences) for lead, sentences in points.items()}
    return [Point(lead, text) for lead, text in said.items() if text]


def limits(record: Record) -> list[str]:
    """Return what the figures do not tell, of this run and of any."""
    found = []
    if record.by_patient is False:
        found.append(
            "Cells of one person may be in training and test: expect lower figures on new patients."
        )
    if record.main and (left := record.main.metrics.get("left_out")):
        cells = ", ".join(f"{name} ({number:,})" for name, number in left.items())
        found.append(f"Cells that the model has no class for were left out: {cells}.")
    if record.main and not record.main.metrics.get("resampled_by"):
        found.append("There are no intervals: too few patients or cells to draw from.")
    return [
        *found,
        "Intervals tell the noise of this test set, not what another laboratory, stain, scanner "
        "or population would see.",
        "The model answers for any picture, also for one that shows no cell or a cell of a kind "
        "that it was never taught.",
        "Labels are taken as true. Experts differ on such cells, so part of the mistakes may be "
        "the labels', and a figure near 100 % may mean that habits of labelling were learned.",
        "Heatmaps show where a network looked, not why; they are as coarse as its last layer. "
        + say_heatmaps(record.checks),
        "Nothing here was tried in patients' care. Research use only: not a medical device, not "
        "for diagnosis.",
    ]


def say_heatmaps(checks: Json | None) -> str:
    """Return a warning if heatmaps tell no more of the answer than those of other cells."""
    bounds = (checks or {}).get("confidence_interval_95") or {}
    deletion, insertion = bounds.get("deletion_gain"), bounds.get("insertion_gain")
    if not deletion or not insertion or deletion[1] < 0 or insertion[0] > 0:
        return ""
    return (
        "The heatmaps of this model are no reasons: what a cell's own heatmap marks matters no "
        "more to the answer than what another cell's marks."
    )


def weakest_classes(metrics: Json) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the classes of the lowest F1, with their scores; those without cells are not among."""
    scores = (metrics.get("per_class") or {}).items()
    known = [(name, one) for name, one in scores if one.get("f1") is not None]
    return sorted(known, key=lambda item: float(item[1]["f1"]))[:_WEAKEST]


def _interval(figure: Estimate) -> str:
    return figure.range or "no interval"


def _say_tested(record: Record, scored: Scored) -> str:
    cells = count(int(scored.metrics["samples"]), "cell")
    classes = count(len(scored.metrics["classes"]), "class", "classes")
    patients = _count_patients(record, scored)
    of = f" of {count(patients, 'patient or group', 'patients or groups')}" if patients else ""
    what = {"test": "test cells", "all": "all cells"}.get(scored.name, f"cells of {scored.name}")
    return f"Scored on {cells}{of} in {classes} ({what})."


def _count_patients(record: Record, scored: Scored) -> int:
    found = scored.question("patients")
    if found is not None:
        return int(found["patients"])
    if record.splits is None or scored.name != "test":
        return 0
    groups = record.splits.loc[record.splits["split"] == "test", "group"]
    return int(groups[groups != ""].nunique())


def say_split(record: Record) -> Iterator[str]:
    """Yield what the split makes of the figures, if it is known."""
    if record.main in record.elsewhere:
        yield "These are other data than those it was trained on."
    elif record.by_patient:
        yield "By patient: no patient tested here was seen in training."
    elif record.by_patient is False:
        yield (
            "Not by patient: cells of one person may be in training and test, and the "
            "figures are the more flattering for it."
        )


def _say_accuracy(metrics: Json) -> str:
    accuracy, macro = estimate(metrics, "accuracy"), estimate(metrics, "macro_f1")
    return (
        f"It names {accuracy.with_range} of the cells right. With every class counting alike, "
        f"rare ones as much as common ones, macro F1 is {macro.with_range}."
    )


def _say_abnormal(scored: Scored) -> Iterator[str]:
    if scored.screening and scored.question("abnormal") is None:
        yield "Its classes do not tell normal from abnormal cells, so screening is not judged."
    if point := _point(scored, "sensitive"):
        found, missed = point["true_positives"], point["false_negatives"]
        yield (
            "At the threshold that found at least 95 % of the abnormal cells on validation, it "
            f"finds {found:,} of {found + missed:,} here: "
            f"{estimate(point, 'sensitivity').with_range}, and calls "
            f"{count(point['false_positives'], 'normal cell')} abnormal: specificity "
            f"{estimate(point, 'specificity').with_range}."
        )
    other = _point(scored, "specific")
    if other and other != point:
        yield (
            "At the one that left at least 95 % of the normal cells alone there, sensitivity is "
            f"{estimate(other, 'sensitivity').percent} and specificity "
            f"{estimate(other, 'specificity').percent}."
        )
    if blasts := _point(scored, "sensitive", "blast"):
        yield (
            f"Of the blasts alone, it finds {estimate(blasts, 'sensitivity').with_range} at their "
            f"own threshold; {estimate(blasts, 'ppv').with_range} of the cells that it then calls "
            "are blasts."
        )


def _point(scored: Scored, name: str, question: str = "abnormal") -> Json | None:
    """Return an operating point of a question, if there are cells of both of its answers."""
    points = (scored.question(question) or {}).get("operating_points") or {}
    point: Json | None = points.get(name)
    if point is None or None in (point.get("sensitivity"), point.get("specificity")):
        return None
    return point


def _withheld(scored: Scored) -> float | None:
    coverage = (scored.selective or {}).get("coverage")
    return None if coverage is None else 1 - float(coverage)


def _detail_withheld(scored: Scored) -> str:
    right = estimate(scored.selective or {}, "accuracy")
    if right.value is None:
        return "no answer is sure enough"
    return f"of the others {right.percent} right" if _withheld(scored) else "it answers all"


def _say_withheld(scored: Scored) -> Iterator[str]:
    if scored.selective is None:
        return
    withheld, right = _withheld(scored), estimate(scored.selective, "accuracy")
    if withheld is None:
        yield "No confidence kept the wanted accuracy on validation, so it has no way to abstain."
    elif withheld == 0:
        yield "It answers every cell: on validation no answer had to be withheld."
    elif right.value is None:
        yield "It would rather decide no cell: none is answered surely enough."
    else:
        yield (
            f"It would rather not decide {percent(withheld)} of the cells; of those it answers, "
            f"{right.with_range} are right{_say_wanted(scored)}."
        )


def _say_wanted(scored: Scored) -> str:
    wanted = {share for share in (scored.selective or {}).get("wanted_accuracies") or () if share}
    return f" (wanted, and kept on validation: {percent(wanted.pop())})" if len(wanted) == 1 else ""


def _say_weakest(metrics: Json) -> Iterator[str]:
    weakest = weakest_classes(metrics)
    if weakest:
        named = "; ".join(
            f"{name} (F1 {percent(one['f1'])} on {count(one['support'], 'cell')})"
            for name, one in weakest
        )
        yield f"{named}."


def _say_small(metrics: Json) -> Iterator[str]:
    scores = metrics.get("per_class") or {}
    absent = [name for name, one in scores.items() if not one["support"]]
    small = [name for name, one in scores.items() if 0 < one["support"] < _FEW]
    if small:
        yield f"Fewer than {_FEW} cells: {', '.join(small)}."
    if absent:
        yield f"No cell at all, so not tested: {', '.join(absent)}."
