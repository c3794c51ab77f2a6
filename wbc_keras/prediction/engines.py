"""What runs a network that lies in a file: TensorFlow, OpenVINO, ONNX Runtime or LiteRT.

An engine is a function from cropped cells, uint8 ``(n, height, width, 3)``, to `Answer`. Threads
may call one engine at once: it is opened for so many ``workers``, who share the cores.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from wbc_keras.errors import RunError

# Name, which is also that of the extra that installs it -> the file of its network, its packages.
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "litert": "model.tflite"}
PACKAGES = {
    "onnx": ("onnxruntime", "onnx", "tf2onnx"),
    "openvino": ("openvino",),
    "litert": ("ai_edge_litert",),
}
# Of probabilities: below it the difference is the arithmetic's.
TOLERANCE = 1e-4
_LEAST_PART = 8  # cells that are worth a core of their own


class Answer(NamedTuple):
    """What a network says of n cells.

    probabilities: float32 ``(n, classes)``, calibrated. features: float32 ``(n, channels)``, the
    pooled feature map, which novelty is measured by.
    """

    probabilities: np.ndarray
    features: np.ndarray


Engine = Callable[[np.ndarray], Answer]


def is_installed(name: str) -> bool:
    """Tell whether what an engine needs, to convert a network and to run it, is there."""
    return all(importlib.util.find_spec(package) for package in PACKAGES.get(name, ()))


def require_installed(name: str) -> None:
    """Raise RunError, naming the extra to install, unless `is_installed`."""
    if not is_installed(name):
        missing = [one for one in PACKAGES[name] if not importlib.util.find_spec(one)]
        raise RunError(
            f"{name}: {', '.join(missing)} is not installed; pip install 'wbc_keras[{name}]'"
        )


def open_engine(name: str, folder: Path, *, workers: int = 1) -> Engine:
    """Open the network that lies in ``folder`` under the name of `FILES`.

    Args:
        name: onnx, openvino or litert.
        folder: what `formats.convert` wrote.
        workers: threads that will call it at once. One gets all cores for itself; of several each
            gets its share, which makes more of the cores than one call on all of them.

    Raises:
        RunError: its packages are missing, or the file cannot be read.
    """
    require_installed(name)
    threads = max(1, (os.cpu_count() or 1) // workers)
    opener = {"onnx": _open_onnx, "openvino": _open_openvino, "litert": _open_litert}[name]
    try:
        return opener(folder / FILES[name], workers, threads)
    except Exception as error:  # each runtime raises its own kind
        reason = str(error).strip().splitlines()[0]
        raise RunError(f"{folder / FILES[name]}: cannot be opened ({reason})") from error


def open_tensorflow(network: Any, *, compiled: bool = False) -> Engine:
    """Return an engine of a network of `formats.Network`; ``compiled`` by XLA for each batch size.

    Every batch size costs XLA seconds, or minutes, the first time. Weights are constants, or
    TensorFlow would not fold each normalisation into the convolution before it.
    """
    frozen = convert_variables_to_constants_v2(network.classify.get_concrete_function())
    run = tf.function(frozen, jit_compile=True) if compiled else frozen

    def answer(images: np.ndarray) -> Answer:
        # The dictionary's values by the order of their names.
        features, probabilities = run(tf.constant(images))
        return Answer(probabilities.numpy(), features.numpy())

    return answer


def differ(one: Engine, other: Engine, images: np.ndarray) -> float:
    """Return the largest difference between two engines' probabilities."""
    return float(np.abs(one(images).probabilities - other(images).probabilities).max())


def _open_openvino(path: Path, workers: int, threads: int) -> Engine:
    whole = _compile_openvino(path, workers, threads * workers)
    if workers > 1 or threads == 1:
        return whole
    # A core gets more done on its own part of a batch than all do on one operation after the other.
    apart, pool = _compile_openvino(path, threads, threads), ThreadPoolExecutor(threads)

    def answer(images: np.ndarray) -> Answer:
        count = min(threads, len(images) // _LEAST_PART)
        if count < 2:
            return whole(images)
        parts = list(pool.map(apart, np.array_split(images, count)))
        return Answer(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    return answer


def _compile_openvino(path: Path, streams: int, threads: int) -> Engine:
    openvino = _load("openvino")
    settings = {
        # Left to itself it computes in bfloat16 where the processor can.
        "INFERENCE_PRECISION_HINT": "f32",
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": threads,
    }
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    # The first view of a tensor in a process makes a static of OpenVINO's Python module while the
    # interpreter's lock is free: two threads there wait for each other, for ever (tried: OpenVINO
    # 2026.4). So the first one is had here, by one thread.
    _ = openvino.Tensor(np.zeros(1, np.float32)).data
    own = _PerThread(compiled.create_infer_request)

    def answer(images: np.ndarray) -> Answer:
        outputs = own.get().infer({"images": images})
        return Answer(np.array(outputs["probabilities"]), np.array(outputs["features"]))

    return answer


def _open_onnx(path: Path, workers: int, threads: int) -> Engine:
    runtime = _load("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: Answer(*session.run(list(Answer._fields), {"images": images}))


def _open_litert(path: Path, workers: int, threads: int) -> Engine:
    interpreter = _load("ai_edge_litert.interpreter").Interpreter

    def make() -> Any:
        return interpreter(model_path=str(path), num_threads=threads).get_signature_runner()

    make()  # A file that is no network shows itself here.
    own = _PerThread(make)

    def answer(images: np.ndarray) -> Answer:
        outputs = own.get()(images=images)
        return Answer(outputs["probabilities"], outputs["features"])

    return answer


def _load(module: str) -> ModuleType:
    return importlib.import_module(module)


class _PerThread:
    """One object for each thread that asks, as requests and interpreters serve one at a time."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._own = make, threading.local()

    def get(self) -> Any:
        if not hasattr(self._own, "value"):
            self._own.value = self._make()
        return self._own.value
