"""Compare the step rate of training through wbc_keras with the bare Keras model fed from memory.

    python benchmarks/training.py

One process, one compiled network. A round trains it twice through ``model.fit``: on the batches
that `train` makes (shuffled, augmented), and on one batch of the same shape that lies in memory.
The order turns with every round, so that a machine that slows down favours neither. Not on the
clock: reading and cropping the cells, the first steps of each fit, validation, callbacks.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wbc_keras.config import Config, load_config

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

WARM_UP = 5  # steps of each fit before the clock starts


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backbone",
        choices=["efficientnetb0", "mobilenetv2", "resnet50"],
        default="efficientnetb0",
        help="network to train (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        default="synthetic",
        metavar="PATH",
        help="labelled cells, as for train (default: drawn cells)",
    )
    parser.add_argument(
        "--steps", type=int, default=30, metavar="N", help="timed steps a fit (default: 30)"
    )
    parser.add_argument(
        "--rounds", type=int, default=7, metavar="N", help="rounds of two fits (default: 7)"
    )
    arguments = parser.parse_args(argv)
    # Before TensorFlow is loaded, or its start-up messages would bury the figures.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    compare(make_config(arguments), steps=arguments.steps, rounds=arguments.rounds)


def make_config(arguments: argparse.Namespace) -> Config:
    """Return the default settings (96x96, batch 32, CBAM, focal loss) with random weights."""
    return load_config(
        overrides=[
            f"data.source={arguments.data}",
            f"model.backbone={arguments.backbone}",
            "model.weights=none",
            "train.head_epochs=0",
            "train.freeze_batch_norm=false",
        ]
    )


def compare(config: Config, *, steps: int, rounds: int) -> None:
    """Time both ways of feeding the network and print pictures a second and their ratio."""
    import tensorflow as tf

    ours, classes = make_our_batches(config)
    # What a network costs that never waits for its input: the same batch again and again.
    bare = tf.data.Dataset.from_tensors(next(iter(ours))).repeat()
    feeds = {"wbc_keras": ours, "bare Keras": bare}
    model = build_model(config, classes)
    print(describe(config, model, steps=steps))
    for batches in feeds.values():
        time_steps(model, batches, steps=1)  # compiles
    print("pictures/s  wbc_keras  bare Keras  ratio", flush=True)
    ratios = []
    for number in range(1, rounds + 1):
        names = list(feeds) if number % 2 else list(feeds)[::-1]
        pictures = config.train.batch_size * steps
        rates = {name: pictures / time_steps(model, feeds[name], steps=steps) for name in names}
        ratios.append(rates["wbc_keras"] / rates["bare Keras"])
        print(
            f"round {number:<4}  {rates['wbc_keras']:9.1f}  {rates['bare Keras']:10.1f}  "
            f"{ratios[-1]:.3f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.3f} (asked: at least 0.95)")


def describe(config: Config, model: keras.Model, *, steps: int) -> str:
    """Return what is measured, and on which machine."""
    import keras
    import tensorflow as tf

    from wbc_keras.training.devices import find_devices

    devices = find_devices(config.train)
    height, width = config.data.image_size
    return (
        f"{config.model.backbone} + {config.model.attention}, {model.count_params():,} parameters, "
        f"{height}x{width}, batches of {config.train.batch_size}, {steps} steps a fit\n"
        f"TensorFlow {tf.__version__}, Keras {keras.__version__}, "
        f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{devices}, {devices.precision}, XLA {'on' if devices.jit_compile else 'off'}"
    )


def make_our_batches(config: Config) -> tuple[tf.data.Dataset, int]:
    """Return endless training batches as `fitting.fit` makes them, and the number of classes."""
    from wbc_keras.pipeline import make_training_batches
    from wbc_keras.training.data_plan import plan_data
    from wbc_keras.training.fitting import cell_weights

    plan = plan_data(config)
    train = plan.load("train")
    classes = len(plan.class_names)
    batches = make_training_batches(
        train.cells,
        train.labels,
        cell_weights(train.labels, config=config, classes=classes),
        augment=config.augment,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
        epochs=range(1_000_000),
    )
    return batches, classes


def build_model(config: Config, classes: int) -> keras.Model:
    """Return the network of ``config`` with optimizer, loss and metrics as in training."""
    import keras

    from wbc_keras.classifier import build_classifier
    from wbc_keras.losses import MacroF1, build_loss
    from wbc_keras.training.devices import find_devices

    settings = config.train
    devices = find_devices(settings)
    keras.utils.set_random_seed(settings.seed)
    keras.config.set_dtype_policy(devices.precision)
    model = build_classifier(config.model, num_classes=classes, image_size=config.data.image_size)
    model.compile(
        keras.optimizers.AdamW(settings.learning_rate, weight_decay=settings.weight_decay),
        build_loss(config.loss, [1] * classes),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy"), MacroF1(classes)],
        jit_compile=devices.jit_compile,
        auto_scale_loss=False,
    )
    return model


def time_steps(model: keras.Model, batches: tf.data.Dataset, *, steps: int) -> float:
    """Train on ``batches`` and return the seconds of ``steps`` steps after the warm-up."""
    import keras

    class Clock(keras.callbacks.Callback):
        """Notes the time after the warm-up and after the last step."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            if batch + 1 in (WARM_UP, WARM_UP + steps):
                float((logs or {})["loss"])  # a GPU answers before it is done: wait for it
                self.times.append(time.perf_counter())

    clock = Clock()
    model.fit(
        batches,
        steps_per_epoch=WARM_UP + steps,
        shuffle=False,
        verbose=0,
        callbacks=[clock],
    )
    start, stop = clock.times
    return stop - start


if __name__ == "__main__":
    main()
