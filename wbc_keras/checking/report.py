"""The page and the list of a check; the page holds its thumbnails and works offline."""

from __future__ import annotations

import base64
import csv
from collections.abc import Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np

from wbc_keras import runs
from wbc_keras.checking.checks import PROBLEMS, Finding, count_findings
from wbc_keras.commands import silent_stderr
from wbc_keras.manifest import Manifest
from wbc_keras.pictures.headers import HeaderError, read_header

PAGE, LIST = "report.html", "findings.csv"
_COLUMNS = ("file", "problem", "detail", "related")
_SHOWN = 24  # thumbnails of one kind; the list has all
_SIDE = 128
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee6; --paper: #fff;
  --card: #f6f8fa; --grave: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa5b4; --line: #333c48;
  --paper: #12161c; --card: #1b212a; --grave: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 72rem; margin: 2rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin: 2.2rem 0 .2rem }
p { color: var(--soft); margin: .2rem 0 .8rem; max-width: 46rem }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .3rem .9rem .3rem 0;
  text-align: left; border-bottom: 1px solid var(--line) } td:last-child { text-align: right;
  font-variant-numeric: tabular-nums; padding-right: 0 }
a { color: inherit } .grave { color: var(--grave) }
.cells { display: flex; flex-wrap: wrap; gap: .8rem }
figure { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; width: min-content; min-width: 8.2rem }
figure.pair { min-width: 17rem } figure div { display: flex; gap: .4rem }
img, .none { width: 128px; height: 128px; object-fit: contain; border-radius: 3px; flex: none }
.none { display: grid; place-items: center; color: var(--soft); border: 1px dashed var(--line);
  box-sizing: border-box; font-size: .8rem }
figcaption { font-size: .8rem; overflow-wrap: anywhere; margin-top: .4rem }
figcaption span { color: var(--soft) } li { overflow-wrap: anywhere }
"""


def write_report(folder: Path, manifest: Manifest, findings: Sequence[Finding]) -> None:
    """Write the page and the list into ``folder``, which takes the place of an older one whole."""
    # libpng writes a line of its own for each damaged file.
    with silent_stderr():
        page = render_page(manifest, findings)
    with runs.replacing_folder(folder) as temporary:
        (temporary / PAGE).write_text(page, encoding="utf-8")
        with (temporary / LIST).open("w", encoding="utf-8", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows([getattr(item, name) for name in _COLUMNS] for item in findings)


def render_page(manifest: Manifest, findings: Sequence[Finding]) -> str:
    """Return the page: a summary, then each kind of finding with thumbnails of some.

    Args:
        manifest: the cells.
        findings: in the order of `PROBLEMS`.
    """
    sections = [
        _render_section(manifest.root, problem, list(items))
        for problem, items in groupby(findings, key=lambda finding: finding.problem)
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>Check of {escape(manifest.name)}</title><style>{_STYLE}</style>"
        f"<h1>Check of {escape(manifest.name)}</h1><p>{_describe(manifest)}</p>"
        f"{_render_summary(findings)}{''.join(sections)}</html>\n"
    )


def _describe(manifest: Manifest) -> str:
    table = manifest.table
    groups = table.loc[table["group"] != "", "group"].nunique()
    parts = [
        f"{len(table):,} pictures",
        f"{len(manifest.class_names())} classes",
        f"{groups} groups (patients)" if groups else "no patients given",
        f"folder {escape(str(manifest.root))}",
    ]
    return ", ".join(parts) + f". All findings are in {LIST}."


def _render_summary(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>Nothing was found.</p>"
    rows = "".join(
        f'<tr><td{_mark(problem)}><a href="#{problem}">{PROBLEMS[problem].title}</a></td>'
        f"<td>{count:,}</td></tr>"
        for problem, count in count_findings(findings).items()
    )
    return f"<table>{rows}</table>"


def _mark(problem: str) -> str:
    return ' class="grave"' if PROBLEMS[problem].grave else ""


def _render_section(root: Path, problem: str, findings: Sequence[Finding]) -> str:
    about = PROBLEMS[problem]
    shown, more = findings[:_SHOWN], len(findings) - _SHOWN
    if shown[0].file:
        figures = "".join(_render_figure(root, finding) for finding in shown)
        body = f'<div class="cells">{figures}</div>'
    else:
        body = "<ul>" + "".join(f"<li>{escape(item.detail)}</li>" for item in shown) + "</ul>"
    rest = f"<p>and {more:,} more, listed in {LIST}</p>" if more > 0 else ""
    return (
        f'<h2 id="{problem}"{_mark(problem)}>{about.title}: {len(findings):,}</h2>'
        f"<p>{escape(about.meaning)}</p>{body}{rest}"
    )


def _render_figure(root: Path, finding: Finding) -> str:
    files = [finding.file, finding.related] if finding.related else [finding.file]
    pictures = "".join(_render_picture(root / file) for file in files)
    # A long path breaks after a folder rather than within a word.
    names = "<br>".join(escape(file).replace("/", "/<wbr>") for file in files)
    return (
        f"<figure{' class=pair' if finding.related else ''}><div>{pictures}</div>"
        f"<figcaption>{names}<br><span>{escape(finding.detail)}</span></figcaption></figure>"
    )


def _render_picture(path: Path) -> str:
    data = make_thumbnail(path)
    if data is None:
        return '<div class="none">cannot be shown</div>'
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(data).decode()}">'


def make_thumbnail(path: Path) -> bytes | None:
    """Return a picture as a small JPEG, or None if its header or its data forbid it."""
    small = read_small(path)
    return None if small is None else bytes(cv2.imencode(".jpg", small)[1].tobytes())


def read_small(path: Path) -> np.ndarray | None:
    """Return a picture in the size of a thumbnail, uint8 BGR, or None as `make_thumbnail`."""
    try:
        encoded = path.read_bytes()
        read_header(encoded)
        image = cv2.imdecode(
            np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        )
    except (OSError, HeaderError, cv2.error):
        return None
    if image is None:
        return None
    scale = _SIDE / max(image.shape[:2])
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return cv2.resize(image, size, interpolation=method)
