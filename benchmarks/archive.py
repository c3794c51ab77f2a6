"""Compare `predict` over a folder of JPEGs with the bare network fed from memory.

    python benchmarks/archive.py --data ../shared/data/pbc [--run RUN]

One process, in turns. Bare: the run's Keras model, on cropped cells that lie in memory; and the
engine that `predict` uses, as one call after the other with all cores, and as `predict` calls it,
from a thread for every core. Cropping: from files to cropped cells, no network. Over the folder:
from files to rows; loading and compiling are not on the clock. Beside the pictures a second stands
what each takes of a core, processor time, which other programs change little.
With --memory N: the `predict` command on N, 2N and 4N pictures, its seconds and peak memory.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from wbc_keras.prediction.engines import Engine
    from wbc_keras.runs import Run

# Peak memory of the process itself: getrusage of a child would count what its parent held.
_COMMAND = """
import re, sys
from wbc_keras.predict import main
code = main(sys.argv[1:])
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]))
sys.exit(code)
"""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of JPEGs")
    parser.add_argument("--run", help="run folder (default: EfficientNetB0, 96 px, random weights)")
    parser.add_argument("--pictures", type=int, default=2048, metavar="N", help="default: 2048")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--engines", nargs="+", default=["tensorflow", "openvino"])
    parser.add_argument("--memory", type=int, metavar="N", help="also the growth with N, 2N, 4N")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from wbc_keras.commands import load_tensorflow

    load_tensorflow()
    from engines import make_run

    from wbc_keras import runs

    with tempfile.TemporaryDirectory() as folder:
        run = runs.open_run(arguments.run) if arguments.run else make_run(Path(folder) / "run")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
        for name in arguments.engines:
            compare(run, name, arguments)
        if arguments.memory:
            measure_growth(run, arguments, Path(folder))


def compare(run: Run, name: str, arguments: argparse.Namespace) -> None:
    """Print the rates of one engine, bare and over the folder, and their ratio by rounds."""
    import numpy as np

    from wbc_keras.manifest import read_manifest
    from wbc_keras.pictures.cells import iter_chunks, load_cells
    from wbc_keras.prediction.archive import classify_chunks
    from wbc_keras.prediction.formats import load_engine
    from wbc_keras.prediction.predictor import Predictor

    cores = os.cpu_count() or 1
    manifest = read_manifest(arguments.data, labelled=False)
    count = min(arguments.pictures, len(manifest.table))
    spread = np.zeros(len(manifest.table), bool)
    spread[np.linspace(0, len(spread) - 1, count).astype(int)] = True
    manifest = manifest.select(spread)
    size = run.config.data.image_size
    images = load_cells(manifest.paths(), roi=run.config.roi, image_size=size).images
    predictor = Predictor.load(run.folder, engine=name, workers=cores)
    crops = partial(iter_chunks, manifest.paths(), roi=run.config.roi, image_size=size)
    ways: dict[str, Callable[[], object]] = {
        "bare, Keras": feed(open_keras(run), images),
        "bare, one call": feed(load_engine(run, name), images),
        "bare, threads": feed_threads(load_engine(run, name, workers=cores), images),
        "cropping": lambda: sum(len(chunk.cells) for chunk in crops()),
        "over the folder": lambda: sum(map(len, classify_chunks(predictor, manifest))),
    }
    rates: dict[str, list[float]] = {way: [] for way in ways}
    core: dict[str, float] = dict.fromkeys(ways, math.inf)
    for turn in range(arguments.rounds + 1):
        for way, work in ways.items():
            started, spent = time.perf_counter(), time.process_time()
            work()
            if turn:  # the first compiles
                rates[way].append(count / (time.perf_counter() - started))
                core[way] = min(core[way], 1e3 * (time.process_time() - spent) / count)
    for way, found in rates.items():
        rate = statistics.median(found)
        print(f"{name:12} {way:16} {rate:6.0f} pictures/s  {core[way]:5.2f} core ms", flush=True)
    ours = rates["over the folder"]
    for way in ("bare, Keras", "bare, one call", "bare, threads"):
        ratio = statistics.median(one / bare for one, bare in zip(ours, rates[way], strict=True))
        print(f"{name:12} over '{way}': {ratio:.2f}  (asked: 0.9)", flush=True)


def open_keras(run: Run) -> Callable[[np.ndarray], object]:
    import numpy as np
    import tensorflow as tf

    from wbc_keras.prediction.networks import load_model

    model = load_model(run)
    signature = [tf.TensorSpec([None, *model.input.shape[1:]], tf.float32)]
    answer = tf.function(lambda images: model(images, training=False), input_signature=signature)
    return lambda images: answer(images.astype(np.float32)).numpy()


def feed(engine: Callable[[np.ndarray], object], images: np.ndarray) -> Callable[[], None]:
    def work() -> None:
        for start in range(0, len(images), 32):
            engine(images[start : start + 32])

    return work


def feed_threads(engine: Engine, images: np.ndarray) -> Callable[[], None]:
    from wbc_keras.pictures.cells import CHUNK, map_ahead

    def work() -> None:
        parts = (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))
        for _ in map_ahead(engine, parts):
            pass

    return work


def measure_growth(run: Run, arguments: argparse.Namespace, folder: Path) -> None:
    """Print seconds and peak memory of the command on more and more pictures."""
    sources = sorted(Path(arguments.data).rglob("*.jpg"))
    peaks = []
    for factor in (1, 2, 4):
        count, data = arguments.memory * factor, folder / f"pictures{factor}"
        for number in range(count):
            place = data / f"{number // 1000:04}" / f"{number:08}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(sources[number % len(sources)].read_bytes())
        command = [sys.executable, "-c", _COMMAND, "--model", str(run.folder), "--data", str(data)]
        started = time.perf_counter()
        done = subprocess.run(
            [*command, "--output", str(folder / "table.csv")],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peaks.append(int(done.stdout.splitlines()[-1]) * 1024 / 1e6)
        taken = time.perf_counter() - started
        print(f"{count:8} pictures {taken:7.1f} s  peak {peaks[-1]:6.0f} MB", flush=True)
    slope = (peaks[-1] - peaks[0]) / (3 * arguments.memory) * 1e6
    print(f"{slope:.0f} bytes more for each picture")


if __name__ == "__main__":
    main()
