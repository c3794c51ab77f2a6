"""Compare a SavedModel's way from bytes to decision with the bare backbone on ready tensors.

    python benchmarks/serving.py --data ../shared/data/pbc

One process; EfficientNetB0 with CBAM and random weights, exported and loaded again. A round puts
the same pictures through the bare network, cropped and in memory, through ``serving_default`` as
bytes, and through ``explain``, in turns, so that all meet the same load. Not on the clock: the
first three calls of each, which compile.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras

CLASSES = 8
_WARM = 3


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of JPEGs or PNGs, looked through")
    parser.add_argument(
        "--backbone",
        choices=["efficientnetb0", "mobilenetv2", "resnet50"],
        default="efficientnetb0",
        help="network (default: %(default)s)",
    )
    parser.add_argument("--size", type=int, default=96, help="pixels (default: 96)")
    parser.add_argument("--rounds", type=int, default=40, metavar="N", help="default: 40")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Time the three ways at batch 1 and 32 and print medians and what is asked of them."""
    import keras
    import tensorflow as tf

    size = (arguments.size, arguments.size)
    model, loaded = build(arguments.backbone, size)
    found = (path for path in Path(arguments.data).rglob("*") if path.suffix in (".jpg", ".png"))
    paths = sorted(found)
    encoded = [path.read_bytes() for path in paths[:: max(1, len(paths) // 32)][:32]]
    print(
        f"{arguments.backbone}, {size[0]}x{size[1]}; TensorFlow {tf.__version__}, Keras "
        f"{keras.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"{os.cpu_count()} cores; {len(paths)} pictures at hand"
    )
    for batch, rounds in ((1, 4 * arguments.rounds), (32, arguments.rounds)):
        bare, serve, explain = time_ways(model, loaded.signatures, encoded[:batch], rounds=rounds)
        print(
            f"batch {batch}: bare {bare:.1f} ms, serving_default {serve:.1f}, explain {explain:.1f}"
        )
        if batch == 1:
            print(f"  bytes to decision costs {serve - bare:.1f} ms more  (asked: at most 10)")
        else:
            print(f"  bytes to decision costs {serve / bare - 1:.1%} more  (asked: at most 20 %)")
        print(f"  explain is {explain / serve:.2f} times serving_default  (asked: at most 3)")


def build(backbone: str, size: tuple[int, int]) -> tuple[keras.Model, Any]:
    """Return a network of random weights, and its export, loaded."""
    import keras
    import numpy as np
    import tensorflow as tf

    from wbc_keras.classifier import build_classifier
    from wbc_keras.config import ModelConfig, RoiConfig
    from wbc_keras.prediction.decisions import Decisions
    from wbc_keras.prediction.inference import CellClassifier
    from wbc_keras.prediction.novelty import fit_novelty

    keras.utils.set_random_seed(0)
    settings = ModelConfig(backbone=backbone, weights="none")
    model = build_classifier(settings, num_classes=CLASSES, image_size=size)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2000, model.get_layer("pooling").output.shape[1]))
    classifier = CellClassifier(
        model,
        class_names=[f"class {number}" for number in range(CLASSES)],
        roi=RoiConfig(),
        image_size=size,
        decisions=Decisions(1.3, 0.95, 0.2, None, None, 100),
        novelty=fit_novelty(features[100:], np.arange(1900) % CLASSES, validation=features[:100]),
    )
    with tempfile.TemporaryDirectory() as folder:
        classifier.save(folder)
        return model, tf.saved_model.load(folder)


def time_ways(
    model: keras.Model, signatures: Any, encoded: Sequence[bytes], *, rounds: int
) -> list[float]:
    """Return the median milliseconds of the bare network, of serving_default and of explain."""
    import numpy as np
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, *model.input.shape[1:]], tf.float32)])
    def bare(images: tf.Tensor) -> tf.Tensor:
        return model(images, training=False)

    shape = (len(encoded), *model.input.shape[1:])
    images = tf.constant(np.random.default_rng(0).uniform(0, 255, shape), tf.float32)
    image_bytes = tf.constant(list(encoded))
    ways: list[Callable[[], Any]] = [
        lambda: bare(images),
        lambda: signatures["serving_default"](image_bytes=image_bytes),
        lambda: signatures["explain"](image_bytes=image_bytes),
    ]
    seconds: list[list[float]] = [[] for _ in ways]
    for number in range(_WARM + rounds):
        for way, taken in zip(ways, seconds, strict=True):
            started = time.perf_counter()
            way()
            if number >= _WARM:
                taken.append(time.perf_counter() - started)
    return [1000 * statistics.median(taken) for taken in seconds]


if __name__ == "__main__":
    main()
