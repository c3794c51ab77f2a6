"""How cost grows: seconds and memory of each command for 1, 2, 4 and 8 times the cells.

    python benchmarks/scaling.py --data ../shared/data/pbc --output artifacts/scaling

Each is the command itself in a process of its own, start of TensorFlow included: `prepare`, `train`
(one epoch on prepared cells), `evaluate --split all`, `score`. Then what two processes make of it:
`train` on JAX from packed cells as one process and as two that share each batch, and `score` as two
at once on half of the cells each. "Growth" is what a cell of the last doubling cost over one of the
cells before it: 1 where a cell costs the same among many as among few, whatever a command costs to
start. The figures are written as scaling.csv, and drawn as scaling.png.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

FACTORS = (1, 2, 4, 8)
# Peak memory of the process itself: getrusage of a child would count what its parent held.
_COMMAND = """
import importlib, re, sys
code = importlib.import_module(f"wbc_keras.{sys.argv[1]}").main(sys.argv[2:])
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))
sys.exit(code)
"""


class Cost(NamedTuple):
    """What a step took: seconds on the clock, and MB of its largest process."""

    step: str
    cells: int
    processes: int
    seconds: float
    memory: float


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="class folders of JPEGs")
    parser.add_argument("--output", required=True, help="folder for scaling.csv and scaling.png")
    parser.add_argument("--cells", type=int, default=1000, metavar="N", help="at 1; default: 1000")
    parser.add_argument("--backbone", default="mobilenetv2", help="default: %(default)s")
    parser.add_argument("--size", type=int, default=64, help="pixels (default: 64)")
    arguments = parser.parse_args(argv)
    import pandas as pd

    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    costs = []
    for factor in FACTORS:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["WBC_KERAS_CACHE"] = str(Path(folder, "cache"))
            costs += measure(arguments, Path(folder), cells=arguments.cells * factor)
    output = Path(arguments.output)
    output.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(costs)
    table.to_csv(output / "scaling.csv", index=False)
    print_growth(table)
    draw(table, output / "scaling.png")
    print(output / "scaling.png")


def measure(arguments: argparse.Namespace, folder: Path, *, cells: int) -> list[Cost]:
    """Take so many cells through all steps, and print what each took."""
    data = take_cells(Path(arguments.data), folder / "cells", count=cells)
    settings = [
        f"data.image_size=[{arguments.size}, {arguments.size}]",
        f"model.backbone={arguments.backbone}",
        "model.weights=none",
        "train.head_epochs=0",
        "train.epochs=1",
        "train.freeze_batch_norm=false",
    ]
    config = folder / "config.yaml"
    config.write_text("name: scaling\n")
    how = ["--config", str(config), *(part for one in settings for part in ("--set", one))]
    source, pack = ["--data", str(data)], str(folder / "pack")
    run, halves = str(folder / "run"), [str(folder / "tar" / half) for half in ("one", "other")]
    pack_halves(data, folder)
    jax = ["train", *how, "--data", pack, "--output"]
    steps = {
        "prepare": [["prepare", *how, *source]],
        "train": [["train", *how, *source, "--output", run]],
        "pack": [["prepare", *how, *source, "--output", pack]],
        "train, JAX": [[*jax, str(folder / "jax")]],
        "train, JAX, two": [[*jax, str(folder / "jax_two")]] * 2,
        "evaluate": [["evaluate", "--run", run, "--split", "all"]],
        "first score": [score(run, halves[:1], folder / "warm")],  # converts the network
        "score": [score(run, halves, folder / "scores")],
        "score, two": [score(run, [half], folder / f"part{n}") for n, half in enumerate(halves)],
    }
    costs = [run_step(step, commands, cells=cells) for step, commands in steps.items()]
    return [cost for cost in costs if cost.step not in ("pack", "first score")]


def score(run: str, data: list[str], output: Path) -> list[str]:
    return ["score", "--model", run, "--data", *data, "--output", str(output)]


def pack_halves(data: Path, folder: Path) -> None:
    """Pack the cells into eight shards, four in each of two folders."""
    packing = ["--data", str(data), "--shards", "8", "--output", str(folder / "packed")]
    subprocess.run(
        [sys.executable, "-m", "wbc_keras.prepare", *packing], check=True, stdout=subprocess.DEVNULL
    )
    for number, path in enumerate(sorted((folder / "packed").iterdir())):
        place = folder / "tar" / ("one" if number < 4 else "other") / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        path.rename(place)


def run_step(step: str, commands: list[list[str]], *, cells: int) -> Cost:
    """Run commands at once, and print what they took together."""
    started = time.perf_counter()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | place,
        )
        for command, place in zip(commands, find_places(step, len(commands)), strict=True)
    ]
    said = [process.communicate() for process in processes]
    seconds = time.perf_counter() - started
    for process, (_, error) in zip(processes, said, strict=True):
        assert process.returncode == 0, error
    memory = max(int(out.splitlines()[-1]) for out, _ in said) * 1024 / 1e6
    print(f"{step:15} {cells:7} cells {seconds:7.1f} s {memory:6.0f} MB", flush=True)
    return Cost(step, cells, len(commands), seconds, memory)


def find_places(step: str, count: int) -> list[dict[str, str]]:
    """Return what is in each process's environment: its backend, and who the others are."""
    if "JAX" not in step:
        return [{}] * count
    if count == 1:
        return [{"KERAS_BACKEND": "jax"}]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    return [
        {
            "KERAS_BACKEND": "jax",
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
            "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
        }
        for index in range(count)
    ]


def take_cells(data: Path, folder: Path, *, count: int) -> Path:
    """Copy cells, spread evenly over the set, into class folders of their own."""
    sources = sorted(data.resolve().rglob("*.jpg"))
    if count > len(sources):
        raise SystemExit(f"{data}: holds {len(sources)} JPEGs, and {count} are needed")
    for number in range(count):
        source = sources[number * len(sources) // count]
        place = folder / source.parent.name / source.name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(source.read_bytes())
    return folder


def print_growth(table) -> None:
    """Print what a cell more costs, what the start costs, and how the time grows."""
    print(f"{'step':15} {'start s':>8} {'ms a cell':>10} {'growth':>7} {'MB more':>8}")
    for step, rows in table.groupby("step", sort=False):
        seconds, cells = list(rows["seconds"]), list(rows["cells"])
        each = (seconds[-1] - seconds[0]) / (cells[-1] - cells[0])
        before = (seconds[-2] - seconds[0]) / (cells[-2] - cells[0])
        growth = (seconds[-1] - seconds[-2]) / (cells[-1] - cells[-2]) / before
        more = rows["memory"].iloc[-1] - rows["memory"].iloc[0]
        start = seconds[0] - each * cells[0]
        print(f"{step:15} {start:8.1f} {1e3 * each:10.2f} {growth:7.2f} {more:8.0f}")


def draw(table, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4), layout="constrained")
    for step, rows in table.groupby("step", sort=False):
        axes[0].plot(rows["cells"], rows["seconds"], "o-", label=step)
        axes[1].plot(rows["cells"], rows["memory"], "o-", label=step)
    for one, name in zip(axes, ("seconds", "MB, largest process"), strict=True):
        one.set(xlabel="cells", ylabel=name, xlim=(0, None), ylim=(0, None))
    axes[0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
