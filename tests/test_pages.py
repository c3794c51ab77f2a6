"""A page in a notebook: whole, and apart from it."""

from __future__ import annotations

from html.parser import HTMLParser

from wbc_keras.reporting.pages import Page

PAGE = """<!doctype html><html><style>body { color: red }</style>
<p title="a 'quoted' &amp; \"twice\"">Gr\u00f6\u00dfe</p></iframe>
<script>alert(1)</script></html>"""


class _Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_the_page_is_in_the_frame_and_nothing_of_it_outside(tmp_path):
    path = tmp_path / "report.html"
    path.write_text(PAGE, encoding="utf-8")
    ((tag, attributes),) = _Tags(Page(path, height=300)._repr_html_()).found
    assert tag == "iframe"
    assert attributes["srcdoc"] == PAGE
    assert "height: 300px" in attributes["style"]
