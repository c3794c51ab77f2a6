"""The graph that is served: its parts against NumPy, the run's own figures and tf-keras-vis."""

from __future__ import annotations

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from test_overlays import lay
from tf_keras_vis.gradcam import Gradcam
from tf_keras_vis.utils.scores import CategoricalScore

from wbc_keras.config import RoiConfig
from wbc_keras.pictures.cells import load_cells
from wbc_keras.prediction.decisions import Decisions, read_decisions
from wbc_keras.prediction.inference import CellClassifier
from wbc_keras.prediction.networks import ask, load_model, load_network
from wbc_keras.prediction.novelty import fit_novelty, read_novelty
from wbc_keras.prediction.predictor import load_classifier
from wbc_keras.runs import open_run


@pytest.fixture(scope="module")
def run(trained_run):
    return open_run(trained_run)


@pytest.fixture(scope="module")
def classifier(run):
    return load_classifier(run)


@pytest.fixture(scope="module")
def paths(drawn_cells):
    return sorted(drawn_cells.rglob("*.png"))


@pytest.fixture(scope="module")
def cells(run, paths):
    return load_cells(paths, roi=run.config.roi, image_size=run.config.data.image_size)


@pytest.fixture(scope="module")
def encoded(paths):
    return [path.read_bytes() for path in paths]


@pytest.fixture(scope="module")
def answers(classifier, encoded):
    return {name: value.numpy() for name, value in classifier.serve(tf.constant(encoded)).items()}


def test_confidence_label_and_acceptance_are_the_probabilities(run, answers):
    probabilities, decisions = answers["probabilities"], read_decisions(run.folder)
    np.testing.assert_array_equal(answers["confidence"], probabilities.max(axis=1))
    names = np.array(run.class_names)[probabilities.argmax(axis=1)]
    assert answers["label"].astype(str).tolist() == names.tolist()
    np.testing.assert_array_equal(answers["accepted"], decisions.accept(probabilities))


def two_steps(run):
    # A tie may be counted either way within a distance; ranked again among few validation cells,
    # that half step passes others that are equal.
    return 2.0 / len(read_novelty(run.folder).known) + 1e-6


def test_novelty_is_that_of_the_run(run, cells, answers):
    features = ask(load_network(run), cells).features
    expected = read_novelty(run.folder).score(features)
    # A validation cell ties with itself, so the last bit of its features may move it half a step.
    np.testing.assert_allclose(answers["novelty"], expected, atol=two_steps(run))
    assert np.mean(np.abs(answers["novelty"] - expected) < 1e-6) > 0.8
    assert len(np.unique(answers["novelty"])) > 5


def test_novelty_with_more_features_than_axes():
    """And distances that lie between, on and beyond the known ones."""
    from wbc_keras.prediction.inference import NoveltyScore

    rng = np.random.default_rng(0)
    novelty = fit_novelty(
        rng.normal(size=(300, 200)), np.arange(300) % 3, validation=rng.normal(size=(40, 200))
    )
    features = rng.normal(size=(60, 200)) * rng.uniform(0.5, 2, (60, 1))
    score = tf.function(NoveltyScore(novelty))(tf.constant(features, tf.float32)).numpy()
    np.testing.assert_allclose(score, novelty.score(features.astype(np.float32)), atol=1e-6)
    assert score.min() < 0.1
    assert score.max() == 1


def test_decoded_pictures_get_the_same_answers(run, classifier, encoded, answers):
    images = np.stack([cv2.imdecode(np.frombuffer(one, np.uint8), 1)[..., ::-1] for one in encoded])
    of_images = classifier.serve_images(tf.constant(images))
    assert set(of_images) == set(answers)
    for name, values in answers.items():
        if values.dtype.kind == "f":
            atol = two_steps(run) if name == "novelty" else 1e-5
            np.testing.assert_allclose(of_images[name], values, atol=atol, err_msg=name)
        else:
            assert of_images[name].numpy().tolist() == values.tolist()


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_the_network_and_what_follows_under_xla(run, classifier, cells, answers, batch):
    """Decoding and the cell finder stay outside: XLA compiles neither."""
    compiled = tf.function(classifier.decide, jit_compile=True)
    out = compiled(tf.constant(cells.images[:batch]))
    np.testing.assert_allclose(out["probabilities"], answers["probabilities"][:batch], atol=1e-4)
    np.testing.assert_allclose(out["novelty"], answers["novelty"][:batch], atol=two_steps(run))
    expected = answers["probabilities"][:batch].argmax(axis=1)
    np.testing.assert_array_equal(out["class_index"], expected)


def test_what_a_run_lacks_is_absent(run, encoded, answers):
    bare = make_classifier(run)
    outputs = bare.serve(tf.constant(encoded[:3]))
    assert set(outputs) == {"probabilities", "label", "confidence", "roi"}
    # As trained: the temperature of 1.
    logits = np.log(answers["probabilities"][:3]) * read_decisions(run.folder).temperature
    np.testing.assert_allclose(outputs["probabilities"], tf.nn.softmax(logits), atol=1e-4)
    unsure = Decisions(2.0, 0.95, None, None, None, 10)
    assert "accepted" not in make_classifier(run, decisions=unsure).serve(tf.constant(encoded[:3]))


def make_classifier(run, **options):
    return CellClassifier(
        load_model(run),
        class_names=run.class_names,
        roi=run.config.roi,
        image_size=run.config.data.image_size,
        **options,
    )


# Heatmaps


def raw_maps(run, images, classes):
    """Return tf-keras-vis's maps before they are enlarged and stretched."""
    model = load_model(run)
    gradcam = Gradcam(keras.Model(model.inputs, model.outputs), clone=False)
    return gradcam(
        CategoricalScore(list(classes)),
        images.astype(np.float32),
        penultimate_layer="features",
        seek_penultimate_conv_layer=False,
        expand_cam=False,
        normalize_cam=False,
    )


def test_heatmaps_are_tf_keras_vis_own_in_the_pictures_frame(run, classifier, cells, encoded):
    """Pictures of several sizes, and classes of our choice."""
    sizes = [(64, 64), (64, 64), (90, 120), (200, 100)]
    encoded = encoded[::30]
    for row, (height, width) in list(enumerate(sizes))[2:]:
        image = cv2.imdecode(np.frombuffer(encoded[row], np.uint8), 1)
        encoded[row] = cv2.imencode(".png", cv2.resize(image, (width, height)))[1].tobytes()
    classes = [0, 1, 2, 3]
    out = classifier.explain_class(tf.constant(encoded), tf.constant(classes))
    assert out["heatmap"].shape == (4, 200, 120)
    images = crops(run, encoded)
    checked = 0
    for row, raw in enumerate(raw_maps(run, images, classes)):
        height, width = sizes[row]
        expected = lay(np.maximum(raw, 0), out["roi"][row].numpy(), sizes[row])
        heat = out["heatmap"][row].numpy()
        np.testing.assert_allclose(heat[:height, :width], expected, atol=1e-3)
        assert not heat[height:].any()
        assert not heat[:, width:].any()
        checked += expected.max() > 0
        overlay = cv2.imdecode(np.frombuffer(out["overlay_png"][row].numpy(), np.uint8), 1)
        assert overlay.shape == (height, width, 3)
    assert checked >= 2  # or nothing would be tested


def crops(run, encoded):
    from wbc_keras.pictures.cells import crop_encoded

    size = run.config.data.image_size
    names = [str(place) for place in range(len(encoded))]
    return crop_encoded(names, encoded, roi=run.config.roi, image_size=size).cells.images


def test_explain_takes_the_class_that_was_chosen(run, classifier, encoded, answers):
    few = tf.constant(encoded[::12])
    out = classifier.explain(few)
    chosen = answers["probabilities"][::12].argmax(axis=1).astype(np.int32)
    same = classifier.explain_class(few, tf.constant(chosen))
    np.testing.assert_array_equal(out["heatmap"], same["heatmap"])
    # As JSON takes it, -1 for the chosen one.
    mixed = np.where(np.arange(len(chosen)) % 2, chosen, -1).astype(np.int32)
    rest = classifier.explain_rest(few, tf.constant(mixed))
    assert set(rest) ^ set(out) == {"overlay_png", "overlay_png_bytes"}
    assert rest["overlay_png_bytes"].numpy().tolist() == out["overlay_png"].numpy().tolist()
    other = classifier.explain_class(few, tf.constant((chosen + 1) % 4))
    assert np.abs(out["heatmap"] - other["heatmap"]).max() > 0.1
    for name, values in answers.items():
        expected = values[::12]
        if values.dtype.kind == "f":
            atol = two_steps(run) if name == "novelty" else 1e-5
            np.testing.assert_allclose(out[name], expected, atol=atol, err_msg=name)
        else:
            assert out[name].numpy().tolist() == expected.tolist()


@pytest.mark.parametrize("classes", [[4, 0], [-1, 0], [0], [0, 1, 2]])
def test_classes_that_are_none_are_refused(classifier, encoded, classes):
    with pytest.raises(tf.errors.InvalidArgumentError, match="class_index: expected 0 to 3"):
        classifier.explain_class(tf.constant(encoded[:2]), tf.constant(classes, tf.int32))


def test_heatmaps_that_would_fill_the_memory_are_refused(run, encoded):
    """One large picture gives every heatmap of the batch its size."""
    small = make_classifier(run, max_pixels=4 * 64 * 64)
    small.explain(tf.constant(encoded[:4]))
    small.serve(tf.constant(encoded[:5]))
    with pytest.raises(tf.errors.InvalidArgumentError, match="explain fewer at a time"):
        small.explain(tf.constant(encoded[:5]))


def test_every_backbone_can_be_saved(encoded, tmp_path):
    """EfficientNet's activation brings a gradient of its own; MobileNetV2 is in all other tests."""
    from wbc_keras.classifier import build_classifier
    from wbc_keras.config import ModelConfig

    model = build_classifier(
        ModelConfig(backbone="efficientnetb0", weights="none"), num_classes=2, image_size=(32, 32)
    )
    classifier = CellClassifier(model, class_names=["a", "b"], roi=RoiConfig(), image_size=(32, 32))
    classifier.save(tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    out = loaded.signatures["explain"](image_bytes=tf.constant(encoded[:2]))
    own = classifier.serve(tf.constant(encoded[:2]))
    np.testing.assert_allclose(out["probabilities"], own["probabilities"], atol=1e-5)


def test_bfloat16_networks_are_served_and_explained(encoded):
    from wbc_keras.classifier import build_classifier
    from wbc_keras.config import ModelConfig

    keras.config.set_dtype_policy("mixed_bfloat16")
    model = build_classifier(
        ModelConfig(backbone="mobilenetv2", weights="none"), num_classes=2, image_size=(48, 48)
    )
    # The network keeps its own; what is made of it does not ask.
    keras.config.set_dtype_policy("float32")
    classifier = CellClassifier(model, class_names=["a", "b"], roi=RoiConfig(), image_size=(48, 48))
    out = classifier.explain(tf.constant(encoded[:2]))
    assert out["probabilities"].dtype == out["heatmap"].dtype == tf.float32
    np.testing.assert_allclose(tf.reduce_sum(out["probabilities"], axis=1), 1, atol=1e-5)
