"""Which cells are shown, and what the explain command writes."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pandas as pd
import pytest

from wbc_keras.explain import choose_samples, main
from wbc_keras.prediction.predictions import read_predictions


def probabilities(rows):
    """One row a cell: the class it is taken for, and how surely."""
    table = np.full((len(rows), 3), 0.01)
    for row, (predicted, confidence) in zip(table, rows, strict=True):
        row[predicted] = confidence
    return table


def test_classes_take_turns_and_a_wrong_answer_follows_each_right_one():
    labels = [0, 0, 0, 0, 1, 1, 1, 2]
    answers = [(0, 0.6), (0, 0.9), (1, 0.5), (2, 0.8), (1, 0.7), (1, 0.8), (0, 0.6), (2, 0.9)]
    # The surest right ones first: 1 of class 0, 5 of class 1, 7 of class 2.
    chosen = choose_samples(labels, probabilities(answers), samples=3)
    assert chosen.tolist() == [1, 5, 7]
    # Then the surest wrong ones, 3 and 6; class 2 has none.
    chosen = choose_samples(labels, probabilities(answers), samples=5)
    assert chosen.tolist() == [1, 3, 5, 6, 7]
    # Then the next right ones, 0 and 4.
    chosen = choose_samples(labels, probabilities(answers), samples=7)
    assert chosen.tolist() == [1, 0, 3, 5, 4, 6, 7]


def test_more_samples_than_cells_are_all_cells():
    chosen = choose_samples([0, 1, 1], probabilities([(0, 0.5), (1, 0.6), (0, 0.7)]), samples=99)
    assert sorted(chosen.tolist()) == [0, 1, 2]


@pytest.fixture(scope="module")
def explanations(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain") / "explanations"
    arguments = ["--run", str(trained_run), "--samples", "6", "--output", str(folder)]
    assert main(arguments) == 0
    return folder


def test_table_names_test_cells_with_the_models_answers(explanations, evaluation):
    table = pd.read_csv(explanations / "cells.csv")
    assert list(table.columns) == ["file", "label", "predicted", "confidence"]
    assert len(table) == 6
    assert set(table["label"]) == {"eosinophil", "lymphocyte", "monocyte", "neutrophil_segmented"}
    predicted = read_predictions(evaluation / "predictions.csv").set_index("file")
    for row in table.itertuples():
        expected = predicted.loc[row.file]
        assert (row.label, row.predicted) == (expected["label"], expected["predicted"])
        assert row.confidence == pytest.approx(expected["confidence"], abs=1e-5)


def test_sheet_is_a_picture(explanations):
    files = {"cells.png", "cells.csv", "checks.json", "checks.png"}
    assert {path.name for path in explanations.iterdir()} == files
    assert cv2.imread(str(explanations / "checks.png")).std() > 10
    sheet = cv2.imread(str(explanations / "cells.png"))
    assert min(sheet.shape[:2]) > 200
    assert sheet.std() > 10


def test_heatmaps_are_checked_on_test_cells(explanations, evaluation):
    figures = json.loads((explanations / "checks.json").read_text())
    assert figures["method"] == "gradcam"
    assert figures["cells"] == len(read_predictions(evaluation / "predictions.csv"))
    for name in ("nucleus_energy", "cell_attention", "deletion", "insertion"):
        low, high = figures["confidence_interval_95"][name]
        assert 0 <= low <= figures[name] <= high <= 1
    assert figures["nucleus_area"] < figures["cell_area"]


def test_folder_with_other_files_is_left_alone(trained_run, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["--run", str(trained_run), "--output", str(tmp_path)]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("options", [["--samples", "0"], ["--samples", "x"], ["--method", "lime"]])
def test_options_out_of_range_end_with_2(trained_run, capsys, options):
    with pytest.raises(SystemExit) as end:
        main(["--run", str(trained_run), *options])
    assert end.value.code == 2
    assert options[0] in capsys.readouterr().err
