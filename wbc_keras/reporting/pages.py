"""A page of ours inside a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path


@dataclass(frozen=True)
class Page:
    """An HTML file, such as a run's report, that a notebook shows in a frame of its own.

    In a frame neither's styles touch the other's, and the notebook keeps the page when it is moved.

    Attributes:
        path: of the file.
        height: of the frame, pixels; the page scrolls inside.
    """

    path: str | Path
    height: int = 720

    def _repr_html_(self) -> str:
        page = escape(Path(self.path).read_text(encoding="utf-8"))
        style = f"width: 100%; height: {self.height}px; border: 1px solid #8886"
        return f'<iframe title="{Path(self.path).name}" srcdoc="{page}" style="{style}"></iframe>'
