"""A table for people: one form for the page, for CSV, for LaTeX and for a notebook."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import pandas as pd

from wbc_keras.reporting.estimates import Cell, Estimate, as_text
from wbc_keras.reporting.latex import render_table


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

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it."""
        head = self._html_row("th", self.columns)
        body = "".join(self._html_row("td", row) for row in self.rows)
        stop = "" if self.title.endswith("?") else "."
        about = f"<p><b>{escape(self.title)}{stop}</b> {escape(self.note)}</p>"
        return f"{about}<table><thead>{head}</thead><tbody>{body}</tbody></table>"

    def _html_row(self, tag: str, row: Iterable[Cell]) -> str:
        sides = ("left" if self.is_text(c) else "right" for c in range(len(self.columns)))
        cells = (
            f'<{tag} style="text-align: {side}">{_as_html(cell)}</{tag}>'
            for side, cell in zip(sides, row, strict=True)
        )
        return f"<tr>{''.join(cells)}</tr>"

    def is_text(self, column: int) -> bool:
        """Tell whether a column holds texts, which stand on the left."""
        return any(isinstance(row[column], str) for row in self.rows)


def sort_key(cell: Cell) -> str:
    """Return what a column is sorted by: the number in full, "" where there is none."""
    value = cell.value if isinstance(cell, Estimate) else cell
    return "" if value is None else str(value)


def _as_html(cell: Cell) -> str:
    """Return a cell as HTML; where room is short, an interval goes below its figure, whole."""
    if not isinstance(cell, Estimate) or not cell.bounds:
        return escape(as_text(cell))
    return f'{cell.figure} <span style="white-space: nowrap">{cell.bounds}</span>'


def _interval(cell: Cell) -> bool:
    return isinstance(cell, Estimate) and cell.low is not None


def _names(head: str, wide: bool) -> list[str]:
    return [head, f"{head}, low", f"{head}, high"] if wide else [head]


def _values(cell: Cell, wide: bool) -> list[str | int | float | None]:
    if not isinstance(cell, Estimate):
        return [cell]
    return [cell.value, cell.low, cell.high] if wide else [cell.value]
