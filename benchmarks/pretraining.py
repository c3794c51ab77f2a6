"""Train a backbone on cells without their labels, as a head start for a training with labels.

    KERAS_BACKEND=jax python benchmarks/pretraining.py --data PACK PACK --output FILE.keras \
        --weights ../shared/weights/mobilenet_v2_1.0_224_slimfolded_notop.weights.h5

SimCLR (Chen et al. 2020, "A simple framework for contrastive learning of visual representations"):
two changes of the same cell are to be more alike than those of different cells (eq. 1, with a
projection of two layers that is thrown away afterwards). For a GPU. The packs (`wbc_keras.prepare
--output PACK`) have cells of one size. FILE is then a `model.weights`: its head, which is random,
is not taken.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from gpu import read_cells
from keras import ops

from wbc_keras.augment import UNIFORMS, draw_uniforms, make_augmentation
from wbc_keras.classifier import build_classifier, set_trainable
from wbc_keras.config import AugmentConfig, ModelConfig
from wbc_keras.training.fitting import save_model

TEMPERATURE = 0.2
CHANGES = AugmentConfig(
    rotation=180,
    shift=0.1,
    zoom=0.3,
    brightness=0.2,
    contrast=0.4,
    hue=20,
    saturation=0.5,
    stain=0.1,
    sharpness=0.5,
    tint=0.2,
)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="packed cells of one size")
    parser.add_argument("--output", required=True, help="where to write the network")
    parser.add_argument("--backbone", default="mobilenetv2")
    parser.add_argument("--weights", default="imagenet", help="as model.weights")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args(argv)
    cells = np.concatenate([np.asarray(read_cells(one).images) for one in arguments.data])
    print(f"{len(cells)} cells of {cells.shape[1]} pixels", flush=True)
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("mixed_bfloat16")
    settings = ModelConfig(arguments.backbone, attention="none", weights=arguments.weights)
    # Two classes: a head of this shape fits no classifier of cells, and is left out when loaded.
    network = build_classifier(settings, num_classes=2, image_size=cells.shape[1:3])
    set_trainable(network, backbone=True, batch_norm=arguments.weights == "none")
    views = two_views(network)
    feed = Feed(cells, arguments.batch)
    steps = arguments.epochs * feed.num_batches
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps - steps // 10, warmup_target=arguments.learning_rate, warmup_steps=steps // 10
    )
    views.compile(keras.optimizers.AdamW(rate, weight_decay=1e-4), contrast, jit_compile=True)
    tell = Tell(network, Path(arguments.output), pictures=feed.num_batches * arguments.batch)
    views.fit(feed, epochs=arguments.epochs, callbacks=[tell], verbose=0, shuffle=False)


def two_views(network: keras.Model) -> keras.Model:
    """Return a network from cells and random numbers to ``(batch, 2, 128)``, of length 1."""
    images = keras.Input(network.input_shape[1:], dtype="uint8")
    uniforms = keras.Input((2 * UNIFORMS,))
    change = make_augmentation(CHANGES)
    both = [change(images, part) for part in ops.split(uniforms, 2, axis=1)]
    pooled = keras.Model(network.input, network.get_layer("pooling").output)
    hidden = keras.layers.Dense(512, "relu")(pooled(ops.concatenate(both, axis=0)))
    projected = keras.layers.Dense(128, dtype="float32")(hidden)
    unit = projected * ops.rsqrt(ops.sum(projected**2, axis=1, keepdims=True) + 1e-6)
    return keras.Model([images, uniforms], ops.stack(ops.split(unit, 2, axis=0), axis=1))


def contrast(_: Any, views: Any) -> Any:
    """Return NT-Xent of each cell, ``(batch,)``, of views ``(batch, 2, channels)``."""
    first, second = views[:, 0], views[:, 1]
    every = ops.concatenate([first, second], axis=0)
    alike = ops.matmul(every, ops.transpose(every)) / TEMPERATURE
    count = ops.shape(every)[0]
    alike = alike - 1e9 * ops.eye(count)  # a view is not held against itself
    partner = ops.roll(ops.arange(count), count // 2)
    losses = keras.losses.sparse_categorical_crossentropy(partner, alike, from_logits=True)
    return ops.mean(ops.reshape(losses, (2, -1)), axis=0)


class Feed(keras.utils.PyDataset):
    """Shuffled batches of cells, each with the random numbers of two changes."""

    def __init__(self, cells: np.ndarray, batch: int) -> None:
        super().__init__(workers=4, max_queue_size=8)
        self.cells, self.batch = cells, min(batch, len(cells))
        self.on_epoch_end()

    @property
    def num_batches(self) -> int:
        return len(self.cells) // self.batch

    def on_epoch_end(self) -> None:
        self.epoch = getattr(self, "epoch", -1) + 1
        self.order = np.random.default_rng(self.epoch).permutation(len(self.cells))
        parts = [draw_uniforms(len(self.cells), seed=s, epoch=self.epoch) for s in (0, 1)]
        self.uniforms = np.concatenate(parts, axis=1)

    def __getitem__(self, index: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        rows = self.order[index * self.batch : (index + 1) * self.batch]
        return (self.cells[rows], self.uniforms[rows]), np.zeros(len(rows), np.float32)


class Tell(keras.callbacks.Callback):
    """After each epoch: print its loss and speed, and keep the network."""

    def __init__(self, network: keras.Model, path: Path, *, pictures: int) -> None:
        super().__init__()
        self.network, self.path, self.pictures = network, path, pictures

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        self.started = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        seconds = time.monotonic() - self.started
        rate = self.pictures / seconds
        print(f"{epoch + 1} loss {logs['loss']:.4f}, {rate:.0f} cells/s", flush=True)
        save_model(self.network, self.path)


if __name__ == "__main__":
    main()
