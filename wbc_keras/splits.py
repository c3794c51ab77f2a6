"""Train, validation and test: stratified by class, whole by patient, in shares or folds.

A given ``split`` column is obeyed. Without groups each class is cut by itself; with groups, which
must stay whole, a seeded local search looks for the assignment whose class shares come nearest to
those asked (`group_search`), rare classes counting as much as common ones. Copies of one picture
stay together: without groups the others follow the first, with groups those that share a picture
are joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from wbc_keras.errors import DataError, RunError
from wbc_keras.group_search import Bools, Floats, Integers, search_groups
from wbc_keras.runs import write_text

SPLITS = ("train", "validation", "test")

# A class with too few cells or groups for all splits is kept in the first of these: what is not
# trained cannot be tested, and what is not tested cannot be believed.
_PRIORITY = ("train", "test", "validation")
_COLUMNS = ["file", "label", "group", "split"]

Strings = npt.NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class Splits:
    """Where each cell goes.

    Attributes:
        assignment: str array (n,), "train", "validation" or "test", in the table's order.
        notes: what was done, one sentence each: the rule, and classes too small for their splits.
    """

    assignment: Strings
    notes: tuple[str, ...]


def make_splits(
    table: pd.DataFrame,
    *,
    validation: float,
    test: float,
    folds: int = 0,
    fold: int | None = None,
    seed: int = 0,
    units: Integers | None = None,
) -> Splits:
    """Divide the cells of a manifest's table.

    The rows' order does not matter: the same files, labels, groups and seed give the same splits.

    Args:
        table: text columns file, label, group and split. Groups are kept whole if any is given.
        validation: share of all cells for validation; if only the column's train and test are
            given, of the training cells.
        test: share of all cells for the test; not used with folds.
        folds: number of folds, at least 2, where ``fold`` is given.
        fold: which fold is the test set, from 1; None for shares. Over all folds of one seed every
            cell is tested exactly once; validation is taken from the rest.
        seed: of every random choice.
        units: intp (n,), equal for copies of one picture (`duplicates.Copies`); None if there are
            none, or if they need not stay together.

    Raises:
        DataError: a split would be empty, the column is given for some rows only or tests a class
            that is not trained, or there are fewer groups than splits.
    """
    cells = _read_cells(table, units)
    rng = np.random.default_rng(seed)
    if (table["split"] != "").any():
        assignment, notes = _obey_column(table, cells, validation=validation, rng=rng)
        notes += ["split.fold is not used beside it"] if fold is not None else []
    elif fold is not None:
        assignment, notes = _take_fold(cells, folds, fold, validation=validation, rng=rng)
    else:
        assignment, notes = _take_shares(cells, validation=validation, test=test, rng=rng)
    notes += _note_copies(table, assignment, units)
    return Splits(assignment, (*notes, *_note_absences(cells, assignment)))


def write_splits(path: Path, table: pd.DataFrame, assignment: Sequence[str]) -> None:
    """Write splits.csv, ``file,label,group,split``, whole or not at all."""
    rows = table[_COLUMNS].assign(split=np.asarray(assignment, dtype=str))
    write_text(path, rows.to_csv(index=False, lineterminator="\n"))


def read_splits(path: Path) -> pd.DataFrame:
    """Read splits.csv back: text columns file, label, group and split.

    Raises:
        RunError: it is missing or was not written by `write_splits`.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read ({error}); train the run again") from error
    if list(table.columns) != _COLUMNS or not table["split"].isin(SPLITS).all():
        raise RunError(
            f"{path}: expected the columns file,label,group,split, the last one of train, "
            f"validation and test. Received: {','.join(table.columns)}; train the run again"
        )
    return table


@dataclass(frozen=True, eq=False)
class _Cells:
    """The table in numbers, in the order of the file names."""

    rows: Integers  # (n,) position in the table
    labels: Integers  # (n,)
    groups: Integers | None  # (n,), counted from 0; None if no groups are given
    units: Integers  # (n,), counted from 0; copies of one picture share one
    class_names: tuple[str, ...]

    def take(self, chosen: Bools) -> _Cells:
        """Return the cells where ``chosen`` (n,) is true; classes keep their numbers."""
        groups = self.groups
        if groups is not None:
            groups = np.unique(groups[chosen], return_inverse=True)[1]
        units = _renumber(self.units[chosen])
        return _Cells(self.rows[chosen], self.labels[chosen], groups, units, self.class_names)

    def count(self, bins: npt.NDArray[np.generic], names: Sequence[object]) -> Integers:
        """Return the cells of each class in each of the bins ``names``: (bins, classes)."""
        size = len(self.class_names)
        return np.stack([np.bincount(self.labels[bins == name], minlength=size) for name in names])

    @property
    def group_count(self) -> int:
        """How many groups there are."""
        return 0 if self.groups is None else int(self.groups.max()) + 1


def _read_cells(table: pd.DataFrame, units: Integers | None) -> _Cells:
    # As objects: NumPy's own text has the width of the longest, in every row.
    rows = np.argsort(table["file"].to_numpy(dtype=object), kind="stable")
    labels, class_names = pd.factorize(table["label"].to_numpy(dtype=object), sort=True)
    groups, group_names = pd.factorize(table["group"].to_numpy(dtype=object), sort=True)
    has_groups = list(group_names) != [""]
    names = tuple(str(name) for name in class_names)
    units = np.arange(len(table)) if units is None else units
    joined = _join(groups, units)[rows] if has_groups else None
    return _Cells(rows, labels[rows], joined, _renumber(units[rows]), names)


def _renumber(numbers: Integers) -> Integers:
    """Return the same classes of equal numbers, counted from 0 in the order they appear in."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.empty(len(first), np.intp)
    order[np.argsort(first)] = np.arange(len(first))
    return order[inverse]


def _join(groups: Integers, units: Integers) -> Integers:
    """Return the groups, counted from 0, those that share a unit as one."""
    nodes = np.unique(units, return_inverse=True)[1] + groups.max() + 1
    size = int(nodes.max()) + 1
    links = coo_matrix((np.ones(len(groups)), (groups, nodes)), shape=(size, size))
    component = connected_components(links, directed=False)[1][groups]
    # Each takes the number of its first group, so that without shared units nothing changes.
    first = np.full(size, size)
    np.minimum.at(first, component, groups)
    return np.unique(first[component], return_inverse=True)[1]


# --- the ways to divide; each returns the assignment in the table's order, and notes ---


def _take_shares(
    cells: _Cells, *, validation: float, test: float, rng: np.random.Generator
) -> tuple[Strings, list[str]]:
    _require_groups(cells, len(SPLITS))
    assignment = np.full(len(cells.rows), "train", dtype="<U10")
    train = 1 - validation - test
    assignment[cells.rows] = _assign(cells, [train, test, validation], rng=rng)
    _require_cells(assignment, SPLITS)
    return assignment, [
        f"{train:.0%} train, {validation:.0%} validation, {test:.0%} test, {_describe(cells)}"
    ]


def _take_fold(
    cells: _Cells, folds: int, fold: int, *, validation: float, rng: np.random.Generator
) -> tuple[Strings, list[str]]:
    if not 1 <= fold <= folds or folds < 2:
        raise ValueError(f"fold: expected 1 to folds, folds 2 or more. Received: {fold}, {folds}")
    _require_groups(cells, max(folds, len(SPLITS)))
    assignment = np.full(len(cells.rows), "train", dtype="<U10")
    # Drawn before anything that depends on the fold, so that all folds of a seed fit together.
    is_test = _deal(cells, folds, rng=rng) == fold - 1
    rest = cells.take(~is_test)
    share = min(validation * folds / (folds - 1), 0.5)
    assignment[cells.rows[is_test]] = "test"
    kept = _assign(rest, [1 - share, share], names=("train", "validation"), rng=rng)
    assignment[rest.rows] = kept
    _require_cells(assignment, SPLITS)
    return assignment, [
        f"fold {fold} of {folds} is the test set, {share:.0%} of the rest validation, "
        f"{_describe(cells)}"
    ]


def _obey_column(
    table: pd.DataFrame, cells: _Cells, *, validation: float, rng: np.random.Generator
) -> tuple[Strings, list[str]]:
    given = table["split"].to_numpy(dtype="<U10")
    _require_full(table, given)
    _require_cells(given, ("train",))
    notes = ["the data's own split column is obeyed", *_note_torn_groups(table)]
    if "test" not in given:
        notes.append("the split column has no test cells, so none are kept for a test")
    if "validation" not in given:
        train = cells.take(given[cells.rows] == "train")
        _require_groups(train, 2)
        kept = _assign(train, [1 - validation, validation], names=("train", "validation"), rng=rng)
        given[train.rows] = kept
        _require_cells(given, ("validation",))
        notes.append(
            f"the split column has no validation cells, so {validation:.0%} of its training cells "
            f"are taken, {_describe(train)}"
        )
    _require_trained(cells, given)
    return given, notes


# --- what is refused, what is noted ---


def _require_full(table: pd.DataFrame, given: Strings) -> None:
    missing = table["file"].to_numpy(dtype=str)[given == ""]
    if len(missing):
        raise DataError(
            f"split: given for some cells but missing for {len(missing)} of {len(given)}, first "
            f"{missing[0]}; fill the column or drop it"
        )


def _require_groups(cells: _Cells, needed: int) -> None:
    if cells.groups is not None and cells.group_count < needed:
        raise DataError(
            f"group: {cells.group_count} groups (patients) cannot be kept whole in {needed} splits "
            "or folds; add patients, ask for fewer folds, or drop the patient and group columns"
        )


def _require_cells(assignment: Strings, names: Sequence[str]) -> None:
    empty = [name for name in names if name not in assignment]
    if empty:
        raise DataError(
            f"split: none of the {len(assignment)} cells is left for {' and '.join(empty)}; "
            "add pictures, or change split.validation, split.test or the split column"
        )


def _require_trained(cells: _Cells, assignment: Strings) -> None:
    train, *others = cells.count(assignment[cells.rows], SPLITS)
    unknown = [
        name
        for name, n, m in zip(cells.class_names, train, sum(others), strict=True)
        if m and not n
    ]
    if unknown:
        raise DataError(
            f"split: no training cell of {', '.join(unknown)}, which validation or test holds; "
            "move some to train, or leave the class out (data.exclude_labels)"
        )


def _describe(cells: _Cells) -> str:
    if cells.groups is None:
        return "by picture (no patients are given, so one patient's cells may be in two splits)"
    return f"by group ({cells.group_count} groups or patients, each whole in one split)"


def _note_torn_groups(table: pd.DataFrame) -> list[str]:
    named = table[table["group"] != ""]
    torn = int((named.groupby("group")["split"].nunique() > 1).sum())
    return [f"{torn} groups (patients) have cells in more than one split"] if torn else []


def _note_copies(table: pd.DataFrame, assignment: Strings, units: Integers | None) -> list[str]:
    """Say how copies of one picture were treated, and where a given column tears them."""
    if units is None:
        return []
    cells = pd.DataFrame({"unit": units, "split": assignment, "group": table["group"].to_numpy()})
    cells = cells[cells["unit"].duplicated(keep=False)]
    if cells.empty:
        return []
    places = cells.groupby("unit")
    torn = int((places["split"].nunique() > 1).sum())
    if torn:
        who = "1 picture has a copy" if torn == 1 else f"{torn} pictures have copies"
        return [f"{who} in another split, which flatters the figures"]
    notes = [f"{len(cells)} pictures are copies of {len(places)}, each kept in one split"]
    shared = cells[places["group"].transform("nunique") > 1]["group"].nunique()
    if shared:
        notes.append(
            f"{shared} groups (patients) share a picture with another; joined in one split"
        )
    return notes


def _note_absences(cells: _Cells, assignment: Strings) -> list[str]:
    """Name each class that a split lacks, with its cells in every split."""
    names = [name for name in SPLITS if name in assignment]
    counts = cells.count(assignment[cells.rows], names)
    notes = []
    for index in np.flatnonzero((counts == 0).any(axis=0)):
        places = ", ".join(f"{name} {n}" for name, n in zip(names, counts[:, index], strict=True))
        size = f"cells {counts[:, index].sum()}"
        if cells.groups is not None:
            size += f", groups {len(np.unique(cells.groups[cells.labels == index]))}"
        notes.append(f"{cells.class_names[index]} does not reach every split ({size}): {places}")
    return notes


# --- assignment, without groups each class by itself ---


def _assign(
    cells: _Cells,
    shares: Sequence[float],
    *,
    names: Sequence[str] = _PRIORITY,
    rng: np.random.Generator,
) -> Strings:
    """Return the split of each cell; ``shares`` of ``names``, the one to keep longest first."""
    wanted = np.asarray(shares, float)
    if cells.groups is None:
        first = np.unique(cells.units, return_index=True)[1]
        bins = _cut_classes(cells.labels[first], wanted, rng=rng)[cells.units]
    else:
        counts = cells.count(cells.groups, range(cells.group_count))
        holders = (counts > 0).sum(axis=0)
        required = holders > np.arange(len(wanted))[:, None]
        bins = search_groups(counts, wanted, required=required, rng=rng)[cells.groups]
    return np.array(names, dtype="<U10")[bins]


def _deal(cells: _Cells, folds: int, *, rng: np.random.Generator) -> Integers:
    """Return the fold of each cell, from 0."""
    if cells.groups is None:
        first = np.unique(cells.units, return_index=True)[1]
        return _deal_classes(cells.labels[first], folds, rng=rng)[cells.units]
    counts = cells.count(cells.groups, range(cells.group_count))
    holders = (counts > 0).sum(axis=0)
    required = np.tile(holders >= folds, (folds, 1))
    return search_groups(counts, np.full(folds, 1 / folds), required=required, rng=rng)[
        cells.groups
    ]


def _cut_classes(labels: Integers, shares: Floats, *, rng: np.random.Generator) -> Integers:
    bins = np.zeros(len(labels), np.intp)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        bins[rows] = np.repeat(np.arange(len(shares)), _cut(len(rows), shares))
    return bins


def _cut(count: int, shares: Floats) -> Integers:
    """Cut ``count`` cells by ``shares``: one at least for each share, the first ones first."""
    sizes: Integers = np.maximum(np.rint(count * shares).astype(np.intp), 1)
    sizes[count:] = 0
    sizes[0] = 0
    while sizes.sum() >= max(count, 1):
        sizes[sizes.argmax()] -= 1
    sizes[0] = count - sizes.sum()
    return sizes


def _deal_classes(labels: Integers, folds: int, *, rng: np.random.Generator) -> Integers:
    bins = np.zeros(len(labels), np.intp)
    # One class goes on where the last one ended, so that the folds are of one size.
    rows = np.concatenate(
        [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    )
    bins[rows] = np.arange(len(rows)) % folds
    return bins
