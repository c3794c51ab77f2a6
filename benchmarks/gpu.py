"""Compare training on a GPU with the same network in PyTorch, on one device in one sitting.

    pip install torch torchvision    # beside "wbc_keras[gpu]" or jax[cuda12]; in this environment
    python benchmarks/gpu.py --data PACK [--engine jax jax_sums] [--network efficientnetb0]

With `--smoke` it goes through all of its own parts on a CPU, and its figures mean nothing then.

Networks: ResNet50 and EfficientNetB0 with CBAM, as many pixels as PACK has, bfloat16 (or float32),
focal loss, AdamW, batches of 128. Ours is compiled by XLA (`jax_sums`: its depthwise convolutions
written out, as in training under JAX on a CPU); PyTorch's is torchvision's network with
the same CBAM and head, in channels last, through `torch.compile` and autocast to bfloat16. All take
the memory they need as they need it, or JAX and TensorFlow would take most of it at once. Sources:
`memory`, one batch that lies on the device; `store`, packed cells (`wbc_keras.prepare --output
PACK`) read batch by batch, ours shuffled and augmented, PyTorch's shuffled alone, which favours it.
Each engine and network is a process of its own, which compiles beside the others and then waits;
only one of them is at work when it is measured, and the order turns with every round. Told are
medians over the rounds. On the clock: whole steps after the first ones. Bars: 1.0 of PyTorch's
rate, and less than 3 % of the time waiting for input, which is told by the rate from the store
against that from memory.
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
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

CLASSES, WARM_UP = 15, 10
SOURCES = ("memory", "store")
Steps = Callable[[str, int], list[float]]  # source, steps -> when each step was done, seconds


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="packed cells")
    engines = ["jax", "jax_sums", "jax_float32", "tensorflow"]
    parser.add_argument("--engine", nargs="+", default=["jax"], choices=engines)
    networks = ["resnet50", "efficientnetb0"]
    parser.add_argument("--network", nargs="+", default=networks, choices=networks)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=200, help="timed steps, in tens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="on a CPU, to see that it runs")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.one:
        work(*arguments.one, arguments)
    else:
        compare(arguments)


def compare(arguments: argparse.Namespace) -> None:
    """Measure all engines, networks and sources in turn, and print medians and ratios."""
    pairs = list(itertools.product(arguments.network, (*arguments.engine, "torch")))
    workers = {pair: Worker(*pair) for pair in pairs}
    for pair, worker in workers.items():
        print(f"{' '.join(pair)}: compiled, {worker.answer()['seconds']:.0f} s", flush=True)
    ways = list(itertools.product(pairs, SOURCES))
    found: dict[Any, list[dict[str, float]]] = {way: [] for way in ways}
    print(f"measuring, {arguments.rounds} rounds", flush=True)
    for number in range(arguments.rounds):
        turn = number % len(ways)
        for pair, source in ways[turn:] + ways[:turn]:
            found[pair, source].append(workers[pair].ask(source))
    for worker in workers.values():
        worker.end()
    medians = {
        way: {name: statistics.median(one[name] for one in rows) for name in rows[0]}
        for way, rows in found.items()
    }
    for network in arguments.network:
        report(network, arguments, medians)


def report(network: str, arguments: argparse.Namespace, medians: dict[Any, Any]) -> None:
    print(f"{network}: engine, source, pictures/s, busy, GB, of PyTorch's, waiting for input")
    for engine, source in itertools.product((*arguments.engine, "torch"), SOURCES):
        of = {name: medians[(network, engine), name]["rate"] for name in SOURCES}
        middle = medians[(network, engine), source]
        ratio = middle["rate"] / medians[(network, "torch"), source]["rate"]
        print(
            f"  {engine:11} {source:6} {middle['rate']:9.1f} {middle['busy']:5.0f} % "
            f"{middle['gigabytes']:6.2f} {ratio:6.3f} "
            + (f"{1 - of['store'] / of['memory']:6.1%}" if source == "store" else "")
        )
    print("  asked: at least 1.0 of PyTorch's, waiting under 3 %", flush=True)


class Worker:
    """A process that trains one network with one engine for as long as it is asked to."""

    def __init__(self, network: str, engine: str) -> None:
        backend = "tensorflow" if engine in ("torch", "tensorflow") else "jax"
        environment = os.environ | {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3"}
        environment |= {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        }
        command = [sys.executable, *sys.argv, "--one", network, engine]
        both = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, **both)

    def ask(self, source: str) -> dict[str, float]:
        """Let it train from a source; return its rate, its memory and how busy the device was."""
        assert self.process.stdin is not None
        print(source, file=self.process.stdin, flush=True)
        return self.answer()

    def answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        raise SystemExit(f"a worker has ended with code {self.process.wait()}; its words are above")

    def end(self) -> None:
        self.process.communicate("")


def work(network: str, engine: str, arguments: argparse.Namespace) -> None:
    """Compile, say so, and then measure each source that is asked for."""
    start = time.perf_counter()
    make = torch_steps if engine == "torch" else keras_steps
    steps, gigabytes = make(network, engine, arguments)
    warm_up, timed = (1, 2) if arguments.smoke else (WARM_UP, arguments.steps)
    for source in SOURCES:
        steps(source, 2)
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
    for line in sys.stdin:
        with Watch() as watch:
            times = steps(line.strip(), warm_up + timed)
        rate = timed * arguments.batch / (times[-1] - times[warm_up - 1])
        figures = {"rate": rate, "busy": watch.busy(), "gigabytes": gigabytes()}
        print(json.dumps(figures), flush=True)


def read_cells(folder: str) -> Any:
    """Return the cells of a pack, of the size that they have there."""
    from wbc_keras.config import RoiConfig
    from wbc_keras.manifest import read_manifest
    from wbc_keras.pictures.prepared import prepare

    about = json.loads((Path(folder) / "about.json").read_text(encoding="utf-8"))
    manifest = read_manifest(folder)
    cropping = about["cropping"]
    roi, size = RoiConfig(**cropping["roi"]), tuple(cropping["image_size"])
    return prepare(manifest, roi=roi, image_size=size).take(manifest.table["file"])


def draw_labels(count: int) -> np.ndarray:
    """Return random labels: what is learned does not matter here."""
    return np.random.default_rng(0).integers(0, CLASSES, count).astype(np.int32)


# Ours


def keras_steps(
    network: str, engine: str, arguments: argparse.Namespace
) -> tuple[Steps, Callable[[], float]]:
    """Return what trains `wbc_keras`'s network, and what tells its memory."""
    import keras

    from wbc_keras.config import AugmentConfig
    from wbc_keras.training.depthwise import with_shifted_sums
    from wbc_keras.training.feeds import TrainingFeed, augmented

    cells = read_cells(arguments.data)
    labels = draw_labels(len(cells))
    keras.utils.set_random_seed(0)
    exact = arguments.smoke or engine.endswith("float32")
    keras.config.set_dtype_policy("float32" if exact else "mixed_bfloat16")
    model = build_keras(network, cells.images.shape[1:3])
    if engine == "jax_sums":
        model = with_shifted_sums(model)
    model = augmented(model, AugmentConfig())
    compile_keras(model)

    def feed() -> TrainingFeed:
        return TrainingFeed(
            cells,
            labels,
            np.ones(len(cells), np.float32),
            augment=AugmentConfig(),
            batch_size=arguments.batch,
            seed=0,
            epochs=range(1_000_000),
        )

    batch = [keras.tree.map_structure(keras.ops.convert_to_tensor, part) for part in feed()[0]]
    same = same_batch(tuple(batch))
    return lambda source, count: fit(model, same if source == "memory" else feed(), count), memory


def build_keras(network: str, size: tuple[int, int]) -> Any:
    from wbc_keras.classifier import build_classifier
    from wbc_keras.config import ModelConfig

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


def fit(model: Any, batches: Any, count: int) -> list[float]:
    """Train for some steps without a halt, and return when the device had done each."""
    import keras

    times: list[float] = []

    class Clock(keras.callbacks.Callback):
        # Called by another thread, with figures that are known, so that no step waits for the last:
        # as in a training of ours, whose callbacks are those of epochs.
        async_safe = True

        def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
            times.append(time.perf_counter())

    model.fit(batches, steps_per_epoch=count, verbose=0, callbacks=[Clock()], shuffle=False)
    return times


def memory() -> float:
    """Return the most that the first device held at once, in GB; on a CPU 0."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return float((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0) / 1e9)
    import tensorflow as tf

    if not tf.config.list_physical_devices("GPU"):
        return 0.0
    return float(tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e9)


# PyTorch


def torch_steps(
    network: str, engine: str, arguments: argparse.Namespace
) -> tuple[Steps, Callable[[], float]]:
    """Return what trains the same network in PyTorch, and what tells its memory."""
    import torch

    cells = read_cells(arguments.data)
    labels = draw_labels(len(cells))
    device = "cpu" if arguments.smoke else "cuda"
    model = build_torch(network).to(device, memory_format=torch.channels_last).train()
    model = model if arguments.smoke else torch.compile(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-4)

    def step(images: Any, targets: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=not arguments.smoke):
            scaled = (images.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
            logits = model(scaled)
        log_p = torch.log_softmax(logits.float(), 1).gather(1, targets[:, None])[:, 0]
        loss = -((1 - log_p.exp()) ** 2 * log_p).mean()  # focal loss, gamma 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss

    def steps(source: str, count: int) -> list[float]:
        read = torch_batches(cells, labels, arguments.batch, device, same=source == "memory")
        times: list[float] = []
        for number, batch in enumerate(itertools.islice(read, count), start=1):
            loss = step(*batch)
            if number % 10 == 0 or number == count:
                loss.item()  # waits until the device has done it
            times.append(time.perf_counter())
        return times

    return steps, lambda: 0.0 if device == "cpu" else torch.cuda.max_memory_allocated() / 1e9


def torch_batches(
    cells: Any, labels: np.ndarray, batch: int, device: str, *, same: bool
) -> Iterator[tuple[Any, Any]]:
    """Yield batches on the device, read and sent by threads while it is at work."""
    import torch

    from wbc_keras.pictures.cells import map_ahead

    rng = np.random.default_rng(0)

    def read(rows: np.ndarray) -> tuple[Any, Any]:
        images = torch.from_numpy(cells.images[rows]).permute(0, 3, 1, 2)
        both = images, torch.from_numpy(labels[rows].astype(np.int64))
        if device == "cuda":
            both = tuple(part.pin_memory() for part in both)
        return tuple(part.to(device, non_blocking=True) for part in both)

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
    """Asks `nvidia-smi` ten times a second how busy the first GPU is."""

    def __enter__(self) -> Watch:
        self.lines: list[str] = []
        self.asking = None
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "-i", "0", "-lms", "100", "--format=csv,noheader,nounits"]
            query.append("--query-gpu=utilization.gpu")
            self.asking = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self.asking:
            self.asking.terminate()
            self.lines = (self.asking.communicate()[0] or "").split()

    def busy(self) -> float:
        """Return the median share of time that it was busy, percent; without `nvidia-smi` 0."""
        return statistics.median(map(float, self.lines)) if self.lines else 0.0


if __name__ == "__main__":
    main()
