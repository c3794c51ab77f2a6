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
