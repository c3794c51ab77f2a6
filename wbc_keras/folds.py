"""The test cells of several runs that are the folds of one data set: each cell exactly once."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from wbc_keras.config import Config
from wbc_keras.errors import DataError
from wbc_keras.runs import Run
from wbc_keras.selection import Selection, select_cells
from wbc_keras.splits import read_splits

logger = logging.getLogger(__name__)


def select_folds(runs: Sequence[Run], *, data: str | Path | None = None) -> list[Selection]:
    """Choose the test cells of each of several runs that together test every cell once.

    Args:
        runs: one run for each fold (``split.fold``), in any order.
        data: where the cells are now, if they were moved.

    Raises:
        DataError: the runs have other classes or cells, test a cell twice or never, or ``data``
            does not hold their cells.
    """
    tables = [read_splits(run.splits_path) for run in runs]
    for run, table in zip(runs[1:], tables[1:], strict=True):
        _require_same_experiment(runs[0], tables[0], run, table)
    tested = [set(table.loc[table["split"] == "test", "file"]) for table in tables]
    _require_tested_once(runs, tested)
    _require_all_tested(runs, tested, tables[0]["file"])
    selections = [select_cells(run, data=data, split="test") for run in runs]
    for run, selection, files in zip(runs, selections, tested, strict=True):
        if set(selection.manifest.table["file"]) != files:
            raise DataError(
                f"{selection.manifest.root}: does not hold the test cells of {run.folder}; folds "
                "are scored together on their own cells, other cells by one run at a time"
            )
    return selections


def _require_same_experiment(
    first: Run, cells: pd.DataFrame, run: Run, other_cells: pd.DataFrame
) -> None:
    if run.class_names != first.class_names:
        classes = sorted({*run.class_names} ^ {*first.class_names})
        raise DataError(
            f"{run.folder}: was not trained on the classes of {first.folder} (not in both: "
            f"{', '.join(classes)}); give the folds of one data set"
        )
    one, other = (set(_rows(table)) for table in (cells, other_cells))
    if one != other:
        raise DataError(
            f"{run.folder}: was not trained on the cells of {first.folder} ({len(one ^ other)} "
            f"differ, first {min(one ^ other)[0]}); give the folds of one data set"
        )
    keys = _differing_settings(first.config, run.config)
    if keys:
        logger.warning(
            "%s: other settings than %s, so the figures are of no single recipe: %s",
            run.folder,
            first.folder,
            ", ".join(keys),
        )


def _rows(table: pd.DataFrame) -> Iterable[tuple[str, ...]]:
    return table[["file", "label", "group"]].itertuples(index=False, name=None)


def _differing_settings(one: Config, other: Config) -> list[str]:
    """Name the settings that differ, but for those that every fold has of its own."""
    own = {"name", "data.source", "split.fold"}
    ours, theirs = (_flat(dataclasses.asdict(config)) for config in (one, other))
    return [key for key in ours if key not in own and ours[key] != theirs[key]]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return flat


def _require_tested_once(runs: Sequence[Run], tested: Sequence[set[str]]) -> None:
    for (run, files), (other, others) in itertools.combinations(zip(runs, tested, strict=True), 2):
        if twice := files & others:
            raise DataError(
                f"{run.folder} and {other.folder}: both test {len(twice)} of the cells, first "
                f"{min(twice)}; give each fold once, all of one split.seed"
            )


def _require_all_tested(
    runs: Sequence[Run], tested: Sequence[set[str]], files: Iterable[str]
) -> None:
    cells = set(files)
    never = cells - set().union(*tested)
    if never:
        folds = [run.config.split.fold for run in runs]
        raise DataError(
            f"{len(never)} of {len(cells)} cells are tested by none of the {len(runs)} runs, first "
            f"{min(never)}; give every fold. Received: {', '.join(fold or '-' for fold in folds)}"
        )
