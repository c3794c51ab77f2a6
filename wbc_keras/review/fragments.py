"""What the page shows, as HTML: tiles, the opened cell, counts and agreement (`review.html.j2`)."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from wbc_keras.checking.report import make_thumbnail
from wbc_keras.labels import cell_type, is_abnormal
from wbc_keras.manifest.reviews import Review
from wbc_keras.prediction.predictions import BOX_COLUMNS, ERROR, NOVELTY
from wbc_keras.reporting.gallery import embed
from wbc_keras.reporting.report_page import make_templates
from wbc_keras.review.desk import Desk, Opened
from wbc_keras.review.smears import Smear
from wbc_keras.review.worklist import (
    Differential,
    Share,
    agree,
    count_cells,
    is_foreign,
    undecided,
)

# F flags and U takes back.
KEYS = "1234567890abcdeghijklmnopqrstvwxyz"
_NEAREST = 2  # classes whose typical cells are shown
_DISPUTED = 50  # rows

Reviews = Sequence[Sequence[Review]]


@dataclass(frozen=True)
class Sums:
    """What some cells of a smear add up to.

    Attributes:
        cells: how many they are.
        undecided: of them, those that the model would rather not decide.
        reviewed: those that somebody has said something of.
        count: their differential count.
    """

    cells: int
    undecided: int
    reviewed: int
    count: Differential


def add_up(smear: Smear, rows: Sequence[int], reviews: Reviews, class_names: Sequence[str]) -> Sums:
    """Add up some cells of a smear; ``reviews`` are of all of its cells."""
    chosen = smear.table().iloc[list(rows)]
    said = [reviews[row] for row in rows]
    return Sums(
        len(said),
        int(undecided(chosen).sum()),
        sum(map(bool, said)),
        count_cells(list(chosen["predicted"]), said, class_names),
    )


def say_class(label: str) -> str:
    """Return a class's full name: "Myeloblast"."""
    found = cell_type(label)
    return label if found is None else found.name.replace("_", " ").capitalize()


def say_class_and_code(label: str) -> str:
    """Return a class's full name with its label, where that is another: "Myeloblast (MYO)"."""
    name = say_class(label)
    is_code = re.sub(r"[\s_-]+", " ", label).lower() != name.lower()
    return f"{name} ({label})" if is_code else name


def say_kind(label: str) -> str:
    """Return "abnormal" or "normal", or "" where that is not known."""
    return {True: "abnormal", False: "normal", None: ""}[is_abnormal(label)]


def say_percent(share: float) -> str:
    """Return a share as people read it: neither 0 % nor 100 % unless it is that."""
    if share != share:
        return ""
    if 0 < share < 0.01:
        return "<\u00a01\u00a0%"
    if 0.99 < share < 1:
        return ">\u00a099\u00a0%"
    return f"{share:.0%}".replace("%", "\u00a0%")


def render_tiles(
    smear: Smear, key: str, rows: Sequence[int], reviews: Reviews, *, page: int, empty: str
) -> str:
    """Return the grid of a page's cells.

    Args:
        smear: where they are.
        key: its name.
        rows: of its table.
        reviews: what reviewers say of each of its cells.
        page: its number.
        empty: what to say if there are no rows.
    """
    chosen = smear.table().iloc[list(rows)]
    marks = undecided(chosen)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pictures = list(pool.map(lambda row: _thumbnail(smear.source.path(row)), rows))
    cells = [
        _tile(row, chosen.iloc[place], bool(marks[place]), pictures[place], reviews[row])
        for place, row in enumerate(rows)
    ]
    return str(_macros().grid(key, page, cells, empty))


def render_tile(smear: Smear, row: int, said: Sequence[Review]) -> str:
    """Return one cell's tile."""
    table = smear.table().iloc[[row]]
    picture = _thumbnail(smear.source.path(row))
    return str(_macros().tile(_tile(row, table.iloc[0], bool(undecided(table)[0]), picture, said)))


def render_cell(desk: Desk, key: str, row: int, shown: Opened, *, reviewer: str) -> str:
    """Return the opened cell."""
    smear = desk.smear(key)
    table = smear.table().iloc[[row]]
    line = table.iloc[0]
    source = smear.source
    said = desk.corrections.of(source.cells[row])
    mine = next((one for one in said if one.reviewer == reviewer), None)
    order = sorted(desk.class_names, key=lambda name: -float(line[name]))
    cell: dict[str, Any] = {
        "smear": key,
        "row": row,
        "file": line["file"].rsplit("/", 1)[-1],
        "patient": source.manifest.table["group"].iloc[row],
        "error": line[ERROR],
        "undecided": bool(undecided(table)[0]),
        "why": _say_why(table),
        "name": say_class(line["predicted"]),
        "kind": say_kind(line["predicted"]),
        "percent": say_percent(float(line["confidence"])),
        "picture": embed(shown.picture, "jpeg") if shown.picture else "",
        "heat": embed(shown.heat, "jpeg") if shown.heat else "",
        "box": _percents(line[list(BOX_COLUMNS)].to_numpy(float)),
        "classes": [
            _class(name, KEYS[place : place + 1], float(line[name]), mine)
            for place, name in enumerate(desk.class_names)
        ],
        "flagged": mine is not None and mine.flagged,
        "reviewed": mine is not None,
        "reviews": [_said(one) for one in said],
        "typical": [
            {"name": say_class(name), "pictures": [_thumbnail(path) for path in desk.typical[name]]}
            for name in order[:_NEAREST]
            if name in desk.typical and not line[ERROR]
        ],
    }
    return str(_macros(desk.heat_warning).opened(cell))


def render_status(smear: Smear, sums: Sums, *, running: bool) -> str:
    """Return how far classifying has come, and the smear in a line.

    Args:
        smear: the cells.
        sums: of those that had been answered.
        running: whether more were to come then.
    """
    done, count = smear.done, sums.count
    figures = [(f"{sums.cells:,}", "cells"), (f"{sums.undecided:,}", "not decided")]
    if count.unread:
        figures.append((f"{count.unread:,}", "cannot be read"))
    figures += [(_with_interval(one), one.name) for one in count.sums if one.share is not None]
    figures.append((f"{sums.reviewed:,}", "reviewed"))
    about = {
        "failure": smear.failure,
        "running": running,
        "done": done,
        "total": smear.total,
        "told_done": f"{done:,}",
        "told_total": f"{smear.total:,}",
        "figures": figures,
    }
    return str(_macros().status(about))


def render_differential(count: Differential) -> str:
    """Return the differential count as a table."""
    notes = ["Shares are of nucleated cells; the interval is of the count alone (Wilson)."]
    if count.left_out:
        notes.append(f"{count.left_out:,} platelets and smudge cells are left out.")
    if count.unread:
        notes.append(f"{count.unread:,} pictures cannot be read and are left out.")
    if count.by_reviewers:
        notes.append(
            f"{count.by_reviewers:,} cells count as reviewers have them, others by the model."
        )
    rows = [_share_row(one, total=True) for one in count.sums]
    rows += [_share_row(one) for one in sorted(count.classes, key=lambda one: -one.count)]
    return str(
        _macros().differential({"counted": f"{count.counted:,}" if count.counted else "",
                                "rows": rows, "notes": notes})
    )  # fmt: skip


def render_agreement(desk: Desk) -> str:
    """Return how reviewers agree with each other and with the model."""
    standing = desk.corrections.standing()
    pairs = [
        {
            "names": f"{pair.first} and {'the ' if pair.second == 'model' else ''}{pair.second}",
            "cells": f"{sum(one.support for one in pair.per_class.values()):,}",
            "share": say_percent(pair.accuracy),
            "interval": _say_interval(pair.interval),
            "kappa": "-" if pair.kappa is None else f"{pair.kappa:.2f}",
        }
        for pair in agree(standing)
    ]
    disputed = [
        {
            "file": file,
            "said": "; ".join(f"{one.reviewer}: {say_class(one.corrected)}" for one in said),
        }
        for (_, file), said in standing.items()
        if len({one.corrected for one in said if one.corrected}) > 1
    ]
    about = {"pairs": pairs, "disputed": disputed[:_DISPUTED], "path": str(desk.corrections.path)}
    return str(_macros().agreement(about))


@functools.cache
def _templates() -> Any:
    return make_templates(autoescape=True).get_template("review.html.j2")


def _macros(heat_warning: str = "") -> Any:
    return _templates().make_module({"heat_warning": heat_warning})


@functools.lru_cache(maxsize=2_000)
def _thumbnail(path: Path) -> str:
    data = make_thumbnail(path)
    return "" if data is None else embed(data, "jpeg")


def _tile(
    row: int, line: pd.Series[Any], withheld: bool, picture: str, said: Sequence[Review]
) -> Mapping[str, Any]:
    name, percent = say_class(line["predicted"]), say_percent(float(line["confidence"]))
    kind, mark = say_kind(line["predicted"]), _mark(said)
    spoken = [name, kind, percent, "not decided" if withheld else "", mark[1]]
    if line[ERROR]:
        name, spoken = "cannot be read", ["cannot be read", line[ERROR], mark[1]]
    return {
        "row": row,
        "file": line["file"],
        "name": name,
        "percent": percent,
        "kind": kind,
        "undecided": withheld,
        "error": line[ERROR],
        "said": mark[0],
        "thumbnail": "" if line[ERROR] else picture,
        "spoken": ", ".join(part for part in spoken if part),
    }


def _mark(said: Sequence[Review]) -> tuple[str, str]:
    """Return how a tile tells of the last review, and in words."""
    if not said:
        return "", ""
    last = said[-1]
    if last.flagged:
        return "⚑", "flagged"
    if last.corrected == last.predicted:
        return "✓", "confirmed"
    name = say_class(last.corrected)
    return f"→ {name}", f"corrected to {name}"


def _said(review: Review) -> Mapping[str, str]:
    what = say_class(review.corrected) if review.corrected else ""
    parts = [what, "flagged" if review.flagged else ""]
    return {
        "who": review.reviewer,
        "what": ", ".join(part for part in parts if part),
        "when": review.time.replace("T", " ")[:16] + " UTC",
    }


def _class(label: str, key: str, share: float, mine: Review | None) -> Mapping[str, Any]:
    share = 0.0 if share != share else share
    name, kind, percent = say_class_and_code(label), say_kind(label), say_percent(share)
    spoken = [f"Call it {name}", kind, percent, f"key {key}" if key else ""]
    return {
        "label": label,
        "key": key,
        "name": name,
        "kind": kind,
        "percent": percent,
        "width": round(100 * share, 1),
        "mine": mine is not None and mine.corrected == label,
        "spoken": ", ".join(part for part in spoken if part),
    }


def _say_why(table: pd.DataFrame) -> str:
    if is_foreign(table)[0]:
        novelty = float(table[NOVELTY].iloc[0])
        share = say_percent(novelty) if novelty < 1 else "all"
        return (
            "The picture is unlike the cells it learned from: "
            f"further off than {share} of those it was checked on."
        )
    return "It is less sure than it must be to be relied on."


def _percents(box: np.ndarray) -> list[float]:
    """Return top, left, height and width of a box in per cent."""
    top, left, bottom, right = (np.nan_to_num(box) * 100).round(2).tolist()
    return [top, left, round(bottom - top, 2), round(right - left, 2)]


def _share_row(one: Share, *, total: bool = False) -> Mapping[str, Any]:
    low, high = one.interval or (0.0, 0.0)
    return {
        "name": one.name.capitalize() if total else say_class_and_code(one.name),
        "kind": "" if total else say_kind(one.name),
        "total": total,
        "count": f"{one.count:,}",
        "share": _say_share(one.share),
        "interval": _say_interval(one.interval),
        "low": round(100 * low, 2),
        "range": round(100 * (high - low), 2),
        "at": round(100 * (one.share or 0.0), 2),
    }


def _say_share(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}\u00a0%"


def _say_interval(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f}\u00a0%"


def _with_interval(one: Share) -> str:
    low, high = one.interval or (0.0, 0.0)
    return f"{100 * (one.share or 0.0):.0f}\u00a0% ({100 * low:.0f} to {100 * high:.0f})"
