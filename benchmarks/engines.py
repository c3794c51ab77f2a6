"""Compare what runs a network: speed, latency, size, and how far its probabilities differ.

    python benchmarks/engines.py --run RUN --data DATA

TensorFlow with its weights as constants, as variables, and with XLA, ONNX Runtime, OpenVINO and
LiteRT in float32, ONNX Runtime and OpenVINO in int8 (static, calibrated on the run's validation
cells; accuracy and macro F1 on its test cells). One process; each engine has all cores for one call
at a time, and engines take turns. "core ms" is what a picture takes of a core where every core runs
a network of its own, as in `predict`: processor time, the least of a few calls with 64 pictures,
which other programs on the machine change little. `predict --engine auto` goes by it.
Without --run, EfficientNetB0 + CBAM at 96 px with random weights is timed, and nothing scored.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    from wbc_keras.prediction.engines import Engine
    from wbc_keras.prediction.formats import Network
    from wbc_keras.runs import Run

_BATCHES = (1, 32)
_COLUMNS = ("engine", "pictures/s, 1", "median, p95 ms", "pictures/s, 32", "median, p95 ms")
_COLUMNS += ("core ms", "MB", "differs", "accuracy", "macro F1")
_FLOAT = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
_CALIBRATION = 512  # cells
_SMALL = 16  # cells in a batch of calibration
_CHUNK = 64  # cells that `predict` gives an engine at once


class Opened(NamedTuple):
    """An engine with all cores for one call, the same with one core a call, and its bytes."""

    engine: Engine
    apart: Engine
    size: int = 0


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", help="trained run folder (default: random weights, not scored)")
    parser.add_argument("--data", help="the run's cells, if they have moved")
    parser.add_argument("--seconds", type=float, default=3, help="of each timing (default: 3)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--no-xla", action="store_true", help="leave XLA out: it takes minutes")
    parser.add_argument("--no-int8", action="store_true", help="leave int8 out")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from wbc_keras.commands import load_tensorflow

    load_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Convert, time in turns, score, and print one Markdown table."""
    import numpy as np
    import tensorflow as tf

    from wbc_keras import runs
    from wbc_keras.prediction.engines import open_tensorflow
    from wbc_keras.prediction.formats import Network

    run = runs.open_run(arguments.run) if arguments.run else make_run(folder / "run")
    network = Network(run)
    test, truth, validation = load_test(run, arguments)
    print(
        f"{run.config.model.backbone}, {run.config.data.image_size[0]} px; {os.cpu_count()} cores, "
        f"{platform.machine()}, Python {platform.python_version()}, TensorFlow {tf.__version__}; "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    ways = {"TensorFlow": open_tensorflow(network), "TensorFlow, variables": as_saved(network)}
    if not arguments.no_xla:
        ways["TensorFlow, XLA"] = open_tensorflow(network, compiled=True)
    engines = {name: Opened(engine, engine) for name, engine in ways.items()}
    engines |= convert_all(network, folder)
    if not arguments.no_int8:
        engines |= quantise_all(folder, validation)
    times = {
        batch: time_in_turns(
            {name: one.engine for name, one in engines.items()}, test[:batch], arguments
        )
        for batch in _BATCHES
    }
    # XLA would compile for minutes once more.
    core = measure_core({k: one.apart for k, one in engines.items() if "XLA" not in k}, test)
    expected = answer_all(engines["TensorFlow"].engine, test)
    print("|", " | ".join(_COLUMNS), "|")
    print("|" + "---|" * len(_COLUMNS))
    for name, (engine, _, size) in engines.items():
        given = expected if "XLA" in name else answer_all(engine, test)
        if "XLA" in name:  # compiled for the timed batches alone
            difference = np.abs(engine(test[:32]).probabilities - expected[:32]).max()
        else:
            difference = np.abs(given - expected).max()
        cells = [name]
        for batch in _BATCHES:
            taken = np.array(times[batch][name])
            middle, late = np.percentile(taken, [50, 95]) * 1e3
            cells += [f"{batch / np.median(taken):.0f}", f"{middle:.1f}, {late:.1f}"]
        cells.append(f"{core[name]:.2f}" if name in core else "")
        cells += [f"{size / 1e6:.1f}" if size else "", f"{difference:.1e}", *score(given, truth)]
        print("| " + " | ".join(cells) + " |", flush=True)
    print_ratios(times)


def as_saved(network: Network) -> Engine:
    """Return the network as a plain SavedModel runs it: its weights variables."""
    import tensorflow as tf

    from wbc_keras.prediction.engines import Answer

    def answer(images: np.ndarray) -> Answer:
        outputs = network.classify(tf.constant(images))
        return Answer(outputs["probabilities"].numpy(), outputs["features"].numpy())

    return answer


def make_run(folder: Path) -> Run:
    """Return a run of the thesis's network with random weights and sound statistics."""
    import keras
    import numpy as np

    from wbc_keras import runs
    from wbc_keras.classifier import build_classifier
    from wbc_keras.config import ModelConfig

    keras.utils.set_random_seed(0)
    folder.mkdir()
    settings = ModelConfig(backbone="efficientnetb0", weights="none")
    model = build_classifier(settings, num_classes=8, image_size=(96, 96))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    noise = np.random.default_rng(0).integers(0, 256, (32, 96, 96, 3)).astype(np.float32)
    model(noise, training=True)
    model.save(folder / "model.keras")
    (folder / "config.yaml").write_text(
        "data: {image_size: [96, 96]}\nmodel: {backbone: efficientnetb0, weights: none}\n"
        "train: {head_epochs: 0, freeze_batch_norm: false}\n"
    )
    runs.write_json(folder / "classes.json", {"classes": [f"class {i}" for i in range(8)]})
    return runs.open_run(folder)


def load_test(
    run: Run, arguments: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Return crops of the test cells, their classes, and crops of validation cells."""
    import numpy as np

    from wbc_keras.pictures.prepared import prepare
    from wbc_keras.prediction.novelty import spread_over_classes
    from wbc_keras.selection import select_cells

    size = run.config.data.image_size
    if not arguments.run:
        noise = np.random.default_rng(1).integers(0, 256, (256, *size, 3)).astype(np.uint8)
        return noise, None, noise[:64]
    parts = {}
    for split in ("test", "validation"):
        chosen = select_cells(run, data=arguments.data, split=split)
        prepared = prepare(chosen.source, roi=run.config.roi, image_size=size)
        cells = prepared.take(chosen.manifest.table["file"])
        parts[split] = (np.asarray(cells.images), np.array(chosen.labels()))
    images, labels = parts["validation"]
    return *parts["test"], images[spread_over_classes(labels, _CALIBRATION)]


def convert_all(network: Network, folder: Path) -> dict[str, Opened]:
    """Return the float32 engines."""
    from wbc_keras.prediction.formats import convert

    engines = {}
    for name, title in _FLOAT.items():
        place = folder / name
        place.mkdir()
        convert(network, name, place)
        engines[title] = open_both(name, place)
    return engines


def open_both(name: str, place: Path) -> Opened:
    from wbc_keras.prediction.engines import open_engine

    apart = open_engine(name, place, workers=os.cpu_count() or 1)
    size = sum(path.stat().st_size for path in place.iterdir())
    return Opened(open_engine(name, place), apart, size)


def quantise_all(folder: Path, images: np.ndarray) -> dict[str, Opened]:
    """Return the int8 engines of the float32 files in ``folder``, calibrated on ``images``."""
    from wbc_keras.prediction.engines import FILES

    batches = [images[start : start + _SMALL] for start in range(0, len(images), _SMALL)]
    engines = {}
    ways = {"onnx": quantise_onnx, "openvino": quantise_openvino}
    for name, quantise in ways.items():
        place = folder / f"{name}_int8"
        place.mkdir()
        quantise(folder / name / FILES[name], place / FILES[name], batches)
        engines[f"{_FLOAT[name]}, int8"] = open_both(name, place)
    return engines


def quantise_openvino(source: Path, target: Path, batches: list[np.ndarray]) -> None:
    import nncf
    import openvino

    data = nncf.Dataset(batches, lambda batch: {"images": batch})
    model = openvino.Core().read_model(source)
    # MIXED: swish and sigmoid give values on both sides of 0.
    quantised = nncf.quantize(
        model, data, subset_size=len(batches), preset=nncf.QuantizationPreset.MIXED
    )
    openvino.save_model(quantised, target, compress_to_fp16=False)


def quantise_onnx(source: Path, target: Path, batches: list[np.ndarray]) -> None:
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.rest = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.rest, None)
            return None if batch is None else {"images": batch}

    ready = target.with_name("ready.onnx")
    quantization.quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
    quantization.quantize_static(str(ready), str(target), Reader(), per_channel=True)
    ready.unlink()


def measure_core(engines: dict[str, Engine], images: np.ndarray) -> dict[str, float]:
    """Return the milliseconds of processor time that a picture takes, in turns."""
    chunk = images[:_CHUNK]
    least = dict.fromkeys(engines, math.inf)
    for turn in range(8):
        for name, engine in engines.items():
            started = time.process_time()
            engine(chunk)
            if turn > 1:  # the first ones compile
                least[name] = min(least[name], time.process_time() - started)
    return {name: 1e3 * taken / len(chunk) for name, taken in least.items()}


def time_in_turns(
    engines: dict[str, Engine], images: np.ndarray, arguments: argparse.Namespace
) -> dict[str, list[float]]:
    """Return the seconds of each call, engines in turns; what compiles is not on the clock."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for engine in engines.values():
        engine(images)
        engine(images)
    for _ in range(arguments.rounds):
        for name, engine in engines.items():
            until = time.perf_counter() + arguments.seconds / arguments.rounds
            while time.perf_counter() < until:
                started = time.perf_counter()
                engine(images)
                times[name].append(time.perf_counter() - started)
    return times


def answer_all(engine: Engine, images: np.ndarray) -> np.ndarray:
    import numpy as np

    starts = range(0, len(images), 32)
    return np.concatenate([engine(images[start : start + 32]).probabilities for start in starts])


def score(probabilities: np.ndarray, truth: np.ndarray | None) -> list[str]:
    if truth is None:
        return ["", ""]
    from sklearn.metrics import accuracy_score, f1_score

    predicted = probabilities.argmax(axis=1)
    ways: list[Callable[..., float]] = [
        accuracy_score,
        lambda *pair: f1_score(*pair, average="macro"),
    ]
    return [f"{way(truth, predicted):.4f}" for way in ways]


def print_ratios(times: dict[int, dict[str, list[float]]]) -> None:
    import statistics

    for batch, asked in zip(_BATCHES, (4, 1.8), strict=True):
        middles = {name: statistics.median(taken) for name, taken in times[batch].items()}
        floats = {name: middle for name, middle in middles.items() if "int8" not in name}
        best = min(floats, key=floats.__getitem__)
        for base in ("TensorFlow", "TensorFlow, variables"):
            ratio = middles[base] / middles[best]
            print(f"batch {batch}: {best} is {ratio:.2f} times as fast as {base}  (asked: {asked})")


if __name__ == "__main__":
    main()
