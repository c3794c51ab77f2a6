"""A study's results without its trainings: simulated answers in the files that runs leave."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from wbc_keras.studies.plan import Study, load_study
from wbc_keras.studies.results import Facts, Result

CLASSES = ("blast", "lymphocyte", "monocyte", "plasma_cell")
PATIENTS = 12

STUDY = """\
name: simulated
base: {data: {source: cells}, loss: {name: cross_entropy}, model: {attention: none}}
settings: {plain: , better: {model.attention: cbam}, same: {loss.name: focal}}
folds: 3
seeds: [0]
"""
GRID = """\
name: simulated
base: {data: {source: cells}}
grid: {model.attention: [none, cbam], loss.name: [cross_entropy, focal]}
folds: 3
seeds: [0, 1]
"""
# How far each setting tells the classes apart.
SKILLS = {"plain": 1.0, "better": 2.5, "same": 1.0}
GRID_SKILLS = {
    "none-cross_entropy": 1.0,
    "none-focal": 1.0,
    "cbam-cross_entropy": 2.0,
    "cbam-focal": 3.0,
}
_TRAIN = {"blast": 300, "lymphocyte": 500, "monocyte": 195, "plasma_cell": 5}


def read_study(folder: Path, text: str = STUDY) -> Study:
    path = folder / "study.yaml"
    path.write_text(text)
    return load_study(path)


def make_cells() -> pd.DataFrame:
    """Return 240 cells of 12 patients, patients dealt to three folds."""
    rng = np.random.default_rng(0)
    rows = [
        {"file": f"{label}/{number:03}.png", "label": label}
        for label, cells in zip(CLASSES, (60, 100, 60, 20), strict=True)
        for number in range(cells)
    ]
    table = pd.DataFrame(rows)
    patient = rng.integers(PATIENTS, size=len(table))
    return table.assign(group=[f"patient {one}" for one in patient], fold=1 + patient % 3)


def simulate(study: Study, skills: dict[str, float], *, seed: int = 1) -> list[Result]:
    """Return a result for each run; a setting's skill is how far the true class is ahead."""
    cells, results = make_cells(), []
    rng = np.random.default_rng(seed)
    for cell in study.cells():
        tested = cells[cells["fold"] == cell.repeat.fold].sort_values("file", ignore_index=True)
        right = tested["label"].to_numpy()[:, np.newaxis] == np.array(CLASSES)
        logits = rng.normal(size=right.shape) + skills[cell.setting] * right
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        answers = pd.concat(
            [tested[["file", "label", "group"]], pd.DataFrame(shares, columns=list(CLASSES))],
            axis=1,
        )
        facts = Facts(10, 600.0, 30.0, 4_000_000, _TRAIN, 0.5)
        results.append(Result(cell, facts, None, answers))
    return results


def write_run(folder: Path, result: Result) -> None:
    """Write what `studies.results.write_result` reads of a run folder."""
    from wbc_keras import runs
    from wbc_keras.config import dump_config
    from wbc_keras.prediction.predictions import prediction_table, write_predictions
    from wbc_keras.splits import write_splits

    answers = result.answers
    assert answers is not None
    runs.write_text(folder / "config.yaml", dump_config(result.cell.config))
    runs.write_text(folder / "classes.json", json.dumps({"classes": CLASSES}))
    train = pd.DataFrame(
        [(f"{name}/t{i}.png", name, "") for name, n in _TRAIN.items() for i in range(n)],
        columns=["file", "label", "group"],
    )
    table = pd.concat([answers[["file", "label", "group"]], train], ignore_index=True)
    table = table.assign(split="")
    write_splits(folder / "splits.csv", table, ["test"] * len(answers) + ["train"] * len(train))
    history = pd.DataFrame(
        {"epoch": range(10), "val_macro_f1": [0.3] * 8 + [0.5, 0.4], "seconds": [60.0] * 10}
    )
    runs.write_text(folder / "history.csv", history.to_csv(index=False))
    shuffled = answers.sample(frac=1, random_state=0)
    predictions = prediction_table(
        list(shuffled["file"]),
        list(shuffled["label"]),
        shuffled[list(CLASSES)].to_numpy(),
        CLASSES,
        np.zeros((len(shuffled), 4)),
    )
    write_predictions(folder / "evaluation" / "test" / "predictions.csv", predictions)
