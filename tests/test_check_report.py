"""The page stands alone, escapes what it is given, and shows a part of what the list holds."""

from __future__ import annotations

import csv
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from wbc_keras.checking.checks import PROBLEMS, Finding
from wbc_keras.checking.report import make_thumbnail, render_page, write_report
from wbc_keras.manifest import Manifest, read_manifest


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    png = cv2.imencode(".png", image)[1].tobytes()
    for name in ("a/1.png", "a/<i>.png", "b/2.png", "b/text.png"):
        path = tmp_path / "cells & co" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png if "text" not in name else b"text")
    return read_manifest(tmp_path / "cells & co")


FINDINGS = [
    Finding("unreadable", "b/text.png", "is not a picture"),
    Finding("copy", "a/<i>.png", "same bytes", "a/1.png"),
    Finding("small_class", "", "b & c: cells 2", "b & c"),
]


class Reader(HTMLParser):
    """Collects tags and text; a page that is not closed fails."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page(manifest: Manifest) -> None:
    page = render_page(manifest, FINDINGS)
    reader = Reader(page)
    assert reader.open == []
    for finding in FINDINGS:
        assert finding.detail in reader.text
        assert PROBLEMS[finding.problem].meaning in reader.text
    assert "a/<i>.png" in reader.text
    assert "Check of cells & co" in reader.text
    assert not [tag for tag, _ in reader.tags if tag in ("i", "script", "link")]
    sources = [attributes["src"] or "" for tag, attributes in reader.tags if tag == "img"]
    assert len(sources) == 2, "the pair; the text file cannot be shown"
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert "cannot be shown" in reader.text
    assert not re.search(r"https?://|url\(", page), "works offline"


def test_nothing_found(manifest: Manifest) -> None:
    assert "Nothing was found." in Reader(render_page(manifest, [])).text


def test_a_part_is_shown_and_the_rest_counted(manifest: Manifest) -> None:
    many = [Finding("blank", "a/1.png", f"number {n}") for n in range(1030)]
    reader = Reader(render_page(manifest, many))
    assert sum(tag == "img" for tag, _ in reader.tags) == 24
    assert "Blank: 1,030" in reader.text
    assert "and 1,006 more, listed in findings.csv" in reader.text


def test_files(manifest: Manifest, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "check"
    for _ in range(2):
        write_report(folder, manifest, FINDINGS)
    assert sorted(path.name for path in folder.iterdir()) == ["findings.csv", "report.html"]
    assert [path.name for path in folder.parent.iterdir()] == ["check"]
    with (folder / "findings.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["file", "problem", "detail", "related"]
    assert rows[1] == {
        "file": "a/<i>.png", "problem": "copy", "detail": "same bytes", "related": "a/1.png"
    }  # fmt: skip
    assert len(rows) == 3


def test_thumbnails(manifest: Manifest, tmp_path: Path) -> None:
    jpeg = make_thumbnail(manifest.root / "a" / "1.png")
    assert jpeg is not None
    assert cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (85, 128, 3)
    for name in ("b/text.png", "gone.png"):
        assert make_thumbnail(manifest.root / name) is None
