"""What a training runs on: one device, or several that share each batch.

Several are served by `tf.distribute.MirroredStrategy` under TensorFlow, by
`keras.distribution.DataParallel` under JAX, also over several hosts (`hosts`). The batch and the
learning rate are those of the settings, whatever the number.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from wbc_keras.config import TrainConfig
from wbc_keras.errors import ConfigError
from wbc_keras.pictures.cells import Cells
from wbc_keras.training.feeds import predict_all
from wbc_keras.training.hosts import ALONE, Hosts


@dataclass(frozen=True)
class Devices:
    """The devices of a training, of all processes together.

    Attributes:
        kind: "CPU", "GPU" or "TPU".
        count: how many there are.
        precision: Keras's dtype policy.
        jit_compile: whether XLA compiles the step.
        strategy: Keras's distribution or TensorFlow's strategy that shares the batches, None for
            one device.
        hosts: this process among those of the training.
    """

    kind: str
    count: int
    precision: str
    jit_compile: bool
    strategy: Any = None
    hosts: Hosts = ALONE

    def __str__(self) -> str:
        """Return what the banner says."""
        over = f" of {self.hosts.count} processes" if self.hosts.count > 1 else ""
        return self.kind if self.count == 1 else f"{self.count} {self.kind}{over}"

    def scope(self) -> AbstractContextManager[Any]:
        """Return what a network is built, compiled and trained within."""
        return contextlib.nullcontext() if self.strategy is None else self.strategy.scope()

    def require_shares(self, batch_size: int, cells: int) -> None:
        """Raise ConfigError if a batch cannot be shared out evenly."""
        size = min(batch_size, cells)
        if size % self.count:
            less = f" (there are but {cells} cells to train on)" if cells < batch_size else ""
            raise ConfigError(
                f"train.batch_size: a batch of {size}{less} cannot be shared by {self.count} "
                f"devices; choose a multiple of {self.count}, or fewer devices (train.devices)"
            )

    def answerer(self, model: keras.Model, batch_size: int) -> Callable[[Cells], np.ndarray]:
        """Return what gives a model's outputs for cells, in their order and each once.

        On several hosts all of them must call it, and get the same.
        """
        if self.strategy is None:
            return lambda cells: predict_all(model, cells, batch_size=batch_size)
        size = -(-batch_size // self.count) * self.count
        on_jax = keras.backend.backend() == "jax"
        step = _answer_jax(self, model) if on_jax else _answer_tensorflow(model)

        def ask(cells: Cells) -> np.ndarray:
            starts = range(0, len(cells), size)
            # A batch that is not full is filled up with the first cells: shares must be even.
            rows = [np.arange(start, start + size) % len(cells) for start in starts]
            return np.concatenate([step(cells, part) for part in rows])[: len(cells)]

        return ask


def find_devices(settings: TrainConfig) -> Devices:
    """Return the devices that the settings ask for.

    Measured on CPUs under TensorFlow: bfloat16 and XLA both train slower there, so `auto` uses them
    on a GPU only. JAX is nothing without XLA.

    Raises:
        ConfigError: there are not as many.
    """
    find = _find_jax if keras.backend.backend() == "jax" else _find_tensorflow
    return find(settings)


def _count(settings: TrainConfig, there: int, kind: str) -> int:
    if settings.devices == "auto":
        return there
    if settings.devices > there:
        raise ConfigError(
            f"train.devices: {settings.devices} are asked for, and this host has {there} {kind}; "
            "auto takes all that there are"
        )
    return settings.devices


def _precision(settings: TrainConfig, kind: str) -> str:
    if settings.precision != "auto":
        return settings.precision
    return "float32" if kind == "CPU" else "mixed_bfloat16"


def _find_tensorflow(settings: TrainConfig) -> Devices:
    import tensorflow as tf

    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    names = [device.name for device in tf.config.list_logical_devices(kind)]
    count = _count(settings, len(names), kind)
    strategy = tf.distribute.MirroredStrategy(names[:count]) if count > 1 else None
    jit = kind == "GPU" if settings.jit_compile == "auto" else settings.jit_compile
    return Devices(kind, count, _precision(settings, kind), jit, strategy=strategy)


def _find_jax(settings: TrainConfig) -> Devices:
    import jax

    kind = jax.default_backend().upper()
    hosts = Hosts(jax.process_index(), jax.process_count())
    each = _count(settings, jax.local_device_count(), kind)
    names = [
        f"{device.platform}:{device.id}"
        for index in range(hosts.count)
        for device in jax.local_devices(process_index=index)[:each]
    ]
    # Each process gives its own share of a batch: nothing is left for Keras to share out.
    strategy = (
        keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
        if len(names) > 1
        else None
    )
    jit = True if settings.jit_compile == "auto" else settings.jit_compile
    precision = _precision(settings, kind)
    return Devices(kind, len(names), precision, jit, strategy=strategy, hosts=hosts)


def _answer_tensorflow(model: keras.Model) -> Any:
    import tensorflow as tf

    # On the first device alone: it is a small part of the work, and no batch is left without cells.
    call = tf.function(lambda images: model(images, training=False), reduce_retracing=True)

    def step(cells: Cells, rows: np.ndarray) -> np.ndarray:
        return np.asarray(call(tf.constant(cells.images[rows], tf.float32)))

    return step


def _answer_jax(devices: Devices, model: keras.Model) -> Any:
    import jax

    layout = devices.strategy.get_data_layout((1, 1, 1, 1)).backend_layout
    whole = jax.sharding.NamedSharding(layout.mesh, jax.sharding.PartitionSpec())

    def call(trainable: Any, others: Any, images: Any) -> Any:
        return model.stateless_call(trainable, others, images, training=False)[0]

    compiled = jax.jit(call, out_shardings=whole)

    def step(cells: Cells, rows: np.ndarray) -> np.ndarray:
        mine = rows[devices.hosts.share(len(rows))]
        images = cells.images[mine].astype(np.float32)
        shared = jax.make_array_from_process_local_data(layout, images)
        parts = (model.trainable_variables, model.non_trainable_variables)
        state = [[variable.value for variable in part] for part in parts]
        return np.asarray(compiled(*state, shared))

    return step
