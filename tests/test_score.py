"""An archive into a folder of Parquet files: every input one row, whatever is killed or broken."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet

from wbc_keras.errors import RunError
from wbc_keras.manifest import read_manifest
from wbc_keras.pictures.shards import pack_shards, read_shard
from wbc_keras.predict import predict
from wbc_keras.prediction import pieces
from wbc_keras.prediction.archive import part_folder
from wbc_keras.prediction.scoring import Scorer, score_archive
from wbc_keras.score import main

SHARDS, EACH = 12, 50
COUNT = SHARDS * EACH
COMMAND = """
import resource, sys
from wbc_keras import commands
from wbc_keras.prediction import pieces
commands.load_tensorflow()
pieces.ROWS = {rows}
{first}
from wbc_keras.score import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def many(drawn_cells, tmp_path_factory):
    """600 pictures in two folders, every fiftieth of them bad."""
    folder = tmp_path_factory.mktemp("many")
    cells = sorted(drawn_cells.rglob("*.png"))
    for number in range(COUNT):
        path = folder / f"day{number % 2}" / f"{number:04}.png"
        path.parent.mkdir(exist_ok=True)
        if number % 50:
            os.link(cells[number % len(cells)], path)
        else:
            path.write_bytes(b"no picture")
    return folder


@pytest.fixture(scope="module")
def packed(many, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed") / "shards"
    pack_shards(read_manifest(many), folder, count=SHARDS)
    return folder


@pytest.fixture
def shards(packed, tmp_path):
    """Shards that a test may change."""
    return Path(shutil.copytree(packed, tmp_path / "shards"))


@pytest.fixture(scope="module")
def expected(many, trained_run):
    """What `predict` says of the same pictures, by name."""
    return predict(trained_run, many).set_index("file")


def arguments_of(model, data, output, *more):
    return ["--model", str(model), "--data", str(data), "--output", str(output), *more]


def start(arguments, *, rows=64, first="", **environment):
    command = [sys.executable, "-c", COMMAND.format(rows=rows, first=first), *arguments]
    # As a user has it: the suite lets TensorFlow speak.
    known = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**known, **environment},
    )


def wait_for(condition, process, *, seconds=240):
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


def last_line(error):
    """Return the one line that tells a mistake; lines of progress may stand before it."""
    lines = error.strip().splitlines()
    assert all("parts" in line for line in lines[:-1]), error
    return lines[-1]


def parts_of(output):
    return sorted(part_folder(output).glob("0*.parquet"))


def assert_scored(output, expected, *, prefix=""):
    """Every input exactly once, and what `predict` says of it."""
    assert not part_folder(output).exists()
    assert sorted(path.name for path in output.glob("[!0]*")) == ["_about.json", "_summary.json"]
    table = pd.read_parquet(output)
    assert table["file"].is_unique
    files = table["file"]
    table.index = pd.Index(files.str.split(".tar/").str[1] if prefix else files)
    assert set(table.index) == set(expected.index)
    table = table.loc[expected.index]
    for name in ("label", "predicted", "error"):
        assert table[name].tolist() == expected[name].tolist(), name
    numbers = expected.columns[2:-1]
    np.testing.assert_allclose(
        table[numbers].astype(float), expected[numbers].astype(float), atol=1e-5, equal_nan=True
    )


def test_files_as_predict_scores_them(many, trained_run, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pieces, "ROWS", 250)
    output = tmp_path / "scores"
    assert main(arguments_of(trained_run, many, output)) == 0
    assert_scored(output, expected)
    assert [len(pd.read_parquet(part)) for part in sorted(output.glob("0*"))] == [250, 250, 100]
    shown = capsys.readouterr().out
    assert "note: 12 pictures cannot be used" in shown
    assert f"600 pictures  {output}" in shown
    summary = json.loads((output / "_summary.json").read_text())
    assert summary["bad"] == 12
    assert summary["foreign"] == (expected["novelty"].astype(float) > 0.99).sum()
    assert (
        summary["predicted"]
        == expected.loc[expected["error"] == "", "predicted"].value_counts().to_dict()
    )


def test_shards_with_bad_pictures(packed, trained_run, expected, tmp_path):
    output = tmp_path / "scores"
    assert main(arguments_of(trained_run, packed, output)) == 0
    assert_scored(output, expected, prefix="cells-")
    assert len(list(output.glob("0*"))) == SHARDS


def test_parquet_at_an_address(packed, trained_run, expected, tmp_path):
    rows = [one for path in sorted(packed.iterdir())[:2] for one in read_shard(str(path))]
    table = pd.DataFrame([vars(row) for row in rows]).rename(
        columns={"name": "file", "encoded": "image"}
    )
    with fsspec.open("memory://bucket/cells.parquet", "wb") as file:
        table.to_parquet(file)
    output = tmp_path / "scores"
    assert main(arguments_of(trained_run, "memory://bucket/cells.parquet", output)) == 0
    scored = pd.read_parquet(output)
    assert scored["file"].tolist() == [f"cells.parquet/{row.name}" for row in rows]
    wanted = expected.loc[[row.name for row in rows]]
    assert scored["predicted"].tolist() == wanted["predicted"].tolist()
    assert scored["error"].tolist() == wanted["error"].tolist()


def test_what_is_finished_is_not_done_again(packed, trained_run, tmp_path, capsys, monkeypatch):
    output = tmp_path / "scores"
    data = packed / "cells-000000.tar"
    assert main(arguments_of(trained_run, data, output)) == 0
    before = capsys.readouterr().out.splitlines()[:-1]
    assert main(arguments_of(trained_run, data, output)) == 2
    assert "never overwritten" in capsys.readouterr().err
    monkeypatch.setattr(Scorer, "__init__", None)
    assert main(arguments_of(trained_run, data, output, "--resume")) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == before
    other = packed / "cells-000001.tar"
    assert main(arguments_of(trained_run, other, output, "--resume")) == 2
    assert "is finished, with another --data or --model" in capsys.readouterr().err


def test_a_truncated_shard_is_named_and_the_others_kept(
    shards, packed, trained_run, expected, tmp_path, capfd
):
    output = tmp_path / "scores"
    for number in (3, 7):
        path = shards / f"cells-00000{number}.tar"
        os.truncate(path, path.stat().st_size // 2)
    assert main(arguments_of(trained_run, shards, output)) == 2
    error = capfd.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "cells-000003.tar: is truncated" in error[0]
    assert "cells-000007.tar: is truncated" in error[0]
    assert "2 of 12 parts are missing" in error[0]
    assert not output.exists()
    kept = {path.name: path.stat().st_mtime_ns for path in parts_of(output)}
    assert len(kept) == SHARDS - 2

    shutil.copytree(packed, shards, dirs_exist_ok=True)
    assert main(arguments_of(trained_run, shards, output)) == 2
    assert "--resume goes on with it" in capfd.readouterr().err
    assert main(arguments_of(trained_run, shards, output, "--resume")) == 0
    assert_scored(output, expected, prefix="cells-")
    assert kept.items() <= {p.name: p.stat().st_mtime_ns for p in output.glob("0*")}.items()


# As on a full disk, writing stops in the middle of a file: at once, or after the first piece.
FULL = """
def fill():
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
"""
FULL_AT_ONCE = f"{FULL}\nfill()"
FULL_LATER = f"""{FULL}
from wbc_keras.prediction.scoring import Scorer
score = Scorer.__call__
Scorer.__call__ = lambda *arguments: (score(*arguments), fill())[0]
"""


def test_a_full_disk_and_then_a_kill(many, trained_run, expected, tmp_path):
    output = tmp_path / "scores"
    arguments = arguments_of(trained_run, many, output)
    for first, said in (
        (FULL_AT_ONCE, f"{os.uname().nodename}: {tempfile.gettempdir()}: no room (File too large)"),
        (FULL_LATER, "00000000.parquet: cannot be written (File too large); make room"),
    ):
        with start([*arguments, "--resume"], first=first) as process:
            _, error = process.communicate()
        assert process.returncode == 2, error
        assert said in last_line(error)
    assert not output.exists()
    assert not list(part_folder(output).glob("*.parquet"))

    with start([*arguments, "--resume"]) as process:
        wait_for(lambda: len(parts_of(output)) >= 2, process)
        process.kill()
    assert 2 <= len(parts_of(output)) < 10
    assert not output.exists()
    with start([*arguments, "--resume"]) as process:
        _, error = process.communicate()
    assert process.returncode == 0, error
    assert_scored(output, expected)


def test_a_part_of_other_inputs_is_found_out(packed, trained_run, tmp_path, capfd):
    output = tmp_path / "scores"
    # A truncated shard keeps the run from its end.
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    last = shards / "cells-000011.tar"
    os.truncate(last, 3000)
    assert main(arguments_of(trained_run, shards, output)) == 2
    shutil.copy(packed / last.name, last)
    # Made of the right shard, by what it says of itself; its rows are another's.
    one, other = (parquet.read_table(path) for path in parts_of(output)[:2])
    parquet.write_table(other.replace_schema_metadata(one.schema.metadata), parts_of(output)[0])
    capfd.readouterr()
    assert main(arguments_of(trained_run, shards, output, "--resume")) == 2
    assert "00000000.parquet: its rows are not the inputs" in capfd.readouterr().err
    assert not output.exists()


def test_what_is_damaged_or_has_changed_is_scored_again(
    packed, trained_run, expected, tmp_path, caplog
):
    """Parts cut as by a crash of the machine, and a shard packed anew between kill and resume."""
    output = tmp_path / "scores"
    shards = Path(shutil.copytree(packed, tmp_path / "shards"))
    os.truncate(shards / "cells-000011.tar", 3000)
    assert main(arguments_of(trained_run, shards, output)) == 2
    shutil.copy(packed / "cells-000011.tar", shards)
    empty, cut, changed, kept = parts_of(output)[:4]
    empty.write_bytes(b"")
    os.truncate(cut, 2000)
    os.utime(shards / "cells-000002.tar", ns=(1, 1))
    times = changed.stat().st_mtime_ns, kept.stat().st_mtime_ns
    assert main(arguments_of(trained_run, shards, output, "--resume")) == 0
    assert caplog.text.count("has a damaged part") == 2
    assert "cells-000002.tar: has changed since it was scored" in caplog.text
    assert (output / changed.name).stat().st_mtime_ns > times[0]
    assert (output / kept.name).stat().st_mtime_ns == times[1]
    assert_scored(output, expected, prefix="cells-")


def test_a_shard_that_changes_meanwhile_is_told(packed, trained_run, tmp_path, monkeypatch, capfd):
    shards, output = Path(shutil.copytree(packed, tmp_path / "shards")), tmp_path / "scores"
    for path in sorted(shards.iterdir())[1:]:
        path.unlink()
    score = Scorer.__call__

    def change(scorer, piece):
        os.utime(piece.address, ns=(1, 1))
        return score(scorer, piece)

    monkeypatch.setattr(Scorer, "__call__", change)
    assert main(arguments_of(trained_run, shards, output)) == 2
    assert "cells-000000.tar: changed while it was scored" in capfd.readouterr().err
    assert not output.exists()


def test_a_lost_mount_is_no_finished_output(drawn_cells, trained_run, tmp_path, monkeypatch, capfd):
    cells, output = Path(shutil.copytree(drawn_cells, tmp_path / "cells")), tmp_path / "scores"
    monkeypatch.setattr(pieces, "ROWS", 48)
    score = Scorer.__call__

    def lose(scorer, piece):
        part = score(scorer, piece)
        shutil.rmtree(cells, ignore_errors=True)
        cells.mkdir(exist_ok=True)
        return part

    monkeypatch.setattr(Scorer, "__call__", lose)
    assert main(arguments_of(trained_run, cells, output)) == 2
    assert "1 of 2 parts are missing" in capfd.readouterr().err
    assert not output.exists()
    monkeypatch.undo()
    monkeypatch.setattr(pieces, "ROWS", 48)
    shutil.copytree(drawn_cells, cells, dirs_exist_ok=True)
    assert main(arguments_of(trained_run, cells, output, "--resume")) == 0
    assert len(pd.read_parquet(output)) == 96


def test_another_model_on_a_worker_is_refused(packed, trained_run):
    with pytest.raises(
        RunError, match=f"^{os.uname().nodename}: .*is not the model that the first"
    ):
        Scorer(str(trained_run), "of another model")


def test_a_model_is_found_from_any_folder(packed, trained_run, tmp_path, monkeypatch):
    """Ray's workers have folders of their own."""
    monkeypatch.chdir(trained_run.parent)
    made = []
    monkeypatch.setattr(Scorer, "__init__", lambda _, model, __: made.append(model) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        score_archive(trained_run.name, [str(packed)], output=tmp_path / "scores")
    assert made == [str(trained_run)]


def test_wrong_inputs_are_one_line(packed, trained_run, tmp_path, capsys):
    for data, model, said in (
        (tmp_path / "nothing", trained_run, "no such file or folder"),
        (packed, tmp_path / "nothing", "no such run folder"),
        ("memory://nothing", trained_run, "no such file, or an empty folder"),
    ):
        assert main(arguments_of(model, data, tmp_path / "scores")) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
    assert main(arguments_of(trained_run, packed, packed)) == 2
    assert "not empty" in capsys.readouterr().err


# On Ray


def processes_of(mark):
    """Return the processes, by their titles, of a run that was started with a mark."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:
            continue
    return found


def workers_of(mark):
    """Return the processes in which Ray keeps our workers alive."""
    return {pid for pid, title in processes_of(mark).items() if title.startswith("ray::MapWorker")}


@pytest.mark.slow
def test_on_ray_an_actor_is_killed_and_then_the_driver(
    shards, packed, trained_run, expected, tmp_path
):
    pytest.importorskip("ray")
    output = tmp_path / "scores"
    arguments = arguments_of(trained_run, shards, output, "--engine", "ray")
    broken = shards / "cells-000011.tar"
    os.truncate(broken, broken.stat().st_size // 2)
    mark = uuid.uuid4().hex
    with start(arguments, WBC_KERAS_TEST=mark) as process:
        wait_for(lambda: parts_of(output), process)
        (worker,) = workers_of(mark)
        os.kill(worker, signal.SIGKILL)
        _, error = process.communicate(timeout=240)
    assert process.returncode == 2, error
    assert "cells-000011.tar: is truncated" in last_line(error)
    assert len(parts_of(output)) == SHARDS - 1

    shutil.copy(packed / broken.name, broken)
    for part in parts_of(output)[2:]:
        part.unlink()
    mark = uuid.uuid4().hex
    with start([*arguments, "--resume"], WBC_KERAS_TEST=mark) as process:
        wait_for(lambda: len(parts_of(output)) > 3, process)
        process.kill()
    assert not output.exists()
    # Ray's own agents take a minute longer.
    until = time.monotonic() + 60
    while workers_of(mark):
        assert time.monotonic() < until
        time.sleep(0.1)
    with start([*arguments, "--resume"]) as process:
        _, error = process.communicate(timeout=240)
    assert process.returncode == 0, error
    assert_scored(output, expected, prefix="cells-")


def test_ray_that_cannot_be_had(packed, trained_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = arguments_of(trained_run, packed, tmp_path / "scores", "--engine", "ray")
    assert main(arguments) == 2
    assert "pip install 'wbc_keras[scale]'" in capsys.readouterr().err
