"""The page: whole, alone, escaped, and working in a real browser."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from wbc_keras.reporting.checklists import make_checklist
from wbc_keras.reporting.gallery import show_mistakes
from wbc_keras.reporting.record import read_record
from wbc_keras.reporting.report_page import render_page
from wbc_keras.reporting.report_tables import make_tables


def _page(run: Path, *, pictures: bool = True) -> str:
    record = read_record(run)
    tables = {**make_tables(record), "checklists": make_checklist(record)}
    return render_page(record, tables, show_mistakes(record) if pictures else None)


class Reader(HTMLParser):
    """Collects elements and addresses; a page that is not closed fails."""

    EMPTY = frozenset({"meta", "link", "img", "br", "input"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_asks_nothing_of_the_network(scored_run):
    page = _page(scored_run)
    assert len(page.encode()) < 8_000_000
    for tag, attributes in Reader(page).seen:
        for name in ("src", "href", "srcset", "action"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:")), (tag, address)
    assert "url(" not in page
    assert "@import" not in page


def test_headings_go_down_one_by_one_and_pictures_have_texts(scored_run):
    seen = Reader(_page(scored_run)).seen
    levels = [int(tag[1]) for tag, _ in seen if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    assert all(attributes.get("alt") for tag, attributes in seen if tag == "img")


def test_contents_lead_to_sections(scored_run):
    seen = Reader(_page(scored_run)).seen
    ids = [attributes["id"] for _, attributes in seen if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = [a["href"] for tag, a in seen if tag == "a" and a["href"]]
    assert {anchor.removeprefix("#") for anchor in anchors} <= set(ids)


def test_names_are_shown_as_they_stand(hostile_run):
    page = _page(hostile_run)
    Reader(page)
    assert "<b>x" not in page
    assert "&lt;b&gt;x|y&lt;/b" in page
    assert "{{ 7*7 }}" in page


def test_without_pictures_no_cell_and_no_file_leaves_the_house(scored_run):
    page = _page(scored_run, pictures=False)
    assert "data:image/jpeg" not in page
    assert not re.search(r"\w+/\d\d\.png", page)
    assert "Pictures of cells are not shown" in page


def test_the_way_to_the_data_is_not_told(scored_run):
    assert str(scored_run.parent) not in _page(scored_run)


@pytest.mark.parametrize(
    "name",
    ["evaluation", "splits.csv", "history.csv", "decision.json", "environment.json"]
    + [f"evaluation/test/{n}" for n in ("predictions.csv", "screening.json", "selective.json")]
    + ["evaluation/test/calibration.json", "evaluation/test/roc.png"],
)
def test_page_of_what_is_left(scored_run, tmp_path, name):
    run = Path(shutil.copytree(scored_run, tmp_path / "run"))
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    Reader(_page(run))


# In a browser


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        # Root, as in a container, gets no sandbox; the page is our own.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page_file(scored_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(_page(scored_run), encoding="utf-8")
    return path


@pytest.fixture
def page(chromium: Any, page_file: Path) -> Iterator[Any]:
    """The page, opened; console messages, errors and requests are held against it at the end."""
    tab = chromium.new_page(viewport={"width": 1200, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(page_file.as_uri())
    yield tab
    tab.close()
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {page_file.as_uri()}


def _share(page: Any, name: str) -> float:
    return float(page.get_attribute(f"#out-{name}", "data-value"))


def test_thresholds_start_where_the_evaluation_stands(page, scored_run):
    folder = scored_run / "evaluation/test"
    point = json.loads((folder / "screening.json").read_text())["abnormal"]["operating_points"]
    metrics = json.loads((folder / "metrics.json").read_text())
    for name in ("sensitivity", "specificity", "ppv"):
        assert _share(page, name) == pytest.approx(point["sensitive"][name], abs=1e-12)
    assert _share(page, "coverage") == 1
    assert _share(page, "accuracy") == pytest.approx(metrics["accuracy"], abs=1e-12)


def test_buttons_move_to_the_points_of_validation(page, scored_run):
    folder = scored_run / "evaluation/test"
    point = json.loads((folder / "screening.json").read_text())["abnormal"]["operating_points"]
    selective = json.loads((folder / "selective.json").read_text())
    page.get_by_role("button", name="specific").click()
    assert _share(page, "specificity") == pytest.approx(point["specific"]["specificity"], abs=1e-12)
    page.get_by_role("button", name="wanted accuracy").click()
    assert _share(page, "coverage") == pytest.approx(selective["coverage"], abs=1e-12)
    assert _share(page, "accuracy") == pytest.approx(selective["accuracy"], abs=1e-12)


def test_sliders_move_by_keyboard(page):
    before = _share(page, "sensitivity"), _share(page, "specificity")
    page.focus("#call")
    page.keyboard.press("End")
    assert _share(page, "specificity") >= before[1]
    assert _share(page, "sensitivity") < before[0]
    page.keyboard.press("Home")
    assert (_share(page, "sensitivity"), _share(page, "specificity")) == (1, 0)
    page.focus("#answer")
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert _share(page, "coverage") < 1
    assert "left to a person" in page.inner_text("#counts")


def _column(page: Any, place: int) -> list[str]:
    cells = page.query_selector_all(f"#table-per_class tbody td:nth-child({place})")
    return [cell.get_attribute("data-key") for cell in cells]


def test_classes_sort_by_click_and_by_keyboard(page):
    head = page.locator("#table-per_class th", has_text="F1")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    values = [float(key) for key in _column(page, 5)]
    assert values == sorted(values)
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    assert [float(key) for key in _column(page, 5)] == values[::-1]
    assert page.inner_text("#told") == "Sorted by F1, descending."
    page.locator("#table-per_class th", has_text="class").get_by_role("button").press("Space")
    assert _column(page, 1) == sorted(_column(page, 1))
    assert head.get_attribute("aria-sort") == "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phone_needs_no_sideways_scrolling_and_texts_have_contrast(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": 360, "height": 740})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for selector in ("p", ".note", ".banner", "nav a", ".tile dt", ".points button", "td small"):
        assert _contrast(page, selector) >= 4.5, selector


def _contrast(page: Any, selector: str) -> float:
    """Return the contrast of WCAG 2 between an element's text and what lies behind it."""
    colors = page.evaluate(
        """selector => {
          let element = document.querySelector(selector);
          const ink = getComputedStyle(element).color;
          const behind = () => getComputedStyle(element).backgroundColor;
          while (behind() === 'rgba(0, 0, 0, 0)') element = element.parentElement;
          return [ink, behind()];
        }""",
        selector,
    )
    light, dark = sorted(map(_luminance, colors), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    shares = [int(n) / 255 for n in re.findall(r"\d+", color)[:3]]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
