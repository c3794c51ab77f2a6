"""Shared fixtures: real data (skipped where absent), seeds, and a cache of the suite's own."""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

_cache = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    # Here and not in a fixture, so that notebooks and subprocesses see it too: a run of the suite
    # neither reads nor fills the user's own cache.
    config.stash[_cache] = tempfile.mkdtemp(prefix="wbc_keras_cache_")
    os.environ["WBC_KERAS_CACHE"] = config.stash[_cache]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[_cache], ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Give every test the same random numbers, alone or in the suite; loads Keras for none."""
    random.seed(0)
    np.random.seed(0)
    if (keras := sys.modules.get("keras")) is not None:
        keras.utils.set_random_seed(0)
        keras.config.set_dtype_policy("float32")
    yield
    if (pyplot := sys.modules.get("matplotlib.pyplot")) is not None:
        pyplot.close("all")


def _shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real data is not on this machine: ../shared/{name}")
    return path


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository, where commands are run from."""
    return ROOT


@pytest.fixture(scope="session")
def pbc() -> Path:
    """11,934 JPEGs of 8 classes in class folders."""
    return _shared("data/pbc")


@pytest.fixture(scope="session")
def aml_jhu() -> Path:
    """12,097 JPEGs of 18 classes and 82 patients."""
    return _shared("data/aml_jhu")


@pytest.fixture(scope="session")
def lmu_metadata() -> Path:
    """The Munich set's annotations.dat and abbreviations.txt, no pictures."""
    return _shared("data/lmu_metadata")


@pytest.fixture(scope="session")
def lmu_smoke() -> Path:
    """100 JPEGs in the Munich set's folders; loading only, never a score."""
    return _shared("data/lmu_smoke")


@pytest.fixture(scope="session")
def roi_jtsc() -> Path:
    """300 cells NNN.jpg with expert masks NNN.mask.png."""
    return _shared("data/roi_jtsc")


@pytest.fixture(scope="session")
def mobilenet_weights() -> Path:
    """Weights of MobileNetV2 without its top."""
    return _shared("weights/mobilenet_v2_1.0_224_slimfolded_notop.weights.h5")


# One tiny trained run for all tests, which only read it; `run_copy` is for those that write.

CELL_CLASSES = ("eosinophil", "lymphocyte", "monocyte", "neutrophil_segmented")
_CONFIG = """\
name: tiny
data: {{image_size: [48, 48]}}
model: {{backbone: mobilenetv2, weights: {weights}}}
train:
  seed: 7
  batch_size: 8
  head_epochs: 1
  epochs: 2
  head_learning_rate: 0.02
  learning_rate: 2.0e-3
  freeze_batch_norm: false
"""


@pytest.fixture(scope="session")
def drawn_cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ninety-six drawn cells, 64x64 PNG, in four class folders."""
    import cv2

    from wbc_keras.synthetic import draw_cell

    folder = tmp_path_factory.mktemp("cells")
    rng = np.random.default_rng(0)
    for label in CELL_CLASSES:
        (folder / label).mkdir()
        for number in range(24):
            image = draw_cell(label, size=64, rng=rng).image
            _, png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))
            (folder / label / f"{number:02d}.png").write_bytes(png.tobytes())
    return folder


@pytest.fixture(scope="session")
def train_arguments(tmp_path_factory: pytest.TempPathFactory, drawn_cells: Path) -> list[str]:
    """Arguments of `train` for a run of both phases, from random weights in a file."""
    import keras

    from wbc_keras.classifier import build_classifier
    from wbc_keras.config import ModelConfig, RoiConfig
    from wbc_keras.pictures.cells import load_cells

    folder = tmp_path_factory.mktemp("settings")
    keras.utils.set_random_seed(0)
    model = build_classifier(
        ModelConfig(backbone="mobilenetv2", weights="none"), num_classes=2, image_size=(48, 48)
    )
    # Random weights with the statistics of one batch: without them every cell looks the same.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    paths = sorted(drawn_cells.rglob("*.png"))[::2]
    model(load_cells(paths, roi=RoiConfig(), image_size=(48, 48)).images, training=True)
    model.save(folder / "start.keras")
    (folder / "tiny.yaml").write_text(_CONFIG.format(weights=folder / "start.keras"))
    return ["--config", str(folder / "tiny.yaml"), "--data", str(drawn_cells)]


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, train_arguments: list[str]) -> Path:
    """A finished run folder on `drawn_cells`: one epoch of the head, two of everything."""
    from wbc_keras.train import main

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert main([*train_arguments, "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def evaluation(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """What `evaluate` wrote for the run's own test cells."""
    from wbc_keras.evaluate import main

    folder = tmp_path_factory.mktemp("evaluation") / "test"
    assert main(["--run", str(trained_run), "--output", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def scored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five classes and patients, scored with simulated answers, its cells beside it."""
    from scored_runs import make_scored_run

    return make_scored_run(tmp_path_factory.mktemp("scored"))


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without patients, its classes named to break a page."""
    from scored_runs import HOSTILE, make_scored_run

    folder = tmp_path_factory.mktemp("hostile")
    return make_scored_run(folder, class_names=HOSTILE, patients=False)


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """The run exported: version 1 in a model folder."""
    from wbc_keras.export import main

    folder = tmp_path_factory.mktemp("serving") / "saved_model"
    assert main(["--run", str(trained_run), "--output", str(folder)]) == 0
    return folder / "1"


@pytest.fixture
def run_copy(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may change."""
    return Path(shutil.copytree(trained_run, tmp_path / "run"))
