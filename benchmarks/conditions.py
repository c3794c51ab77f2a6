"""How a model holds where pictures are taken otherwise: changes of stain, light, focus, place.

    python benchmarks/conditions.py --run pbc-efficientnetb0-cbam --source ../shared/data/pbc

Cells of the first run's validation split are changed as whole pictures (`roi_changes.py`), found,
cropped and classified as `predict` does it. Each row gives, for every model, accuracy, the
difference to the pictures as they are with its paired interval, and what is left where answers are
withheld: the share accepted and the accuracy of these. Models must know the same classes.
"""

from __future__ import annotations

import argparse
import os
import platform
from collections.abc import Sequence

import cv2
import numpy as np
from roi_changes import CHANGES, Pair, change_all

from wbc_keras.pictures.images import read_image
from wbc_keras.prediction.predictor import Predictions, Predictor
from wbc_keras.runs import open_run
from wbc_keras.selection import select_cells
from wbc_keras.statistics.comparison import compare_models


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, nargs="+", help="trained runs, or models' names")
    parser.add_argument("--source", help="the first run's cells, where they were moved")
    parser.add_argument("--cells", type=int, default=400, metavar="N", help="at most (400)")
    arguments = parser.parse_args(argv)
    selection = select_cells(open_run(arguments.run[0]), data=arguments.source, split="validation")
    rows = np.random.default_rng(0).permutation(len(selection.manifest.table))[: arguments.cells]
    truth = np.array(selection.labels())[rows]
    images = [read_image(selection.manifest.paths()[row]) for row in rows]
    models = {name: Predictor.load(name) for name in arguments.run}
    print(f"{len(rows)} validation cells of {selection.manifest.name}; Python ", end="")
    print(f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    for name, model in models.items():
        print(f"\n{name}\n{'':26}{'accuracy':>9}{'difference':>24}{'accepted':>9}{'right':>7}")
        plain = predict(model, images)
        pairs = [
            (image, box_mask(image, box)) for image, box in zip(images, plain.boxes, strict=True)
        ]
        for change in CHANGES:
            print(
                describe(
                    change, truth, plain, predict(model, change_pictures(pairs, change)), model
                )
            )


def predict(model: Predictor, images: Sequence[np.ndarray]) -> Predictions:
    encoded = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in images]
    return model.predict(encoded)


def box_mask(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return a mask of the cell's box: what the changes keep within the picture."""
    mask = np.zeros(image.shape[:2], np.uint8)
    top, left, bottom, right = (box * np.tile(mask.shape, 2)).round().astype(int)
    mask[max(top, 0) : bottom, max(left, 0) : right] = 255
    return mask


def change_pictures(pairs: Sequence[Pair], change: str) -> list[np.ndarray]:
    return [image for image, _ in change_all(pairs, change)]


def describe(
    change: str, truth: np.ndarray, plain: Predictions, changed: Predictions, model: Predictor
) -> str:
    answers = {"as they are": plain.probabilities, "changed": changed.probabilities}
    (comparison,) = compare_models(truth, answers, model.class_names)
    figure = comparison.figures["accuracy"]
    low, high = figure.interval or (np.nan, np.nan)
    line = f"{change:26}{figure.second:9.3f}{figure.difference:+9.3f} [{low:+.3f}, {high:+.3f}]"
    if changed.accepted is None:
        return line
    right = changed.probabilities.argmax(axis=1) == truth
    return f"{line}{changed.accepted.mean():9.2f}{right[changed.accepted].mean():7.3f}"


if __name__ == "__main__":
    main()
