"""Score the ROI against expert masks, and time it.

    python benchmarks/roi.py --data ../shared/data/roi_jtsc

Accuracy is that of the command ``python -m wbc_keras.roi`` on a folder of NAME.jpg with
NAME.mask.png (0 background, 128 cytoplasm, 255 nucleus). Speed is that of decoded 160x160 pictures
in batches of 64: thumbnail, nucleus, box and crop to 96x96, in one compiled function that as many
threads call as there are cores.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from wbc_keras.config import RoiConfig

BATCH, PICTURE_SIZE, CROP_SIZE = 64, 160, (96, 96)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="DIR", help="pictures with masks; without, only speed")
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="timed rounds (default: 5)"
    )
    arguments = parser.parse_args(argv)
    # Before TensorFlow is loaded, or its start-up messages would bury the figures.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if arguments.data is not None:
        score(Path(arguments.data))
    measure_speed(arguments.rounds)


# Accuracy


def score(data: Path) -> None:
    """Run the command on ``data`` and print its figures beside what was asked."""
    with tempfile.TemporaryDirectory() as folder:
        output, masks = Path(folder, "roi.csv"), Path(folder, "masks")
        command = ["wbc_keras.roi", "--data", data, "--output", output, "--masks", masks]
        subprocess.run([sys.executable, "-m", *map(str, command)], check=True)
        with output.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        cells = np.array([score_cell(data, masks, row) for row in rows])
    iou, kept, ratio = cells.T
    print(f"{len(cells)} cells with expert masks                  asked")
    print(f"nucleus IoU, mean                {iou.mean():6.3f}  at least 0.88")
    print(f"nucleus found (IoU over 0.5)     {np.mean(iou > 0.5):6.3f}  at least 0.97")
    print(f"cell inside the box, mean        {kept.mean():6.3f}  at least 0.985")
    print(f"cell inside the box, 5th centile {np.percentile(kept, 5):6.3f}")
    print(f"box over tight square, median    {np.median(ratio):6.3f}  at most 1.7", flush=True)


def score_cell(data: Path, masks: Path, row: dict[str, str]) -> tuple[float, float, float]:
    """Return IoU of the nucleus, share of the cell in the box, box over tight square."""
    name = Path(row["file"]).stem
    truth = cv2.imread(str(data / f"{name}.mask.png"), cv2.IMREAD_GRAYSCALE)
    found = cv2.imread(str(masks / f"{name}.png"), cv2.IMREAD_GRAYSCALE) > 127
    nucleus, cell = truth > 192, truth > 64
    height, width = truth.shape
    box = [float(row[edge]) for edge in ("y0", "x0", "y1", "x1")]
    top, left, bottom, right = np.round(np.multiply(box, (height, width) * 2)).astype(int)
    side = max(np.ptp(axis) + 1 for axis in np.nonzero(cell))
    tight = min(side, height) * min(side, width)
    return (
        (found & nucleus).sum() / (found | nucleus).sum(),
        cell[top:bottom, left:right].sum() / cell.sum(),
        (bottom - top) * (right - left) / tight,
    )


# Speed


def measure_speed(rounds: int) -> None:
    """Print pictures a second, the median of ``rounds``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    images, process = draw_pictures(), make_process()
    process(images).numpy()  # traced and warm
    batches = [images] * (4 * (cores or 1))
    speeds = [time_round(process, batches, cores or 1) for _ in range(rounds)]
    print(
        f"{statistics.median(speeds):.0f} pictures/s on {cores} cores "
        f"(batches of {BATCH}, {PICTURE_SIZE}x{PICTURE_SIZE}; best round {max(speeds):.0f})"
    )


def draw_pictures() -> np.ndarray:
    from wbc_keras.synthetic import CLASS_NAMES, draw_cell

    rng = np.random.default_rng(0)
    names = [CLASS_NAMES[index % len(CLASS_NAMES)] for index in range(BATCH)]
    return np.stack([draw_cell(name, size=PICTURE_SIZE, rng=rng).image for name in names])


def make_process() -> Callable[[np.ndarray], object]:
    """Return a compiled function from a batch of pictures to a batch of crops."""
    import tensorflow as tf

    from wbc_keras.localize import crop, locate, make_thumbnail

    settings = RoiConfig()

    @tf.function
    def process(images: tf.Tensor) -> tf.Tensor:
        thumbnails = tf.map_fn(make_thumbnail, images, fn_output_signature=tf.float32)
        sizes = tf.tile(tf.shape(images)[tf.newaxis, 1:3], (tf.shape(images)[0], 1))
        boxes = locate(thumbnails, sizes, mode="nucleus", margin=settings.margin).boxes
        return tf.map_fn(
            lambda pair: crop(*pair, image_size=CROP_SIZE),
            (images, boxes),
            fn_output_signature=tf.uint8,
        )

    return process


def time_round(
    process: Callable[[np.ndarray], object], batches: Sequence[np.ndarray], threads: int
) -> float:
    """Return pictures a second."""
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(lambda batch: process(batch).numpy(), batches))
        return BATCH * len(batches) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
