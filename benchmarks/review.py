"""Time the review desk in a real browser: page ready, a cell opened, a smear classified.

    python benchmarks/review.py --model pbc-efficientnetb0-cbam --data CELLS

The command is started with CELLS, and a headless Chromium opens its page. While the cells are
classified other cells are opened one after the other: nothing may hold the page up.
"""

from __future__ import annotations

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_OPENED = 20


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="as of wbc_keras.review")
    parser.add_argument("--data", required=True, help="folder of cells")
    parser.add_argument("--cells", type=int, default=500, metavar="N", help="default: 500")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        cells = Path(scratch) / "cells"
        cells.mkdir()
        found = sorted(p for p in Path(arguments.data).rglob("*") if p.suffix in (".jpg", ".png"))
        for number in range(arguments.cells):
            path = found[number * len(found) // arguments.cells]
            shutil.copy(path, cells / f"{number:05}{path.suffix}")
        measure(arguments.model, cells, Path(scratch) / "out")


def measure(model: str, cells: Path, output: Path) -> None:
    """Start the desk, look at it, and print the times."""
    command = [sys.executable, "-m", "wbc_keras.review", "--model", model, "--data", str(cells)]
    with subprocess.Popen(
        [*command, "--output", str(output)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        try:
            for line in server.stdout:
                if found := re.search(r"review desk +(\S+) +ready in ([\d.]+) s", line):
                    print(f"page served after the model was loaded  {found[2]} s")
                    look(found[1])
                    break
        finally:
            server.kill()


def look(address: str) -> None:
    """Open the page, cells while others are classified, and cells after that."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        started = time.perf_counter()
        page.goto(address)
        page.wait_for_selector(".opened .heat")
        print(f"page and first cell in the browser      {time.perf_counter() - started:.1f} s")
        busy = []
        while page.query_selector("progress"):
            busy.append(open_next(page))
        print(f"all cells classified                    {time.perf_counter() - started:.1f} s")
        tell("a cell opened meanwhile", busy)
        tell("a cell opened after that", [open_next(page) for _ in range(_OPENED)])
        browser.close()


def open_next(page: Any) -> float:
    """Go to the next cell by keyboard; return the seconds until it is there with its heatmap."""
    before = page.inner_text(".opened h2")
    started = time.perf_counter()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(
        "before => document.querySelector('.opened h2').textContent !== before", arg=before
    )
    page.wait_for_selector(".opened .heat")
    return time.perf_counter() - started


def tell(what: str, seconds: Sequence[float]) -> None:
    if seconds:
        middle, longest = statistics.median(seconds), max(seconds)
        print(f"{what:39} {middle:.2f} s, at most {longest:.2f} s ({len(seconds)} cells)")


if __name__ == "__main__":
    main()
