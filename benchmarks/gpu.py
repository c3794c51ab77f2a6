"""Compare training on a GPU with the same network in PyTorch, on one device in one sitting.

    pip install torch torchvision    # beside "wbc_keras[gpu]" or jax[cuda12]; in this environment
    python benchmarks/gpu.py --data PACK [--engine jax tensorflow] [--network resnet50 ...]

THIS SCRIPT HAS NOT BEEN RUN ON A GPU: none was at hand when it was written. With `--smoke` it goes
through all of its own parts on a CPU, at 64 pixels, and its figures mean nothing then.

Networks: ResNet50 and EfficientNetB0 with CBAM, 224 px, bfloat16, focal loss, AdamW, batches of
128. Ours is compiled by XLA; PyTorch's is torchvision's network with the same CBAM and head, in
channels last, through `torch.compile` and autocast to bfloat16. All take the memory they need as
they need it, or JAX and TensorFlow would take most of it at once. Sources: `memory`, one batch that
lies on the device; `store`, packed cells (`wbc_keras.prepare --output PACK`) read batch by batch,
ours shuffled and augmented, PyTorch's shuffled alone, which favours it. Every measurement is a
process of its own; a round takes each once, and the order turns with every round; told are medians
over the rounds. On the clock: whole steps after the first ones. Bars: 1.0 of PyTorch's rate, and
less than 3 % of the time waiting for input, which is told by the rate from the store against that
from memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, WARM_UP = 15, 20


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="packed cells of 224x224 pixels")
    parser.add_argument("--engine", nargs="+", default=["jax"], choices=["jax", "tensorflow"])
    networks = ["resnet50", "efficientnetb0"]
    parser.add_argument("--network", nargs="+", default=networks, choices=networks)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="timed steps, in tens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="on a CPU, to see that it runs")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        print(json.dumps(measure(*arguments.one, arguments)), flush=True)
        os._exit(0)  # the training beside has no end of its own
    for network in arguments.network:
        compare(network, arguments)


def compare(network: str, arguments: argparse.Namespace) -> None:
    """Measure all engines and sources of a network in turn, and print medians and ratios."""
    ways = [(e, s) for e in (*arguments.engine, "torch") for s in ("memory", "store")]
    found: dict[tuple[str, str], list[dict[str, float]]] = {way: [] for way in ways}
    for number in range(arguments.rounds):
        turn = number % len(ways)
        for way in ways[turn:] + ways[:turn]:
            found[way].append(run_one(network, way))
    medians = {
        way: {name: statistics.median(one[name] for one in found[way]) for name in found[way][0]}
        for way in ways
    }
    rates = {way: medians[way]["rate"] for way in ways}
    print(f"{network}: engine, source, pictures/s, busy, GB, of PyTorch's, waiting for input")
    for engine, source in ways:
        middle = medians[engine, source]
        waiting = 1 - rates[engine, "store"] / rates[engine, "memory"]
        print(
            f"  {engine:10} {source:6} {rates[engine, source]:9.1f} {middle['busy']:5.0f} % "
            f"{middle['gigabytes']:6.2f} {rates[engine, source] / rates['torch', source]:6.3f} "
            + (f"{waiting:6.1%}" if source == "store" else "")
        )
    print("  asked: at least 1.0 of PyTorch's, waiting under 3 %", flush=True)


def run_one(network: str, way: tuple[str, str]) -> dict[str, float]:
    """Measure one way in a process of its own, which gives the device back when it ends."""
    backend = way[0] if way[0] != "torch" else "tensorflow"
    environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment |= {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
    command = [sys.executable, *sys.argv, "--one", network, *way]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(
    network: str, engine: str, source: str, arguments: argparse.Namespace
) -> dict[str, float]:
    """Return the pictures a second of one way, how busy the device was, and its memory."""
    make_steps = torch_steps if engine == "torch" else keras_steps
    steps = make_steps(network, source, arguments)
    timed = 2 if arguments.smoke else arguments.steps
    for _ in range(1 if arguments.smoke else WARM_UP):
        next(steps)
    with Watch() as watch:
        start = time.perf_counter()
        for _ in range(timed):
            next(steps)
        seconds = time.perf_counter() - start
    return {"rate": timed * arguments.batch / seconds, **watch.figures()}


def describe_source(arguments: argparse.Namespace) -> tuple[Any, np.ndarray]:
    """Return the packed cells and random labels: what is learned does not matter here."""
    from wbc_keras.config import RoiConfig
    from wbc_keras.manifest import read_manifest
    from wbc_keras.pictures.prepared import prepare

    about = json.loads((Path(arguments.data) / "about.json").read_text(encoding="utf-8"))
    manifest = read_manifest(arguments.data)
    cropping = about["cropping"]
    roi, size = RoiConfig(**cropping["roi"]), tuple(cropping["image_size"])
    cells = prepare(manifest, roi=roi, image_size=size).take(manifest.table["file"])
    return cells, np.random.default_rng(0).integers(0, CLASSES, len(cells)).astype(np.int32)


# Ours


def keras_steps(network: str, source: str, arguments: argparse.Namespace) -> Iterator[None]:
    """Yield after each training step of `wbc_keras`, once the device has done it."""
    import keras

    from wbc_keras.config import AugmentConfig
    from wbc_keras.training.feeds import TrainingFeed, augmented

    cells, labels = describe_source(arguments)
    model = augmented(build_keras(network, cells.images.shape[1:3], arguments), AugmentConfig())
    compile_keras(model)
    feed = TrainingFeed(
        cells,
        labels,
        np.ones(len(cells), np.float32),
        augment=AugmentConfig(),
        batch_size=arguments.batch,
        seed=0,
        epochs=range(1_000_000),
    )
    if source == "memory":
        batch = [keras.tree.map_structure(keras.ops.convert_to_tensor, part) for part in feed[0]]
        yield from fit_in_thread(model, same_batch(tuple(batch)))
    else:
        yield from fit_in_thread(model, feed)


def build_keras(network: str, size: tuple[int, int], arguments: argparse.Namespace) -> Any:
    import keras

    from wbc_keras.classifier import build_classifier
    from wbc_keras.config import ModelConfig

    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32" if arguments.smoke else "mixed_bfloat16")
    settings = ModelConfig(backbone=network, attention="cbam", weights="none")
    return build_classifier(settings, num_classes=CLASSES, image_size=size)


def compile_keras(model: Any) -> None:
    import keras

    from wbc_keras.config import LossConfig
    from wbc_keras.losses import build_loss

    optimizer = keras.optimizers.AdamW(1e-4, weight_decay=1e-4)
    model.compile(optimizer, build_loss(LossConfig(), [1] * CLASSES), jit_compile=True)


def same_batch(batch: tuple[Any, ...]) -> Any:
    """Return a data set that gives the same batch, which lies on the device, again and again."""
    import keras

    class Same(keras.utils.PyDataset):
        num_batches = None

        def __getitem__(self, index: int) -> tuple[Any, ...]:
            return batch

    return Same()


def fit_in_thread(model: Any, batches: Any) -> Iterator[None]:
    """Let ``fit`` run beside without a halt, and yield for each step that the device has done."""
    import keras

    done = threading.Semaphore(0)

    class Count(keras.callbacks.Callback):
        # Called by another thread, with figures that are known, so that no step waits for the last:
        # as in a training of ours, whose callbacks are those of epochs.
        async_safe = True

        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            done.release()

    options = {"steps_per_epoch": 1_000_000, "verbose": 0, "callbacks": [Count()], "shuffle": False}
    threading.Thread(target=model.fit, args=(batches,), kwargs=options, daemon=True).start()
    while True:
        done.acquire()
        yield


# PyTorch


def torch_steps(network: str, source: str, arguments: argparse.Namespace) -> Iterator[None]:
    """Yield after each training step of the same network in PyTorch.

    Every tenth waits until the device has done it.
    """
    import torch

    cells, labels = describe_source(arguments)
    device = "cpu" if arguments.smoke else "cuda"
    model = build_torch(network).to(device, memory_format=torch.channels_last).train()
    model = model if arguments.smoke else torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-4)
    read = torch_batches(cells, labels, arguments.batch, device, same=source == "memory")
    for number, (images, targets) in enumerate(read):
        with torch.autocast(device, torch.bfloat16, enabled=not arguments.smoke):
            scaled = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
            logits = model(scaled)
        log_p = torch.log_softmax(logits.float(), 1).gather(1, targets[:, None])[:, 0]
        loss = -((1 - log_p.exp()) ** 2 * log_p).mean()  # focal loss, gamma 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if number % 10 == 9:
            loss.item()
        yield


def torch_batches(
    cells: Any, labels: np.ndarray, batch: int, device: str, *, same: bool
) -> Iterator[tuple[Any, Any]]:
    """Yield batches on the device, read and sent by threads while it is at work."""
    import torch

    from wbc_keras.pictures.cells import map_ahead

    rng = np.random.default_rng(0)

    def read(rows: np.ndarray) -> tuple[Any, Any]:
        images = torch.from_numpy(cells.images[rows]).permute(0, 3, 1, 2)
        pinned = images.pin_memory() if device == "cuda" else images
        targets = torch.from_numpy(labels[rows].astype(np.int64))
        return pinned.to(device, non_blocking=True), targets.to(device)

    if same:
        one = read(np.arange(batch))
        while True:
            yield one
    draws = (rng.integers(0, len(cells), batch) for _ in itertools.count())
    yield from map_ahead(read, draws)


def build_torch(network: str) -> Any:
    """Return torchvision's network with CBAM and a head as `build_classifier` has them."""
    from torch import nn
    from torchvision import models

    if network == "resnet50":
        base = models.resnet50(weights=None)
        body, channels = nn.Sequential(*list(base.children())[:-2]), 2048
    else:
        body, channels = models.efficientnet_b0(weights=None).features, 1280
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3))
    return nn.Sequential(body, make_torch_cbam(channels), pool, nn.Linear(channels, CLASSES))


def make_torch_cbam(channels: int, ratio: int = 16, kernel: int = 7) -> Any:
    """Return CBAM (Woo et al. 2018) in PyTorch."""
    import torch
    from torch import nn

    class Cbam(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            reduce = nn.Linear(channels, channels // ratio, bias=False)
            expand = nn.Linear(channels // ratio, channels, bias=False)
            self.mlp = nn.Sequential(reduce, nn.ReLU(), expand)
            self.convolution = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

        def forward(self, x: Any) -> Any:
            weights = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))
            x = x * weights[:, :, None, None]
            both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
            return x * torch.sigmoid(self.convolution(both))

    return Cbam()


# The device


class Watch:
    """Asks `nvidia-smi` each second how busy the first GPU is; without it, figures are 0."""

    def __enter__(self) -> Watch:
        self.lines: list[str] = []
        self.asking = None
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "-i", "0", "-l", "1", "--format=csv,noheader,nounits"]
            query.append("--query-gpu=utilization.gpu,memory.used")
            self.asking = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.asking:
            self.asking.terminate()
            self.lines = (self.asking.communicate()[0] or "").split("\n")

    def figures(self) -> dict[str, float]:
        """Return the median share of time that it was busy, percent, and its most memory."""
        rows = [[float(part) for part in line.split(",")] for line in self.lines if "," in line]
        if not rows:
            return {"busy": 0.0, "gigabytes": 0.0}
        busy, memory = zip(*rows, strict=True)
        return {"busy": statistics.median(busy), "gigabytes": max(memory) / 1e3}


if __name__ == "__main__":
    main()
