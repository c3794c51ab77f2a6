"""The review desk as people meet it: the real command, in a real browser."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wbc_keras.manifest import read_manifest
from wbc_keras.manifest.reviews import read_rows

pytest.importorskip("gradio", reason="gradio is not installed (pip install .[review])")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CELLS = 200


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium is installed (apt-get install chromium)")
    with api.sync_playwright() as driver:
        # Root, as in a container, gets no sandbox; the page is our own.
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


class Server:
    """The command, running on 200 drawn cells."""

    def __init__(self, model: Path, folder: Path, root: Path) -> None:
        self.output = folder / "out"
        log = folder / "log"
        options = {"--model": model, "--data": folder / "cells", "--output": self.output}
        arguments = [str(part) for option in options.items() for part in option]
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wbc_keras.review", *arguments],
                cwd=root, stdout=stream, stderr=subprocess.STDOUT,
            )  # fmt: skip
        deadline = time.monotonic() + 400
        while not (found := re.search(r"review desk +(\S+) +ready in ([\d.]+) s", log.read_text())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                pytest.fail(log.read_text())
            time.sleep(0.1)
        self.address, self.ready = found[1], float(found[2])


@pytest.fixture(scope="module")
def folder(drawn_cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "cells").mkdir()
    files = sorted(drawn_cells.rglob("*.png"))
    for number in range(CELLS - 1):
        shutil.copy(files[number % len(files)], folder / "cells" / f"cell_{number:03}.png")
    (folder / "cells" / "text.jpg").write_text("not a picture")
    return folder


@pytest.fixture(scope="module")
def server(chromium: Any, trained_run: Path, folder: Path, root: Path) -> Iterator[Server]:
    server = Server(trained_run, folder, root)
    yield server
    server.process.kill()
    server.process.wait()


class Window:
    """A window of the browser on the desk, a reviewer before it."""

    def __init__(self, browser: Any, server: Server, reviewer: str = "", **options: Any) -> None:
        options.setdefault("viewport", {"width": 1280, "height": 900})
        self.context = browser.new_context(**options)
        self.tab = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", self._hear)
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(server.address)
        self.tab.wait_for_selector(".opened")
        if reviewer:
            self.tab.fill("#reviewer", reviewer)
            self.tab.locator("#reviewer").blur()

    def _hear(self, message: Any) -> None:
        # Gradio warns of what it has not yet made when an upload ends.
        if message.type == "error":
            self.said.append(message.text)

    def wait_for_all(self) -> None:
        self.tab.wait_for_selector("progress", state="detached", timeout=60_000)

    def choose(self, label: str, option: str) -> None:
        self.tab.get_by_label(label, exact=True).click()
        self.tab.get_by_role("option", name=option, exact=True).click()

    def opened(self) -> str:
        return str(self.tab.inner_text(".opened h2"))

    def open(self, place: int) -> str:
        """Open a cell of the grid by click; return its name."""
        tile = self.tab.locator(".tile").nth(place)
        name = tile.get_attribute("title")
        tile.click()
        self.tab.wait_for_function(
            "name => document.querySelector('.opened h2').textContent === name", arg=name
        )
        return str(name)

    def press(self, key: str) -> str:
        """Press a key that changes a cell; return what the page says of it."""
        self.tab.evaluate("document.querySelector('#note p').textContent = ''")
        self.tab.keyboard.press(key)
        self.tab.wait_for_function("document.querySelector('#note p').textContent")
        return str(self.tab.inner_text("#note p"))

    def step(self, key: str) -> str:
        before = self.opened()
        self.tab.keyboard.press(key)
        self.tab.wait_for_function(
            "before => document.querySelector('.opened h2').textContent !== before", arg=before
        )
        return self.opened()

    def close(self) -> None:
        self.context.close()
        assert self.said == []


@pytest.fixture
def window(chromium: Any, server: Server) -> Iterator[Window]:
    window = Window(chromium, server, "Dr A")
    window.wait_for_all()
    yield window
    window.close()


def test_page_is_soon_there_and_asks_no_other_host(chromium, server):
    assert server.ready < 60, "at most 3 s on an idle machine"
    window = Window(chromium, server)
    window.wait_for_all()
    hosts = {url.split("/")[2] for url in window.asked if not url.startswith(("data:", "blob:"))}
    assert hosts == {server.address.split("/")[2]}
    assert hosts.pop().startswith("127.0.0.1:")
    assert window.tab.locator("#research").is_visible()
    assert "not for diagnosis" in window.tab.inner_text("#research")
    summary = window.tab.inner_text("#status")
    assert re.search(rf"\b{CELLS} cells", summary)
    assert "1 cannot be read" in summary
    window.close()


def test_filters_and_pages(window):
    tab = window.tab
    assert tab.locator(".tile").count() == 48
    assert "Page 1 of 5" in tab.inner_text("#place")
    tab.click("#next-page")
    tab.wait_for_function("document.querySelector('#place').textContent.includes('Page 2')")
    window.choose("Predicted class", "Monocyte")
    tab.wait_for_function(
        "[...document.querySelectorAll('.tile b')].every(one => one.textContent === 'Monocyte')"
    )
    window.choose("Predicted class", "all classes")
    window.choose("The model", "cannot be read")
    tab.wait_for_function("document.querySelectorAll('.tile').length === 1")
    assert "cannot be read" in tab.get_attribute(".tile", "aria-label")
    assert window.open(0) == "text.jpg"
    assert "is not a JPEG" in tab.inner_text(".opened")
    window.choose("Certainty", "up to 50%")
    assert tab.locator(".tile").count() == 1  # no certainty at all
    window.choose("Predicted class", "Monocyte")
    tab.wait_for_selector(".empty")


def test_cells_that_need_a_look_come_first(window):
    labels = [one.get_attribute("aria-label") for one in window.tab.query_selector_all(".tile")]
    undecided = ["not decided" in label for label in labels]
    assert undecided == sorted(undecided, reverse=True)


def test_upload_of_one_cell_is_answered(window, folder, drawn_cells):
    tab = window.tab
    started = time.perf_counter()
    tab.set_input_files("#upload input", str(drawn_cells / "monocyte" / "03.png"))
    tab.wait_for_function("document.querySelector('.opened h2').textContent === '03.png'")
    assert time.perf_counter() - started < 60, "two seconds on an idle machine"
    bars = tab.locator(".bars button")
    assert bars.count() == 4
    spoken = [bars.nth(place).get_attribute("aria-label") for place in range(4)]
    assert spoken[0].startswith("Call it Eosinophil, normal, ")
    assert tab.locator(".verdict").inner_text()
    box, picture = (tab.locator(name).bounding_box() for name in (".box", ".plain"))
    assert picture["x"] <= box["x"] < box["x"] + box["width"] <= picture["x"] + picture["width"] + 1
    assert tab.locator(".heat").evaluate("one => getComputedStyle(one).opacity") == "0"
    tab.focus(".heat-strength")
    tab.keyboard.press("End")
    assert tab.locator(".heat").evaluate("one => getComputedStyle(one).opacity") == "1"
    assert re.search(r"\b1 cells", tab.inner_text("#status"))


def test_uploads_that_are_no_pictures_are_told_and_the_desk_stays_up(window, tmp_path, drawn_cells):
    from test_review_desk import write_bomb

    (tmp_path / "text.jpg").write_text("hello")
    files = [str(tmp_path / "text.jpg"), str(write_bomb(tmp_path / "bomb.png"))]
    tab = window.tab
    tab.set_input_files("#upload input", [*files, str(drawn_cells / "monocyte" / "04.png")])
    tab.wait_for_function("document.querySelectorAll('.tile').length === 3")
    assert tab.locator(".tile.unread").count() == 2
    told = []
    for place in range(2):
        tab.locator(".tile.unread").nth(place).click()
        tab.wait_for_selector(".verdict.unread")
        told.append(tab.inner_text(".verdict.unread"))
        window.tab.locator(".tile:not(.unread)").click()
        tab.wait_for_selector(".verdict:not(.unread)")
    assert any("20000x10000 pixels" in one for one in told), told
    assert any("is not a JPEG" in one for one in told), told
    (tmp_path / "notes.txt").write_text("hello")
    tab.set_input_files("#upload input", str(tmp_path / "notes.txt"))
    tab.wait_for_function(
        "document.body.innerText.includes('notes.txt') || "
        "document.body.innerText.toLowerCase().includes('invalid file type')"
    )
    tab.locator(".tile:not(.unread)").click()


def test_correction_by_keyboard(window, server):
    tab = window.tab
    first = window.opened()
    assert window.press("2") == "Kept: Lymphocyte."
    tab.wait_for_selector(".bars button[data-key='2'][aria-pressed=true]")
    second = window.step("ArrowRight")
    assert window.press("f") == "Kept: flagged."
    third = window.step("ArrowRight")
    assert window.press("1") == "Kept: Eosinophil."
    assert window.press("u") == "Taken back."
    below = window.step("ArrowDown")
    assert len({first, second, third, below}) == 4
    assert window.step("ArrowUp") == third
    assert window.step("ArrowLeft") == second
    rows = [row for row in read_rows(server.output / "reviews.csv") if row.reviewer == "Dr A"]
    assert [(row.file, row.corrected, row.flagged) for row in rows] == [
        (first, "lymphocyte", False),
        (second, "", True),
        (third, "eosinophil", False),
        (third, "", False),
    ]
    marks = [one.inner_text() for one in tab.query_selector_all(".tile .mark")]
    assert len(marks) == 2
    assert "⚑" in marks
    tab.wait_for_function("/2 reviewed/.test(document.querySelector('#status').innerText)")
    tab.get_by_role("tab", name="Agreement").click()
    tab.wait_for_selector("text=Dr A and the model")
    tab.keyboard.press("1")  # no cell is to be seen
    tab.get_by_role("tab", name="Cells").click()
    window.open(7)
    tab.focus(".heat-strength")
    before = len(read_rows(server.output / "reviews.csv"))
    tab.wait_for_timeout(300)
    assert window.press("2") == "Kept: Lymphocyte."
    assert len(read_rows(server.output / "reviews.csv")) == before + 1


def test_key_pressed_before_the_cell_is_there_corrects_none(window, server):
    before = len(read_rows(server.output / "reviews.csv"))
    window.tab.evaluate("""for (const key of ["ArrowRight", "3"])
        document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }))""")
    window.tab.wait_for_selector("text=still opening")
    window.open(3)
    assert len(read_rows(server.output / "reviews.csv")) == before


def test_arrows_turn_the_page(window):
    tab = window.tab
    window.open(47)
    tab.keyboard.press("ArrowRight")
    tab.wait_for_function("document.querySelector('#place').textContent.includes('Page 2')")
    tab.wait_for_function("document.querySelector('.tile').getAttribute('aria-current') === 'true'")
    tab.keyboard.press("ArrowLeft")
    tab.wait_for_function("document.querySelector('#place').textContent.includes('Page 1')")
    tab.wait_for_function(
        "document.querySelectorAll('.tile')[47].getAttribute('aria-current') === 'true'"
    )


def test_without_a_name_nothing_is_written(chromium, server):
    window = Window(chromium, server)
    window.wait_for_all()
    before = (server.output / "reviews.csv").read_bytes()
    assert "name or initials first" in window.press("1")
    assert window.tab.evaluate("document.activeElement.id") == "reviewer"
    assert (server.output / "reviews.csv").read_bytes() == before
    window.close()


def test_keys_typed_into_the_name_are_no_corrections(window, server):
    before = (server.output / "reviews.csv").read_bytes()
    window.tab.focus("#reviewer")
    window.tab.keyboard.type("12fu")
    assert window.tab.input_value("#reviewer").endswith("12fu")
    assert (server.output / "reviews.csv").read_bytes() == before


def test_two_windows_on_one_cell(chromium, server, window):
    other = Window(chromium, server, "Dr B")
    other.wait_for_all()
    assert window.opened() == other.opened()
    window.press("3")
    assert "Dr A has called this cell Monocyte" in other.press("4")
    window.open(1)
    window.open(0)
    assert "Dr B" in window.tab.inner_text(".reviews")
    other.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_narrow_and_dark(chromium, server, scheme):
    window = Window(chromium, server, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    window.wait_for_all()
    tab = window.tab
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    tab.get_by_role("tab", name="Count").click()
    tab.wait_for_selector("text=Differential count")
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", paper)[:3])) > 380) == (scheme == "light")
    assert tab.locator("#research").is_visible()
    window.close()


def test_everything_that_can_be_pressed_has_a_name(window):
    nameless = window.tab.evaluate("""[...document.querySelectorAll('button, input, [role=button]')]
        .filter(one => one.checkVisibility() && one.type !== 'file')
        .filter(one => !(one.innerText || one.ariaLabel || one.title || one.labels?.length))
        .map(one => one.outerHTML.slice(0, 200))""")
    assert nameless == []
    alts = [one.get_attribute("alt") for one in window.tab.query_selector_all("img")]
    assert None not in alts


def test_kill_loses_nothing(chromium, server, window, trained_run, folder, root):
    window.open(5)
    window.step("ArrowRight")
    corrected = window.opened()
    assert window.press("4") == "Kept: Neutrophil segmented."
    server.process.send_signal(signal.SIGKILL)
    server.process.wait()
    assert read_rows(server.output / "reviews.csv")[-1].file == corrected
    labels = read_manifest(server.output / "reviews.csv").table
    assert corrected in set(labels["file"])
    window.tab.keyboard.press("1")
    window.tab.wait_for_selector("text=The desk does not answer")
    window.said.clear()  # the browser tells of the connection that broke
    window.tab.close()
    again = Server(trained_run, folder, root)
    try:
        later = Window(chromium, again)
        later.wait_for_all()
        later.choose("Review", "reviewed")
        later.tab.wait_for_function("document.querySelectorAll('.tile').length < 48")
        titles = [one.get_attribute("title") for one in later.tab.query_selector_all(".tile")]
        assert corrected in titles
        later.close()
    finally:
        again.process.terminate()
        assert again.process.wait(30) == 0
