"""The SavedModel: TensorFlow alone loads it, and it answers as the pipeline does."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from wbc_keras.evaluate import main as evaluate
from wbc_keras.export import export, main
from wbc_keras.pictures.cells import load_cells
from wbc_keras.predict import predict
from wbc_keras.prediction.decisions import read_decisions
from wbc_keras.prediction.networks import load_model
from wbc_keras.prediction.predictions import BOX_COLUMNS, class_columns, read_predictions
from wbc_keras.prediction.predictor import load_classifier
from wbc_keras.runs import open_run

# Run with -I in a folder elsewhere: no code of ours and no Keras can be imported.
ALONE = """
import json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        # Keras itself may be looked for by TensorFlow, but not be loaded.
        if name.startswith(("wbc_keras", "keras.", "tf_keras", "cv2")):
            raise ImportError(name + " is refused")

sys.meta_path.insert(0, Refuse())
import tensorflow as tf

model, files, output, *batches = sys.argv[1:]
serve = tf.saved_model.load(model).signatures["serving_default"]
encoded = [open(file, "rb").read() for file in json.load(open(files))]
answers = {}
for size in map(int, batches):
    # Few alone, as each takes a call.
    asked = encoded[: 9 * size]
    parts = [
        serve(image_bytes=tf.constant(asked[start : start + size]))
        for start in range(0, len(asked), size)
    ]
    answers[size] = {
        name: tf.concat([part[name] for part in parts], 0).numpy().astype(dtype).tolist()
        for name, dtype in (("probabilities", float), ("label", str), ("roi", float))
    }
assert not {"wbc_keras", "keras", "cv2"} & set(sys.modules)
json.dump(answers, open(output, "w"))
"""


def serve_alone(saved_model, paths, folder, *, batches=(64,)):
    """Classify the files in a Python that has TensorFlow only; answers by size of the batch."""
    (folder / "files.json").write_text(json.dumps([str(path) for path in paths]))
    others = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    arguments = [saved_model, "files.json", "answers.json", *map(str, batches)]
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *arguments],
        cwd=folder,
        env=others,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads((folder / "answers.json").read_text())
    return {int(size): values for size, values in answers.items()}


def answers_of_the_pipeline(run_folder, paths):
    """Classify as in training and evaluation: cropped cells through the Keras model."""
    run = open_run(run_folder)
    cells = load_cells(paths, roi=run.config.roi, image_size=run.config.data.image_size)
    logits = load_model(run).predict(cells.images.astype(np.float32), verbose=0)
    return tf.nn.softmax(logits / read_decisions(run_folder).temperature).numpy(), cells.boxes


@pytest.fixture(scope="module")
def pictures(drawn_cells, tmp_path_factory):
    """PNG and JPEG of several sizes, square and not, colour and grey."""
    folder = tmp_path_factory.mktemp("pictures")
    paths = [drawn_cells / "monocyte" / "00.png", drawn_cells / "eosinophil" / "01.png"]
    image = cv2.imread(str(paths[0]))
    for name, size in (("wide.jpg", (200, 120)), ("tall.png", (50, 90)), ("large.jpg", (360, 360))):
        cv2.imwrite(str(folder / name), cv2.resize(image, size))
        paths.append(folder / name)
    cv2.imwrite(str(folder / "grey.png"), cv2.cvtColor(image, cv2.COLOR_BGR2GRAY))
    return [*paths, folder / "grey.png"]


def test_tensorflow_alone_gives_the_pipelines_probabilities(
    saved_model, trained_run, evaluation, drawn_cells, pictures, tmp_path
):
    table = read_predictions(evaluation / "predictions.csv")
    paths = [*pictures, *(drawn_cells / file for file in table["file"])]
    answers = serve_alone(saved_model, paths, tmp_path)[64]
    probabilities, boxes = answers_of_the_pipeline(trained_run, pictures)
    count = len(pictures)
    np.testing.assert_allclose(answers["probabilities"][:count], probabilities, atol=1e-4)
    np.testing.assert_allclose(answers["roi"][:count], boxes, atol=1e-5)
    # And what evaluation wrote of the test cells.
    classes = class_columns(table)
    np.testing.assert_allclose(answers["probabilities"][count:], table[classes], atol=1e-4)
    assert answers["label"][count:] == table["predicted"].tolist()
    np.testing.assert_allclose(answers["roi"][count:], table[list(BOX_COLUMNS)], atol=1e-5)


@pytest.fixture(scope="module")
def real_cells(pbc, trained_run, tmp_path_factory):
    """500 photographed cells, every other one saved anew as PNG, under the labels of the run."""
    folder = tmp_path_factory.mktemp("real")
    for label in open_run(trained_run).class_names:
        (folder / label).mkdir()
        # What a class is called there does not matter, only that all are scored.
        for number, path in enumerate(sorted((pbc / label.split("_")[0]).glob("*.jpg"))[:125]):
            if number % 2:
                cv2.imwrite(str(folder / label / f"{number}.png"), cv2.imread(str(path)))
            else:
                shutil.copy(path, folder / label / f"{number}.jpg")
    return folder


def test_500_real_pictures_get_one_answer_whoever_is_asked(
    saved_model, trained_run, real_cells, tmp_path
):
    output = tmp_path / "evaluation"
    assert (
        evaluate(["--run", str(trained_run), "--data", str(real_cells), "--output", str(output)])
        == 0
    )
    evaluated = read_predictions(output / "predictions.csv").set_index("file")
    predicted = predict(trained_run, real_cells).set_index("file").loc[evaluated.index]
    assert len(evaluated) == 500
    classes = class_columns(evaluated.reset_index())
    assert len(classes) == 4
    np.testing.assert_allclose(predicted[classes], evaluated[classes], atol=1e-4)
    assert predicted["predicted"].tolist() == evaluated["predicted"].tolist()
    paths = [real_cells / file for file in evaluated.index]
    for size, served in serve_alone(saved_model, paths, tmp_path, batches=(1, 7, 64)).items():
        asked = evaluated.iloc[: 9 * size]
        assert served["label"] == asked["predicted"].tolist()
        np.testing.assert_allclose(served["probabilities"], asked[classes], atol=1e-4)
        np.testing.assert_allclose(served["roi"], asked[list(BOX_COLUMNS)], atol=1e-5)
    # XLA compiles the network and what follows; decoding it cannot.
    run = open_run(trained_run)
    cells = load_cells(paths, roi=run.config.roi, image_size=run.config.data.image_size)
    decide = tf.function(load_classifier(run).decide, jit_compile=True)
    for size in (1, 7, 64):
        parts = [decide(tf.constant(cells.images[i : i + size])) for i in range(0, 7 * size, size)]
        asked = evaluated.iloc[: 7 * size]
        compiled = np.concatenate([part["probabilities"] for part in parts])
        np.testing.assert_allclose(compiled, asked[classes], atol=1e-4)
        chosen = [classes[index] for part in parts for index in part["class_index"].numpy()]
        assert chosen == asked["predicted"].tolist()
    assert len(np.unique(np.round(evaluated[classes], 3), axis=0)) > 100  # not one for all


def test_saved_model_cli_shows_and_runs_it(saved_model, evaluation, drawn_cells, tmp_path):
    table = read_predictions(evaluation / "predictions.csv").iloc[:3]
    np.save(tmp_path / "cells.npy", [(drawn_cells / file).read_bytes() for file in table["file"]])
    command = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli"]
    of_model = ["--dir", str(saved_model), "--tag_set", "serve", "--signature_def"]
    arguments = ["run", *of_model, "serving_default", "--outdir", str(tmp_path)]
    arguments += ["--inputs", f"image_bytes={tmp_path / 'cells.npy'}"]
    subprocess.run([*command, *arguments], capture_output=True, check=True)
    probabilities = np.load(tmp_path / "probabilities.npy")
    np.testing.assert_allclose(probabilities, table[class_columns(table)], atol=1e-4)


ANSWER = {
    "probabilities": (tf.float32, [None, 4]),
    "label": (tf.string, [None]),
    "confidence": (tf.float32, [None]),
    "accepted": (tf.bool, [None]),
    "novelty": (tf.float32, [None]),
    "roi": (tf.float32, [None, 4]),
}
HEATMAP = {"heatmap": (tf.float32, [None, None, None])}
EXPLAINED = ANSWER | HEATMAP | {"overlay_png": (tf.string, [None])}
CHOICE = {"image_bytes": (tf.string, [None]), "class_index": (tf.int32, [None])}
SIGNATURES = {
    "serving_default": ({"image_bytes": (tf.string, [None])}, ANSWER),
    "images": ({"images": (tf.uint8, [None, None, None, 3])}, ANSWER),
    "explain": ({"image_bytes": (tf.string, [None])}, EXPLAINED),
    "explain_class": (CHOICE, EXPLAINED),
    "explain_rest": (CHOICE, ANSWER | HEATMAP | {"overlay_png_bytes": (tf.string, [None])}),
}


@pytest.fixture(scope="module")
def loaded(saved_model):
    return tf.saved_model.load(str(saved_model))


def described(specs):
    return {name: (spec.dtype, spec.shape.as_list()) for name, spec in specs.items()}


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_the_designs(loaded, name):
    assert set(loaded.signatures) == set(SIGNATURES)
    inputs, outputs = SIGNATURES[name]
    signature = loaded.signatures[name]
    assert described(signature.structured_input_signature[1]) == inputs
    assert {key: kind for key, (kind, _) in described(signature.structured_outputs).items()} == {
        key: kind for key, (kind, _) in outputs.items()
    }
    for key, spec in signature.structured_outputs.items():
        assert spec.shape.is_compatible_with(outputs[key][1]), key
        assert spec.shape.rank == len(outputs[key][1]), key


def test_a_bad_picture_is_named_by_its_place(loaded, pictures):
    encoded = [path.read_bytes() for path in pictures[:3]]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"image_bytes\[2\] is no JPEG or PNG"):
        loaded.signatures["serving_default"](image_bytes=tf.constant([*encoded[:2], b"text"]))


def test_weights_are_stored_once(saved_model, trained_run):
    weights = sum(
        variable.numpy().nbytes for variable in load_model(open_run(trained_run)).variables
    )
    graph, variables = saved_model / "saved_model.pb", saved_model / "variables"
    stored = sum(path.stat().st_size for path in (graph, *variables.iterdir()))
    # Beside them the graph and novelty's axes.
    assert weights < stored < weights + 5_000_000


# What lies beside it


def test_extras_tell_what_was_exported(saved_model, trained_run):
    extra = saved_model / "assets.extra"
    assert {path.name for path in extra.iterdir()} == {
        "classes.json",
        "decision.json",
        "export.json",
        "model_card.md",
        "tf_serving_warmup_requests",
    }
    classes = json.loads((extra / "classes.json").read_text())
    assert classes["classes"] == list(open_run(trained_run).class_names)
    assert classes["table"][1] == {
        "class": "lymphocyte",
        "cell": "lymphocyte",
        "lineage": "lymphoid",
        "abnormal": False,
    }
    assert (extra / "decision.json").read_bytes() == (trained_run / "decision.json").read_bytes()
    told = json.loads((extra / "export.json").read_text())
    assert told["roi"] == {"mode": "nucleus", "margin": 0.1}
    assert (told["image_size"], told["max_pixels"], told["absent"]) == ([48, 48], 64_000_000, [])
    assert told["exported_with"]["packages"]["tensorflow"] == tf.__version__
    digest = hashlib.sha256((trained_run / "model.keras").read_bytes()).hexdigest()
    assert told["sha256"]["model.keras"] == digest
    assert "# Model card" in (extra / "model_card.md").read_text()


def test_warmup_requests_run_against_the_signatures(saved_model, loaded):
    messages = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    records = tf.data.TFRecordDataset(
        str(saved_model / "assets.extra" / "tf_serving_warmup_requests")
    )
    asked = set()
    for record in records.as_numpy_iterator():
        request = messages.PredictionLog.FromString(record).predict_log.request
        assert request.model_spec.name == "wbc"
        signature = loaded.signatures[request.model_spec.signature_name]
        out = signature(**{name: tf.make_ndarray(one) for name, one in request.inputs.items()})
        assert out["probabilities"].shape == (1, 4)
        asked.add(request.model_spec.signature_name)
    assert asked == set(SIGNATURES)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_exporting_again_makes_the_next_version_and_leaves_the_first(
    trained_run, saved_model, tmp_path, capsys
):
    shutil.copytree(saved_model, tmp_path / "1")
    before = contents(tmp_path / "1")
    arguments = ["--run", str(trained_run), "--output", str(tmp_path)]
    assert main([*arguments, "--max-pixels", "5000"]) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / '2'}\n")
    assert contents(tmp_path / "1") == before
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"1", "2", "models.config"}
    assert {path.name for path in (tmp_path / "2").iterdir()} == {
        path.name for path in (tmp_path / "1").iterdir()
    }
    large = cv2.imencode(".png", np.zeros((100, 51, 3), np.uint8))[1].tobytes()
    serve = tf.saved_model.load(str(tmp_path / "2")).signatures["serving_default"]
    with pytest.raises(tf.errors.InvalidArgumentError, match="51x100 pixels, over 5,000"):
        serve(image_bytes=tf.constant([large]))
    # And back.
    assert main([*arguments, "--rollback", "1"]) == 0
    assert "version 1" in capsys.readouterr().out
    assert "versions: 1 " in (tmp_path / "models.config").read_text()
    assert contents(tmp_path / "1") == before


# Bad input


def test_run_without_calibration_or_novelty_says_so(run_copy, tmp_path, caplog):
    (run_copy / "decision.json").unlink()
    (run_copy / "novelty.npz").unlink()
    version = export(run_copy, output=tmp_path / "bare")
    assert "not calibrated, and there is no `accepted`" in caplog.text
    assert "there is no `novelty`" in caplog.text
    signature = tf.saved_model.load(str(version)).signatures["serving_default"]
    assert set(signature.structured_outputs) == {"probabilities", "label", "confidence", "roi"}
    told = json.loads((version / "assets.extra" / "export.json").read_text())
    assert len(told["absent"]) == 2
    assert not (version / "assets.extra" / "decision.json").exists()


def test_full_disk_leaves_the_served_version_as_it_was(trained_run, saved_model, tmp_path, capsys):
    resource = pytest.importorskip("resource")
    shutil.copytree(saved_model, tmp_path / "1")
    (tmp_path / "models.config").write_text("version 1")
    before = contents(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # No file may grow over 2 MB, which is what a full disk looks like to the writer of the weights.
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
    try:
        assert main(["--run", str(trained_run), "--output", str(tmp_path)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert contents(tmp_path) == before | {tmp_path / ".lock": b""}


def test_folder_of_something_else_is_refused(trained_run, tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    assert main(["--run", str(trained_run), "--output", str(tmp_path)]) == 2
    assert "is not a model folder, it holds notes" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert main(["--run", str(trained_run), "--output", str(tmp_path / "file")]) == 2
    assert "is a file; --output names a folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "notes"]


def test_rollback_to_a_version_that_is_not_there(trained_run, tmp_path, capsys):
    arguments = ["--run", str(trained_run), "--output", str(tmp_path)]
    assert main([*arguments, "--rollback", "3"]) == 2
    assert "holds no version 3 to serve; there are: none" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--rollback", "--max-pixels"])
def test_numbers_that_are_none(option, capsys):
    with pytest.raises(SystemExit):
        main(["--run", "run", option, "0"])
    assert "expected a whole number from 1. Received: 0" in capsys.readouterr().err


class Foreign(keras.layers.Layer):
    """A layer that no file of ours may bring along."""

    def call(self, images):
        return images


@pytest.mark.parametrize("layer", [keras.layers.Lambda(lambda x: x * 2), Foreign()])
def test_model_file_that_would_run_code_is_refused(run_copy, layer, tmp_path, capsys):
    images = keras.Input((48, 48, 3))
    model = keras.Model(images, layer(images))
    model.save(run_copy / "model.keras")
    assert main(["--run", str(run_copy), "--output", str(tmp_path / "served")]) == 2
    assert "cannot be loaded as a model" in capsys.readouterr().err
    assert not (tmp_path / "served").exists()
