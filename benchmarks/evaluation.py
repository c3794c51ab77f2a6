"""Compare the time of an evaluation, with all its figures and pictures, with that of predicting.

    python benchmarks/evaluation.py
    python benchmarks/evaluation.py --run RUN --data CELLS

The commands are timed as a user starts them, on the same cells, start of TensorFlow included:
`predict`; `evaluate` on cells that it has not seen, which it finds and crops for its cache; and
`evaluate` once more, which reads them from there. Without a run and cells, a small network is
trained for one epoch on drawn cells, and others are drawn for the clock.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from wbc_keras.config import SyntheticConfig
from wbc_keras.manifest import read_manifest
from wbc_keras.prediction.novelty import spread_over_classes
from wbc_keras.synthetic import write_cells

_ALLOWED = "at most twice the time of predicting, plus 30 s"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="a trained run (default: a small one, trained here)")
    parser.add_argument("--data", help="labelled cells (default: drawn)")
    parser.add_argument("--cells", type=int, default=3000, metavar="N", help="default: 3000")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run = arguments.run or train_small(folder)
        cells = make_cells(arguments.data, arguments.cells, folder / "cells")
        count = len(read_manifest(cells).table)
        print(f"{count:,} cells; Python {platform.python_version()}, ", end="")
        print(f"{platform.machine()}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.1f}")
        compare(str(run), str(cells), folder)


def train_small(folder: Path) -> Path:
    """Train the demo's network for an epoch, which is enough for a model that makes mistakes."""
    settings = ["train.epochs=1", "train.head_epochs=0", "data.synthetic.cells=300"]
    sets = [word for setting in settings for word in ("--set", setting)]
    call(
        "train",
        "--config",
        "configs/demo.yaml",
        "--data",
        "synthetic",
        "--output",
        str(folder / "run"),
        *sets,
    )
    return folder / "run"


def make_cells(data: str | None, count: int, folder: Path) -> Path:
    """Make a folder of so many cells with a manifest: a source that was not seen before."""
    if data is None:
        write_cells(folder, SyntheticConfig(cells=count, image_size=160, seed=1))
    else:
        folder.mkdir()
        take_cells(data, count, folder).to_csv(folder / "manifest.csv", index=False)
    return folder


def take_cells(data: str, count: int, folder: Path) -> pd.DataFrame:
    manifest = read_manifest(data)
    table = manifest.table.iloc[spread_over_classes(manifest.table["label"], count)]
    names = [f"{number}{Path(file).suffix}" for number, file in enumerate(table["file"])]
    for file, name in zip(table["file"], names, strict=True):
        shutil.copy(manifest.root / file, folder / name)
    columns = {"file": names, "label": table["label"].array, "patient": table["group"].array}
    return pd.DataFrame(columns)


def compare(run: str, cells: str, folder: Path) -> None:
    """Time the three ways and print their ratios."""
    evaluation = ["evaluate", "--run", run, "--data", cells, "--output", str(folder / "evaluation")]
    table = str(folder / "predictions.csv")
    predicting = call("predict", "--model", run, "--data", cells, "--output", table)
    print(f"{'predict':24} {predicting:7.1f} s", flush=True)
    environment = {"WBC_KERAS_CACHE": str(folder / "cache")}
    for name in ("evaluate, new cells", "evaluate, known cells"):
        taken = call(*evaluation, **environment)
        print(f"{name:24} {taken:7.1f} s  {taken / predicting:5.2f} times predicting", flush=True)
    print(f"asked: {_ALLOWED}: {2 * predicting + 30:.1f} s")


def call(command: str, *words: str, **environment: str) -> float:
    """Run one of our commands and return its seconds."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", f"wbc_keras.{command}", *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
