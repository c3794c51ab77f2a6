"""Compare how fast pictures come from files to batches: bare decoding, Keras, PyTorch, wbc_keras.

    python benchmarks/input.py --data ../shared/data/pbc

The same JPEGs at 96x96 in shuffled batches of 32, float32, each way in a process of its own, in
turns. With augmentation, each way makes the same kinds of changes: flips, quarter and free turns,
shifts, zooms, brightness, contrast, hue, saturation. PyTorch and albumentations are needed for
this benchmark alone: pip install torch albumentations (left out where they are missing).
Then: the share of EfficientNetB0's training time that is spent waiting for input, and how time and
memory grow with the number of pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import itertools
import json
import os
import platform
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

SIZE, BATCH, SECONDS, COLD = (96, 96), 32, 4.0, 2560
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, metavar="DIR", help="class folders of JPEGs")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # what a child process measures
    parser.add_argument("--times", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    data = Path(arguments.data).resolve()
    if arguments.part is None:
        compare(data, rounds=arguments.rounds)
    elif arguments.part == "growth":
        print(json.dumps(measure_growth(data, times=arguments.times)))
    elif arguments.part == "waiting":
        print(json.dumps(measure_waiting(data)))
    else:
        print(json.dumps(FEEDS[arguments.part](data)))


def compare(data: Path, *, rounds: int) -> None:
    """Print pictures a second of every way, and each bar beside what was measured."""
    names = [name for name in FEEDS if is_available(name)]
    describe()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["WBC_KERAS_CACHE"] = cache
        measure_part(data, "ours, prepared")  # makes the store
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _, name in itertools.product(range(rounds), names):
            rates[name].append(measure_part(data, name))
        for name in names:
            low, high = min(rates[name]), max(rates[name])
            rate = statistics.median(rates[name])
            print(f"{name:32} {rate:8.0f} pictures/s  ({low:.0f} to {high:.0f})", flush=True)
        judge({name: statistics.median(rates[name]) for name in names})
        share = measure_part(data, "waiting")
        print(f"waiting for input in training      {share:.2%}  (asked: under 2 %)", flush=True)
    print_growth(data)


def is_available(name: str) -> bool:
    """Tell whether the packages of one way are installed."""
    needed = ("torch", "albumentations") if "PyTorch" in name else ()
    return all(importlib.util.find_spec(package) for package in needed)


def describe() -> None:
    import cv2
    import keras
    import tensorflow as tf

    print(
        f"{CORES} cores, {platform.machine()}, Python {platform.python_version()}, TensorFlow "
        f"{tf.__version__}, Keras {keras.__version__}, OpenCV {cv2.__version__}; "
        f"{SIZE[0]}x{SIZE[1]}, batches of {BATCH}",
        flush=True,
    )


def judge(rates: dict[str, float]) -> None:
    """Print the ratios that are asked for."""
    peers = [name for name in rates if name.startswith(("Keras", "PyTorch"))]
    still = max(rates[name] for name in peers if "augmented" not in name)
    moved = max(rates[name] for name in peers if "augmented" in name)
    ours, ours_moved = rates["ours, prepared"], rates["ours, prepared, augmented"]
    print(f"first pass                         {rates['ours, first pass']:.0f}/s  (asked: 500)")
    print(f"prepared over the better peer      {ours / still:.2f}  (asked: 3)")
    print(f"augmented over the better peer     {ours_moved / moved:.2f}  (asked: 1)")
    print(
        f"augmented over Keras               {ours_moved / rates['Keras, augmented']:.2f}", end=""
    )
    print("  (asked: 4)", flush=True)


def measure_part(data: Path, part: str, *options: str) -> Any:
    """Measure one way in a process of its own and return what it printed last."""
    command = [sys.executable, __file__, "--data", str(data), "--part", part, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rate_of(batches: Iterator[Any]) -> float:
    """Return pictures a second of an endless feed, after a warm-up."""
    for _ in range(20):
        next(batches)
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < SECONDS:
        count += len(next(batches))
    return count / (time.perf_counter() - started)


def shuffled_paths(data: Path) -> list[Path]:
    paths = sorted(data.rglob("*.jpg"))
    random.Random(0).shuffle(paths)
    return paths


# The limit: decoding and nothing else


def decode_with_opencv(data: Path) -> float:
    import cv2
    import numpy as np

    cv2.setNumThreads(1)

    def read(path: Path) -> Any:
        return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)

    def batches() -> Iterator[Any]:
        with ThreadPoolExecutor(CORES) as pool:
            paths = itertools.cycle(shuffled_paths(data))
            while True:
                yield list(pool.map(read, itertools.islice(paths, 8 * BATCH)))

    return rate_of(batches())


def decode_with_tensorflow(data: Path) -> float:
    import tensorflow as tf

    def read(path: tf.Tensor) -> tf.Tensor:
        # The sum alone, as the pictures need not be of one size.
        return tf.reduce_max(tf.io.decode_jpeg(tf.io.read_file(path), channels=3))

    paths = tf.data.Dataset.from_tensor_slices([str(path) for path in shuffled_paths(data)])
    dataset = paths.repeat().map(read, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(2)
    return rate_of(iter(dataset))


# Peers


def read_with_keras(data: Path, *, augmented: bool = False) -> float:
    import keras
    import tensorflow as tf

    dataset = keras.utils.image_dataset_from_directory(
        data, image_size=SIZE, batch_size=BATCH, seed=0, verbose=False
    )
    if augmented:
        layers = keras.layers
        change = keras.Sequential(
            [
                layers.RandomFlip(),
                layers.RandomRotation(0.5, fill_mode="reflect"),
                layers.RandomTranslation(0.05, 0.05, fill_mode="reflect"),
                layers.RandomZoom(0.1, fill_mode="reflect"),
                layers.RandomBrightness(0.1),
                layers.RandomContrast(0.15),
                layers.RandomHue(0.02),
                layers.RandomSaturation((0.4, 0.6)),
            ]
        )
        dataset = dataset.map(
            lambda images, _: (change(images, training=True), 0), num_parallel_calls=CORES
        ).prefetch(2)
    batches = (images for images, _ in dataset.repeat())
    assert tf.executing_eagerly()
    return rate_of(batches)


class Pictures:
    """A PyTorch dataset: decode with OpenCV, change with albumentations."""

    def __init__(self, data: Path, *, augmented: bool) -> None:
        import albumentations as a

        moves = [
            a.HorizontalFlip(),
            a.RandomRotate90(),
            a.Affine(rotate=(-20, 20), translate_percent=0.05, scale=(0.9, 1.1)),
            a.RandomBrightnessContrast(0.1, 0.15, p=1),
            a.HueSaturationValue(4, 30, 0, p=1),
        ]
        self.paths = shuffled_paths(data)
        self.change = a.Compose([a.Resize(*SIZE), *(moves if augmented else [])])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        import cv2

        cv2.setNumThreads(0)
        image = cv2.imread(str(self.paths[index]), cv2.IMREAD_COLOR_RGB)
        return self.change(image=image)["image"]


def read_with_pytorch(data: Path, *, augmented: bool = False) -> float:
    from torch.utils.data import DataLoader

    loader = DataLoader(
        Pictures(data, augmented=augmented),
        batch_size=BATCH,
        shuffle=True,
        num_workers=CORES,
        persistent_workers=True,
    )
    return rate_of(batch.float() for _ in itertools.count() for batch in loader)


# Ours


def read_first_pass(data: Path) -> float:
    """Read, find, crop: what making the store takes, but for the writing."""
    from wbc_keras.config import RoiConfig
    from wbc_keras.pictures.cells import iter_chunks

    paths = shuffled_paths(data)[:COLD]
    next(iter_chunks(paths, roi=RoiConfig(), image_size=SIZE))  # compiles
    started = time.perf_counter()
    count = sum(len(chunk.cells) for chunk in iter_chunks(paths, roi=RoiConfig(), image_size=SIZE))
    return count / (time.perf_counter() - started)


def read_prepared(data: Path, *, augmented: bool = False) -> float:
    return rate_of(images for images, *_ in make_batches(data, augmented=augmented))


def make_batches(data: Path, *, augmented: bool) -> Any:
    """Return training batches without end, from a store that is made if need be."""
    import numpy as np

    from wbc_keras.config import AugmentConfig, RoiConfig
    from wbc_keras.manifest import read_manifest
    from wbc_keras.pictures.prepared import prepare
    from wbc_keras.pipeline import make_training_batches

    manifest = read_manifest(data)
    prepared = prepare(manifest, roi=RoiConfig(), image_size=SIZE)
    settings = AugmentConfig()
    if not augmented:
        off = {field.name: False for field in dataclasses.fields(settings)}
        settings = dataclasses.replace(settings, **off)
    labels = manifest.table["label"].astype("category").cat.codes.to_numpy("int32")
    return make_training_batches(
        prepared.take(manifest.table["file"]),
        labels,
        np.ones(len(labels), np.float32),
        augment=settings,
        batch_size=BATCH,
        seed=0,
        epochs=range(1_000_000),
    )


FEEDS: dict[str, Callable[[Path], float]] = {
    "decode, OpenCV": decode_with_opencv,
    "decode, TensorFlow": decode_with_tensorflow,
    "Keras": read_with_keras,
    "Keras, augmented": lambda data: read_with_keras(data, augmented=True),
    "PyTorch": read_with_pytorch,
    "PyTorch, augmented": lambda data: read_with_pytorch(data, augmented=True),
    "ours, first pass": read_first_pass,
    "ours, prepared": read_prepared,
    "ours, prepared, augmented": lambda data: read_prepared(data, augmented=True),
}


# In training


def measure_waiting(data: Path) -> float:
    """Return the share of the steps' time that EfficientNetB0 waits for its next batch."""
    import keras

    from wbc_keras.classifier import build_classifier
    from wbc_keras.config import LossConfig, ModelConfig
    from wbc_keras.losses import build_loss

    settings = ModelConfig(backbone="efficientnetb0", weights="none")
    model = build_classifier(settings, num_classes=8, image_size=SIZE)
    model.compile(keras.optimizers.AdamW(1e-4), build_loss(LossConfig(), [1] * 8))
    batches = iter(make_batches(data, augmented=True))
    for _ in range(5):
        model.train_on_batch(*next(batches))
    started, waited = time.perf_counter(), 0.0
    for _ in range(40):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        model.train_on_batch(*batch)
    return waited / (time.perf_counter() - started)


# Growth


def print_growth(data: Path) -> None:
    """Print seconds and memory of preparing and of one epoch, for 1, 2, 4 and 8 times the cells."""
    print("pictures   prepare s  us a picture   epoch s  us a picture   peak memory MB", flush=True)
    for times in (1, 2, 4, 8):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["WBC_KERAS_CACHE"] = str(Path(folder, "cache"))
            source = repeat_pictures(data, Path(folder, "cells"), times=times)
            grown = measure_part(source, "growth", "--times", str(times))
        count, prepare_s, epoch_s, peak = grown
        print(
            f"{count:8}  {prepare_s:10.1f}  {1e6 * prepare_s / count:12.0f}  {epoch_s:8.2f}  "
            f"{1e6 * epoch_s / count:12.0f}  {peak:15.0f}",
            flush=True,
        )


def repeat_pictures(data: Path, folder: Path, *, times: int) -> Path:
    """Copy the first pictures ``times`` times, under names of their own."""
    for path in shuffled_paths(data)[:COLD]:
        for number in range(times):
            copy = folder / path.parent.name / f"{number}_{path.name}"
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    return folder


def measure_growth(data: Path, *, times: int) -> tuple[int, float, float, float]:
    """Return the number of pictures, both times in seconds, and peak memory in MB."""
    import tensorflow as tf

    started = time.perf_counter()
    batches = make_batches(data, augmented=True)
    prepared = time.perf_counter()
    count = COLD * times
    for images, *_ in batches.take(count // BATCH):
        assert isinstance(images, tf.Tensor)
    ended = time.perf_counter()
    # Not getrusage, which counts what the process that started this one held.
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024
    return count, prepared - started, ended - prepared, peak


if __name__ == "__main__":
    main()
