"""Any number of pictures into one table: order, bad ones, a kill, other formats, heatmaps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pandas as pd
import pytest

from wbc_keras import progress
from wbc_keras.predict import main, predict
from wbc_keras.prediction import archive
from wbc_keras.prediction.archive import part_folder
from wbc_keras.prediction.predictions import BOX_COLUMNS, read_predictions

# 128 rows a part instead of 1,024, so that few pictures make several.
COMMAND = """
import sys
from wbc_keras import commands
from wbc_keras.prediction import archive
commands.load_tensorflow()
archive.PART = 128
from wbc_keras.predict import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def many(drawn_cells, tmp_path_factory):
    """600 pictures in two folders, every fiftieth of them bad."""
    folder = tmp_path_factory.mktemp("many")
    cells = sorted(drawn_cells.rglob("*.png"))
    for number in range(600):
        path = folder / f"day{number % 2}" / f"{number:04}.png"
        path.parent.mkdir(exist_ok=True)
        if number % 50:
            os.link(cells[number % len(cells)], path)
        else:
            path.write_bytes(b"no picture")
    return folder


def arguments_of(model, data, output, *more):
    return ["--model", str(model), "--data", str(data), "--output", str(output), *more]


@pytest.fixture(scope="module")
def whole(many, trained_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "table.csv"
    assert main(arguments_of(trained_run, many, path)) == 0
    return path


def kill_when(condition, arguments):
    """Start the command in a process of its own and kill it when ``condition()``."""
    command = [sys.executable, "-c", COMMAND, *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not condition():
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_rows_are_those_of_the_input_in_its_order(whole, many):
    table = read_predictions(whole)
    files = sorted(path.relative_to(many).as_posix() for path in many.rglob("*.png"))
    assert table["file"].tolist() == files
    assert table["label"].tolist() == [file.split("/")[0] for file in files]
    bad = [int(file.split("/")[1][:4]) % 50 == 0 for file in files]
    assert (table["error"] != "").tolist() == bad
    assert not part_folder(whole).exists()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_cells_foreign_to_the_model_are_told(suffix, many, trained_run, tmp_path, capsys):
    rng = np.random.default_rng(0)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for number in range(10):
        noise = rng.integers(0, 256, (96, 96, 3), np.uint8)
        cv2.imwrite(str(foreign / f"{number}.png"), noise)
    told = []
    for data in (many, foreign):
        table = tmp_path / f"{data.name}{suffix}"
        assert main(arguments_of(trained_run, data, table)) == 0
        told.append(capsys.readouterr().out)
    novelty = (pd.read_csv if suffix == ".csv" else pd.read_parquet)(table)["novelty"]
    assert f"note: {(novelty > 0.99).mean():.0%} of the cells are foreign to the model" in told[1]
    assert (novelty > 0.99).mean() > 0.5
    assert "are foreign" not in told[0]


def test_a_killed_run_goes_on_after_its_last_whole_part(
    whole, many, trained_run, tmp_path, monkeypatch, capfd
):
    output = tmp_path / "table.csv"
    arguments = arguments_of(trained_run, many, output)
    parts = part_folder(output)
    kill_when(lambda: len(list(parts.glob("0*.csv"))) >= 2, arguments)
    assert not output.exists()
    assert main(arguments) == 2
    assert "--resume goes on" in capfd.readouterr().err
    done = 128 * len(list(parts.glob("0*.csv")))
    assert 256 <= done < 600

    read = []
    monkeypatch.setattr(archive, "PART", 128)
    take = archive.read_file
    monkeypatch.setattr(archive, "read_file", lambda path: read.append(path) or take(path))
    monkeypatch.setattr(progress, "_SECONDS", 0)
    assert main([*arguments, "--resume"]) == 0
    assert len(read) == 600 - done
    lines = capfd.readouterr().err.splitlines()
    assert f"{done + 64}/600" in lines[0]
    assert "600/600" in lines[-1]
    assert not parts.exists()
    one, other = read_predictions(output), read_predictions(whole)
    assert one["file"].equals(other["file"])
    assert one["predicted"].equals(other["predicted"])
    numbers = one.columns[3:-1]
    np.testing.assert_allclose(
        one[numbers].astype(float), other[numbers].astype(float), atol=1e-6, equal_nan=True
    )


def test_what_was_begun_otherwise_is_not_gone_on_with(
    many, trained_run, saved_model, tmp_path, capsys
):
    output = tmp_path / "table.csv"
    kill_when(
        lambda: (part_folder(output) / "_about.json").exists(),
        arguments_of(trained_run, many, output),
    )
    resumed = arguments_of(saved_model, many / "day0", output, "--resume")
    assert main(resumed) == 2
    error = capsys.readouterr().err
    assert "another --data, --model;" in error
    (part_folder(output) / "_about.json").write_text("{")
    assert main(resumed) == 2
    assert "remove it to begin anew" in capsys.readouterr().err


def test_two_runs_do_not_write_one_table(many, trained_run, tmp_path, capsys):
    import filelock

    output = tmp_path / "table.csv"
    part_folder(output).mkdir()
    with filelock.FileLock(part_folder(output) / ".lock"):
        assert main(arguments_of(trained_run, many, output, "--resume")) == 2
    assert "another run is writing it" in capsys.readouterr().err


def test_parquet_holds_the_same(whole, many, trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "PART", 256)
    output = tmp_path / "table.parquet"
    assert main(arguments_of(trained_run, many, output)) == 0
    table, other = pd.read_parquet(output), read_predictions(whole)
    assert list(table.columns) == list(other.columns)
    for name in table.columns:
        if table[name].dtype == np.float32:
            np.testing.assert_allclose(table[name], other[name], atol=1e-6, equal_nan=True)
        else:
            assert table[name].tolist() == other[name].tolist(), name


def test_parquet_without_its_package(many, trained_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(arguments_of(trained_run, many, tmp_path / "table.parquet")) == 2
    assert "wbc_keras[parquet]" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["run", "saved_model"])
def test_heatmaps_lie_over_their_pictures(kind, drawn_cells, trained_run, saved_model, tmp_path):
    model = {"run": trained_run, "saved_model": saved_model}[kind]
    folder = tmp_path / "heatmaps"
    data = drawn_cells / "monocyte"
    arguments = arguments_of(model, data, tmp_path / "table.csv", "--heatmaps", str(folder))
    assert main(arguments) == 0
    table = read_predictions(tmp_path / "table.csv")
    assert sorted(path.name for path in folder.iterdir()) == [f"{f}.png" for f in table["file"]]
    for row in table.to_dict("records"):
        picture, overlay = (
            cv2.imread(str(p)) for p in (data / row["file"], folder / f"{row['file']}.png")
        )
        assert overlay.shape == picture.shape
        # Outside the cell's box the picture is left as it is.
        height, width = picture.shape[:2]
        y0, x0, y1, x1 = (row[name] for name in BOX_COLUMNS)
        outside = np.ones((height, width), bool)
        outside[int(y0 * height) : int(y1 * height) + 1, int(x0 * width) : int(x1 * width) + 1] = (
            False
        )
        assert (picture[outside] == overlay[outside]).all()
    plain = predict(model, data, engine="tensorflow")
    assert plain["predicted"].tolist() == table["predicted"].tolist()
    np.testing.assert_allclose(plain["confidence"], table["confidence"], atol=1e-4)


def test_heatmaps_where_they_do_not_belong(drawn_cells, trained_run, tmp_path, capsys):
    arguments = arguments_of(trained_run, drawn_cells, tmp_path / "table.csv", "--heatmaps")
    assert main([*arguments, str(drawn_cells / "maps")]) == 2
    assert "lies in the data" in capsys.readouterr().err
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    assert main([*arguments, str(tmp_path / "mine")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([*arguments, str(tmp_path / "maps"), "--engine", "openvino"]) == 2
    assert "draws no heatmaps" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]
