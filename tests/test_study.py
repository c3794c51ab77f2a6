"""The study command: a real one killed and resumed, what it leaves, what it refuses."""

from __future__ import annotations

import json
import operator
import os
import shutil
import signal
import subprocess
import sys
import time

import cv2
import filelock
import numpy as np
import pandas as pd
import pytest

from wbc_keras.errors import RunError
from wbc_keras.studies.plan import load_study
from wbc_keras.studies.work import check_cells, in_own_process
from wbc_keras.study import main, read_study

STUDY = """\
name: tiny
base:
  data: {image_size: [32, 32]}
  model: {backbone: mobilenetv2, weights: none, attention: none}
  train: {head_epochs: 0, epochs: 2, batch_size: 16, freeze_batch_norm: false}
settings: {plain: , cbam: {model.attention: cbam}}
"""


def write_study(folder, text=STUDY):
    path = folder / "study.yaml"
    path.write_text(text)
    return path


class Started:
    """The command in a process of its own, killed and cleared away at the end."""

    def __init__(self, arguments, log):
        self.log = log
        with log.open("w") as stream:
            command = [sys.executable, "-m", "wbc_keras.study", *map(str, arguments)]
            self.process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()

    def wait_for(self, seen):
        """Wait until ``seen()``, as long as the command runs and no more than three minutes."""
        deadline = time.monotonic() + 180
        while not seen():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def child(self):
        """Return the number of the process that trains, or None."""
        table = subprocess.run(
            ["ps", "-ewwo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        )
        for line in table.stdout.splitlines():
            pid, parent, command = line.split(maxsplit=2)
            if int(parent) == self.process.pid and "spawn_main" in command:
                return int(pid)
        return None


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture(scope="module")
def study(tmp_path_factory, drawn_cells):
    """The study's arguments, and what was seen while it was killed twice and resumed.

    First the process of `plain` is killed, as when memory runs out, then the whole command while
    `cbam` trains.
    """
    place = tmp_path_factory.mktemp("study")
    folder, seen = place / "out", {}
    arguments = ["--config", write_study(place), "--data", drawn_cells, "--output", folder]
    with Started(arguments, place / "first.txt") as started:
        started.wait_for((folder / "runs/plain/seed0/history.csv").exists)
        os.kill(started.child(), signal.SIGKILL)
        started.wait_for((folder / "runs/cbam/seed0/history.csv").exists)
        training = started.child()
        started.process.kill()
        started.process.wait()
    for _ in range(100):
        if is_running(training):
            time.sleep(0.1)
    seen["orphan"] = is_running(training)
    seen["text"] = (folder / "study.md").read_text()
    seen["failure"] = json.loads((folder / "results/plain/seed0.json").read_text())
    seen["epochs"] = len(pd.read_csv(folder / "runs/cbam/seed0/history.csv"))
    with Started([*arguments, "--resume"], place / "second.txt") as started:
        assert started.process.wait(timeout=300) == 0, started.log.read_text()
    seen["printed"] = (place / "first.txt").read_text(), started.log.read_text()
    return folder, list(map(str, arguments)), seen


@pytest.mark.slow
class TestKilledAndResumed:
    def test_a_killed_run_is_recorded_and_the_others_go_on(self, study):
        _, _, seen = study
        assert "SIGKILL, as the system does when memory runs out" in seen["failure"]["error"]
        assert "0 of 2 runs are finished, 1 failed." in seen["text"]
        assert "- `plain/seed0`: the run's process was ended by SIGKILL" in seen["text"]
        first, second = seen["printed"]
        assert first.index("failed: the run's process") < first.index("[2/2] cbam/seed0")
        assert "0 finished, 2 to go" in second

    def test_nothing_trains_on_when_the_command_is_killed(self, study):
        assert not study[2]["orphan"]

    def test_the_run_in_flight_went_on_from_its_last_epoch(self, study):
        folder, _, seen = study
        assert seen["epochs"] == 1
        assert pd.read_csv(folder / "runs/cbam/seed0/history.csv")["epoch"].tolist() == [0, 1]
        log = (folder / "logs/cbam-seed0.txt").read_text()
        assert log.count("Epoch 1/2") == 1

    def test_its_log_has_a_line_for_each_epoch_and_no_bars(self, study):
        log = (study[0] / "logs/cbam-seed0.txt").read_bytes()
        assert b"\r" not in log
        assert b"\b" not in log
        assert log.count(b"val_macro_f1") == 2

    def test_folder_holds_the_study(self, study):
        folder, _, seen = study
        names = {path.name for path in folder.iterdir()} - {".lock"}
        assert names == {"study.csv", "study.md", "study.png", "results", "runs", "logs"}
        table = pd.read_csv(folder / "study.csv")
        runs = table[table["kind"] == "run"].set_index("name")
        assert sorted(runs.index) == ["cbam", "plain"]
        assert runs["error"].isna().all()
        for name in runs.index:
            path = folder / "runs" / name / "seed0" / "evaluation" / "test" / "metrics.json"
            scored = json.loads(path.read_text())
            assert runs.loc[name, "macro_f1"] == pytest.approx(scored["macro_f1"], abs=1e-6)
            assert runs.loc[name, "cells"] == scored["samples"]
        assert runs.loc["cbam", "parameters"] > runs.loc["plain", "parameters"] > 2_000_000
        assert "On **macro F1**" in seen["printed"][1]

    def test_runs_are_ordinary_ones_without_what_is_heavy(self, study):
        from wbc_keras.reporting.record import read_record

        record = read_record(study[0] / "runs" / "cbam" / "seed0")
        assert record.run.config.model.attention == "cbam"
        assert record.main is not None
        assert not (record.run.folder / "model.keras").exists()

    def test_resuming_a_finished_study_only_writes_the_tables(self, study, capsys):
        folder, arguments, _ = study
        before = (folder / "study.csv").read_bytes()
        (folder / "study.csv").unlink()
        started = time.monotonic()
        assert main([*arguments, "--resume"]) == 0
        assert time.monotonic() - started < 10
        assert (folder / "study.csv").read_bytes() == before
        assert "2 finished, 0 to go" in capsys.readouterr().out

    def test_results_alone_are_enough_and_the_cells_may_be_elsewhere(self, study, tmp_path):
        folder, arguments, _ = study
        shutil.copytree(folder / "results", tmp_path / "out" / "results")
        moved = [*arguments[:2], "--data", "nowhere", "--output", str(tmp_path / "out")]
        assert main([*moved, "--resume"]) == 0
        for name in ("study.csv", "study.md"):
            assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
        report = read_study(load_study(arguments[1], data="nowhere"), tmp_path / "out")
        assert report.text() == (folder / "study.md").read_text()

    def test_dry_run_tells_the_time_by_what_is_finished(self, study, tmp_path, capfd):
        folder, arguments, _ = study
        copy = shutil.copytree(folder / "results", tmp_path / "out" / "results").parent
        (copy / "results" / "cbam" / "seed0.json").unlink()
        before = sorted(copy.rglob("*"))
        assert main([*arguments[:4], "--output", str(copy), "--dry-run"]) == 0
        out = capfd.readouterr().out
        assert "runs      1 finished, 1 to go" in out
        assert "time      about " in out
        assert sorted(copy.rglob("*")) == before

    def test_not_twice_without_resume(self, study, capsys):
        assert main(study[1]) == 2
        assert "or --resume to go on with it" in capsys.readouterr().err

    def test_one_study_at_a_time(self, study, capsys):
        folder, arguments, _ = study
        with filelock.FileLock(folder / ".lock"):
            assert main([*arguments, "--resume"]) == 2
        assert "another study is at work here" in capsys.readouterr().err

    def test_other_settings_are_no_going_on(self, study, capsys):
        assert main([*study[1], "--resume", "--set", "train.epochs=3"]) == 2
        error = capsys.readouterr().err
        assert "other settings than the study has now (train.epochs=3)" in error


# Bad input


def check(folder, text, data):
    """Return what is wrong with a study, as its own process finds it out."""
    study = load_study(write_study(folder, text), data=data)
    return check_cells(list(study.cells()), folder / "out")[0]


def write_pictures(folder, names):
    rng = np.random.default_rng(0)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))


def test_fold_that_lacks_a_class_and_network_that_cannot_be_are_named_at_once(tmp_path):
    counts = {"a": 10, "b": 10, "c": 1}
    names = [f"{label}/{n}.png" for label, count in counts.items() for n in range(count)]
    write_pictures(tmp_path / "cells", names)
    text = STUDY.replace("cbam: {", "odd: {loss.alpha: [1, 2], ") + "folds: 2\n"
    faults = check(tmp_path, text, tmp_path / "cells")
    *folds, odd = sorted(faults)
    assert [fault[:18] for fault in folds] == ["fold 1 of 2 has no", "fold 2 of 2 has no"]
    assert {fault.split(";")[0].split("no ")[1] for fault in folds} == {
        "train cell of c",
        "test cell of c",
    }
    assert odd.startswith("odd: loss.alpha: expected one weight for each of the 3 classes")


def test_folds_of_cells_that_have_splits_of_their_own(tmp_path):
    parts = [("train", 4), ("validation", 2), ("test", 2)]
    rows = [(f"{x}_{y}_{n}.png", x, y) for x in "ab" for y, count in parts for n in range(count)]
    write_pictures(tmp_path, [row[0] for row in rows])
    lines = ["file,label,split", *map(",".join, rows)]
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    faults = check(tmp_path, STUDY + "folds: 2\n", tmp_path)
    assert [fault[:42] for fault in faults] == ["folds: the data has a split column, which "]


def test_cells_that_are_not_there(tmp_path, capfd):
    arguments = ["--config", write_study(tmp_path), "--data", tmp_path / "nowhere"]
    assert main([*map(str, arguments), "--output", str(tmp_path / "out")]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("error: study tiny: ")
    assert "nowhere" in error
    assert not (tmp_path / "out").exists()


def test_folder_of_something_else_is_not_gone_on_with(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    arguments = ["--config", write_study(tmp_path), "--data", "x", "--output", tmp_path / "out"]
    assert main([*map(str, arguments), "--resume"]) == 2
    assert "holds no study to go on with" in capsys.readouterr().err


# A process of its own


def test_what_work_returns_comes_back():
    assert in_own_process(operator.add, 1, 2) == 3


def test_what_work_prints_goes_to_the_log(tmp_path):
    log = tmp_path / "logs" / "one.txt"
    for word in ("first", "second"):
        in_own_process(print, word, log=log)
    assert log.read_text() == "first\nsecond\n"


def test_what_work_raises_is_told_in_a_line_and_traced_in_the_log(tmp_path):
    log = tmp_path / "log.txt"
    with pytest.raises(RunError, match=r"^ZeroDivisionError: division by zero$"):
        in_own_process(operator.truediv, 1, 0, log=log)
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    ("end", "argument", "words"),
    [
        (os.abort, (), "ended by SIGABRT"),
        (os._exit, (3,), "ended with exit code 3"),
        (signal.raise_signal, (signal.SIGKILL,), "when memory runs out"),
    ],
)
def test_how_a_process_ended_is_told(tmp_path, end, argument, words):
    with pytest.raises(RunError, match=words):
        in_own_process(end, *argument, log=tmp_path / "log.txt")
