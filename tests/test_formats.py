"""A run's network in other formats: the same probabilities, or none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from wbc_keras import export as export_command
from wbc_keras import predict as predict_command
from wbc_keras.errors import RunError
from wbc_keras.export import main
from wbc_keras.pictures.cells import load_cells
from wbc_keras.pictures.localize import locate, make_thumbnail
from wbc_keras.predict import predict
from wbc_keras.prediction import engines, formats
from wbc_keras.prediction.formats import load_engine
from wbc_keras.prediction.predictions import class_columns, read_predictions
from wbc_keras.runs import open_run
from wbc_keras.synthetic import CLASS_NAMES


@pytest.fixture(scope="module")
def scored(trained_run, evaluation, drawn_cells):
    """Crops of the test cells, and what evaluation wrote of them."""
    table = read_predictions(evaluation / "predictions.csv")
    config = open_run(trained_run).config
    paths = [drawn_cells / file for file in table["file"]]
    images = load_cells(paths, roi=config.roi, image_size=config.data.image_size).images
    return images, table[class_columns(table)].to_numpy()


@pytest.fixture(scope="module", params=["onnx", "openvino", "litert", "keras"])
def exported(request, trained_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("formats") / request.param
    command = ["--run", str(trained_run), "--format", request.param, "--output", str(folder)]
    assert main(command) == 0
    return request.param, folder


def test_exported_network_gives_what_evaluation_wrote(exported, scored):
    name, folder = exported
    images, expected = scored
    if name == "keras":
        given = keras.models.load_model(folder / "model.keras")(images)["probabilities"]
    else:
        given = engines.open_engine(name, folder)(images).probabilities
    np.testing.assert_allclose(given, expected, atol=1e-4)


def test_exported_network_says_what_it_takes(exported, trained_run):
    name, folder = exported
    about = json.loads((folder / "about.json").read_text())
    assert about["format"] == name
    assert about["classes"] == list(open_run(trained_run).class_names)
    assert about["input"]["shape"] == [None, 48, 48, 3]
    if name == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(folder / "model.onnx")
        assert [one.name for one in session.get_inputs()] == ["images"]


@pytest.mark.parametrize("count", [1, 15, 16, 40])
def test_large_batches_are_shared_among_the_cores_in_order(exported, scored, count, monkeypatch):
    name, folder = exported
    if name == "keras":
        pytest.skip("is no engine")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    images, expected = (np.resize(values, (count, *values.shape[1:])) for values in scored)
    answer = engines.open_engine(name, folder)(images)
    assert answer.features.shape[0] == count
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-4)


# Whoever imports NumPy from C++ for the first time dawdles, so that other threads come by.
RACE = """
import builtins, sys, threading, time
from pathlib import Path
import numpy as np
from wbc_keras.prediction.engines import open_engine
engine = open_engine(sys.argv[1], Path(sys.argv[2]), workers=4)
plain = builtins.__import__
def slow(name, *rest, **more):
    time.sleep(0.3 * name.startswith("numpy"))
    return plain(name, *rest, **more)
builtins.__import__ = slow
images, barrier = np.zeros((4, 48, 48, 3), np.uint8), threading.Barrier(4)
def ask():
    barrier.wait()
    engine(images)
threads = [threading.Thread(target=ask) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


def test_first_answers_of_several_threads_do_not_wait_for_each_other(exported):
    name, folder = exported
    if name == "keras":
        pytest.skip("no engine of ours")
    subprocess.run([sys.executable, "-c", RACE, name, str(folder)], check=True, timeout=90)


def test_threads_share_an_engine(trained_run, scored):
    images, expected = scored
    engine = load_engine(open_run(trained_run), "openvino", workers=4)
    with ThreadPoolExecutor(4) as pool:
        for answer in pool.map(engine, [images] * 16):
            np.testing.assert_allclose(answer.probabilities, expected, atol=1e-4)


def test_every_engine_predicts_the_same(trained_run, drawn_cells):
    tables = {name: predict(trained_run, drawn_cells, engine=name) for name in formats.ENGINES}
    first = tables.pop("tensorflow")
    for name, table in tables.items():
        assert list(table.columns) == list(first.columns), name
        numbers = table.select_dtypes("float32").columns.drop("novelty")
        # A share of eight validation cells: a last digit moves it by half a cell.
        np.testing.assert_allclose(table["novelty"], first["novelty"], atol=2 / 8 + 1e-6)  # ties
        np.testing.assert_allclose(table[numbers], first[numbers], atol=1e-4)
        assert table["predicted"].equals(first["predicted"]), name


def test_commands_offer_what_there_is():
    # They name the choices themselves, as --help loads no TensorFlow.
    assert predict_command.ENGINES == formats.ENGINES
    assert ("saved_model", *formats.FORMATS) == export_command.FORMATS


def test_network_is_converted_once(trained_run, monkeypatch):
    run = open_run(trained_run)
    load_engine(run, "openvino")

    def convert(*_):
        raise AssertionError("converted again")

    monkeypatch.setattr(formats, "convert", convert)
    load_engine(run, "openvino")


def test_auto_is_what_was_measured_to_do_most_with_a_core(root):
    """The committed table of float32 engines that are as faithful as they have to be."""
    rows = re.findall(r"^\| ([^|]+) \|(.+)\|$", (root / "docs" / "formats.md").read_text(), re.M)
    titles = {"OpenVINO": "openvino", "ONNX Runtime": "onnx", "LiteRT": "litert"}
    head = next(rest for title, rest in rows if title == "engine").split("|")
    core, differs = (
        next(place for place, name in enumerate(head) if name.strip() == one)
        for one in ("core ms", "differs")
    )
    cells = {titles[title]: rest.split("|") for title, rest in rows if title in titles}
    assert len(cells) == 3
    faithful = {name: float(row[core]) for name, row in cells.items() if float(row[differs]) < 1e-4}
    assert formats.FASTEST[0] == min(faithful, key=faithful.__getitem__)


# Bad input


def test_conversions_are_tried_on_cells(trained_run, tmp_path, monkeypatch):
    tried = []
    given = engines.differ

    def differ(one, other, images):
        tried.append(images)
        return given(one, other, images)

    monkeypatch.setattr(engines, "differ", differ)
    formats.export_format(trained_run, "openvino", output=tmp_path / "out")
    (images,) = tried
    assert images.shape[1:] == (48, 48, 3)
    thumbnails = tf.stack([make_thumbnail(image) for image in images])
    sizes = tf.constant([image.shape[:2] for image in images])
    assert len(images) == len(CLASS_NAMES)
    assert locate(thumbnails, sizes, mode="nucleus", margin=0.1).found.numpy().mean() > 0.8


def test_network_that_does_not_give_the_same_is_refused(run_copy, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(formats, "TOLERANCE", -1.0)
    # Another temperature: not in the cache.
    decisions = json.loads((run_copy / "decision.json").read_text())
    (run_copy / "decision.json").write_text(json.dumps(decisions | {"temperature": 1.25}))
    with pytest.raises(RunError, match="probabilities differ by"):
        formats.export_format(run_copy, "openvino", output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    load_engine(open_run(run_copy), "auto")
    assert "going on with TensorFlow" in caplog.text


def test_missing_package_is_named_with_its_extra(trained_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(engines.PACKAGES, "onnx", ("no_such_runtime",))
    command = ["--run", str(trained_run), "--format", "onnx", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "pip install 'wbc_keras[onnx]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_auto_without_packages_is_tensorflow(trained_run, scored, monkeypatch):
    monkeypatch.setitem(engines.PACKAGES, "openvino", ("no_such_runtime",))
    images, expected = scored
    answer = load_engine(open_run(trained_run), "auto")(images)
    np.testing.assert_allclose(answer.probabilities, expected, atol=1e-4)


def test_folder_of_something_else_is_not_replaced(trained_run, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    command = ["--run", str(trained_run), "--format", "keras", "--output", str(tmp_path)]
    assert main(command) == 2
    assert "holds notes.txt" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_damaged_network_is_refused(exported, tmp_path):
    name, _ = exported
    if name == "keras":
        pytest.skip("read by Keras itself")
    (tmp_path / engines.FILES[name]).write_bytes(b"no network")
    with pytest.raises(RunError, match="cannot be opened"):
        engines.open_engine(name, tmp_path)
