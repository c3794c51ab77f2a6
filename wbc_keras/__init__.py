"""Classification of white blood cells, for research: train, evaluate, explain, export, predict."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Find ``wbc_keras.load_pretrained`` when it is asked for: Keras takes seconds to load."""
    if name == "load_pretrained":
        return importlib.import_module("wbc_keras.pretrained").load_pretrained
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
