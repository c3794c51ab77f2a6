"""Compare the time of heatmaps with that of predicting the same cells, ours and tf-keras-vis's.

    python benchmarks/explain.py

One process, one network, the cells in memory. A round predicts all cells, draws Grad-CAM as
`explain` does, and draws it by tf-keras-vis in batches of 32; in turns. Not on the clock: the first
batch of each, which compiles.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import keras
    import numpy as np

CLASSES = 8
_THEIR_BATCH = 32


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backbone",
        choices=["efficientnetb0", "mobilenetv2", "resnet50"],
        default="mobilenetv2",
        help="network (default: %(default)s)",
    )
    parser.add_argument("--size", type=int, default=96, help="pixels (default: 96)")
    parser.add_argument("--cells", type=int, default=1000, metavar="N", help="default: 1000")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Time the three ways in turns and print the medians and their ratios."""
    import keras
    import numpy as np
    import tensorflow as tf

    from wbc_keras.classifier import build_classifier
    from wbc_keras.config import ModelConfig

    keras.utils.set_random_seed(0)
    size = (arguments.size, arguments.size)
    settings = ModelConfig(backbone=arguments.backbone, weights="none")
    model = build_classifier(settings, num_classes=CLASSES, image_size=size)
    images = np.random.default_rng(0).integers(0, 256, (arguments.cells, *size, 3), np.uint8)
    classes = [number % CLASSES for number in range(arguments.cells)]
    ways = make_ways(model)
    print(
        f"{arguments.backbone}, {size[0]}x{size[1]}, {arguments.cells} cells; TensorFlow "
        f"{tf.__version__}, Keras {keras.__version__}, Python {platform.python_version()}, "
        f"{platform.machine()}, {os.cpu_count()} cores"
    )
    for way in ways.values():
        way(images[:64], classes[:64])
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            started = time.perf_counter()
            way(images, classes)
            seconds[name].append(time.perf_counter() - started)
    predicting = statistics.median(seconds["predicting"])
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"{name:14} {middle:8.2f} s  {middle / predicting:6.2f} times predicting", flush=True)
    print("asked: Grad-CAM in at most 4 times the time of predicting")


def make_ways(
    model: keras.Model,
) -> dict[str, Callable[[np.ndarray, list[int]], np.ndarray]]:
    """Return the ways to go through pictures, by name."""
    import numpy as np
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.scores import CategoricalScore

    from wbc_keras.gradcam import FEATURES, Heatmaps

    theirs = Gradcam(model, clone=False)

    def draw_theirs(images: np.ndarray, classes: list[int]) -> np.ndarray:
        parts = [
            theirs(
                CategoricalScore(classes[start : start + _THEIR_BATCH]),
                images[start : start + _THEIR_BATCH].astype(np.float32),
                penultimate_layer=FEATURES,
                seek_penultimate_conv_layer=False,
            )
            for start in range(0, len(images), _THEIR_BATCH)
        ]
        return np.concatenate(parts)

    return {
        "predicting": lambda images, _: model.predict(images, batch_size=64, verbose=0),
        "Grad-CAM": Heatmaps(model).draw,
        "tf-keras-vis": draw_theirs,
    }


if __name__ == "__main__":
    main()
