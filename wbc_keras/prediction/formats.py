"""A run's network in the formats that people deploy: ONNX, OpenVINO, LiteRT and Keras.

From cropped cells to calibrated probabilities: decoding and finding the cell stay outside, as no
format but TensorFlow's has what they need. Crops come from `cells.load_cells`, or from whatever
cuts ``about.json``'s boxes alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from wbc_keras import runs
from wbc_keras.cache import cache_dir, hash_file, materialise
from wbc_keras.commands import silent_stderr
from wbc_keras.errors import RunError
from wbc_keras.prediction import engines, symmetries
from wbc_keras.prediction.decisions import read_decisions
from wbc_keras.prediction.engines import TOLERANCE, Engine, open_engine, open_tensorflow
from wbc_keras.prediction.networks import load_network
from wbc_keras.synthetic import CLASS_NAMES, draw_cell

logger = logging.getLogger(__name__)

FORMATS = ("onnx", "openvino", "litert", "keras")
# What `auto` tries before TensorFlow: what does most with a core, see docs/formats.md.
FASTEST = ("openvino",)
ENGINES = ("auto", "tensorflow", "openvino", "onnx", "litert")

_OPSET = 17
_ABOUT = "about.json"
_WEIGHTS = {"openvino": "model.bin"}


class Network(tf.Module):
    """A run's network from crops to calibrated probabilities, as every format holds it.

    Attributes:
        model: from ``images``, uint8 ``(batch, height, width, 3)``, RGB, to ``probabilities``
            float32 ``(batch, classes)`` and ``features`` float32 ``(batch, channels)``.
    """

    def __init__(self, run: runs.Run) -> None:
        super().__init__(name="network")
        decisions = read_decisions(run.folder)
        model = _surround(load_network(run), decisions.temperature if decisions else 1.0)
        # Set past tf.Module, which would store every layer beside the weights.
        object.__setattr__(self, "model", model)
        self.weights = [variable.value for variable in model.variables]
        signature = [tf.TensorSpec(model.input.shape, tf.uint8, name="images")]
        self.classify = tf.function(self._classify, input_signature=signature)

    def _classify(self, images: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(self.model(images, training=False))


def _surround(network: keras.Model, temperature: float) -> keras.Model:
    layers = keras.layers
    images = keras.Input(network.input.shape[1:], dtype="uint8", name="images")
    logits, features = network(layers.Rescaling(1.0, dtype="float32", name="cast")(images))
    scaled = layers.Rescaling(1.0 / temperature, dtype="float32", name="temperature")(logits)
    probabilities = layers.Softmax(dtype="float32", name="probabilities")(scaled)
    features = layers.Activation("linear", dtype="float32", name="pooled")(features)
    return keras.Model(images, {"probabilities": probabilities, "features": features})


def export_format(run: str | Path, name: str, *, output: str | Path | None = None) -> Path:
    """Write a run's network in another format, tried against TensorFlow, and return its folder.

    The folder holds the network and ``about.json``: classes, input, ROI settings.

    Args:
        run: the run folder.
        name: one of `FORMATS`.
        output: the folder, ``RUN/<name>`` if None; what an earlier export wrote is replaced whole.

    Raises:
        RunError: no finished run, a package is missing, the folder holds something else, or the
            converted network does not give the same probabilities.
    """
    opened = runs.open_run(run)
    folder = Path(output) if output is not None else opened.folder / name
    engines.require_installed(name)
    runs.require_replaceable(folder, frozenset({_file(name), *_extra(name), _ABOUT}))
    network = Network(opened)
    with runs.replacing_folder(folder) as temporary:
        convert(network, name, temporary)
        _require_faithful(name, temporary, network)
        runs.write_json(temporary / _ABOUT, _describe(opened, name))
    return folder


def load_engine(run: runs.Run, name: str, *, workers: int = 1) -> Engine:
    """Return what runs a run's network; converted once, into the cache.

    Args:
        run: the run.
        name: one of `ENGINES`; ``auto`` is the fastest whose packages are there and that gives the
            same probabilities as TensorFlow, else TensorFlow.
        workers: threads that will call it at once.

    Raises:
        RunError: the engine's packages are missing, or it does not give the same probabilities.
    """
    if name == "auto":
        for one in filter(engines.is_installed, FASTEST):
            try:
                return load_engine(run, one, workers=workers)
            except RunError as error:
                logger.warning("%s; going on with TensorFlow", error)
        name = "tensorflow"
    if name == "tensorflow":
        return open_tensorflow(Network(run))
    engines.require_installed(name)
    folder = cache_dir() / "engines" / f"{name}-{_hash(run, name)[:32]}"

    def write(temporary: Path) -> None:
        network = Network(run)
        convert(network, name, temporary)
        _require_faithful(name, temporary, network)

    materialise(folder, write)
    return open_engine(name, folder, workers=workers)


def convert(network: Network, name: str, folder: Path) -> None:
    """Write a network in the format ``name`` of `FORMATS` into ``folder``.

    Raises:
        RunError: the converter failed.
    """
    converter = {
        "onnx": _to_onnx,
        "openvino": _to_openvino,
        "litert": _to_litert,
        "keras": _to_keras,
    }[name]
    for chatty in ("absl", "tensorflow"):
        logging.getLogger(chatty).setLevel(logging.ERROR)
    with silent_stderr():
        converter(network, folder / _file(name))


def _to_onnx(network: Network, path: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tf.saved_model.save(network, folder, signatures={"serving_default": network.classify})
        # The command, as its functions leave the scaling's constants as inputs to be given.
        command = ["-m", "tf2onnx.convert", "--saved-model", folder, "--output", str(path)]
        command += ["--signature_def", "serving_default", "--tag", "serve"]
        done = subprocess.run(
            [sys.executable, *command, "--opset", str(_OPSET)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode or not path.exists():
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunError(f"onnx: tf2onnx could not convert the network ({reason})")
    import onnx

    inputs = [one.name for one in onnx.load(path).graph.input]
    if inputs != ["images"]:
        raise RunError(f"onnx: the network asks for {', '.join(inputs)}; expected images alone")


def _to_openvino(network: Network, path: Path) -> None:
    import openvino

    # The float function, not Keras's own export, whose graph is several times slower.
    model = openvino.convert_model(network.classify.get_concrete_function())
    openvino.save_model(model, path, compress_to_fp16=False)


def _to_litert(network: Network, path: Path) -> None:
    function = network.classify.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], network)
    path.write_bytes(converter.convert())


def _to_keras(network: Network, path: Path) -> None:
    network.model.save(path)


def _require_faithful(name: str, folder: Path, network: Network) -> None:
    """Try a converted network on a drawn cell of every kind."""
    if name == "keras":
        return
    images = _draw_cells(network.model.input.shape[1:3])
    difference = engines.differ(open_engine(name, folder), open_tensorflow(network), images)
    if not difference <= TOLERANCE:
        raise RunError(
            f"{name}: the converted network's probabilities differ by {difference:.2g} from "
            f"TensorFlow's, more than {TOLERANCE}; deploy another format"
        )


def _draw_cells(image_size: tuple[int, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    cells = [draw_cell(name, size=max(image_size), rng=rng).image for name in CLASS_NAMES]
    return np.stack(cells)[:, : image_size[0], : image_size[1]]


def _hash(run: runs.Run, name: str) -> str:
    """Hash what decides a converted network: model, views, temperature, versions, this code."""
    decisions = read_decisions(run.folder)
    versions = [metadata.version(one.replace("_", "-")) for one in engines.PACKAGES[name]]
    code = [hash_file(Path(str(one))) for one in (__file__, symmetries.__file__)]
    said = [hash_file(run.model_path), repr(run.config.model), *code, tf.__version__, *versions]
    said.append(repr(decisions.temperature if decisions else 1.0))
    return hashlib.sha256("\n".join(said).encode()).hexdigest()


def _file(name: str) -> str:
    return "model.keras" if name == "keras" else engines.FILES[name]


def _extra(name: str) -> list[str]:
    return [_WEIGHTS[name]] if name in _WEIGHTS else []


def _describe(run: runs.Run, name: str) -> dict[str, Any]:
    height, width = run.config.data.image_size
    return {
        "format": name,
        "classes": list(run.class_names),
        "input": {"name": "images", "dtype": "uint8", "shape": [None, height, width, 3]},
        "outputs": ["probabilities", "features"],
        "crop": {"tool": "wbc_keras.pictures.cells", **dataclasses.asdict(run.config.roi)},
        "calibrated": read_decisions(run.folder) is not None,
    }
