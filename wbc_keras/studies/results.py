"""What a study keeps of each run: two small files, from which all of its figures are made.

``results/<setting>/<repeat>.json`` holds the run's settings and facts, or its error;
``results/<setting>/<repeat>.csv.gz`` its answers on the test cells, ``file,label,group`` and a
probability for each class. A study is carried on from these alone, on another machine too.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from wbc_keras.config import Config, dump_config, load_config
from wbc_keras.errors import ConfigError, RunError
from wbc_keras.prediction.predictions import class_columns, read_predictions
from wbc_keras.runs import Run, replacing, write_json
from wbc_keras.splits import read_splits
from wbc_keras.studies.plan import Cell, as_overrides

RESULTS = "results"
_COLUMNS = ["file", "label", "group"]
_DIGITS = "%.6g"  # as many as a float32 has; a third of the bytes of all


@dataclass(frozen=True)
class Facts:
    """What is told of a run beside its answers.

    Attributes:
        epochs: that were trained.
        training_seconds: spent in them.
        scoring_seconds: from the end of the training to the answers; None if it was interrupted.
        parameters: of the network.
        train_cells: training cells of each class.
        validation_macro_f1: of the epoch that was kept, on the validation cells, by which a setting
            may be chosen; None in results older than this.
    """

    epochs: int
    training_seconds: float
    scoring_seconds: float | None
    parameters: int
    train_cells: Mapping[str, int]
    validation_macro_f1: float | None = None


@dataclass(frozen=True, eq=False)
class Result:
    """One run of the study, finished or failed.

    Attributes:
        cell: which.
        facts: None if it failed.
        error: why it failed, in one line, or None.
        answers: text columns file, label and group, then float probabilities, in the order of the
            files; None if it failed.
    """

    cell: Cell
    facts: Facts | None
    error: str | None
    answers: pd.DataFrame | None

    @property
    def class_names(self) -> list[str]:
        """The classes of the answers."""
        return [] if self.answers is None else list(self.answers.columns[len(_COLUMNS) :])


def write_result(
    folder: Path, cell: Cell, run: Run, *, parameters: int, scoring_seconds: float | None
) -> None:
    """Keep a trained run that `evaluate` has scored on its test cells.

    Args:
        folder: the study's.
        cell: the run's place in the study.
        run: its folder.
        parameters: of the network.
        scoring_seconds: that scoring took, if known.
    """
    splits = read_splits(run.splits_path)
    history = pd.read_csv(run.folder / "history.csv")
    train = splits.loc[splits["split"] == "train", "label"].value_counts()
    facts = Facts(
        epochs=len(history),
        training_seconds=round(float(history["seconds"].sum()), 1),
        scoring_seconds=scoring_seconds,
        parameters=parameters,
        train_cells={name: int(train.get(name, 0)) for name in run.class_names},
        validation_macro_f1=round(float(history["val_macro_f1"].max()), 6),
    )
    answers = _read_answers(run, splits)
    json_path, csv_path = _paths(folder, cell)
    text = answers.to_csv(index=False, float_format=_DIGITS, lineterminator="\n")
    with replacing(csv_path) as temporary:
        # Without name and time of day, so that equal answers are equal files.
        temporary.write_bytes(gzip.compress(text.encode(), mtime=0))
    # Last: where it is, the answers are whole.
    write_json(json_path, _about(cell) | asdict(facts))


def write_failure(folder: Path, cell: Cell, error: str) -> None:
    """Keep why a run failed."""
    write_json(_paths(folder, cell)[0], _about(cell) | {"error": error})


def read_results(folder: Path, cells: Iterable[Cell]) -> dict[str, Result]:
    """Return what the study's folder holds of these runs, by `Cell.name`.

    Raises:
        RunError: a file is damaged, or a run was made with other settings than the study has now.
    """
    found = {cell.name: _read_result(folder, cell) for cell in cells}
    return {name: result for name, result in found.items() if result is not None}


def _read_result(folder: Path, cell: Cell) -> Result | None:
    json_path, csv_path = _paths(folder, cell)
    if not json_path.is_file():
        return None
    try:
        about = json.loads(json_path.read_text(encoding="utf-8"))
        kept = about["config"]
        if "error" in about:
            return Result(cell, None, str(about["error"]), None)
        facts = Facts(**{name: about[name] for name in Facts.__dataclass_fields__ if name in about})
        answers = pd.read_csv(
            csv_path, dtype=dict.fromkeys(_COLUMNS, str), keep_default_na=False, compression="gzip"
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{json_path}: cannot be read with its .csv.gz ({error}); remove both, and the run is "
            "made again"
        ) from error
    _require_same_settings(json_path, kept, cell.config)
    return Result(cell, facts, None, answers)


def _require_same_settings(path: Path, kept: Mapping[str, Any], wanted: Config) -> None:
    ours = set(_settings(wanted))
    try:
        # Settings newer than the run have their defaults.
        theirs = set(_settings(load_config(overrides=as_overrides(kept))))
    except ConfigError:
        theirs = set()
    if ours != theirs:
        raise RunError(
            f"{path}: was made with other settings than the study has now "
            f"({', '.join(sorted(ours - theirs)[:3])}); give the setting another name, or remove "
            "the file and its .csv.gz, and the run is made again"
        )


def _settings(config: Config) -> list[str]:
    """Return the settings that make the run what it is, wherever its cells lie."""
    overrides = as_overrides(asdict(config))
    return [one for one in overrides if not one.startswith(("data.source=", "name="))]


def _read_answers(run: Run, splits: pd.DataFrame) -> pd.DataFrame:
    table = read_predictions(run.folder / "evaluation" / "test" / "predictions.csv")
    groups = splits.set_index("file")["group"]
    answers = table[["file", "label", *class_columns(table)]]
    answers.insert(2, "group", groups.loc[table["file"]].to_numpy())
    return answers.sort_values("file", kind="stable", ignore_index=True)


def _about(cell: Cell) -> dict[str, Any]:
    settings = yaml.safe_load(dump_config(cell.config))
    # A path of this machine is of no use on another.
    settings["data"].pop("source")
    return {
        "setting": cell.setting,
        "fold": cell.repeat.fold,
        "seed": cell.repeat.seed,
        "config": settings,
    }


def _paths(folder: Path, cell: Cell) -> tuple[Path, Path]:
    place = folder / RESULTS / cell.setting
    return place / f"{cell.repeat.name}.json", place / f"{cell.repeat.name}.csv.gz"
