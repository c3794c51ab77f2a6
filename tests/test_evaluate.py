"""Evaluation of a real run: every test cell once, figures that scikit-learn confirms."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from wbc_keras.compare import main as compare
from wbc_keras.config import dump_config, load_config
from wbc_keras.evaluate import main
from wbc_keras.explain import main as explain
from wbc_keras.gradcam import Heatmaps
from wbc_keras.manifest import read_manifest
from wbc_keras.pictures.non_cells import KINDS
from wbc_keras.pictures.prepared import prepare
from wbc_keras.predict import predict
from wbc_keras.prediction.decisions import read_decisions, write_decisions
from wbc_keras.prediction.novelty import read_novelty
from wbc_keras.prediction.predictions import class_columns, read_predictions
from wbc_keras.reporting.gallery import choose_mistakes, read_heatmaps
from wbc_keras.runs import open_run
from wbc_keras.selection import select_cells
from wbc_keras.splits import make_splits, read_splits, write_splits
from wbc_keras.statistics.second_look import rank_labels

FILES = {"metrics.json", "per_class.csv", "predictions.csv", "confusion_matrix.png"}
FILE = "predictions.csv"
FILES |= {"confusion_pairs.csv", "calibration.json", "selective.json", "risk_coverage.png"}


def figures_in(folder, name="metrics"):
    return json.loads((folder / f"{name}.json").read_text())


def other_cells(drawn_cells, folder, counts):
    """Copy drawn cells into another folder under labels of its own, with names of its own."""
    for label, (source, count) in counts.items():
        (folder / label).mkdir(parents=True)
        for number in range(count):
            picture = drawn_cells / source / f"{number:02d}.png"
            shutil.copy(picture, folder / label / f"other_{number}.png")
    return folder


def test_folder_holds_what_the_design_says(evaluation):
    assert {path.name for path in evaluation.iterdir()} >= FILES
    for path in evaluation.glob("*.png"):
        assert cv2.imread(str(path)) is not None


def test_each_test_cell_is_predicted_once(evaluation, trained_run):
    splits = pd.read_csv(trained_run / "splits.csv")
    expected = splits[splits["split"] == "test"].set_index("file")["label"]
    table = read_predictions(evaluation / "predictions.csv").set_index("file")
    assert table.index.is_unique
    assert dict(table["label"]) == dict(expected)


def test_probabilities_are_the_models_own(evaluation, trained_run, drawn_cells):
    """Cropped by the boxes in the table with OpenCV, and put through the network by hand."""
    table = read_predictions(evaluation / "predictions.csv")
    # Enlarged, both interpolate linearly, to a grey level here and there; shrunk, they differ.
    sides = table["roi_y1"] - table["roi_y0"], table["roi_x1"] - table["roi_x0"]
    table = table[np.maximum(*sides) <= 48 / 64]
    assert len(table) >= 8
    classes = class_columns(table)
    images = []
    for row in table.itertuples():
        image = cv2.imread(str(drawn_cells / row.file))[..., ::-1].astype(np.float32)
        corners = np.array([row.roi_y0, row.roi_x0, row.roi_y1, row.roi_x1]) * 64
        step = (corners[2:] - corners[:2]) / 48
        y, x = (corners[i] + (np.arange(48) + 0.5) * step[i] - 0.5 for i in range(2))
        places = np.meshgrid(x.astype(np.float32), y.astype(np.float32))
        images.append(cv2.remap(image, *places, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE))
    model = keras.models.load_model(trained_run / "model.keras", compile=False)
    logits = np.asarray(model(np.round(images).astype(np.float32)), np.float64)
    logits /= read_decisions(trained_run).temperature
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(table[classes], expected, atol=0.01)
    np.testing.assert_allclose(table[classes].sum(axis=1), 1, atol=1e-6)


def test_heatmaps_are_those_of_the_wrong_answers(evaluation, trained_run):
    heatmaps = read_heatmaps(evaluation)
    table = read_predictions(evaluation / "predictions.csv").set_index("file")
    wrong = choose_mistakes(table.reset_index())["file"]
    assert set(heatmaps) == set(wrong)
    assert {heat.shape for heat in heatmaps.values()} == {(48, 48)}
    run = open_run(trained_run)
    cells = prepare(select_cells(run).source, roi=run.config.roi, image_size=(48, 48))
    classes = [run.class_names.index(table.loc[file, "predicted"]) for file in wrong]
    model = keras.models.load_model(run.model_path, compile=False)
    expected = Heatmaps(model).draw(cells.take(wrong).images[:], classes)
    for file, heat in zip(wrong, expected, strict=True):
        np.testing.assert_allclose(heatmaps[file] / 255, heat, atol=0.02)


def test_figures_agree_with_scikit_learn(evaluation):
    figures, table = figures_in(evaluation), read_predictions(evaluation / "predictions.csv")
    truth, predicted = table["label"], table["predicted"]
    classes = figures["classes"]
    assert figures["samples"] == len(table)
    assert figures["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    macro_f1 = metrics.f1_score(truth, predicted, average="macro", labels=classes, zero_division=0)
    assert figures["macro_f1"] == pytest.approx(macro_f1)
    auroc = metrics.roc_auc_score(
        truth, table[classes].astype(float), multi_class="ovr", labels=classes
    )
    assert figures["macro_auroc"] == pytest.approx(auroc, abs=1e-6)
    assert figures["left_out"] == {}


def test_calibration_tells_before_and_after(evaluation, trained_run):
    """The logarithm of a calibrated probability, times the temperature, is the logit again."""
    told, figures = figures_in(evaluation, "calibration"), figures_in(evaluation)
    temperature = read_decisions(trained_run).temperature
    assert told["temperatures"] == [temperature]
    assert temperature != pytest.approx(1, abs=1e-3)
    for name in ("ece", "adaptive_ece", "brier", "nll"):
        assert told["after"][name] == figures[name]
    table = read_predictions(evaluation / "predictions.csv")
    classes = figures["classes"]
    calibrated = table[classes].to_numpy(float)
    # As float32 in the table they sum to one nearly, which scikit-learn finds too little.
    calibrated /= calibrated.sum(axis=1, keepdims=True)
    before = calibrated**temperature
    before /= before.sum(axis=1, keepdims=True)
    for key, shares in (("before", before), ("after", calibrated)):
        loss = metrics.log_loss(table["label"], shares, labels=classes)
        assert told[key]["nll"] == pytest.approx(loss, rel=1e-4)


def test_accepted_answers_are_those_over_the_threshold(evaluation, trained_run):
    told, table = figures_in(evaluation, "selective"), read_predictions(evaluation / FILE)
    threshold = read_decisions(trained_run).accept_threshold
    assert told["thresholds"] == [threshold]
    accepted = table["accepted"]
    assert accepted.tolist() == (table["confidence"] >= threshold).tolist()
    assert told["coverage"] == pytest.approx(accepted.mean())
    right = (table["predicted"] == table["label"])[accepted]
    assert told["accuracy"] == (pytest.approx(right.mean()) if accepted.any() else None)


def test_novelty_is_of_the_runs_own_features(evaluation, trained_run):
    """The network's pooled features by hand, against the file that training left."""
    table = read_predictions(evaluation / FILE)
    assert list(table.columns)[-2:] == ["accepted", "novelty"]
    run = open_run(trained_run)
    selection = select_cells(run)
    cells = prepare(selection.source, roi=run.config.roi, image_size=(48, 48)).take(table["file"])
    model = keras.models.load_model(trained_run / "model.keras", compile=False)
    pooled = keras.Model(model.input, model.get_layer("features").output)(
        np.asarray(cells.images, np.float32)
    )
    features = np.asarray(pooled).mean(axis=(1, 2))
    expected = read_novelty(trained_run).score(features)
    # One of few validation cells more or less on the other side, by a last digit.
    np.testing.assert_allclose(table["novelty"], expected, atol=0.11)
    told = figures_in(evaluation, "novelty")
    assert told["scored"]["auroc"] == pytest.approx(table["novelty"].mean())
    assert told["scored"]["cells"] == len(table)
    assert told["left_out"] == {}
    assert set(told["drawn"]) == {*KINDS, "cell"}
    low, high = told["drawn"]["dirt"]["confidence_interval_95"]["auroc"] or (1, 1)
    assert low <= told["drawn"]["dirt"]["auroc"] <= high <= 1


def test_labels_worth_a_second_look_are_named(evaluation, run_copy, drawn_cells, tmp_path):
    """The surest right answer's picture, under the label that the model believes least of it."""
    table = read_predictions(evaluation / FILE)
    sure = table[table["predicted"] == table["label"]]
    right = sure.loc[sure["confidence"].idxmax()]
    wrong_label = right[class_columns(table)].astype(float).idxmin()
    counts = {label: (label, 5) for label in class_columns(table)}
    data = other_cells(drawn_cells, tmp_path / "elsewhere", counts)
    planted = f"{wrong_label}/planted.png"
    shutil.copy(drawn_cells / right["file"], data / planted)
    assert main(["--run", str(run_copy), "--data", str(data)]) == 0
    folder = run_copy / "evaluation" / "elsewhere"
    ranked, table = pd.read_csv(folder / "second_look.csv"), read_predictions(folder / FILE)
    names = class_columns(table)
    expected = rank_labels([names.index(label) for label in table["label"]], table[names], names)
    assert ranked["file"].tolist() == table["file"][expected.pop("cell")].tolist()
    pd.testing.assert_frame_equal(ranked.drop(columns="file"), expected, rtol=1e-5)
    row = ranked.set_index("file").loc[planted]
    assert (row["label"], row["suggested"]) == (wrong_label, right["label"])
    assert cv2.imread(str(folder / "second_look.png")).std() > 10


def test_run_without_decisions_is_scored_as_it_was_trained(run_copy, evaluation, caplog):
    """A run of before there were any: no temperature, nothing accepted or refused."""
    (run_copy / "decision.json").unlink()
    (run_copy / "novelty.npz").unlink()
    assert main(["--run", str(run_copy)]) == 0
    folder = run_copy / "evaluation" / "test"
    assert "has no decision.json" in caplog.text
    told = figures_in(folder, "calibration")
    assert told["temperatures"] == [None]
    assert told["before"] == told["after"]
    assert told["before"]["nll"] == figures_in(evaluation, "calibration")["before"]["nll"]
    table, calibrated = (read_predictions(path / FILE) for path in (folder, evaluation))
    assert not {"accepted", "novelty"} & set(table)
    assert not {path.name for path in folder.iterdir()} & {"novelty.json", "novelty.png"}
    assert table["predicted"].equals(calibrated["predicted"])
    selective = figures_in(folder, "selective")
    assert (selective["thresholds"], selective["coverage"]) == ([None], None)


def test_damaged_decisions_are_named(run_copy, capsys):
    (run_copy / "decision.json").write_text("{")
    refused(capsys, "evaluate", ["--run", str(run_copy)], "decision.json", "is damaged")


def test_acceptance_script_agrees(evaluation, merged_evaluation, pooled_evaluation, root):
    script = root.parent / "shared" / "acceptance" / "check_metrics.py"
    if not script.exists():
        pytest.skip("the acceptance script is not on this machine: ../shared/acceptance")
    for folder in (evaluation, merged_evaluation, pooled_evaluation):
        done = subprocess.run(
            [sys.executable, script, folder], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout


def test_other_cells_are_scored_on_shared_labels_and_the_rest_is_counted(
    run_copy, drawn_cells, tmp_path, caplog
):
    counts = {"monocyte": ("monocyte", 5), "LYT": ("lymphocyte", 4), "basophil": ("eosinophil", 3)}
    data = other_cells(drawn_cells, tmp_path / "elsewhere", counts)
    assert main(["--run", str(run_copy), "--data", str(data)]) == 0
    folder = run_copy / "evaluation" / "elsewhere"
    figures = figures_in(folder)
    assert (figures["samples"], figures["left_out"]) == (9, {"basophil": 3})
    told = figures_in(folder, "novelty")
    assert (told["scored"]["cells"], told["left_out"]["basophil"]["cells"]) == (9, 3)
    assert "basophil (3)" in caplog.text
    labels = read_predictions(folder / "predictions.csv")["label"]
    assert labels.value_counts().to_dict() == {"monocyte": 5, "lymphocyte": 4}
    support = {name: row["support"] for name, row in figures["per_class"].items()}
    assert (support["monocyte"], support["lymphocyte"], support["eosinophil"]) == (5, 4, 0)
    assert figures["per_class"]["eosinophil"]["recall"] is None


# A model finer than the labels: its classes are merged.

FINE = ("neutrophil_band", "lymphocyte", "monocyte", "neutrophil_segmented")


@pytest.fixture(scope="module")
def finer_run(trained_run, tmp_path_factory):
    """The run with its first class renamed, so that two of its classes are neutrophils."""
    folder = tmp_path_factory.mktemp("finer") / "run"
    shutil.copytree(trained_run, folder)
    (folder / "classes.json").write_text(json.dumps({"classes": FINE}))
    return folder


@pytest.fixture(scope="module")
def neutrophils(drawn_cells, tmp_path_factory):
    sources = {"neutrophil": ("neutrophil_segmented", 6), "LYT": ("lymphocyte", 4)}
    data = tmp_path_factory.mktemp("neutrophils") / "data"
    return other_cells(drawn_cells, data, {**sources, "platelet": ("monocyte", 2)})


def test_runs_are_compared_on_other_cells(finer_run, neutrophils, tmp_path):
    folders = [str(tmp_path / name) for name in ("first", "second")]
    for folder in folders:
        assert main(["--run", str(finer_run), "--data", str(neutrophils), "--output", folder]) == 0
    cells = read_splits(tmp_path / "first" / "splits.csv")
    assert list(cells["file"]) == list(read_predictions(tmp_path / "first/predictions.csv")["file"])
    assert set(cells["split"]) == {"test"}
    assert compare([*folders, "--output", str(tmp_path / "both")]) == 0
    figures = json.loads((tmp_path / "both" / "comparison.json").read_text())
    assert figures["samples"] == 10
    assert figures["comparisons"][0]["mcnemar"]["only_first"] == 0


@pytest.fixture(scope="module")
def merged_evaluation(finer_run, neutrophils):
    assert main(["--run", str(finer_run), "--data", str(neutrophils)]) == 0
    return finer_run / "evaluation" / "data"


def test_finer_classes_are_summed_into_the_label(merged_evaluation, finer_run, neutrophils):
    figures = figures_in(merged_evaluation)
    assert figures["classes"] == ["neutrophil", "lymphocyte", "monocyte"]
    assert figures["merged"] == {"neutrophil": ["neutrophil_band", "neutrophil_segmented"]}
    assert figures["left_out"] == {"platelet": 2}
    table = read_predictions(merged_evaluation / "predictions.csv")
    assert class_columns(table) == figures["classes"]
    assert table["label"].value_counts().to_dict() == {"neutrophil": 6, "lymphocyte": 4}
    np.testing.assert_allclose(table[figures["classes"]].sum(axis=1), 1, atol=1e-6)
    own = predict(finer_run, neutrophils).set_index("file").loc[table["file"]]
    summed = own["neutrophil_band"] + own["neutrophil_segmented"]
    np.testing.assert_allclose(table["neutrophil"], summed, atol=1e-5)
    np.testing.assert_allclose(table["monocyte"], own["monocyte"], atol=1e-5)


def test_heatmaps_of_a_merged_class_are_of_its_strongest(merged_evaluation, finer_run, neutrophils):
    selection = select_cells(open_run(finer_run), data=neutrophils)
    shares = np.array([[0.3, 0.1, 0.4, 0.2], [0.1, 0.6, 0.1, 0.2], [0.1, 0.2, 0.2, 0.5]])
    # Together the first and last class win in the first row, where the third is the largest.
    assert selection.strongest(shares).tolist() == [0, 1, 3]
    arguments = ["--run", str(finer_run), "--data", str(neutrophils), "--samples", "4"]
    assert explain(arguments) == 0
    table = pd.read_csv(finer_run / "explanations" / "cells.csv")
    own = read_predictions(merged_evaluation / "predictions.csv").set_index("file")
    assert list(table["predicted"]) == list(own.loc[table["file"], "predicted"])


# Several runs: each cell by the one that did not train on it.


@pytest.fixture(scope="module")
def fold_runs(trained_run, drawn_cells, tmp_path_factory):
    """The run as two folds, each with weights of its own."""
    table = read_manifest(drawn_cells).table
    folders = []
    for fold in (1, 2):
        folder = tmp_path_factory.mktemp("folds") / f"fold_{fold}"
        shutil.copytree(trained_run, folder)
        overrides = [f"split.fold={fold} of 2"]
        config = load_config(folder / "config.yaml", overrides=overrides)
        (folder / "config.yaml").write_text(dump_config(config))
        splits = make_splits(table, validation=0.1, test=0.2, folds=2, fold=fold)
        write_splits(folder / "splits.csv", table, splits.assignment.tolist())
        model = keras.models.load_model(folder / "model.keras", compile=False)
        bias = model.weights[-1]
        bias.assign(bias + np.eye(4, dtype=np.float32)[fold])
        model.save(folder / "model.keras")
        decisions = read_decisions(folder)
        changes = {"temperature": decisions.temperature * fold, "accept_threshold": 0.3 * fold}
        write_decisions(folder, dataclasses.replace(decisions, **changes))
        folders.append(str(folder))
    return folders


@pytest.fixture(scope="module")
def pooled_evaluation(fold_runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pooled") / "figures"
    assert main(["--run", *fold_runs[::-1], "--output", str(folder)]) == 0
    return folder


def test_folds_are_pooled(pooled_evaluation, fold_runs, drawn_cells, tmp_path):
    pooled = read_predictions(pooled_evaluation / "predictions.csv")
    assert list(pooled["file"]) == sorted(read_manifest(drawn_cells).table["file"])
    figures = figures_in(pooled_evaluation)
    assert (figures["samples"], figures["folds"]) == (96, fold_runs[::-1])
    assert {path.name for path in pooled_evaluation.iterdir()} >= FILES
    classes = class_columns(pooled)
    splits = pd.read_csv(Path(fold_runs[1]) / "splits.csv")
    tested = splits.loc[splits["split"] == "test", "file"]
    own = predict(fold_runs[1], [drawn_cells / file for file in tested])
    ours = pooled.set_index("file").loc[tested, classes]
    np.testing.assert_allclose(ours, own[classes], atol=1e-5)
    assert (own["accepted"] == (own["confidence"] >= 0.6)).all()
    assert pooled.set_index("file").loc[tested, "accepted"].tolist() == own["accepted"].tolist()
    assert "novelty" in pooled
    assert figures_in(pooled_evaluation, "novelty")["drawn"]["dirt"]["cells"] == 2 * 36
    told = figures_in(pooled_evaluation, "selective")
    assert told["thresholds"] == [0.6, 0.3]
    assert told["coverage"] == pytest.approx(pooled["accepted"].mean())
    copied = shutil.copytree(pooled_evaluation, tmp_path / "again")
    temperatures = figures_in(pooled_evaluation, "calibration")["temperatures"]
    assert temperatures[0] == pytest.approx(2 * temperatures[1])
    named = pd.read_csv(pooled_evaluation / "splits.csv", keep_default_na=False)
    patients = read_manifest(drawn_cells).table.set_index("file")["group"]
    assert dict(zip(named["file"], named["group"], strict=True)) == dict(patients)
    assert (
        compare([str(pooled_evaluation), str(copied), "--output", str(tmp_path / "compared")]) == 0
    )
    # The other half has the other fold's weights.
    theirs = pooled.set_index("file").drop(tested)
    assert ours["monocyte"].mean() > theirs["monocyte"].mean() + 0.01


def test_several_runs_need_an_output_and_are_scored_on_their_test_cells(
    fold_runs, tmp_path, capsys
):
    refused(capsys, "evaluate", ["--run", *fold_runs], "several runs", "--output")
    repeated = ["--run", fold_runs[0], "--run", fold_runs[1]]
    refused(capsys, "evaluate", repeated, "several runs", "--output")
    output = str(tmp_path / "figures")
    arguments = ["--run", *fold_runs, "--output", output]
    refused(capsys, "evaluate", [*arguments, "--split", "all"], "leave --split out")
    twice = ["--run", fold_runs[0], fold_runs[0], "--output", output]
    refused(capsys, "evaluate", twice, "both test 48 of the cells", "each fold once")
    assert not (tmp_path / "figures").exists()


# Early detection and experts: patients, abnormal cells, re-annotations.

CODES = ("EOS", "LYT", "MYO", "NGS")  # the drawn classes under Munich codes, one of them a blast


@pytest.fixture(scope="module")
def munich_run(trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("munich") / "run"
    shutil.copytree(trained_run, folder)
    (folder / "classes.json").write_text(json.dumps({"classes": CODES}))
    return folder


@pytest.fixture(scope="module")
def clinic(drawn_cells, tmp_path_factory):
    """Forty cells of five patients, half of them looked at by two further experts."""
    data = tmp_path_factory.mktemp("clinic") / "data"
    sources = zip(CODES, sorted(path.name for path in drawn_cells.iterdir()), strict=True)
    other_cells(drawn_cells, data, {code: (source, 10) for code, source in sources})
    rows = [(code, number) for code in CODES for number in range(10)]
    table = pd.DataFrame(
        {
            "file": [f"{code}/other_{number}.png" for code, number in rows],
            "label": [code for code, _ in rows],
            "patient": [f"patient {(3 * row) % 5}" for row in range(40)],
            "reannotation_1": [code if number < 5 else "nan" for code, number in rows],
            "reannotation_2": [("UNC", code, "MYO", code, code, "")[min(n, 5)] for code, n in rows],
        }
    )
    table.to_csv(data / "manifest.csv", index=False)
    return data


@pytest.fixture(scope="module")
def clinic_evaluation(munich_run, clinic):
    assert main(["--run", str(munich_run), "--data", str(clinic)]) == 0
    return munich_run / "evaluation" / "data"


def test_screening_is_of_the_predictions_at_the_runs_own_thresholds(clinic_evaluation, munich_run):
    decisions = json.loads((munich_run / "decision.json").read_text())
    # The drawn classes are all normal, so none were chosen.
    assert decisions["sensitive_threshold"] is None
    table = read_predictions(clinic_evaluation / "predictions.csv")
    screening = json.loads((clinic_evaluation / "screening.json").read_text())
    positive = table["label"] == "MYO"
    for question in ("abnormal", "blast"):
        figures = screening[question]
        assert (figures["classes"], figures["positives"]) == (["MYO"], 10)
        assert figures["auroc"] == pytest.approx(metrics.roc_auc_score(positive, table["MYO"]))
    for question in ("abnormal", "blast"):
        assert screening[question]["operating_points"] == {"sensitive": None, "specific": None}


def test_operating_points_are_read_from_the_decisions(munich_run, clinic, tmp_path):
    run = shutil.copytree(munich_run, tmp_path / "run")
    decisions = json.loads((run / "decision.json").read_text())
    decisions |= {"sensitive_threshold": 0.125, "specific_threshold": 0.375}
    decisions |= {"blast_sensitive_threshold": 0.0625, "blast_specific_threshold": 0.25}
    (run / "decision.json").write_text(json.dumps(decisions))
    assert main(["--run", str(run), "--data", str(clinic)]) == 0
    table = read_predictions(run / "evaluation" / "data" / "predictions.csv")
    screening = json.loads((run / "evaluation" / "data" / "screening.json").read_text())
    for question, name, threshold in (
        ("abnormal", "sensitive", 0.125),
        ("abnormal", "specific", 0.375),
        ("blast", "sensitive", 0.0625),
        ("blast", "specific", 0.25),
    ):
        point = screening[question]["operating_points"][name]
        assert point["threshold"] == threshold
        called = table["MYO"] >= threshold
        assert point["true_positives"] == (called & (table["label"] == "MYO")).sum()
        assert point["false_positives"] == (called & (table["label"] != "MYO")).sum()


def test_patients_are_counted(clinic_evaluation, clinic):
    table = read_predictions(clinic_evaluation / "predictions.csv")
    table["patient"] = pd.read_csv(clinic / "manifest.csv").set_index("file").loc[
        table["file"], "patient"
    ].to_numpy()  # fmt: skip
    patients = pd.read_csv(clinic_evaluation / "patients.csv").set_index("patient")
    for kind, column in (("true", "label"), ("predicted", "predicted")):
        share = table.groupby("patient")[column].agg(lambda answers: (answers == "MYO").mean())
        np.testing.assert_allclose(patients[f"blast_share_{kind}"], share)
    screening = json.loads((clinic_evaluation / "screening.json").read_text())
    assert screening["patients"]["patients"] == 5
    for name in ("screening", "patients", "differential"):
        assert cv2.imread(str(clinic_evaluation / f"{name}.png")) is not None


def test_model_stands_beside_the_experts(clinic_evaluation, clinic):
    experts = json.loads((clinic_evaluation / "experts.json").read_text())
    rows = pd.read_csv(clinic / "manifest.csv").dropna().set_index("file")
    assert len(rows) == experts["all_cells"]["cells"] == 20
    predictions = read_predictions(clinic_evaluation / "predictions.csv").set_index("file")
    answers = {
        "label": rows["label"],
        "re-annotation 1": rows["reannotation_1"],
        "re-annotation 2": rows["reannotation_2"],
        "model": predictions.loc[rows.index, "predicted"],
    }
    scored = experts["scored_cells"]
    assert (scored["cells"], scored["of"], len(scored["pairs"])) == (20, 40, 6)
    for pair in scored["pairs"]:
        first, second = answers[pair["first"]], answers[pair["second"]]
        assert pair["agreement"] == pytest.approx((first == second).mean())
        assert pair["kappa"] == pytest.approx(metrics.cohen_kappa_score(first, second))
    assert experts["all_cells"]["pairs"] == scored["pairs"][:2] + scored["pairs"][3:4]
    assert {pair["second"] for pair in scored["groupings"]["blast"]} >= {"model"}


def test_cells_without_patients_experts_or_abnormal_classes_have_none(evaluation):
    files = {path.name for path in evaluation.iterdir()}
    assert not files & {"patients.csv", "patients.png", "experts.json", "screening.png"}
    screening = json.loads((evaluation / "screening.json").read_text())
    assert screening == {"abnormal": None, "blast": None, "patients": None}


def test_earlier_evaluation_is_replaced_whole_and_other_files_are_kept(
    trained_run, tmp_path, capsys
):
    folder = tmp_path / "figures"
    folder.mkdir()
    (folder / "metrics.json").write_text("{}")
    arguments = ["--run", str(trained_run), "--output", str(folder), "--split", "validation"]
    assert main(arguments) == 0
    assert figures_in(folder)["samples"] == 8
    (folder / "notes.txt").write_text("mine")
    assert main(arguments) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (folder / "notes.txt").read_text() == "mine"


# Bad input; `explain`, `export` and `predict` read runs and cells in the same way.


def refused(capsys, command, arguments, *words):
    module = importlib.import_module(f"wbc_keras.{command}")
    assert module.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    for word in words:
        assert word in error


@pytest.mark.parametrize("command", ["evaluate", "explain", "export"])
def test_run_folder_without_a_model(run_copy, capsys, command):
    (run_copy / "model.keras").unlink()
    before = sorted(run_copy.rglob("*"))
    refused(capsys, command, ["--run", str(run_copy)], "model.keras", "train first")
    assert sorted(run_copy.rglob("*")) == before


@pytest.mark.parametrize("command", ["evaluate", "explain", "export"])
def test_missing_run_folder(tmp_path, capsys, command):
    refused(capsys, command, ["--run", str(tmp_path / "nowhere")], "nowhere", "no such run folder")


@pytest.mark.parametrize("command", ["evaluate", "explain", "export"])
def test_damaged_model(run_copy, capsys, command):
    content = (run_copy / "model.keras").read_bytes()
    (run_copy / "model.keras").write_bytes(content[: len(content) // 2])
    before = sorted(run_copy.rglob("*"))
    refused(capsys, command, ["--run", str(run_copy)], "model.keras", "train the run again")
    assert sorted(run_copy.rglob("*")) == before


@pytest.mark.parametrize("command", ["evaluate", "explain"])
def test_no_shared_label(run_copy, drawn_cells, tmp_path, capsys, command):
    counts = {"apple": ("monocyte", 2), "pear": ("lymphocyte", 2)}
    data = other_cells(drawn_cells, tmp_path / "fruit", counts)
    before = sorted(run_copy.rglob("*"))
    arguments = ["--run", str(run_copy), "--data", str(data)]
    refused(capsys, command, arguments, "fruit", "shares no label", "apple, pear", "monocyte")
    assert sorted(run_copy.rglob("*")) == before


@pytest.mark.parametrize("command", ["evaluate", "explain"])
def test_bad_pictures_are_all_named(run_copy, drawn_cells, tmp_path, capsys, command):
    counts = {"monocyte": ("monocyte", 3), "lymphocyte": ("lymphocyte", 3)}
    data = other_cells(drawn_cells, tmp_path / "elsewhere", counts)
    (data / "monocyte" / "other_1.png").write_bytes(b"")
    cut = (data / "lymphocyte" / "other_2.png").read_bytes()[:300]
    (data / "lymphocyte" / "other_2.png").write_bytes(cut)
    before = sorted(run_copy.rglob("*"))
    arguments = ["--run", str(run_copy), "--data", str(data)]
    refused(capsys, command, arguments, "2 pictures", "other_1.png", "other_2.png")
    assert sorted(run_copy.rglob("*")) == before
