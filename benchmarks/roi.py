r"""Score the ROI against masks and under changes, and time it; each figure beside its bar.

    python benchmarks/roi.py --data ../shared/data/roi_jtsc \
        --cells ../shared/data/pbc ../shared/data/aml_jhu ../shared/data/lmu_smoke

In this order: accuracy of the command ``python -m wbc_keras.roi`` on a folder of NAME.jpg with
NAME.mask.png (0 background, 128 cytoplasm, 255 nucleus); accuracy on those and on drawn cells after
changes of stain, light, place and neighbours (`roi_changes.py`); whether boxes follow when pictures
are shifted, turned, flipped and scaled; and speed: decoded 160x160 pictures in batches of 64,
thumbnail, nucleus, box and crop to 96x96, in one compiled function that as many threads call as
there are cores. Without ``--data`` and ``--cells`` only drawn cells are used.
"""

from __future__ import annotations

import argparse
import csv
import functools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from roi_changes import NAMES, Pair, change_all, warp

from wbc_keras.config import RoiConfig

if TYPE_CHECKING:
    import tensorflow as tf

    from wbc_keras.pictures.localize import Roi

BATCH, PICTURE_SIZE, CROP_SIZE = 64, 160, (96, 96)
SAMPLE = 300  # pictures of a folder whose boxes are followed
DRAWN = 108  # cells, the classes in turn
SCALES, SHIFT = (0.7, 1.5), 0.12
EDGE = 0.02  # of the picture: a cell whose box comes nearer to its edge may go on beyond it


@dataclass(frozen=True)
class Bars:
    """What is asked of the accuracy on a set."""

    iou: float
    found: float
    kept: float
    kept_p05: float
    ratio: float


KNOWN = Bars(iou=0.91, found=0.99, kept=0.99, kept_p05=0.97, ratio=1.5)
UNSEEN = Bars(iou=0.87, found=0.99, kept=0.985, kept_p05=0.93, ratio=1.6)
FOLLOWED, SPEED = 0.95, 600

Move = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", metavar="DIR", help="pictures with masks")
    parser.add_argument("--cells", metavar="DIR", nargs="+", default=[], help="class folders")
    parser.add_argument(
        "--rounds", type=int, default=5, metavar="N", help="timed rounds (default: 5)"
    )
    arguments = parser.parse_args(argv)
    # Before TensorFlow is loaded, or its start-up messages would bury the figures.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    drawn = draw_pairs()
    sets = {}
    if arguments.data is not None:
        score_command(Path(arguments.data))
        sets[Path(arguments.data).name] = read_pairs(Path(arguments.data))
    sets["drawn cells"] = drawn
    for name, pairs in sets.items():
        score_changes(name, pairs)
    pictures = {name: [image for image, _ in pairs] for name, pairs in sets.items()}
    pictures |= {Path(folder).name: read_sample(Path(folder)) for folder in arguments.cells}
    follow_all(pictures)
    measure_speed(arguments.rounds)


def read_pairs(data: Path) -> list[Pair]:
    truths = sorted(data.glob("*.mask.png"))
    pictures = [next(data.glob(f"{path.name.removesuffix('.mask.png')}.[jp]*g")) for path in truths]
    masks = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in truths]
    return list(zip(map(read_rgb, pictures), masks, strict=True))


def read_sample(folder: Path) -> list[np.ndarray]:
    paths = sorted(path for path in folder.glob("*/*") if path.suffix in (".jpg", ".jpeg", ".png"))
    return [read_rgb(path) for path in random.Random(0).sample(paths, min(SAMPLE, len(paths)))]


def read_rgb(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


def draw_pairs() -> list[Pair]:
    from wbc_keras.synthetic import CLASS_NAMES, draw_cell

    names = [CLASS_NAMES[index % len(CLASS_NAMES)] for index in range(DRAWN)]
    rngs = [np.random.default_rng([0, index]) for index in range(DRAWN)]
    cells = [draw_cell(name, size=160, rng=rng) for name, rng in zip(names, rngs, strict=True)]
    return [(cell.image, cell.mask) for cell in cells]


# Accuracy


@dataclass(frozen=True)
class Scores:
    """One figure for each cell."""

    iou: np.ndarray  # of the nucleus
    kept: np.ndarray  # share of the cell's pixels inside the box
    ratio: np.ndarray  # the box's area over that of the tight square

    def __str__(self) -> str:
        kept = f"{self.kept.mean():6.3f} {np.percentile(self.kept, 5):6.3f}"
        found = np.mean(self.iou > 0.5)
        return f"{self.iou.mean():6.3f} {found:6.3f} {kept} {np.median(self.ratio):6.2f}"


HEADINGS = "   IoU  found   kept    p05  ratio"


def format_bars(bars: Bars) -> str:
    kept = f"{bars.kept:6.3f} {bars.kept_p05:6.3f}"
    return f"{bars.iou:6.3f} {bars.found:6.3f} {kept} {bars.ratio:6.2f}"


def score_command(data: Path) -> None:
    """Run the command on ``data`` and print its figures beside what was asked."""
    with tempfile.TemporaryDirectory() as folder:
        output, masks = Path(folder, "roi.csv"), Path(folder, "masks")
        command = ["wbc_keras.roi", "--data", data, "--output", output, "--masks", masks]
        subprocess.run([sys.executable, "-m", *map(str, command)], check=True)
        with output.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        scores = gather_scores([score_row(data, masks, row) for row in rows])
    print(f"\n{len(rows)} cells of {data.name} with expert masks{HEADINGS:>40}")
    print(f"{'measured':30}{scores}\n{'asked here':30}{format_bars(KNOWN)}")
    print(f"{'asked of cells never seen':30}{format_bars(UNSEEN)} (IoU 0.90 on one)", flush=True)


def score_row(data: Path, masks: Path, row: dict[str, str]) -> tuple[float, float, float]:
    name = Path(row["file"]).stem
    truth = cv2.imread(str(data / f"{name}.mask.png"), cv2.IMREAD_GRAYSCALE)
    found = cv2.imread(str(masks / f"{name}.png"), cv2.IMREAD_GRAYSCALE) > 127
    return score_cell(
        truth, found, np.array([float(row[edge]) for edge in ("y0", "x0", "y1", "x1")])
    )


def score_cell(truth: np.ndarray, found: np.ndarray, box: np.ndarray) -> tuple[float, float, float]:
    """Return IoU of the nucleus, share of the cell in the box, box over tight square."""
    nucleus, cell = truth > 192, truth > 64
    height, width = truth.shape
    top, left, bottom, right = np.round(box * np.tile((height, width), 2)).astype(int)
    side = max(np.ptp(axis) + 1 for axis in np.nonzero(cell))
    tight = min(side, height) * min(side, width)
    return (
        (found & nucleus).sum() / max((found | nucleus).sum(), 1),
        cell[top:bottom, left:right].sum() / cell.sum(),
        (bottom - top) * (right - left) / tight,
    )


def gather_scores(rows: Sequence[tuple[float, float, float]]) -> Scores:
    return Scores(*np.array(rows).T)


def score_changes(name: str, pairs: Sequence[Pair]) -> None:
    """Print the accuracy after each change beside the bars for laboratories never seen."""
    print(f"\n{len(pairs)} x {name}, changed{HEADINGS:>40}")
    for change in NAMES:
        changed = change_all(pairs, change)
        boxes, masks = find_cells([image for image, _ in changed])
        rows = [
            score_cell(truth, cv2.resize(mask, truth.shape[::-1]) > 0.5, box)
            for (_, truth), mask, box in zip(changed, masks, boxes, strict=True)
        ]
        print(f"{change:30}{gather_scores(rows)}", flush=True)
    print(f"{'asked of cells never seen':30}{format_bars(UNSEEN)}", flush=True)


def find_cells(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes ``(n, 4)`` and masks ``(n, 96, 96)``."""
    import tensorflow as tf

    from wbc_keras.pictures.localize import make_thumbnail

    boxes, masks = [], []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        thumbnails = tf.stack([make_thumbnail(image) for image in part])
        sizes = tf.constant([image.shape[:2] for image in part])
        roi = make_locate()(thumbnails, sizes, mode="nucleus", margin=RoiConfig().margin)
        boxes.append(roi.boxes.numpy())
        masks.append(roi.masks.numpy())
    return np.concatenate(boxes), np.concatenate(masks)


@functools.cache
def make_locate() -> Callable[..., Roi]:
    import tensorflow as tf

    from wbc_keras.pictures.localize import locate

    return tf.function(locate, reduce_retracing=True)


# Boxes follow


def follow_all(sets: dict[str, list[np.ndarray]]) -> None:
    """Print the share of boxes that follow each way of moving the picture."""
    print(f"\nbox follows (IoU at least 0.9){'':8}" + "".join(f"{name:>9}" for name in MOVES))
    followed = []
    for name, images in sets.items():
        boxes, _ = find_cells(images)
        inside = [
            (image, box)
            for image, box in zip(images, boxes, strict=True)
            if box.min() > EDGE and box.max() < 1 - EDGE
        ]
        shares = [follow(inside, move) for move in MOVES.values()]
        followed += shares
        row = "".join(f"{np.mean(share):9.3f}" for share in shares)
        print(f"{name[:16]:16} {len(inside):4} of {len(images):4} inside  {row}", flush=True)
    print(f"all {np.mean(np.concatenate(followed)):.3f}, at least {FOLLOWED} asked", flush=True)


def follow(cells: Sequence[tuple[np.ndarray, np.ndarray]], move: Move) -> np.ndarray:
    """Move each picture with its box and return where the box found is the box expected."""
    rng = np.random.default_rng(0)
    matrices = [move(image, box, rng) for image, box in cells]
    moved = [warp(image, matrix) for (image, _), matrix in zip(cells, matrices, strict=True)]
    expected = [move_box(*cell, matrix) for cell, matrix in zip(cells, matrices, strict=True)]
    return overlap(find_cells(moved)[0], np.array(expected)) >= 0.9


def shift_inside(image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return place_inside(image, box, scale=1.0, shift=rng.uniform(-SHIFT, SHIFT, 2))


def scale_inside(image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    most = min(SCALES[1], 1.0 / (box[2:] - box[:2]).max())
    scale = np.exp(rng.uniform(np.log(SCALES[0]), np.log(most)))
    return place_inside(image, box, scale=scale, shift=np.zeros(2))


def place_inside(
    image: np.ndarray, box: np.ndarray, *, scale: float, shift: np.ndarray
) -> np.ndarray:
    """Return a matrix that scales about the centre and shifts, and keeps the box inside."""
    size, corners = np.array(image.shape[1::-1]), box.reshape(2, 2)[:, ::-1]
    offset = np.clip((1 - scale) / 2 + shift, -scale * corners[0], 1 - scale * corners[1])
    return np.column_stack([scale * np.eye(2), offset * size])


def turn_or_flip(image: np.ndarray, box: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return one of the seven quarter turns and flips of a square picture."""
    symmetry = rng.integers(1, 8)
    linear = np.linalg.matrix_power(np.array([[0.0, -1.0], [1.0, 0.0]]), symmetry % 4)
    linear = linear @ np.diag([1.0, -1.0]) if symmetry > 3 else linear
    middle = (np.array(image.shape[1::-1]) - 1) / 2
    return np.column_stack([linear, middle - linear @ middle])


MOVES: dict[str, Move] = {
    "shifted": shift_inside,
    "turned": turn_or_flip,
    "scaled": scale_inside,
}


def move_box(image: np.ndarray, box: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Return where a box in shares of the picture comes to lie."""
    size = np.array(image.shape[1::-1])
    corners = box.reshape(2, 2)[:, ::-1] * size - 0.5  # where pixel centres are whole numbers
    moved = np.sort(corners @ matrix[:, :2].T + matrix[:, 2], axis=0)
    return ((moved + 0.5) / size)[:, ::-1].ravel()


def overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return IoU of boxes ``(n, 4)``, pair by pair."""
    common = np.minimum(boxes[:, 2:], others[:, 2:]) - np.maximum(boxes[:, :2], others[:, :2])
    common = np.maximum(common, 0).prod(axis=1)
    areas = [(part[:, 2:] - part[:, :2]).prod(axis=1) for part in (boxes, others)]
    return common / (areas[0] + areas[1] - common)


# Speed


def measure_speed(rounds: int) -> None:
    """Print pictures a second, the median of ``rounds``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    images, process = np.stack([image for image, _ in draw_pairs()[:BATCH]]), make_process()
    process(images).numpy()  # traced and warm
    batches = [images] * (4 * (cores or 1))
    started = time.process_time()
    speeds = [time_round(process, batches, cores or 1) for _ in range(rounds)]
    spent = (time.process_time() - started) / (rounds * len(batches) * BATCH)
    print(
        f"\n{statistics.median(speeds):.0f} pictures/s on {cores} cores "
        f"(batches of {BATCH}, {PICTURE_SIZE}x{PICTURE_SIZE}; best round {max(speeds):.0f}), "
        f"at least {SPEED} asked; {1e3 * spent:.2f} ms of one core a picture"
    )


def make_process() -> Callable[[np.ndarray], object]:
    """Return a compiled function from a batch of pictures to a batch of crops."""
    import tensorflow as tf

    from wbc_keras.pictures.localize import crop, locate, make_thumbnail

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
