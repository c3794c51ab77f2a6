"""Which items of two reporting checklists a run answers, and which its author must.

- **TRIPOD+AI**: Collins et al. 2024, BMJ 385:e078378, 27 items.
- **CLAIM**: the Checklist for Artificial Intelligence in Medical Imaging, Tejani et al. 2024
  (2024 update), Radiology: Artificial Intelligence 6(4):e240300, 44 items.

Items are named by number and in words of our own; what counts is the checklists' own text.
"""

from __future__ import annotations

from dataclasses import dataclass

from wbc_keras.reporting.record import Record
from wbc_keras.reporting.tables import Table

TRIPOD, CLAIM = "TRIPOD+AI", "CLAIM 2024"


@dataclass(frozen=True)
class Item:
    """An item of a checklist.

    Attributes:
        checklist: its name.
        number: as the checklist numbers it.
        words: what it asks for, in short.
        part: of the record that answers it ("" if none can): see `_answers`.
        rest: what the author has to add, "" if nothing.
    """

    checklist: str
    number: str
    words: str
    part: str = ""
    rest: str = ""


_T = TRIPOD
_C = CLAIM
ITEMS: tuple[Item, ...] = (
    Item(_T, "1", "title"),
    Item(_T, "2", "abstract"),
    Item(_T, "3a-c", "clinical background, intended use, known inequalities"),
    Item(_T, "4", "objectives"),
    Item(_T, "5a, 5b", "sources and dates of the data", "source", "origin, dates, representation"),
    Item(_T, "6a-c", "setting, eligibility and treatment of participants"),
    Item(_T, "7", "preparation and checks of the data", "settings", "what was done before"),
    Item(_T, "8a-c", "outcome: who labelled, how, blinded"),
    Item(_T, "9a-c", "predictors: here, the picture", "settings", "how pictures were taken"),
    Item(_T, "10", "study size and why", "data", "why so many"),
    Item(_T, "11", "missing data", "settings", "cells never photographed"),
    Item(_T, "12a", "how data were used and partitioned", "data"),
    Item(_T, "12b, 12c", "model type, building, tuning, internal validation", "settings", "tuning"),
    Item(_T, "12d", "differences between clusters (hospitals)"),
    Item(_T, "12e", "measures and plots of performance", "figures"),
    Item(_T, "12f", "model updating, recalibration", "calibration"),
    Item(_T, "12g", "how predictions were calculated", "settings"),
    Item(_T, "13", "class imbalance and recalibration after", "settings"),
    Item(_T, "14", "fairness"),
    Item(_T, "15", "output, and how thresholds were chosen", "decisions"),
    Item(_T, "16", "training against evaluation data", "data", "setting and eligibility"),
    Item(_T, "17", "ethical approval"),
    Item(_T, "18a-e", "funding, interests, protocol, registration, data"),
    Item(_T, "18f", "availability of code", "environment", "where this run's code is"),
    Item(_T, "19", "patient and public involvement"),
    Item(_T, "20a-c", "participants: flow, characteristics, comparison", "data", "demographics"),
    Item(_T, "21", "numbers in each analysis", "data"),
    Item(_T, "22", "the full model, for use by others", "model", "terms of access"),
    Item(_T, "23a", "performance with confidence intervals", "figures", "subgroups of people"),
    Item(_T, "23b", "heterogeneity between clusters"),
    Item(_T, "24", "results of model updating", "calibration"),
    Item(_T, "25", "interpretation"),
    Item(_T, "26", "limitations", "figures", "of the study"),
    Item(_T, "27a-c", "use in care: poor input, expertise, next steps"),
    Item(_C, "1, 2", "title and abstract"),
    Item(_C, "3, 4", "background, aims"),
    Item(_C, "5, 6", "prospective or retrospective; goal"),
    Item(_C, "7", "data sources", "source", "origin of the pictures"),
    Item(_C, "8", "inclusion and exclusion"),
    Item(_C, "9", "preprocessing", "settings"),
    Item(_C, "10", "selection of subsets of the data", "data"),
    Item(_C, "11", "de-identification"),
    Item(_C, "12", "missing data", "settings", "cells never photographed"),
    Item(_C, "13", "how pictures were acquired"),
    Item(_C, "14-17", "reference standard: method, reason, annotators, test set"),
    Item(_C, "18", "variability between and within raters", "experts", "how they were asked"),
    Item(_C, "19", "assignment to partitions", "data"),
    Item(_C, "20", "level at which partitions are disjoint", "data"),
    Item(_C, "21", "intended sample size"),
    Item(_C, "22", "the model in detail", "settings"),
    Item(_C, "23", "software and versions", "environment"),
    Item(_C, "24", "initial weights", "settings"),
    Item(_C, "25", "training", "settings"),
    Item(_C, "26", "choice of the final model", "history"),
    Item(_C, "27", "ensembles", "settings"),
    Item(_C, "28", "metrics", "figures"),
    Item(_C, "29", "uncertainty", "figures"),
    Item(_C, "30", "robustness"),
    Item(_C, "31", "explainability", "explanations", "whether they were validated"),
    Item(_C, "32", "internal testing", "figures"),
    Item(_C, "33", "external testing", "external"),
    Item(_C, "34", "trial registration"),
    Item(_C, "35", "included and excluded", "data", "excluded before"),
    Item(_C, "36", "characteristics in each partition", "data", "demographics"),
    Item(_C, "37", "performance with uncertainty", "figures"),
    Item(_C, "38", "diagnostic performance with precision", "screening"),
    Item(_C, "39", "failure analysis", "mistakes", "why"),
    Item(_C, "40", "limitations", "figures", "of the study"),
    Item(_C, "41", "implications for practice"),
    Item(_C, "42", "protocol, further details", "settings", "the protocol"),
    Item(_C, "43", "availability of software, model, data", "environment", "where, on what terms"),
    Item(_C, "44", "funding"),
)


def make_checklist(record: Record) -> Table:
    """Return the table of items, with where the run answers each and what the author must add."""
    answers = _answers(record)
    rows = tuple(
        (
            item.checklist,
            item.number,
            item.words,
            answers.get(item.part, "-"),
            item.rest or ("-" if item.part in answers else "all of it"),
        )
        for item in ITEMS
    )
    note = (
        "Numbers of TRIPOD+AI (Collins et al. 2024) and of CLAIM's 2024 update (Tejani et al. "
        "2024), in words of our own: what counts is their text."
    )
    columns = ("checklist", "item", "asks for", "the run answers in", "the author adds")
    return Table("checklists", "Reporting checklists", note, columns, rows)


def _answers(record: Record) -> dict[str, str]:
    """Return part -> where it is answered, for the parts that the record holds."""
    main = record.main
    questions = (main.screening or {}) if main else {}
    there = {
        "settings": "config.yaml",
        "source": "config.yaml, splits.csv" if record.splits is not None else "config.yaml",
        "data": "splits.csv" if record.splits is not None else "",
        "history": "history.csv" if record.history is not None else "",
        "environment": "environment.json" if record.environment else "",
        "model": "model.keras" if record.run.model_path.is_file() else "",
        "decisions": "decision.json" if record.decisions else "",
        "explanations": "explanations/" if record.explanations else "",
        "figures": "metrics.json" if main else "",
        "mistakes": "confusion_pairs.csv, predictions.csv"
        if main and main.predictions is not None
        else "",
        "calibration": "calibration.json" if main and main.calibration else "",
        "experts": "experts.json" if main and main.experts else "",
        "screening": "screening.json" if any(questions.values()) else "",
        "external": ", ".join(f"evaluation/{one.name}" for one in record.elsewhere),
    }
    return {part: where for part, where in there.items() if where}
