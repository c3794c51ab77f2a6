"""Splits are stratified, whole by group, the same for the same seed; every exception is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from wbc_keras.errors import DataError, RunError
from wbc_keras.manifest import read_manifest
from wbc_keras.splits import SPLITS, Splits, make_splits, read_splits, write_splits


def make_table(
    counts: dict[str, int], *, groups: int = 0, split: str = "", seed: int = 0
) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    labels = [name for name, count in counts.items() for _ in range(count)]
    group = [f"g{n}" if groups else "" for n in rng.integers(max(groups, 1), size=len(labels))]
    files = [f"{label}/{index:05d}.png" for index, label in enumerate(labels)]
    return pd.DataFrame({"file": files, "label": labels, "group": group, "split": split}, dtype=str)


def split_up(table: pd.DataFrame, **options: object) -> Splits:
    settings = {"validation": 0.1, "test": 0.2, **options}
    return make_splits(table, **settings)  # type: ignore[arg-type]


def count(table: pd.DataFrame, splits: Splits) -> pd.DataFrame:
    """Return the cells of each class (row) in each split (column), by pandas."""
    found = pd.crosstab(table["label"].to_numpy(), splits.assignment)
    return found.reindex(columns=list(SPLITS), fill_value=0)


def assert_groups_whole(table: pd.DataFrame, splits: Splits) -> None:
    places = pd.Series(splits.assignment).groupby(table["group"].to_numpy()).nunique()
    assert (places == 1).all()


# --- by picture ---


def test_shares_of_every_class() -> None:
    table = make_table({"a": 1000, "b": 100, "c": 10, "d": 3})
    splits = split_up(table)
    assert count(table, splits).to_numpy().tolist() == [
        [700, 100, 200],
        [70, 10, 20],
        [7, 1, 2],
        [1, 1, 1],
    ]
    assert len(splits.notes) == 1
    assert "no patients are given" in splits.notes[0]


def test_classes_too_small_for_their_splits_are_named() -> None:
    table = make_table({"a": 50, "one": 1, "two": 2})
    splits = split_up(table)
    found = count(table, splits)
    assert found.loc["one"].tolist() == [1, 0, 0]
    assert found.loc["two"].tolist() == [1, 0, 1]
    assert splits.notes[1:] == (
        "one does not reach every split (cells 1): train 1, validation 0, test 0",
        "two does not reach every split (cells 2): train 1, validation 0, test 1",
    )


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize(("validation", "test"), [(0.1, 0.2), (0.45, 0.45), (0.01, 0.5)])
def test_every_class_is_trained(size: int, validation: float, test: float) -> None:
    table = make_table({"a": 100, "b": size})
    found = count(table, split_up(table, validation=validation, test=test)).loc["b"]
    assert found.sum() == size
    assert found["train"] >= 1
    assert (found["test"] >= 1) == (size >= 2)
    assert (found["validation"] >= 1) == (size >= 3)


def test_same_seed_same_splits_whatever_the_order() -> None:
    table = make_table({"a": 60, "b": 40}, groups=20)
    for one in (table, table.assign(group="")):
        first = split_up(one, seed=5).assignment
        np.testing.assert_array_equal(first, split_up(one, seed=5).assignment)
        order = np.random.default_rng(0).permutation(len(one))
        shuffled = one.iloc[order].reset_index(drop=True)
        np.testing.assert_array_equal(split_up(shuffled, seed=5).assignment, first[order])
        assert (split_up(one, seed=6).assignment != first).any()


def test_too_few_cells_for_three_splits() -> None:
    with pytest.raises(DataError, match="none of the 4 cells is left for validation; add pictures"):
        split_up(make_table({"a": 2, "b": 2}))


# --- by group ---


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole_and_shares_are_near(seed: int) -> None:
    table = make_table({"a": 1000, "b": 300, "c": 60, "d": 20}, groups=60, seed=seed)
    splits = split_up(table, seed=seed)
    assert_groups_whole(table, splits)
    found = count(table, splits)
    shares = found.div(found.sum(axis=1), axis=0)
    aim = [0.7, 0.1, 0.2]
    np.testing.assert_allclose(found.sum() / len(table), aim, atol=0.02)
    np.testing.assert_allclose(shares.loc[["a", "b"]].to_numpy() - aim, 0, atol=0.03)
    np.testing.assert_allclose(shares.loc[["c", "d"]].to_numpy() - aim, 0, atol=0.08)


def test_rare_classes_reach_train_first_then_test() -> None:
    table = make_table({"a": 600, "b": 600}, groups=30)
    rare = [("one", "g0"), *[("two", f"g{n}") for n in (1, 1, 2)]]
    rare += [("three", f"g{n}") for n in (3, 4, 4, 4, 4, 4, 4, 5)]
    rows = {"file": [f"r{n}.png" for n in range(len(rare))], "label": [r[0] for r in rare]}
    table = pd.concat(
        [table, pd.DataFrame({**rows, "group": [r[1] for r in rare], "split": ""})],
        ignore_index=True,
    )
    splits = split_up(table)
    found = count(table, splits) > 0
    assert found.loc["one"].tolist() == [True, False, False]
    assert found.loc["two"].tolist() == [True, False, True]
    assert found.loc["three"].tolist() == [True, True, True]
    assert splits.notes[1].startswith("one does not reach every split (cells 1, groups 1): train 1")
    assert splits.notes[2].startswith("two does not reach every split (cells 3, groups 2)")


def test_real_patients(aml_jhu: Path) -> None:
    table = read_manifest(aml_jhu).table
    splits = split_up(table)
    assert_groups_whole(table, splits)
    found = count(table, splits)
    patients = table.groupby("label")["group"].nunique()
    assert (found[patients >= 3] > 0).all(axis=None)
    assert found.loc["prolymphocyte"].tolist() == [1, 0, 0]
    np.testing.assert_allclose(found.sum() / len(table), [0.7, 0.1, 0.2], atol=0.01)
    common = found[found.sum(axis=1) >= 1000]
    shares = common.div(common.sum(axis=1), axis=0).to_numpy()
    np.testing.assert_allclose(shares - [0.7, 0.1, 0.2], 0, atol=0.03)
    assert [note.split()[0] for note in splits.notes[1:]] == ["prolymphocyte"]


@pytest.mark.parametrize(("groups", "options"), [(2, {}), (4, {"folds": 5, "fold": 1})])
def test_fewer_groups_than_splits(groups: int, options: dict[str, int]) -> None:
    table = make_table({"a": 30, "b": 30}, groups=groups)
    with pytest.raises(DataError, match=rf"group: {groups} groups \(patients\) cannot be kept"):
        split_up(table, **options)


# --- folds ---


@pytest.mark.parametrize("groups", [0, 40])
@pytest.mark.parametrize("folds", [2, 5])
def test_every_cell_is_tested_once(folds: int, groups: int) -> None:
    table = make_table({"a": 200, "b": 53, "c": 7, "d": 1}, groups=groups)
    tested = np.zeros(len(table), int)
    for fold in range(1, folds + 1):
        splits = split_up(table, folds=folds, fold=fold, seed=2)
        is_test = splits.assignment == "test"
        tested += is_test
        assert is_test.mean() == pytest.approx(1 / folds, abs=0.06)
        assert (splits.assignment == "validation").mean() == pytest.approx(0.1, abs=0.04)
        assert f"fold {fold} of {folds}" in splits.notes[0]
        if groups:
            assert_groups_whole(table, splits)
        assert (count(table, splits).loc[["a", "b"]] > 0).all(axis=None)
    assert (tested == 1).all()


def test_real_folds_by_patient(aml_jhu: Path) -> None:
    table = read_manifest(aml_jhu).table
    patients = table.groupby("label")["group"].nunique()
    tested = np.zeros(len(table), int)
    for fold in range(1, 6):
        splits = split_up(table, folds=5, fold=fold)
        assert_groups_whole(table, splits)
        tested += splits.assignment == "test"
        assert (count(table, splits)[patients >= 5] > 0).all(axis=None)
    assert (tested == 1).all()


def test_a_class_missing_from_a_folds_training_is_named() -> None:
    table = make_table({"a": 30, "b": 30, "lone": 1})
    notes = [" ".join(split_up(table, folds=3, fold=fold).notes) for fold in (1, 2, 3)]
    lone = "lone does not reach every split (cells 1): train 0, validation 0, test 1"
    assert sum(lone in note for note in notes) == 1


@pytest.mark.parametrize(("folds", "fold"), [(5, 0), (5, 6), (1, 1)])
def test_impossible_folds(folds: int, fold: int) -> None:
    with pytest.raises(ValueError, match=r"fold: expected"):
        split_up(make_table({"a": 30, "b": 30}), folds=folds, fold=fold)


# --- a given column ---


def test_given_column_is_obeyed() -> None:
    table = make_table({"a": 30, "b": 30})
    table["split"] = np.array(["train", "test", "validation"])[np.arange(60) % 3]
    splits = split_up(table, folds=5, fold=1)
    np.testing.assert_array_equal(splits.assignment, table["split"])
    assert splits.notes[0] == "the data's own split column is obeyed"
    assert "split.fold is not used beside it" in splits.notes


@pytest.mark.parametrize("groups", [0, 12])
def test_validation_is_taken_from_train(groups: int) -> None:
    table = make_table({"a": 300, "b": 100}, groups=groups)
    is_test = table["group"].isin(["g0", "g1"]) if groups else table.index % 5 == 0
    table["split"] = np.where(is_test, "test", "train")
    splits = split_up(table)
    np.testing.assert_array_equal(splits.assignment == "test", is_test)
    found = count(table, splits)
    np.testing.assert_allclose(
        found["validation"] / (found["train"] + found["validation"]), 0.1, atol=0.04
    )
    if groups:
        assert_groups_whole(table, splits)
    assert "has no validation cells, so 10% of its training cells are taken" in splits.notes[1]


def test_column_without_test_cells() -> None:
    table = make_table({"a": 30, "b": 30})
    table["split"] = np.where(table.index % 4 == 0, "validation", "train")
    splits = split_up(table)
    np.testing.assert_array_equal(splits.assignment, table["split"])
    assert "has no test cells" in splits.notes[1]
    assert len(splits.notes) == 2


def test_column_that_tears_groups_is_noted() -> None:
    table = make_table({"a": 30, "b": 30}, groups=3)
    table["split"] = np.array(["train", "test", "validation"])[np.arange(60) % 3]
    assert "3 groups (patients) have cells in more than one split" in split_up(table).notes


def test_partial_column_is_refused() -> None:
    table = make_table({"a": 30, "b": 30}, split="train")
    table.loc[[7, 9], "split"] = ""
    with pytest.raises(DataError, match=r"missing for 2 of 60, first a/00007\.png"):
        split_up(table)


@pytest.mark.parametrize("split", ["test", "validation"])
def test_class_that_is_not_trained_is_refused(split: str) -> None:
    table = make_table({"a": 30, "b": 30, "new": 3}, split="train")
    table.loc[table["label"] == "new", "split"] = split
    with pytest.raises(DataError, match="no training cell of new, which validation or test holds"):
        split_up(table)


def test_column_without_training_cells_is_refused() -> None:
    with pytest.raises(DataError, match="none of the 60 cells is left for train"):
        split_up(make_table({"a": 30, "b": 30}, split="test"))


# --- copies of one picture ---


def with_copies(table: pd.DataFrame, sets: list[list[int]]) -> np.ndarray:
    units = np.arange(len(table))
    for rows in sets:
        units[rows] = rows[0]
    return units


@pytest.mark.parametrize("options", [{}, {"folds": 5, "fold": 2}])
@pytest.mark.parametrize("seed", range(4))
def test_copies_stay_in_one_split(options: dict[str, int], seed: int) -> None:
    table = make_table({"a": 100, "b": 100})
    pairs = [[row, row + 50] for row in range(40)] + [[45, 145, 146, 195]]
    units = with_copies(table, pairs)
    splits = split_up(table, units=units, seed=seed, **options)
    for rows in pairs:
        assert len(set(splits.assignment[rows])) == 1
    shares = count(table, splits).sum() / len(table)
    np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.06)
    assert "84 pictures are copies of 41, each kept in one split" in splits.notes
    alone = split_up(table, seed=seed, **options).assignment
    assert any(len(set(alone[rows])) > 1 for rows in pairs)
    order = np.random.default_rng(1).permutation(len(table))
    shuffled = table.iloc[order].reset_index(drop=True)
    again = split_up(shuffled, units=units[order], seed=seed, **options)
    np.testing.assert_array_equal(again.assignment, splits.assignment[order])


def test_without_copies_nothing_changes() -> None:
    for groups in (0, 20):
        table = make_table({"a": 60, "b": 40}, groups=groups)
        plain = split_up(table)
        # Any numbers will do.
        units = np.random.default_rng(0).permutation(len(table)) + 7
        tied = split_up(table, units=units)
        np.testing.assert_array_equal(tied.assignment, plain.assignment)
        assert tied.notes == plain.notes


def test_patients_that_share_a_picture_are_joined() -> None:
    table = make_table({"a": 200, "b": 200}, groups=40)
    groups = table["group"].to_numpy()
    # g0 with g1, g1 with g2: all three; two cells of g5: nothing new.
    rows = {name: np.flatnonzero(groups == name) for name in ("g0", "g1", "g2", "g5")}
    sets = [[rows["g0"][0], rows["g1"][0]], [rows["g1"][1], rows["g2"][0]], list(rows["g5"][:2])]
    splits = split_up(table, units=with_copies(table, sets))
    assert_groups_whole(table, splits)
    joined = np.isin(groups, ["g0", "g1", "g2"])
    assert len(set(splits.assignment[joined])) == 1
    assert "by group (38 groups or patients" in splits.notes[0]
    assert splits.notes[1:3] == (
        "6 pictures are copies of 3, each kept in one split",
        "3 groups (patients) share a picture with another; joined in one split",
    )


def test_column_that_tears_copies_is_obeyed_and_told() -> None:
    table = make_table({"a": 30, "b": 30})
    table["split"] = np.array(["train", "test", "validation"])[np.arange(60) % 3]
    splits = split_up(table, units=with_copies(table, [[0, 1], [3, 6]]))
    np.testing.assert_array_equal(splits.assignment, table["split"])
    assert "1 picture has a copy in another split, which flatters the figures" in splits.notes


# --- splits.csv ---


def test_splits_file_round_trip(tmp_path: Path) -> None:
    table = make_table({"01": 20, "NA": 20}, groups=5)
    table.loc[0, "file"] = 'a, "b" ä.png'
    splits = split_up(table)
    path = tmp_path / "splits.csv"
    write_splits(path, table, splits.assignment)
    assert path.read_text("utf-8").startswith("file,label,group,split\n")
    expected = table.assign(split=splits.assignment)
    pd.testing.assert_frame_equal(read_splits(path), expected, check_dtype=False)
    assert read_splits(path).equals(expected)
    assert [item.name for item in tmp_path.iterdir()] == ["splits.csv"]


def test_faulty_splits_file(tmp_path: Path) -> None:
    path = tmp_path / "splits.csv"
    with pytest.raises(RunError, match="cannot be read"):
        read_splits(path)
    for text in ("", "file,label\na,b\n", "file,label,group,split\na,b,,dev\n"):
        path.write_text(text)
        with pytest.raises(RunError, match="train the run again"):
            read_splits(path)
