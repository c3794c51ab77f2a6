"""What the page's events do, and what review.js calls: from a request to what is shown."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from wbc_keras.errors import WbcError
from wbc_keras.manifest.reviews import Review
from wbc_keras.review import fragments
from wbc_keras.review.desk import Desk, Opened, tidy_name
from wbc_keras.review.smears import Smear
from wbc_keras.review.worklist import Filters, choose

_ON_A_PAGE = 48
_PATIENCE = 1.5  # seconds to wait for a few uploaded pictures before the page shows progress
_WELCOME = "Drop pictures of cells above, or click there to choose some."
_NONE = "No cell passes the filters."


class View:
    """What the page's events do; each returns what Gradio shows."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        try:
            desk.smear("data")
            self.first = "data"
        except WbcError:
            self.first = ""

    def upload(self, files: Sequence[str]) -> tuple[Any, ...]:
        """Put dropped pictures on the desk."""
        try:
            key = self._desk.open_uploads([Path(file) for file in files])
        except WbcError as error:
            return None, gr.skip(), gr.skip(), _message(str(error)), gr.skip()
        self._desk.smear(key).wait(_PATIENCE)
        return None, key, 0, "", gr.update(visible=False, value="")

    def show(self, key: str, number: int, *filters: Any) -> tuple[Any, ...]:
        """Show a page of the cells that pass the filters, and what they add up to."""
        if not key:
            empty = f'<p class="empty">{_WELCOME}</p>'
            return empty, "", "", "", *_turners(0, 0), gr.Timer(active=False)
        try:
            smear = self._desk.smear(key)
            running = smear.is_running
            reviews, rows = self._choose(smear, filters)
        except WbcError as error:
            return "", _message(str(error)), "", "", *_turners(0, 0), gr.Timer(active=False)
        pages = max(1, -(-len(rows) // _ON_A_PAGE))
        number = min(max(number, 0), pages - 1)
        shown = rows[number * _ON_A_PAGE : (number + 1) * _ON_A_PAGE]
        waiting = "The first cells are on their way." if running and not smear.done else _NONE
        return (
            fragments.render_tiles(smear, key, shown, reviews, page=number, empty=waiting),
            *self._add_up(smear, reviews, rows, running=running),
            f'<span class="soft">Page {number + 1} of {pages:,}</span>' if pages > 1 else "",
            *_turners(number, pages),
            gr.Timer(active=running),
        )

    def count(self, key: str, *filters: Any) -> tuple[str, str]:
        """Show anew what the cells that pass the filters add up to."""
        try:
            smear = self._desk.smear(key)
            running = smear.is_running
            return self._add_up(smear, *self._choose(smear, filters), running=running)
        except WbcError as error:
            return (_message(str(error)) if key else ""), ""

    def tick(self, key: str, number: int, *filters: Any) -> tuple[Any, ...]:
        """Show how far classifying has come; the grid stays as it is until all is there."""
        everything = self.show(key, number, *filters)
        try:
            smear = self._desk.smear(key)
        except WbcError:
            return everything
        if smear.is_running and smear.done > _ON_A_PAGE * 2:
            return gr.skip(), *everything[1:3], *[gr.skip()] * 4
        return everything

    def agreement(self) -> str:
        """Show how reviewers agree."""
        try:
            return fragments.render_agreement(self._desk)
        except WbcError as error:
            return _message(str(error))

    def open_cell(self, request: dict[str, Any]) -> dict[str, str]:
        """Open a cell: ``smear``, ``row``, ``reviewer``; called by review.js."""
        try:
            key, row = self._cell(request)
            shown = self._desk.open_cell(key, row)
            return {"cell": self._render(key, row, request, shown), "note": ""}
        except WbcError as error:
            return {"cell": _message(str(error)), "note": ""}

    def correct(self, request: dict[str, Any]) -> dict[str, str]:
        """Give a cell a class (``label``), flag it (``flagged``) or take both back (``undo``)."""
        try:
            key, row = self._cell(request)
            reviewer = _reviewer(request)
            smear = self._desk.smear(key)
            cell = smear.source.cells[row]
            mine = [one for one in self._desk.corrections.of(cell) if one.reviewer == reviewer]
            label, flagged = _change(request, mine[-1] if mine else None)
            others = self._desk.correct(key, row, label=label, flagged=flagged, reviewer=reviewer)
            said = self._desk.corrections.of(cell)
            return {
                "note": _told(label, flagged, others),
                "cell": self._render(key, row, request, self._desk.open_cell(key, row)),
                "tile": fragments.render_tile(smear, row, said),
            }
        except WbcError as error:
            return {"note": str(error), "cell": "", "tile": ""}
        except OSError as error:
            return {"note": f"NOT KEPT: {error.strerror or error}", "cell": "", "tile": ""}

    def _add_up(
        self,
        smear: Smear,
        reviews: Sequence[Sequence[Review]],
        rows: Sequence[int],
        *,
        running: bool,
    ) -> tuple[str, str]:
        sums = fragments.add_up(smear, rows, reviews, self._desk.class_names)
        # As it was before the rows were chosen: of these more may have come since.
        status = fragments.render_status(smear, sums, running=running)
        return status, fragments.render_differential(sums.count)

    def _choose(
        self, smear: Smear, filters: Sequence[Any]
    ) -> tuple[list[Sequence[Review]], list[int]]:
        predicted, answer, state, patient, at_most = filters
        table = smear.table()
        source, standing = smear.source, self._desk.corrections.standing()
        reviews: list[Sequence[Review]] = [standing.get(cell, ()) for cell in source.cells]
        rows = choose(
            table,
            Filters(predicted, answer, state, patient, at_most),
            class_names=self._desk.class_names,
            reviews=reviews[: len(table)],
            patients=source.manifest.table["group"].iloc[: len(table)].tolist(),
        )
        return reviews, [int(row) for row in rows]

    def _cell(self, request: dict[str, Any]) -> tuple[str, int]:
        key, row = str(request.get("smear", "")), int(request.get("row", -1))
        if not 0 <= row < self._desk.smear(key).done:
            raise WbcError("There is no such cell on the desk; open the pictures again.")
        return key, row

    def _render(self, key: str, row: int, request: dict[str, Any], shown: Opened) -> str:
        return fragments.render_cell(self._desk, key, row, shown, reviewer=_reviewer(request))


def _change(request: dict[str, Any], mine: Review | None) -> tuple[str, bool]:
    """Return the class and the flag that a reviewer's answer has now."""
    if request.get("undo"):
        return "", False
    label, flagged = (mine.corrected, mine.flagged) if mine else ("", False)
    return str(request.get("label", label)), bool(request.get("flagged", flagged))


def _reviewer(request: dict[str, Any]) -> str:
    return tidy_name(str(request.get("reviewer", "")))


def _told(label: str, flagged: bool, others: Sequence[Review]) -> str:
    parts = [fragments.say_class(label) if label else "", "flagged" if flagged else ""]
    told = f"Kept: {', '.join(filter(None, parts))}." if any(parts) else "Taken back."
    for one in others:
        told += f" {one.reviewer} has called this cell {fragments.say_class(one.corrected)}."
    return told + (" The last answer counts." if others else "")


def _turners(number: int, pages: int) -> tuple[Any, Any]:
    return (
        gr.Button(interactive=number > 0, visible=pages > 1),
        gr.Button(interactive=number < pages - 1, visible=pages > 1),
    )


def _message(text: str) -> str:
    return f'<p class="message" role="alert">{escape(text)}</p>'
