"""All that lies in a run folder, read for people; what is missing is said, not guessed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from wbc_keras.errors import RunError
from wbc_keras.prediction.decisions import DECISION_FILE, Decisions, read_decisions
from wbc_keras.prediction.predictions import read_predictions
from wbc_keras.runs import Run, open_run
from wbc_keras.splits import SPLITS, read_splits

T = TypeVar("T")
Json = Mapping[str, Any]

OWN = (*SPLITS, "all")  # what evaluations of the run's own cells are filed under

# What an evaluation may hold beside its figures, and what it is for.
_PARTS = {
    "predictions.csv": "no threshold to move, no mistakes to look at",
    "calibration.json": "nothing of whether probabilities mean what they say",
    "selective.json": "nothing of what the model would rather not decide",
    "screening.json": "nothing of abnormal cells at a chosen threshold",
    "mistakes.npz": "no heatmaps beside the mistakes",
}


@dataclass(frozen=True, eq=False)
class Scored:
    """One folder of ``evaluation/``, as `evaluate` wrote it; None for a file that is not there.

    Attributes:
        name: the split's, or the other data's.
        folder: where it lies.
        metrics: metrics.json.
        calibration, selective, screening, novelty, experts: the JSON files of these names.
        predictions: one row for each cell (`predictions`).
        patients: one row for each patient (`patients`).
    """

    name: str
    folder: Path
    metrics: Json
    calibration: Json | None
    selective: Json | None
    screening: Json | None
    novelty: Json | None
    experts: Json | None
    predictions: pd.DataFrame | None
    patients: pd.DataFrame | None

    def question(self, name: str) -> Json | None:
        """Return what screening.json has on "abnormal", "blast" or "patients", or None."""
        found: Json | None = (self.screening or {}).get(name)
        return found


@dataclass(frozen=True, eq=False)
class Record:
    """A run folder.

    Attributes:
        run: its settings and classes.
        environment: environment.json.
        splits: ``file, label, group, split``.
        history: one row for each epoch.
        decisions: what was fitted on validation.
        evaluations: the run's own test cells first, then by name.
        bad_pictures: how many were left out as unreadable.
        explanations: the sheet of heatmaps.
        checks: whether they explain anything (checks.json).
        missing: one sentence for each part that is not there.
    """

    run: Run
    environment: Json | None
    splits: pd.DataFrame | None
    history: pd.DataFrame | None
    decisions: Decisions | None
    evaluations: tuple[Scored, ...]
    bad_pictures: int
    explanations: Path | None
    checks: Json | None
    missing: tuple[str, ...]

    @property
    def main(self) -> Scored | None:
        """The evaluation that the report is about: the run's own test cells, if scored."""
        return self.evaluations[0] if self.evaluations else None

    @property
    def elsewhere(self) -> tuple[Scored, ...]:
        """The evaluations on other data than the run's own."""
        return tuple(one for one in self.evaluations if one.name not in OWN)

    @property
    def by_patient(self) -> bool | None:
        """Whether no patient (or group) is in two splits; None if the splits are not known.

        False too where the pictures name no patient.
        """
        if self.splits is None:
            return None
        grouped = self.splits[self.splits["group"] != ""]
        apart = grouped.groupby("group")["split"].nunique().max() == 1
        return bool(len(grouped)) and bool(apart)


def read_record(folder: str | Path) -> Record:
    """Read a run folder, finished or not.

    Raises:
        RunError: it is no run folder, or a file in it is damaged.
        DataError: a table of predictions is damaged.
    """
    run = open_run(folder, needs_model=False)
    missing: list[str] = []
    if (run.folder / "training_state.npz").exists():
        missing.append("the run is still in training: all figures are of its best epoch so far")

    def read(name: str, reader: Callable[[Path], T], lack: str) -> T | None:
        found = _read_if_there(run.folder / name, reader)
        if found is None:
            missing.append(f"{name}: {lack}")
        return found

    record = {
        "environment": read("environment.json", _read_json, "versions are not known"),
        "splits": read("splits.csv", read_splits, "which cells were trained on is not known"),
        "history": read("history.csv", _read_csv, "how training went is not known"),
        "decisions": read(
            DECISION_FILE,
            lambda path: read_decisions(path.parent),
            "probabilities are not calibrated and no threshold was chosen",
        ),
    }
    evaluations = _read_evaluations(run.folder / "evaluation", missing)
    sheet = run.folder / "explanations" / "cells.png"
    if not sheet.is_file():
        missing.append("explanations: where the model looks is not shown (wbc_keras.explain)")
    return Record(
        run,
        **record,  # type: ignore[arg-type]
        evaluations=tuple(evaluations),
        bad_pictures=len(_read_if_there(run.folder / "bad_images.txt", _read_lines) or ()),
        explanations=sheet if sheet.is_file() else None,
        checks=read_checks(run.folder),
        missing=tuple(missing),
    )


def read_checks(folder: Path) -> Json | None:
    """Return what the checks of a run's heatmaps found, None where `explain` was not run.

    Raises:
        RunError: the file is damaged.
    """
    return _read_if_there(folder / "explanations" / "checks.json", _read_json)


def _read_evaluations(folder: Path, missing: list[str]) -> list[Scored]:
    places = sorted(path.parent for path in folder.glob("*/metrics.json"))
    found = [_read_scored(place) for place in sorted(places, key=_own_test_first)]
    if not found:
        missing.append("evaluation: the run was not scored (wbc_keras.evaluate)")
        return found
    main = found[0]
    for name, lack in _PARTS.items():
        if not (main.folder / name).is_file():
            missing.append(f"evaluation/{main.name}/{name}: {lack}; evaluate it again")
    return found


def _own_test_first(place: Path) -> tuple[bool, bool, str]:
    return place.name != "test", place.name != "all", place.name


def _read_scored(folder: Path) -> Scored:
    return Scored(
        folder.name,
        folder,
        _read_json(folder / "metrics.json"),
        **{
            name: _read_if_there(folder / f"{name}.json", _read_json)
            for name in ("calibration", "selective", "screening", "novelty", "experts")
        },
        predictions=_read_if_there(folder / "predictions.csv", read_predictions),
        patients=_read_if_there(folder / "patients.csv", _read_csv),
    )


def _read_if_there(path: Path, reader: Callable[[Path], T]) -> T | None:
    return reader(path) if path.is_file() else None


def _read_json(path: Path) -> Json:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); {_mend(path)}") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: is damaged, expected an object; {_mend(path)}")
    return value


def _read_lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def _read_csv(path: Path) -> pd.DataFrame:
    try:
        # Names stay text: a patient may be called 007 or NA.
        names = {"patient": str, "phase": str}
        return pd.read_csv(path, dtype=names, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RunError(f"{path}: cannot be read ({reason}); {_mend(path)}") from error


def _mend(path: Path) -> str:
    again = "evaluate" if path.parent.parent.name == "evaluation" else "train"
    return f"restore it, or {again} again"
