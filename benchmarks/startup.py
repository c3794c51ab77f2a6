"""Time ``python -m wbc_keras.X --help`` for every command.

    python benchmarks/startup.py

Each run is a new process, as a user starts it; the first, which may still compile bytecode and
read files from disk, is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import wbc_keras


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--runs", type=int, default=5, metavar="N", help="timed runs a command (default: 5)"
    )
    runs = parser.parse_args(argv).runs
    print("--help     median s  slowest s")
    for command in find_commands():
        time_help(command)  # warm-up
        seconds = [time_help(command) for _ in range(runs)]
        print(f"{command:9}  {statistics.median(seconds):8.3f}  {max(seconds):9.3f}", flush=True)
    print("asked: under 1 s for train")


def find_commands() -> list[str]:
    """Return the modules of the package that have a ``main``."""
    modules = sorted(Path(wbc_keras.__file__).parent.glob("*.py"))
    return [path.stem for path in modules if "\ndef main(" in path.read_text(encoding="utf-8")]


def time_help(command: str) -> float:
    """Return the seconds that a new Python takes to print the command's help."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", f"wbc_keras.{command}", "--help"],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
