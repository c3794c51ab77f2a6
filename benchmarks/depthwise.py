"""Compare JAX on a CPU with and without depthwise convolutions written out.

    KERAS_BACKEND=jax python benchmarks/depthwise.py [--backbone mobilenetv2] [--rounds 3]

One network and its weights, trained and asked in both ways, in turns; whole steps of `fit` and
whole batches of `predict` are on the clock. Bar: written out is the quicker one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import keras
import numpy as np

from wbc_keras.classifier import build_classifier
from wbc_keras.config import ModelConfig
from wbc_keras.training.depthwise import with_shifted_sums

STEPS = 3


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="efficientnetb0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    if keras.backend.backend() != "jax":
        parser.error("set KERAS_BACKEND=jax")
    settings = ModelConfig(arguments.backbone, attention="cbam", weights="none")
    size = (arguments.size, arguments.size)
    network = build_classifier(settings, num_classes=8, image_size=size)
    rng = np.random.default_rng(0)
    count = STEPS * arguments.batch
    images = rng.uniform(0, 255, (count, *size, 3)).astype(np.float32)
    labels = rng.integers(0, 8, count)
    options = {"batch_size": arguments.batch, "verbose": 0}
    ways: dict[str, Callable[[], object]] = {}
    for name, one in (("written out", with_shifted_sums(network)), ("left to XLA", network)):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        one.compile(keras.optimizers.AdamW(1e-4), loss, jit_compile=True)
        ways[f"train, {name}"] = partial(one.fit, images, labels, **options)
        ways[f"predict, {name}"] = partial(one.predict, images, **options)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(arguments.rounds + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if number:  # in the first round they are compiled
                rates[name].append(count / (time.perf_counter() - start))
    for name, values in rates.items():
        print(f"{arguments.backbone} {name:21} {statistics.median(values):7.1f} pictures/s")


if __name__ == "__main__":
    main()
