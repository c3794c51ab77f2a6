"""What a study keeps of a run: written, read back, refused."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from simulated_study import CLASSES, STUDY, read_study, simulate, write_run

from wbc_keras.config import load_config
from wbc_keras.errors import RunError
from wbc_keras.runs import Run
from wbc_keras.studies.results import read_results, write_failure, write_result

SKILLS = {"plain": 1.0, "better": 2.5, "same": 1.0}


@pytest.fixture
def study(tmp_path):
    return read_study(tmp_path)


@pytest.fixture
def result(study):
    return simulate(study, SKILLS)[0]


@pytest.fixture
def folder(tmp_path, result):
    """A study's folder with one finished run."""
    run = tmp_path / "run"
    write_run(run, result)
    opened = Run(run, load_config(run / "config.yaml"), CLASSES)
    write_result(tmp_path / "out", result.cell, opened, parameters=4_000_000, scoring_seconds=30.0)
    return tmp_path / "out"


def test_answers_and_facts_come_back(folder, study, result):
    found = read_results(folder, study.cells())
    assert list(found) == ["plain/fold1_seed0"]
    kept = found["plain/fold1_seed0"]
    assert kept.facts == result.facts
    assert kept.error is None
    names = ["file", "label", "group"]
    pd.testing.assert_frame_equal(kept.answers[names], result.answers[names])
    shares = result.answers[list(CLASSES)].to_numpy()
    np.testing.assert_allclose(kept.answers[list(CLASSES)], shares, rtol=1e-5)
    assert (kept.answers[list(CLASSES)].to_numpy().argmax(1) == shares.argmax(1)).all()


def test_files_name_no_place_of_this_machine_and_are_the_same_again(folder, tmp_path, result):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert [path.name for path in paths] == ["fold1_seed0.csv.gz", "fold1_seed0.json"]
    assert (
        str(tmp_path) not in paths[1].read_text() + gzip.decompress(paths[0].read_bytes()).decode()
    )
    before = [path.read_bytes() for path in paths]
    opened = Run(tmp_path / "run", result.cell.config, CLASSES)
    write_result(folder, result.cell, opened, parameters=4_000_000, scoring_seconds=30.0)
    assert [path.read_bytes() for path in paths] == before


def test_cells_may_lie_elsewhere(folder, tmp_path):
    moved = read_study(tmp_path, STUDY.replace("source: cells", "source: /mnt/other"))
    assert read_results(folder, moved.cells())["plain/fold1_seed0"].error is None


def test_results_from_before_validation_was_kept_are_read(folder, study):
    path = folder / "results" / "plain" / "fold1_seed0.json"
    about = json.loads(path.read_text())
    del about["validation_macro_f1"]
    path.write_text(json.dumps(about))
    found = read_results(folder, study.cells())["plain/fold1_seed0"]
    assert found.facts.validation_macro_f1 is None
    assert found.error is None


def test_failure_is_kept_and_gives_way_to_a_result(folder, study, tmp_path):
    cell = list(study.cells())[1]
    write_failure(folder, cell, "out of memory")
    found = read_results(folder, study.cells())["better/fold1_seed0"]
    assert (found.error, found.answers, found.facts) == ("out of memory", None, None)
    opened = Run(tmp_path / "run", cell.config, CLASSES)
    write_result(folder, cell, opened, parameters=1, scoring_seconds=None)
    assert read_results(folder, study.cells())["better/fold1_seed0"].error is None


def test_other_settings_are_refused_by_name(folder, tmp_path):
    changed = read_study(
        tmp_path, STUDY.replace("{source: cells}", "{source: cells, image_size: [64, 64]}")
    )
    with pytest.raises(RunError, match=r"other settings .*data\.image_size=\[64, 64\]"):
        read_results(folder, changed.cells())


def test_settings_that_are_not_known_any_more_are_refused(folder, study):
    path = folder / "results" / "plain" / "fold1_seed0.json"
    about = json.loads(path.read_text())
    about["config"]["loss"]["temperature"] = 3
    path.write_text(json.dumps(about))
    with pytest.raises(RunError, match="other settings"):
        read_results(folder, study.cells())


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"config": {}}'])
def test_damaged_facts_are_named(folder, study, damage):
    (folder / "results" / "plain" / "fold1_seed0.json").write_bytes(damage)
    with pytest.raises(RunError, match=r"fold1_seed0\.json: cannot be read"):
        read_results(folder, study.cells())


@pytest.mark.parametrize("damage", [b"", b"text", None])
def test_damaged_answers_are_named(folder, study, damage):
    path = folder / "results" / "plain" / "fold1_seed0.csv.gz"
    path.write_bytes(path.read_bytes()[:200] if damage is None else damage)
    with pytest.raises(RunError, match=r"cannot be read with its \.csv\.gz"):
        read_results(folder, study.cells())
