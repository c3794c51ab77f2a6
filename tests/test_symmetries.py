"""Views of a cell: made, put back, and averaged, against NumPy's own turns."""

from __future__ import annotations

import dataclasses
import shutil

import cv2
import keras
import numpy as np
import pytest

from wbc_keras.classifier import average_symmetries, build_classifier
from wbc_keras.config import ModelConfig, dump_config, load_config
from wbc_keras.errors import ConfigError
from wbc_keras.gradcam import Heatmaps
from wbc_keras.prediction.networks import load_model
from wbc_keras.prediction.predictor import Predictor
from wbc_keras.prediction.symmetries import MakeViews, MergeViews
from wbc_keras.runs import open_run
from wbc_keras.statistics.faithfulness import draw_attention
from wbc_keras.synthetic import draw_cell

SETTINGS = ModelConfig("mobilenetv2", weights="none", symmetries=8)


def turned(images):
    """All eight, by other means than the layer's."""
    sides = (images, images[:, :, ::-1])
    return [np.rot90(one, turns, axes=(1, 2)) for one in sides for turns in range(4)]


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def models(images):
    keras.utils.set_random_seed(0)
    model = build_classifier(SETTINGS, num_classes=4, image_size=(32, 32))
    # Statistics of real activations: with those of a new network nothing gets through.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images, training=True)
    return model, average_symmetries(model, SETTINGS)


@pytest.mark.parametrize(("count", "shape"), [(2, (5, 7)), (4, (5, 7)), (8, (6, 6))])
def test_views_are_different_and_come_back(count, shape):
    maps = np.random.default_rng(2).normal(size=(2, *shape, 3)).astype(np.float32)
    views = np.asarray(MakeViews(count)(maps))
    assert len({view.tobytes() for view in views}) == count * 2
    np.testing.assert_allclose(MergeViews(count)(views), maps, atol=1e-6)


def test_eight_are_all_symmetries_of_the_square(images):
    made = {np.ascontiguousarray(view).tobytes() for view in np.asarray(MakeViews(8)(images))}
    assert made == {np.ascontiguousarray(one).tobytes() for view in turned(images) for one in view}


def test_logits_and_features_are_the_means_over_the_views(models, images):
    one, averaging = models
    for layer in ("pooling", "logits"):
        single, mean = (keras.Model(model.input, model.get_layer(layer).output) for model in models)
        expected = np.mean([single.predict(view, verbose=0) for view in turned(images)], axis=0)
        assert expected.std() > 0.01
        np.testing.assert_allclose(mean.predict(images, verbose=0), expected, rtol=1e-3, atol=1e-4)
    assert averaging.count_params() == one.count_params()


def test_a_turned_cell_gets_the_same_answer_and_a_turned_heatmap(models, images):
    one, averaging = models
    mirrored = images[:, ::-1]
    answers = [averaging.predict(given, verbose=0) for given in (images, mirrored)]
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-4)
    alone = [one.predict(given, verbose=0) for given in (images, mirrored)]
    assert np.abs(alone[0] - alone[1]).max() > 0.01
    maps = [Heatmaps(averaging).draw(given, [1, 1, 1]) for given in (images, mirrored)]
    np.testing.assert_allclose(maps[0], maps[1][:, ::-1], atol=1e-3)
    attention = [draw_attention(averaging, given) for given in (images, mirrored)]
    assert attention[0].shape == (3, 32, 32)
    np.testing.assert_allclose(attention[0], attention[1][:, ::-1], atol=1e-4)


def test_one_view_is_the_model_itself(models):
    assert average_symmetries(models[0], dataclasses.replace(SETTINGS, symmetries=1)) is models[0]


@pytest.mark.parametrize("engine", ["openvino", "onnx", "litert"])
def test_every_engine_runs_a_network_with_views(trained_run, tmp_path, engine):
    pytest.importorskip({"onnx": "onnxruntime", "litert": "ai_edge_litert"}.get(engine, engine))
    run = open_run(shutil.copytree(trained_run, tmp_path / "run"))
    Predictor.load(run.folder, engine=engine)  # Its network without views is not to be used after.
    settings = dataclasses.replace(run.config.model, symmetries=8)
    text = dump_config(dataclasses.replace(run.config, model=settings))
    (run.folder / "config.yaml").write_text(text)
    cell = draw_cell("lymphocyte", size=96, rng=np.random.default_rng(4)).image
    encoded = [cv2.imencode(".png", cell[:, :, ::-1])[1].tobytes()]
    answers = [
        Predictor.load(run.folder, engine=name).predict(encoded).probabilities
        for name in ("tensorflow", engine)
    ]
    np.testing.assert_allclose(*answers, atol=1e-4)


def test_a_run_is_used_with_the_symmetries_of_its_config(trained_run, tmp_path):
    run = open_run(shutil.copytree(trained_run, tmp_path / "run"))
    settings = dataclasses.replace(run.config.model, symmetries=4)
    text = dump_config(dataclasses.replace(run.config, model=settings))
    (run.folder / "config.yaml").write_text(text)
    size = run.config.data.image_size
    image = np.random.default_rng(3).integers(0, 256, (2, *size, 3)).astype(np.float32)
    views = [image, image[:, ::-1], image[:, :, ::-1], image[:, ::-1, ::-1]]
    expected = np.mean([load_model(run).predict(view, verbose=0) for view in views], axis=0)
    found = load_model(open_run(run.folder)).predict(image, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_wrong_counts_are_named():
    with pytest.raises(ValueError, match="2, 4 or 8"):
        MakeViews(3)
    with pytest.raises(ConfigError, match=r"model\.symmetries: expected 1, 2, 4 or 8"):
        load_config(None, overrides=["model.symmetries=6"])
    with pytest.raises(ConfigError, match="must be square"):
        load_config(None, overrides=["model.symmetries=8", "data.image_size=[96, 64]"])
