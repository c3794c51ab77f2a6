"""The state of a training after an epoch, from which a killed run goes on to the bit."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import keras
import numpy as np
import pandas as pd

from wbc_keras import runs
from wbc_keras.errors import RunError
from wbc_keras.training.averaging import WeightAverage
from wbc_keras.training.hosts import ALONE, Hosts

HISTORY = ["epoch", "phase", "learning_rate", "loss", "accuracy", "macro_f1"]
HISTORY += ["val_loss", "val_accuracy", "val_macro_f1", "seconds"]


class TrainingState:
    """All that a killed run needs to go on: one file, replaced whole after each epoch.

    Of several processes the first has the file, and the others what it sends them.
    """

    def __init__(self, path: Path, *, hosts: Hosts = ALONE) -> None:
        self.path = path
        self.hosts = hosts
        self.history: list[dict[str, Any]] = []
        self._sent: bytes | None = None
        if not hosts.on_first(path.exists):
            return
        if hosts.count > 1:
            self._sent = hosts.send(path.read_bytes() if hosts.is_first else b"")
        self.history = self._read()[0]["history"]

    def save(self, model: keras.Model, row: dict[str, Any], average: WeightAverage) -> None:
        """Add the epoch's history row and write weights, averages, optimizer and seeds with it."""
        self.history.append(row)
        if not self.hosts.is_first:
            return
        variables = _state_variables(model) + average.variables
        arrays: dict[str, Any] = {f"v{i}": _to_numpy(v) for i, v in enumerate(variables)}
        about = json.dumps({"history": self.history})
        with runs.replacing(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, about=np.array(about), **arrays)

    @property
    def last_epoch(self) -> int:
        """The last epoch done, or -1. Early stopping leaves gaps: not the number of rows."""
        return int(self.history[-1]["epoch"]) if self.history else -1

    def restore(self, model: keras.Model, phase: str, average: WeightAverage) -> None:
        """Load the state if it is of this phase: the optimizer's variables differ by phase."""
        if self.history and self.history[-1]["phase"] == phase:
            variables = _state_variables(model) + average.variables
            for variable, array in zip(variables, self._read()[1], strict=True):
                variable.assign(array)

    def history_table(self) -> pd.DataFrame:
        """Return the history as it stands in ``history.csv``."""
        return pd.DataFrame(self.history, columns=HISTORY)

    def _open(self) -> BinaryIO:
        return io.BytesIO(self._sent) if self._sent is not None else self.path.open("rb")

    def _read(self) -> tuple[dict[str, Any], list[np.ndarray]]:
        try:
            # Opened here: NumPy leaves a file that it cannot read open.
            with self._open() as stream, np.load(stream) as file:
                about = json.loads(str(file["about"]))
                return about, [file[f"v{i}"] for i in range(len(file.files) - 1)]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise RunError(
                f"{self.path}: cannot be read, so the run cannot go on ({error}); "
                "start again with another --output"
            ) from error


def _state_variables(model: keras.Model) -> list[Any]:
    """Weights, seed generators and optimizer; metrics start anew with each epoch."""
    metrics = {id(variable) for variable in model.metrics_variables}
    own = [variable for variable in model.variables if id(variable) not in metrics]
    return own + list(model.optimizer.variables)


def _to_numpy(variable: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable))
