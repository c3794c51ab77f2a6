"""Run as a script: `wbc_keras.train` with a network that compiles in a second.

Environment: TINY_CPUS splits the processor into so many devices (TensorFlow; JAX has XLA_FLAGS),
TINY_DUMP is a folder for the weights and the history that each process ends with, TINY_FAIL is the
number of the process whose disk gives no more.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np


def build(settings: Any, *, num_classes: int, image_size: tuple[int, int], **_: Any) -> Any:
    """Return a classifier in small, its layers named as `build_classifier` names them."""
    import keras

    images = keras.Input((*image_size, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="input_rule")(images)
    # A bias before a normalisation has no gradient but rounding errors, which Adam makes steps of.
    x = keras.layers.Conv2D(8, 3, strides=4, use_bias=False, name="conv")(x)
    x = keras.layers.BatchNormalization(name="norm", momentum=0.9)(x)
    x = keras.layers.Activation("relu", name="features")(x)
    x = keras.layers.GlobalAveragePooling2D(name="pooling")(x)
    x = keras.layers.Dropout(settings.dropout, name="dropout")(x)
    return keras.Model(images, keras.layers.Dense(num_classes, name="logits")(x))


def dump(folder: Path, model: Any, history: Any) -> None:
    """Write what this process ended with."""
    index = os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "0")
    columns = {name: history[name].to_numpy() for name in history if name != "phase"}
    weights = {f"w{i}": np.asarray(weight) for i, weight in enumerate(model.get_weights())}
    np.savez(folder / f"{index}.npz", **columns, **weights)


def main() -> int:
    """Train; the network takes its place when the backend is loaded, and no sooner."""
    from wbc_keras import commands

    load = commands.load_backend

    def load_backend() -> None:
        load()
        prepare_tiny()

    commands.load_backend = load_backend
    from wbc_keras.train import main as train

    return train(sys.argv[1:])


def prepare_tiny() -> None:
    from wbc_keras import classifier
    from wbc_keras.training import fitting

    if classifier.build_classifier is build:
        return
    if cpus := os.environ.get("TINY_CPUS"):
        import tensorflow as tf

        (cpu,) = tf.config.list_physical_devices("CPU")
        parts = [tf.config.LogicalDeviceConfiguration()] * int(cpus)
        tf.config.set_logical_device_configuration(cpu, parts)
    classifier.build_classifier = build
    original = fitting.fit

    def fit(model: Any, **options: Any) -> Any:
        if os.environ.get("TINY_FAIL") == os.environ.get("KERAS_DISTRIBUTION_PROCESS_ID", "0"):
            # In words that JAX has, too, for the loss of another process.
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable", "images.bin")
        history = original(model, **options)
        if folder := os.environ.get("TINY_DUMP"):
            dump(Path(folder), model, history)
        return history

    fitting.fit = fit


if __name__ == "__main__":
    raise SystemExit(main())
