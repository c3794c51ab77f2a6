"""A study's figures, held against scikit-learn and a bootstrap written out by hand."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest
from simulated_study import CLASSES, GRID, GRID_SKILLS, SKILLS, make_cells, read_study, simulate
from sklearn import metrics

from wbc_keras.errors import RunError
from wbc_keras.studies.figures import FIGURES, measure_study


@pytest.fixture
def study(tmp_path):
    return read_study(tmp_path)


@pytest.fixture
def grid(tmp_path):
    return read_study(tmp_path, GRID)


def pooled(results, setting, *, seed=0, folds=(1, 2, 3)):
    """Return a setting's answers of some folds, in the order of the files."""
    tables = [
        one.answers
        for one in results
        if one.cell.setting == setting
        and one.cell.repeat.seed == seed
        and one.cell.repeat.fold in folds
    ]
    return pd.concat(tables).sort_values("file", ignore_index=True)


def by_scikit_learn(table):
    """Return the four figures; plasma cells are the rare class, 5 of 1,000."""
    predicted = table[list(CLASSES)].idxmax(axis=1)
    is_blast = table["label"] == "blast"
    abnormal = ["blast", "plasma_cell"]
    present = sorted(set(table["label"]))
    return {
        "macro_f1": metrics.f1_score(table["label"], predicted, labels=present, average="macro"),
        "rare_recall": metrics.recall_score(
            table["label"], predicted, labels=["plasma_cell"], average="macro"
        ),
        "abnormal_auroc": metrics.roc_auc_score(
            table["label"].isin(abnormal), table[abnormal].sum(axis=1)
        ),
        "blast_auroc": metrics.roc_auc_score(is_blast, table["blast"]),
    }


def test_figures_are_those_of_scikit_learn_on_pooled_folds(study):
    results = simulate(study, SKILLS)
    figures = measure_study(study, results)
    assert figures.rare == ("plasma_cell",)
    first = by_scikit_learn(pooled(results, "plain"))
    for one in figures.settings:
        expected = by_scikit_learn(pooled(results, one.name))
        assert (one.runs, one.cells, one.patients) == ((3, 3), 240, 12)
        for name in FIGURES:
            assert one.figures[name].value == pytest.approx(expected[name], abs=1e-12)
            assert one.figures[name].low < expected[name] < one.figures[name].high
            if one.differences is not None:
                difference = one.differences[name].difference
                assert difference == pytest.approx(expected[name] - first[name], abs=1e-12)
    assert figures.settings[0].differences is None


def test_what_is_better_is_told_from_what_is_not(study):
    figures = measure_study(study, simulate(study, SKILLS))
    _, better, same = figures.settings
    assert better.differences["macro_f1"].is_clear
    assert better.differences["macro_f1"].difference > 0
    assert not same.differences["macro_f1"].is_clear


def test_each_run_has_its_own_figures(study):
    results = simulate(study, SKILLS)
    rows = measure_study(study, results).runs.set_index(["setting", "repeat"])
    assert len(rows) == 9
    expected = by_scikit_learn(pooled(results, "better", folds=(2,)))
    assert dict(rows.loc[("better", "fold2_seed0")]) == pytest.approx(expected)


def f1_by_hand(truth, answers):
    """Return the mean F1 over the classes that are there."""
    scores = []
    for c in set(truth):
        hits = ((truth == c) & (answers == c)).sum()
        scores.append(2 * hits / ((truth == c).sum() + (answers == c).sum()))
    return np.mean(scores)


def test_difference_is_drawn_by_patient_with_the_same_patients_on_both_sides(study):
    """The interval is near that of a plain paired bootstrap of whole patients."""
    results = simulate(study, SKILLS)
    first, second = (pooled(results, name) for name in ("plain", "better"))
    index = {name: number for number, name in enumerate(CLASSES)}
    truth = first["label"].map(index).to_numpy()
    answers = [table[list(CLASSES)].to_numpy().argmax(axis=1) for table in (first, second)]
    cells = {name: np.flatnonzero(first["group"] == name) for name in set(first["group"])}
    names, rng, drawn = sorted(cells), np.random.default_rng(5), []
    for _ in range(4000):
        rows = np.concatenate([cells[name] for name in rng.choice(names, len(names))])
        scores = [f1_by_hand(truth[rows], one[rows]) for one in answers]
        drawn.append(scores[1] - scores[0])
    low, high = np.quantile(drawn, [0.025, 0.975])
    interval = (
        measure_study(study, results, draws=4000).settings[1].differences["macro_f1"].interval
    )
    # Ours is wider by Student's quantiles for twelve patients: 2.20 standard deviations, not 1.96.
    assert interval[1] - interval[0] == pytest.approx((high - low) * 2.20 / 1.96, rel=0.12)
    assert np.mean(interval) == pytest.approx((low + high) / 2, abs=0.02)


def test_seeds_are_averaged_not_pooled(grid):
    results = simulate(grid, GRID_SKILLS)
    (one,) = [s for s in measure_study(grid, results).settings if s.name == "cbam-focal"]
    expected = [by_scikit_learn(pooled(results, one.name, seed=seed)) for seed in (0, 1)]
    assert (one.runs, one.cells) == ((6, 6), 240)
    for name in FIGURES:
        mean = np.mean([figures[name] for figures in expected])
        assert one.figures[name].value == pytest.approx(mean, abs=1e-12)


def test_component_is_averaged_over_the_others(grid):
    results = simulate(grid, GRID_SKILLS)
    levels = {one.component: one for one in measure_study(grid, results).levels}
    score = {
        name: np.mean(
            [by_scikit_learn(pooled(results, name, seed=seed))["macro_f1"] for seed in (0, 1)]
        )
        for name in GRID_SKILLS
    }
    attention, loss = levels["model.attention"], levels["loss.name"]
    assert (attention.level, attention.reference, attention.pairs) == ("cbam", "none", 2)
    expected = (
        score["cbam-cross_entropy"] + score["cbam-focal"]
        - score["none-cross_entropy"] - score["none-focal"]
    ) / 2  # fmt: skip
    assert attention.differences["macro_f1"].difference == pytest.approx(expected, abs=1e-12)
    assert attention.differences["macro_f1"].is_clear
    expected = (
        score["none-focal"] + score["cbam-focal"]
        - score["none-cross_entropy"] - score["cbam-cross_entropy"]
    ) / 2  # fmt: skip
    assert loss.differences["macro_f1"].difference == pytest.approx(expected, abs=1e-12)


def without(results, *names):
    """Return the results but for some runs, as if they were not made yet."""
    return [one for one in results if one.cell.name not in names]


def test_part_of_a_study_is_compared_on_what_both_have_finished(study):
    results = without(simulate(study, SKILLS), "better/fold3_seed0", "same/fold3_seed0")
    plain, better, _ = measure_study(study, results).settings
    assert (plain.runs, plain.cells, better.runs) == ((3, 3), 240, (2, 3))
    assert better.cells == (make_cells()["fold"] < 3).sum()
    tables = [pooled(results, name, folds=(1, 2)) for name in ("plain", "better")]
    first, second = (by_scikit_learn(table)["macro_f1"] for table in tables)
    assert better.differences["macro_f1"].difference == pytest.approx(second - first, abs=1e-12)


def test_seed_in_progress_waits_for_its_folds(grid):
    missing = [f"{name}/fold{fold}_seed1" for name in GRID_SKILLS for fold in (2, 3)]
    results = without(simulate(grid, GRID_SKILLS), *missing)
    one = measure_study(grid, results).settings[0]
    expected = by_scikit_learn(pooled(results, one.name))
    assert one.runs == (4, 6)
    assert one.figures["macro_f1"].value == pytest.approx(expected["macro_f1"], abs=1e-12)


def test_nothing_finished_is_nothing_known(study):
    figures = measure_study(study, [])
    assert [one.figures["macro_f1"].value for one in figures.settings] == [None] * 3
    assert (figures.rare, figures.levels, len(figures.runs)) == ((), (), 0)


def test_runs_tested_on_other_cells_are_refused(study):
    results = simulate(study, SKILLS)
    changed = results[1].answers.assign(label=results[1].answers["label"].iloc[::-1].to_numpy())
    results[1] = dataclasses.replace(results[1], answers=changed)
    with pytest.raises(RunError, match=r"better/fold1_seed0: was tested on other cells"):
        measure_study(study, results)
