"""A run folder is read as it is: whole, in part, or damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from wbc_keras.errors import RunError
from wbc_keras.reporting.record import read_record


@pytest.fixture
def run(scored_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored_run, tmp_path / "run"))


def test_whole_run(scored_run):
    record = read_record(scored_run)
    assert record.main is not None
    assert record.main.name == "test"
    assert record.by_patient is True
    assert record.missing == (
        "explanations: where the model looks is not shown (wbc_keras.explain)",
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("splits.csv", "which cells were trained on"),
        ("history.csv", "how training went"),
        ("decision.json", "no threshold"),
        ("environment.json", "versions"),
        ("evaluation", "was not scored"),
        ("evaluation/test/predictions.csv", "evaluation/test/predictions.csv: no threshold"),
        ("evaluation/test/screening.json", "nothing of abnormal cells"),
    ],
)
def test_what_is_missing_is_said(run, name, said):
    path = run / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert any(said in sentence for sentence in read_record(run).missing)


def test_own_test_cells_come_first(run):
    for name in ("all", "elsewhere"):
        shutil.copytree(run / "evaluation" / "test", run / "evaluation" / name)
    record = read_record(run)
    assert [one.name for one in record.evaluations] == ["test", "all", "elsewhere"]
    assert [one.name for one in record.elsewhere] == ["elsewhere"]


def test_run_in_training_is_told(run):
    (run / "training_state.npz").write_bytes(b"")
    assert "still in training" in read_record(run).missing[0]


@pytest.mark.parametrize(
    "name", ["evaluation/test/metrics.json", "evaluation/test/calibration.json", "decision.json"]
)
def test_damaged_file_is_named(run, name):
    (run / name).write_text('{"half": ')
    with pytest.raises(RunError, match=Path(name).name):
        read_record(run)


def test_patient_in_two_splits_is_no_split_by_patient(run):
    path = run / "splits.csv"
    path.write_text(path.read_text().replace("train 0", "test 3"))
    assert read_record(run).by_patient is False


def test_no_run_folder(tmp_path):
    with pytest.raises(RunError, match=r"config\.yaml"):
        read_record(tmp_path)
