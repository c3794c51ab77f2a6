"""Training and prediction without `tf.data`: batches as NumPy, changed on the device.

`TrainingFeed` gives what `drawing` drew for a step, its cells as they lie in the store; the network
of `augmented` changes them in the training step itself, where XLA compiles it with the rest.
"""

from __future__ import annotations

import functools
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import keras
import numpy as np

from wbc_keras.augment import UNIFORMS, make_augmentation
from wbc_keras.config import AugmentConfig
from wbc_keras.pictures.cells import Cells
from wbc_keras.training.drawing import Epoch, count_steps, is_mixed, make_draw
from wbc_keras.training.hosts import ALONE, Hosts
from wbc_keras.training.mixing import MixImages, mix_targets

_AHEAD = 2  # batches that are read while the device is at work

Batch = tuple[tuple[np.ndarray, ...], np.ndarray, np.ndarray]


def augmented(network: keras.Model, settings: AugmentConfig) -> keras.Model:
    """Return the network behind its augmentation, which holds no weights: it is trained as one.

    Args:
        network: takes float32 ``(batch, height, width, 3)``, RGB 0-255.
        settings: strengths of the changes.

    Returns:
        a model of what `TrainingFeed` gives: images uint8, ``uniforms`` ``(batch, 20)`` and, where
        cells are mixed, ``mixing`` ``(batch, 4)``.
    """
    images = keras.Input(network.input_shape[1:], dtype="uint8", name="stored")
    inputs = [images, keras.Input((UNIFORMS,), dtype="float32", name="uniforms")]
    changed = make_augmentation(settings)(*inputs)
    if is_mixed(settings):
        inputs.append(keras.Input((4,), dtype="float32", name="mixing"))
        changed = MixImages(name="mixed")(changed, inputs[-1])
    return keras.Model(inputs, network(changed), name=f"augmented_{network.name}")


class TrainingFeed(keras.utils.PyDataset):
    """The shuffled batches of the given epochs, one after the other, to be changed on the device.

    Its steps are those of `pipeline.make_training_batches`, whose arguments it takes.

    Args:
        cells: the training cells.
        labels: int32 ``(n,)``, or float32 ``(n, classes)``, one-hot, which mixing needs.
        weights: float32 ``(n,)``, each cell's weight in the loss.
        augment: what is mixed; single cells are changed by `augmented`.
        batch_size: cells in a batch, of all processes together.
        seed: with the epoch's number, decides order and changes.
        epochs: numbers of the epochs, from 0.
        weights_from: the first epoch in which the weights count.
        sampling_balance: as there.
        hosts: of each batch, only this process's share is given.
    """

    def __init__(
        self,
        cells: Cells,
        labels: np.ndarray,
        weights: np.ndarray,
        *,
        augment: AugmentConfig,
        batch_size: int,
        seed: int,
        epochs: range,
        weights_from: int = 0,
        sampling_balance: float = 0.0,
        hosts: Hosts = ALONE,
    ) -> None:
        super().__init__()
        batch_size = min(batch_size, len(cells))
        self.steps = count_steps(len(cells), batch_size)
        self._cells, self._epochs, self._mixes = cells, epochs, is_mixed(augment)
        self._mine = hosts.share(batch_size)
        draw = make_draw(
            np.asarray(labels, np.float32 if labels.ndim == 2 else np.int32),
            np.asarray(weights, np.float32),
            augment=augment,
            shape=(self.steps, batch_size),
            seed=seed,
            weights_from=weights_from,
            sampling_balance=sampling_balance,
        )
        self._lock = threading.Lock()
        self._draw = functools.lru_cache(maxsize=2)(draw)
        self._pool = ThreadPoolExecutor(_AHEAD)
        self._waiting: dict[int, Future[Batch]] = {}

    @property
    def num_batches(self) -> None:
        """None: to Keras it has no end, so that batches are numbered through all epochs."""
        return None

    def __getitem__(self, index: int) -> Batch:
        # On a GPU Keras reads one batch ahead, past the end too; what it reads there is not used.
        index = min(index, self.steps * len(self._epochs) - 1)
        for step in range(index, min(index + 1 + _AHEAD, self.steps * len(self._epochs))):
            if step not in self._waiting:
                self._waiting[step] = self._pool.submit(self._read, step)
        return self._waiting.pop(index).result()

    def _read(self, index: int) -> Batch:
        epoch, step = divmod(index, self.steps)
        with self._lock:  # an epoch is drawn once
            drawn: Epoch = self._draw(self._epochs[epoch])
        order, uniforms, labels, weights, mixing = (part[step] for part in drawn)
        if self._mixes:
            # Of the whole batch: a cell's partner may be another process's.
            size = self._cells.images.shape[1:3]
            labels, weights = mix_targets(labels, weights, mixing, image_size=size)
        mine = self._mine
        inputs = (self._cells.images[order[mine]], uniforms[mine])
        return (*inputs, mixing[mine])[: 2 + self._mixes], labels[mine], weights[mine]


class CellFeed(keras.utils.PyDataset):
    """Every cell once and in order, images float32 0-255, as `predict` takes them."""

    def __init__(self, cells: Cells, *, batch_size: int) -> None:
        super().__init__()
        self._cells, self._batch_size = cells, batch_size

    @property
    def num_batches(self) -> int:
        """How many there are, the last perhaps smaller."""
        return -(-len(self._cells) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray]:
        rows = np.arange(index * self._batch_size, (index + 1) * self._batch_size)
        return (self._cells.images[rows[rows < len(self._cells)]].astype(np.float32),)


def predict_all(model: keras.Model, cells: Cells, *, batch_size: int) -> Any:
    """Return a model's outputs for cells, in their order, on any backend."""
    if keras.backend.backend() == "tensorflow":
        from wbc_keras.pipeline import make_batches

        return model.predict(make_batches(cells, batch_size=batch_size), verbose=0)
    return model.predict(CellFeed(cells, batch_size=batch_size), verbose=0)
