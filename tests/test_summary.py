"""Plain words, right figures: the summary against the files it is made from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from wbc_keras.reporting.estimates import percent
from wbc_keras.reporting.record import read_record
from wbc_keras.reporting.summary import headlines, limits, summarise


@pytest.fixture
def run(scored_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored_run, tmp_path / "run"))


def _points(run: Path) -> dict[str, str]:
    return {point.lead: point.text for point in summarise(read_record(run))}


def _change(run: Path, name: str, change) -> None:
    path = run / "evaluation/test" / name
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_points_of_a_whole_run(scored_run):
    folder = scored_run / "evaluation/test"
    metrics, screening = (
        json.loads((folder / f"{name}.json").read_text()) for name in ("metrics", "screening")
    )
    points = _points(scored_run)
    patients = screening["patients"]["patients"]
    assert points["Tested"].startswith(
        f"Scored on {metrics['samples']} cells of {patients} patients or groups in 5 classes"
    )
    assert points["Split"].startswith("By patient: no patient tested")
    assert percent(metrics["accuracy"]) in points["Accuracy"]
    assert percent(metrics["macro_f1"]) in points["Accuracy"]
    sensitive = screening["abnormal"]["operating_points"]["sensitive"]
    found = sensitive["true_positives"]
    both = f"finds {found} of {found + sensitive['false_negatives']} here:"
    assert both in points["Abnormal cells"]
    assert percent(sensitive["specificity"]) in points["Abnormal cells"]


def test_weakest_classes_are_named_first_with_their_cells(scored_run):
    metrics = json.loads((scored_run / "evaluation/test/metrics.json").read_text())
    worst = min(metrics["per_class"].items(), key=lambda item: item[1]["f1"])
    assert _points(scored_run)["Weakest"].startswith(
        f"{worst[0]} (F1 {percent(worst[1]['f1'])} on {worst[1]['support']} cells)"
    )


def test_headlines(scored_run):
    selective = json.loads((scored_run / "evaluation/test/selective.json").read_text())
    found = {one.title: one for one in headlines(read_record(scored_run))}
    withheld = found["would rather not decide"]
    assert withheld.value == percent(1 - selective["coverage"])
    assert set(found) >= {"cells named right", "abnormal cells found"}


@pytest.mark.parametrize(
    ("coverage", "accuracy", "said"),
    [(1.0, 0.9, "answers every cell"), (0.0, None, "decide no cell"), (None, None, "no way to")],
)
def test_nothing_withheld_everything_withheld_no_threshold(run, coverage, accuracy, said):
    _change(run, "selective.json", lambda one: one.update(coverage=coverage, accuracy=accuracy))
    assert said in _points(run)["Unsure"]
    assert len(headlines(read_record(run))) == (3 if coverage is None else 4)


def test_no_patients_is_said_to_flatter(hostile_run):
    record = read_record(hostile_run)
    assert "flattering" in {one.lead: one.text for one in summarise(record)}["Split"]
    assert "expect lower figures on new patients" in limits(record)[0]


def test_other_data_are_not_told_as_the_runs_own_split(run):
    (run / "evaluation/test").rename(run / "evaluation/other_lab")
    assert _points(run)["Split"] == "These are other data than those it was trained on."


def test_small_and_absent_classes(run):
    def shrink(values):
        values["per_class"]["monocyte"] |= {"support": 3}
        values["per_class"]["lymphocyte"] |= {"support": 0, "f1": None}

    _change(run, "metrics.json", shrink)
    points = _points(run)
    assert "monocyte" in points["Hardly known"]
    assert "not tested: lymphocyte" in points["Hardly known"]
    assert "lymphocyte" not in points["Weakest"]


def test_run_without_evaluation(run):
    shutil.rmtree(run / "evaluation")
    assert _points(run) == {"Tested": "This run was not scored yet: there are no figures."}
    assert headlines(read_record(run)) == []


def test_heatmaps_that_explain_nothing_are_called_so(scored_run):
    record = read_record(scored_run)
    for deletion, insertion, warned in (
        ([-0.1, -0.05], [0.01, 0.2], False),
        ([-0.1, 0.05], [0.01, 0.2], False),
        ([-0.1, 0.05], [-0.01, 0.2], True),
        (None, None, False),
    ):
        bounds = {"deletion_gain": deletion, "insertion_gain": insertion}
        checked = dataclasses.replace(record, checks={"confidence_interval_95": bounds})
        assert any("no reasons" in sentence for sentence in limits(checked)) == warned
    assert not any("no reasons" in sentence for sentence in limits(record))
