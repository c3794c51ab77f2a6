"""A table as a notebook shows it, read back by a parser of its own."""

from __future__ import annotations

from xml.etree import ElementTree

from wbc_keras.reporting.estimates import Estimate
from wbc_keras.reporting.tables import Table


def parse(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(f"<div>{html}</div>")


def test_a_notebook_shows_what_a_person_would_read():
    rows = (("monocyte", 1234, Estimate(0.5, 0.25, 0.75)), ("<b>&", 0, Estimate(None)))
    table = Table("classes", "Each <class>?", "How & why.", ("class", "cells", "F1"), rows)
    shown = parse(table._repr_html_())
    assert "".join(shown.find("p").itertext()) == "Each <class>? How & why."
    assert [one.text for one in shown.iter("th")] == ["class", "cells", "F1"]
    cells = ["".join(one.itertext()) for one in shown.iter("td")]
    assert cells == ["monocyte", "1,234", "0.500 [0.250, 0.750]", "<b>&", "0", "n/a"]
    assert shown.find(".//span").text == "[0.250, 0.750]"
    sides = [one.get("style") for one in shown.find("table/tbody/tr")]
    assert sides == [f"text-align: {side}" for side in ("left", "right", "right")]
