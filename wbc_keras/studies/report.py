"""A study for people: one table as CSV and Markdown, and in plain words what helped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from wbc_keras.reporting.estimates import NONE, count, make_estimate
from wbc_keras.statistics.comparison import Difference
from wbc_keras.studies.figures import (
    FIGURES,
    RARE_SHARE,
    LevelFigures,
    SettingFigures,
    StudyFigures,
)
from wbc_keras.studies.plan import Changes, Study
from wbc_keras.studies.results import Result

TITLES = {
    "macro_f1": "macro F1",
    "rare_recall": "rare-class recall",
    "abnormal_auroc": "abnormal AUROC",
    "blast_auroc": "blast AUROC",
}
_PICTURE = "![Figures of each setting](study.png)\n\n"
VERDICTS = HELPED, HURT, NOT_SHOWN = "helped", "hurt", "not shown to help or hurt"


@dataclass(frozen=True, eq=False)
class StudyReport:
    """What a study has found, finished or not.

    Attributes:
        study: what was planned.
        figures: of all finished runs, as `studies.plots.plot_study` draws them.
        results: of the runs, failed ones too.
    """

    study: Study
    figures: StudyFigures
    results: Sequence[Result]

    def table(self) -> pd.DataFrame:
        """Return study.csv: what was pooled first, then one row a run, failed ones too.

        ``kind`` is setting, component (level minus reference) or run. A figure has the columns
        ``<figure>``, ``_low``, ``_high``, ``_difference``, ``_difference_low`` and
        ``_difference_high``.
        """
        return _make_table(self.figures, self.results)

    def text(self) -> str:
        """Return study.md: what helped in plain words, the tables, and how to read them."""
        return _write_text(self.study, self.figures, self.results)

    def _repr_markdown_(self) -> str:
        """Return the text as a notebook shows it, where the picture's file is not to be had."""
        return self.text().replace(_PICTURE, "")


def _make_table(figures: StudyFigures, results: Sequence[Result]) -> pd.DataFrame:
    rows = [_setting_row(one) for one in figures.settings]
    rows += [_level_row(one) for one in figures.levels]
    rows += _run_rows(figures, results)
    ends = ("", "_low", "_high", "_difference", "_difference_low", "_difference_high")
    columns = ["kind", "name", "repeat", "runs", "cells", "patients"]
    columns += [f"{figure}{end}" for figure in FIGURES for end in ends]
    columns += ["validation_macro_f1", "epochs", "training_minutes", "parameters", "error"]
    table = pd.DataFrame(rows, columns=columns)
    whole = ["runs", "cells", "patients", "epochs", "parameters"]
    return table.astype(dict.fromkeys(whole, "Int64"))


def _setting_row(one: SettingFigures) -> dict[str, object]:
    row: dict[str, object] = {"kind": "setting", "name": one.name, "repeat": "pooled"}
    row |= {"runs": one.runs[0], "cells": one.cells, "patients": one.patients}
    row |= {"validation_macro_f1": one.validation_macro_f1}
    row |= {"training_minutes": _round(one.minutes), "parameters": one.parameters}
    for name, estimate in one.figures.items():
        row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return row | _difference_columns(one.differences or {})


def _level_row(one: LevelFigures) -> dict[str, object]:
    name = f"{one.component}: {one.level} minus {one.reference}"
    row: dict[str, object] = {"kind": "component", "name": name, "repeat": "pooled"}
    return row | _difference_columns(one.differences)


def _difference_columns(differences: Mapping[str, Difference]) -> dict[str, object]:
    row: dict[str, object] = {}
    for name, one in differences.items():
        low, high = one.interval or (None, None)
        row |= {f"{name}_difference": one.difference}
        row |= {f"{name}_difference_low": low, f"{name}_difference_high": high}
    return row


def _run_rows(figures: StudyFigures, results: Sequence[Result]) -> Iterator[dict[str, object]]:
    own = {(one["setting"], one["repeat"]): one for one in figures.runs.to_dict("records")}
    for result in results:
        setting, repeat = result.cell.setting, result.cell.repeat.name
        row: dict[str, object] = {"kind": "run", "name": setting, "repeat": repeat}
        if result.facts is None or result.answers is None:
            yield row | {"error": result.error}
            continue
        facts, groups = result.facts, set(result.answers["group"]) - {""}
        row |= {name: own[setting, repeat][name] for name in FIGURES}
        row |= {"cells": len(result.answers), "patients": len(groups) or None}
        row |= {"validation_macro_f1": facts.validation_macro_f1}
        row |= {"epochs": facts.epochs, "parameters": facts.parameters}
        yield row | {"training_minutes": _round(facts.training_seconds / 60)}


def _write_text(study: Study, figures: StudyFigures, results: Sequence[Result]) -> str:
    sections = [f"# Study {study.name}", _describe_extent(study, figures, results)]
    sections += [*explain(figures), _setting_table(figures)]
    if figures.levels:
        sections += ["## What a component is worth", _LEVELS, _level_table(figures)]
    sections += [f"{_PICTURE}{_how_to_read(figures)}"]
    sections += [_list_settings(study)]
    if failed := [one for one in results if one.error]:
        lines = [f"- `{one.cell.name}`: {_cell(one.error or '')}" for one in failed]
        sections += ["## Runs that failed", "\n".join(lines)]
    return "\n\n".join(sections) + "\n"


_LEVELS = (
    "Main effects: the level minus the first level of its component, as a mean over all "
    "combinations of the other components, in points (hundredths), with the paired 95 % interval."
)


def _describe_extent(study: Study, figures: StudyFigures, results: Sequence[Result]) -> str:
    planned = len(study.settings) * len(study.repeats)
    done = sum(one.answers is not None for one in results)
    failed = sum(one.error is not None for one in results)
    folds = f"{study.folds} folds" if study.folds else "one split"
    text = (
        f"{count(len(study.settings), 'setting')}, {folds}, {count(len(study.seeds), 'seed')}: "
        f"{done} of {planned} runs are finished"
    )
    text += f", {failed} failed." if failed else "."
    if done < planned:
        text += " **This is a part of the study**: settings with fewer runs stand on fewer cells."
    first = figures.settings[0]
    if first.cells:
        who = f" of {count(first.patients, 'patient')}" if first.patients else ""
        text += f" The baseline `{first.name}` was tested on {count(first.cells, 'cell')}{who}."
    return text


def explain(figures: StudyFigures) -> list[str]:
    """Return in plain words which settings, or components, helped, hurt, or did nothing to be seen.

    One paragraph; none while nothing can be compared.
    """
    named = compare(figures)
    if not named:
        return []
    against = f"Against the baseline `{figures.baseline}`."
    if figures.levels:
        against = "Each against the first level of its component, over all others averaged."
    sentences = [
        _explain_figure(title, {who: one[figure] for who, one in named.items()})
        for figure, title in TITLES.items()
    ]
    return [" ".join([against, *filter(None, sentences)])]


def compare(figures: StudyFigures) -> dict[str, Mapping[str, Difference]]:
    """Return the differences that answer the study's question, by who they speak of.

    They are those of the levels of a grid, else of the settings to the baseline.
    """
    if figures.levels:
        return {f"{one.component} {one.level}": one.differences for one in figures.levels}
    return {one.name: one.differences for one in figures.settings if one.differences is not None}


def _explain_figure(title: str, differences: Mapping[str, Difference]) -> str:
    kinds: dict[str, list[str]] = {kind: [] for kind in VERDICTS}
    for who, one in differences.items():
        if one.difference is not None:
            kinds[verdict(one)].append(f"`{who}` ({_points_in_words(one)})")
    parts = [f"{kind}: {', '.join(who)}" for kind, who in kinds.items() if who]
    return f"On **{title}**, {'; '.join(parts)}." if parts else ""


def verdict(one: Difference) -> str:
    """Return which of `VERDICTS` holds: an interval with zero in it shows nothing either way.

    All figures of a study are better when larger.
    """
    if not one.is_clear or one.difference is None:
        return NOT_SHOWN
    return HELPED if one.difference > 0 else HURT


def _points_in_words(one: Difference) -> str:
    if one.interval is None:
        return f"{_points(one.difference)} points, no interval"
    low, high = map(_points, one.interval)
    anywhere = "" if one.is_clear else "anywhere from "
    return f"{_points(one.difference)} points, {anywhere}{low} to {high}"


def _setting_table(figures: StudyFigures) -> str:
    header = ["setting", "runs"]
    header += [part for title in TITLES.values() for part in (title, "difference")]
    header += ["validation macro F1", "min a run", "parameters"]
    rows = []
    for one in figures.settings:
        row = [f"`{one.name}`", f"{one.runs[0]} of {one.runs[1]}"]
        for name in FIGURES:
            difference = one.differences[name] if one.differences else None
            row += [one.figures[name].text, _difference_text(difference)]
        row += [make_estimate(one.validation_macro_f1, None).figure]
        row += [NONE if one.minutes is None else f"{one.minutes:.1f}"]
        row += [NONE if one.parameters is None else f"{one.parameters:,}"]
        rows.append(row)
    return _markdown(header, rows)


def _level_table(figures: StudyFigures) -> str:
    header = ["component", "level", "against", "pairs", *TITLES.values()]
    rows = [
        [one.component, f"`{one.level}`", f"`{one.reference}`", str(one.pairs)]
        + [_difference_text(one.differences[name]) for name in FIGURES]
        for one in figures.levels
    ]
    return _markdown(header, rows)


def _how_to_read(figures: StudyFigures) -> str:
    rare = ", ".join(figures.rare) or "none"
    return (
        "Figures are fractions, over the test cells of all folds together, each answered by a "
        "model that has not seen them (nor their patient, where patients are known); with several "
        "seeds, their mean. In brackets the 95 % bootstrap interval, by patient where patients are "
        "known. Differences are to the baseline, in points (hundredths), drawn with the same cells "
        "on both sides; in bold where the interval leaves zero out. Each holds for itself: of "
        "twenty, one leaves zero out by chance. Intervals tell the noise of the test cells, not of "
        "the training: more seeds tell that. Rare-class recall is the mean over the classes under "
        f"{RARE_SHARE:.0%} of the training cells: {rare}. A recipe is chosen by the validation "
        "macro F1, which knows nothing of the test cells, and judged by the others."
    )


def _list_settings(study: Study) -> str:
    lines = [f"- `{one.name}`: {_cell(_changes(one.changes))}" for one in study.settings]
    return "\n".join(["What each setting changes of the common recipe:", "", *lines])


def _changes(changes: Changes) -> str:
    return ", ".join(f"{key} {value}" for key, value in changes.items()) or "nothing"


def _difference_text(one: Difference | None) -> str:
    if one is None or one.difference is None:
        return ""
    bounds = f" [{', '.join(map(_points, one.interval))}]" if one.interval else ""
    text = f"{_points(one.difference)}{bounds}"
    return f"**{text}**" if one.is_clear else text


def _points(value: float | None) -> str:
    """Write a difference of shares in hundredths, with its sign."""
    return NONE if value is None else f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _cell(text: str) -> str:
    """Return text that does not end a table's cell or a list's line."""
    return " ".join(text.split()).replace("|", "\\|")


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
