"""Score an archive on Ray and compare with the local predictor: rate once running, memory.

    python benchmarks/score.py --data ../shared/data/pbc [--run RUN] [--pictures 20000]

The pictures of --data, repeated under names of their own, are packed into tar shards. In turns, as
often as --rounds says: `predict`'s own loop over 4,096 of them as loose files (after a first pass
that compiles), and `score --engine local` and `score --engine ray` over the shards, commands of
their own. "Once running" is from the first part written to the last. Memory is that of the process
that holds the model, every half second: at a quarter of the run, at its end, and the most.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

_LOCAL = """
import os, sys, time
from wbc_keras.commands import load_tensorflow
load_tensorflow()
from wbc_keras.prediction.archive import classify_chunks
from wbc_keras.manifest import read_manifest
from wbc_keras.prediction.predictor import Predictor
predictor = Predictor.load(sys.argv[1], workers=os.cpu_count())
manifest = read_manifest(sys.argv[2], labelled=False)
first = manifest.select([row < 1024 for row in range(len(manifest.table))])
sum(map(len, classify_chunks(predictor, first)))
started = time.perf_counter()
count = sum(map(len, classify_chunks(predictor, manifest)))
print(count / (time.perf_counter() - started))
"""


class Scored(NamedTuple):
    """A run of the command: pictures a second once running, all seconds, and memory in MB."""

    rate: float
    seconds: float
    memory: list[float]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of JPEGs")
    parser.add_argument("--run", help="run folder (default: EfficientNetB0, 96 px, random weights)")
    parser.add_argument("--pictures", type=int, default=20_000, metavar="N", help="default: 20000")
    parser.add_argument("--each", type=int, default=1000, help="pictures a shard (default: 1000)")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="default: 2")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = arguments.run or make_run_folder(folder)
        loose = copy_pictures(Path(arguments.data), folder / "loose", count=arguments.pictures)
        some = copy_pictures(Path(arguments.data), folder / "some", count=4096)
        shards = max(2, arguments.pictures // arguments.each)
        packing = ["--data", str(loose), "--shards", str(shards), "--output", str(folder / "tar")]
        subprocess.run([sys.executable, "-m", "wbc_keras.prepare", *packing], check=True)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        compare(str(run), some, folder, rounds=arguments.rounds)


def compare(run: str, some: Path, folder: Path, *, rounds: int) -> None:
    """Print every round's figures, then the ratios of rates within a round."""
    ratios: dict[str, list[float]] = {"local": [], "ray": []}
    for turn in range(rounds):
        bare = measure_predictor(run, some)
        print(f"{'predictor':10} {bare:6.0f} pictures/s", flush=True)
        for engine in ratios:
            scored = measure_command(engine, run, folder / "tar", folder / f"{engine}{turn}")
            memory = scored.memory
            quarter, peak = memory[len(memory) // 4], max(memory)
            print(
                f"{engine:10} {scored.rate:6.0f} pictures/s  {scored.seconds:6.1f} s in all  "
                f"memory {quarter:.0f} to {memory[-1]:.0f} MB, at most {peak:.0f}",
                flush=True,
            )
            ratios[engine].append(scored.rate / bare)
    for engine, found in ratios.items():
        print(f"{engine:10} over the predictor: {statistics.median(found):.2f}  (asked: 0.85)")


def make_run_folder(folder: Path) -> Path:
    from wbc_keras.commands import load_tensorflow

    load_tensorflow()
    from engines import make_run

    return Path(make_run(folder / "run").folder)


def copy_pictures(data: Path, folder: Path, *, count: int) -> Path:
    """Fill a folder with pictures, a thousand a sub-folder, over and over to make up the number."""
    sources = sorted(data.resolve().rglob("*.jpg"))
    for number in range(count):
        place = folder / f"{number // 1000:04}" / f"{number:08}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(sources[number % len(sources)].read_bytes())
    return folder


def measure_predictor(run: str, data: Path) -> float:
    command = [sys.executable, "-c", _LOCAL, run, str(data)]
    return float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measure_command(engine: str, run: str, data: Path, output: Path) -> Scored:
    import pandas as pd

    command = [sys.executable, "-m", "wbc_keras.score", "--engine", engine, "--model", run]
    started, memory = time.perf_counter(), []
    mark = str(output)  # every process of this run has it in its environment
    with subprocess.Popen(
        [*command, "--data", str(data), "--output", str(output)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "WBC_KERAS_BENCHMARK": mark},
    ) as process:
        while process.poll() is None:
            if any(output.parent.glob(f"{output.name}.parts/0*")) and (held := find_memory(mark)):
                memory.append(held)
            time.sleep(0.5)
    assert process.returncode == 0
    seconds = time.perf_counter() - started
    parts = sorted((path.stat().st_mtime, len(pd.read_parquet(path))) for path in output.glob("0*"))
    running = parts[-1][0] - parts[0][0]
    return Scored(sum(rows for _, rows in parts[1:]) / running, seconds, memory)


def find_memory(mark: str) -> float:
    """Return the MB of the largest process of a run: the one that holds the model."""
    found = [0.0]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                status = (folder / "status").read_text()
                found.append(int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024 / 1e6)
        except (OSError, TypeError):  # it has ended, or is about to
            continue
    return max(found)


if __name__ == "__main__":
    main()
