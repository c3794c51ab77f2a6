"""The SavedModel: TensorFlow alone loads it, and it answers as the pipeline does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf

from wbc_keras.cells import load_cells
from wbc_keras.decisions import read_decisions
from wbc_keras.export import main
from wbc_keras.networks import load_model
from wbc_keras.predictions import class_columns, read_predictions
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

model, files, output = sys.argv[1:]
serve = tf.saved_model.load(model).signatures["serving_default"]
encoded = [open(file, "rb").read() for file in json.load(open(files))]
answers = serve(image_bytes=tf.constant(encoded))
alone = serve(image_bytes=tf.constant(encoded[:1]))["probabilities"]
assert not {"wbc_keras", "keras", "cv2"} & set(sys.modules)
json.dump(
    {
        "probabilities": answers["probabilities"].numpy().tolist(),
        "label": [label.decode() for label in answers["label"].numpy()],
        "roi": answers["roi"].numpy().tolist(),
        "alone": alone.numpy().tolist(),
    },
    open(output, "w"),
)
"""


def serve_alone(saved_model, paths, folder):
    """Classify the files as one batch in a Python that has TensorFlow only."""
    (folder / "files.json").write_text(json.dumps([str(path) for path in paths]))
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, saved_model, "files.json", "answers.json"],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "answers.json").read_text())


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
    answers = serve_alone(saved_model, paths, tmp_path)
    probabilities, boxes = answers_of_the_pipeline(trained_run, pictures)
    count = len(pictures)
    np.testing.assert_allclose(answers["probabilities"][:count], probabilities, atol=1e-4)
    np.testing.assert_allclose(answers["roi"][:count], boxes, atol=1e-5)
    # And what evaluation wrote of the test cells.
    classes = class_columns(table)
    np.testing.assert_allclose(answers["probabilities"][count:], table[classes], atol=1e-4)
    assert answers["label"][count:] == table["predicted"].tolist()
    np.testing.assert_allclose(
        answers["roi"][count:], table[["roi_y0", "roi_x0", "roi_y1", "roi_x1"]], atol=1e-5
    )
    # The batch around it does not matter to a picture.
    np.testing.assert_allclose(answers["alone"], answers["probabilities"][:1], atol=1e-5)


def test_real_jpegs_get_the_pipelines_probabilities(saved_model, trained_run, pbc):
    paths = sorted(pbc.rglob("*.jpg"))[::400]
    assert len(paths) > 20
    serve = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    answers = serve(image_bytes=tf.constant([path.read_bytes() for path in paths]))
    probabilities, boxes = answers_of_the_pipeline(trained_run, paths)
    np.testing.assert_allclose(answers["probabilities"], probabilities, atol=1e-4)
    np.testing.assert_allclose(answers["roi"], boxes, atol=1e-5)
    assert len(np.unique(np.round(probabilities, 4), axis=0)) > 10  # not one answer for all


def test_signature_is_the_designs(saved_model, trained_run):
    signature = tf.saved_model.load(str(saved_model)).signatures["serving_default"]
    (inputs,) = signature.structured_input_signature[1].items()
    assert inputs == ("image_bytes", tf.TensorSpec([None], tf.string, name="image_bytes"))
    outputs = signature.structured_outputs
    assert {name: (spec.dtype, spec.shape.rank) for name, spec in outputs.items()} == {
        "probabilities": (tf.float32, 2),
        "label": (tf.string, 1),
        "roi": (tf.float32, 2),
    }
    assert outputs["probabilities"].shape[1] == 4
    assert outputs["roi"].shape[1] == 4
    names = json.loads((saved_model / "assets.extra" / "classes.json").read_text())
    assert names["classes"] == json.loads((trained_run / "classes.json").read_text())["classes"]


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_exporting_again_makes_the_next_version_and_leaves_the_first(
    trained_run, saved_model, tmp_path, capsys
):
    shutil.copytree(saved_model, tmp_path / "1")
    # What a killed export leaves does not count.
    (tmp_path / ".7.abcdefgh").mkdir()
    before = contents(tmp_path / "1")
    assert main(["--run", str(trained_run), "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.endswith(f"{tmp_path / '2'}\n")
    assert contents(tmp_path / "1") == before
    assert {path.name for path in tmp_path.glob("[!.]*")} == {"1", "2"}
    assert {path.name for path in (tmp_path / "2").iterdir()} == {
        path.name for path in (tmp_path / "1").iterdir()
    }


def test_folder_of_something_else_is_refused(trained_run, tmp_path, capsys):
    (tmp_path / "notes").mkdir()
    assert main(["--run", str(trained_run), "--output", str(tmp_path)]) == 2
    assert "is not a model folder, it holds notes" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    assert main(["--run", str(trained_run), "--output", str(tmp_path / "file")]) == 2
    assert "is a file; --output names a folder" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "notes"]
