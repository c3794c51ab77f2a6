"""Run folders for the tests of reports: drawn cells, simulated answers, real writers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from wbc_keras import evaluate as evaluating
from wbc_keras import runs
from wbc_keras.config import Config, DataConfig, dump_config
from wbc_keras.prediction.decisions import fit_decisions, write_decisions
from wbc_keras.reporting.verdicts import Verdicts
from wbc_keras.splits import write_splits
from wbc_keras.statistics.probabilities import softmax
from wbc_keras.synthetic import draw_cell

CLASSES = ("erythroblast", "lymphocyte", "monocyte", "myeloblast", "neutrophil_segmented")
# Names that a page, a card or a table in LaTeX could take for its own.
HOSTILE = ("<b>x|y</b>", "a&b", '"q"', "*c* `d`", "{{ 7*7 }}")
CELLS = 24  # of a class
PATIENTS = 10


def make_scored_run(
    folder: Path, *, class_names: Sequence[str] = CLASSES, patients: bool = True
) -> Path:
    """Make a run in ``folder / "run"`` on cells in ``folder / "cells"``, and score its test cells.

    Every third cell is trained on, every third validates, every third tests; a patient's cells are
    in one split.
    """
    run, cells = folder / "run", folder / "cells"
    rows = _draw_cells(cells, class_names, patients=patients)
    rng = np.random.default_rng(5)
    truth = np.array([class_names.index(label) for label in rows["label"]])
    logits = 2.2 * np.eye(len(class_names))[truth] + rng.normal(size=(len(truth), len(class_names)))
    run.mkdir(parents=True)
    _write_training(run, cells, class_names, rows)
    write_decisions(
        run,
        fit_decisions(*_of_split(rows, truth, logits, "validation"), class_names),
    )
    write_evaluation(run, rows, logits, class_names)
    return run


def write_evaluation(
    run: Path, rows: pd.DataFrame, logits: np.ndarray, class_names: Sequence[str]
) -> None:
    """Write ``evaluation/test`` as `evaluate` does, from logits instead of a model."""
    from wbc_keras.prediction.decisions import read_decisions

    truth = np.array([class_names.index(label) for label in rows["label"]])
    tested = rows[rows["split"] == "test"].reset_index(drop=True)
    labels, logits = _of_split(rows, truth, logits, "test")
    decisions = read_decisions(run)
    assert decisions is not None
    probabilities = softmax(logits, temperature=decisions.temperature).astype("float32")
    predicted = np.array(class_names)[probabilities.argmax(axis=1)]
    verdicts = Verdicts(
        rows=tested[["file", "label", "group"]],
        root=run.parent / "cells",
        class_names=tuple(class_names),
        labels=labels,
        probabilities=probabilities,
        boxes=np.tile([0.1, 0.1, 0.9, 0.9], (len(labels), 1)),
        found=np.ones(len(labels), bool),
        uncalibrated=softmax(logits).astype("float32"),
        accepted=decisions.accept(probabilities),
        decisions=(decisions,),
        run=np.zeros(len(labels), int),
        experts=None,
        novelty=None,
        foreign=None,
        heatmaps=_draw_heat(tested["file"][predicted != tested["label"]]),
    )
    with runs.replacing_folder(run / "evaluation" / "test") as temporary:
        evaluating.write_evaluation(temporary, verdicts, verdicts.score(), {"left_out": {}})


def _draw_heat(files: Iterable[str]) -> dict[str, np.ndarray]:
    """Return maps that are hot in their upper left quarter."""
    heat = np.zeros((48, 48), np.uint8)
    heat[:24, :24] = 255
    return dict.fromkeys(files, heat)


def _draw_cells(folder: Path, class_names: Sequence[str], *, patients: bool) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for index, label in enumerate(class_names):
        (folder / label).mkdir(parents=True)
        for number in range(CELLS):
            file = f"{label}/{number:02d}.png"
            image = draw_cell(CLASSES[index], size=48, rng=rng).image
            cv2.imwrite(str(folder / file), np.ascontiguousarray(image[..., ::-1]))
            split = ("train", "validation", "test", "test")[number % 4]
            group = f"{split} {number % PATIENTS}" if patients else ""
            rows.append((file, label, group, split))
    return pd.DataFrame(rows, columns=["file", "label", "group", "split"])


def _of_split(
    rows: pd.DataFrame, truth: np.ndarray, logits: np.ndarray, split: str
) -> tuple[np.ndarray, np.ndarray]:
    chosen = (rows["split"] == split).to_numpy()
    return truth[chosen], logits[chosen]


def _write_training(run: Path, cells: Path, class_names: Sequence[str], rows: pd.DataFrame) -> None:
    config = dataclasses.replace(Config(), data=DataConfig(source=str(cells)))
    runs.write_text(run / "config.yaml", dump_config(config))
    runs.write_json(run / "classes.json", {"classes": list(class_names), "abnormal": None})
    runs.write_json(run / "environment.json", runs.describe_environment())
    write_splits(run / "splits.csv", rows, list(rows["split"]))
    scores = [0.3, 0.6, 0.8]
    history = pd.DataFrame(
        {
            "epoch": range(3),
            "phase": ["head", "fine_tune", "fine_tune"],
            "loss": [1.0, 0.6, 0.4],
            "val_loss": [1.1, 0.7, 0.5],
            "macro_f1": scores,
            "val_macro_f1": scores,
        }
    )
    runs.write_text(run / "history.csv", history.to_csv(index=False))
