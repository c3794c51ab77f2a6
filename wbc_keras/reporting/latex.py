"""A table for LaTeX, as a paper takes it in: booktabs, longtable and graphicx are all it needs."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd

from wbc_keras.reporting.estimates import Cell, Estimate, as_text

_LINES_OF_A_PAGE = 40
# Letters that a line of an article holds, and as many in the small size of a wide table.
_LINE, _SMALL_LINE = 64, 76
_LONG = 24  # letters of a text, beyond which its column may be broken into lines
_GAP = 4  # between two columns, in letters
_WORDS = re.compile(r"[^\s_/]+[_/]?")  # what is not broken

_ESCAPES = str.maketrans(
    {
        **{letter: f"\\{letter}" for letter in "&%$#{}"},
        # A path may be broken into lines.
        "_": r"\_\allowbreak{}",
        "/": r"/\allowbreak{}",
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
        # After the end of a row LaTeX would take a bracket for a length, and a star for its form.
        "[": "{[}",
        "*": "{*}",
    }
)


def render_table(
    rows: Sequence[Sequence[Cell]],
    heads: Sequence[str],
    *,
    title: str,
    label: str,
    is_text: Sequence[bool],
) -> str:
    """Return a floating table, or one that runs over pages if it is long; everything is escaped.

    Where a line is too narrow, letters are small, intervals stand below their figures and long
    texts are broken; what is wider still is shrunk to the line.

    Args:
        rows: a cell for each column.
        heads: of the columns.
        title: the caption.
        label: what the table is referred to by.
        is_text: which columns stand on the left.
    """
    columns = list(zip(heads, *rows, strict=True))
    wide = _room(columns, _LINE, stacked=False) < 0
    frame = pd.DataFrame([[_set(cell, stacked=wide) for cell in row] for row in rows])
    frame.columns = pd.Index([escape(head) for head in heads])
    is_long = len(rows) > _LINES_OF_A_PAGE
    text: str = frame.to_latex(
        index=False,
        escape=False,
        caption=escape(title),
        label=label,
        column_format="".join(["@{}", *_formats(columns, is_text, wide=wide), "@{}"]),
        longtable=is_long,
    )
    if not wide:
        return text
    return f"{{\\footnotesize\n{text}}}\n" if is_long else _shrink(text)


def escape(text: str) -> str:
    """Return a text that LaTeX sets as it is."""
    return text.translate(_ESCAPES)


def _set(cell: Cell, *, stacked: bool) -> str:
    if not isinstance(cell, Estimate) or not cell.bounds or not stacked:
        return escape(as_text(cell))
    lines = rf"{cell.figure}\\\scriptsize {escape(cell.bounds)}"
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{lines}\end{{tabular}}"


def _formats(
    columns: Sequence[Sequence[Cell]], is_text: Sequence[bool], *, wide: bool
) -> list[str]:
    """Return the columns' forms: left, right, or a width in shares of a line."""
    forms = ["l" if text else "r" for text in is_text]
    widths = [_width(column, stacked=True) for column in columns]
    room = _room(columns, _SMALL_LINE, stacked=True)
    if not wide or room >= 0:
        return forms
    long = [c for c, width in enumerate(widths) if is_text[c] and width > _LONG]
    words = {c: max(map(len, _WORDS.findall(" ".join(map(as_text, columns[c]))))) for c in long}
    # Each holds its longest word, and of what is left the more the more it would take.
    spare = max(0, room + sum(widths[c] - words[c] for c in long))
    wanted = sum(widths[c] - words[c] for c in long)
    for c in long:
        letters = words[c] + spare * (widths[c] - words[c]) / max(1, wanted)
        forms[c] = rf"p{{{letters / _SMALL_LINE:.2f}\linewidth}}"
    return forms


def _room(columns: Sequence[Sequence[Cell]], line: int, *, stacked: bool) -> int:
    """Return how many letters of a line the columns leave; below 0, how many they are over."""
    gaps = _GAP * (len(columns) - 1)
    return line - gaps - sum(_width(column, stacked=stacked) for column in columns)


def _width(column: Sequence[Cell], *, stacked: bool) -> int:
    lines = [
        max(cell.figure, cell.bounds, key=len)
        if stacked and isinstance(cell, Estimate)
        else as_text(cell)
        for cell in column
    ]
    return max(map(len, lines))


def _shrink(text: str) -> str:
    """Set a floating table small, and where it is wider than the line still, as wide as that."""
    start, end = r"\begin{tabular}{", r"\end{tabular}" + "\n" + r"\end{table}"
    # Inside, LaTeX's width is that of what is resized.
    fit = r"\footnotesize\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%" + "\n"
    return text.replace(start, fit + start, 1).replace(end, end.replace("\n", "}\n", 1))
