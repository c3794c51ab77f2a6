"""Heatmaps in a picture's own frame, against NumPy's interpolation one axis at a time."""

from __future__ import annotations

import cv2
import numpy as np
import tensorflow as tf
from matplotlib import colormaps

from wbc_keras.prediction.overlays import draw_overlays, lay_in_frame

BOXES = np.array([[0.25, 0.1, 0.75, 0.6], [0.0, 0.0, 1.0, 1.0], [0.5, 0.5, 1.0, 1.0]], np.float32)
SIZES = np.array([[40, 50], [30, 90], [20, 20]], np.int32)


def lay(heatmap, box, size):
    """Return one map in its picture, of the picture's size."""
    heatmap = heatmap / heatmap.max() if heatmap.max() > 0 else heatmap
    for axis in (0, 1):
        places = (np.arange(size[axis]) + 0.5) / size[axis]
        shares = (places - box[axis]) / (box[axis + 2] - box[axis])
        fields = shares * heatmap.shape[axis] - 0.5
        count = heatmap.shape[axis]
        heatmap = np.apply_along_axis(
            lambda row, at=fields, n=count: np.interp(at, np.arange(n), row), axis, heatmap
        )
        outside = (shares < 0) | (shares > 1)
        heatmap[(outside, slice(None)) if axis == 0 else (slice(None), outside)] = 0
    return heatmap


def make_maps():
    maps = np.random.default_rng(0).uniform(0, 7, (3, 3, 4)).astype(np.float32)
    maps[2] = 0
    return maps


def test_maps_lie_where_their_crops_were():
    maps = make_maps()
    heat = tf.function(lay_in_frame)(tf.constant(maps), tf.constant(BOXES), SIZES).numpy()
    assert heat.shape == (3, 40, 90)
    for one, heatmap, box, (height, width) in zip(heat, maps, BOXES, SIZES, strict=True):
        expected = lay(heatmap, box, (height, width))
        np.testing.assert_allclose(one[:height, :width], expected, atol=1e-5)
        # What lies beyond the picture, for the sake of a larger one in the batch.
        assert not one[height:].any()
        assert not one[:, width:].any()
    assert heat[:2].max() > 0.97
    assert heat.max() <= 1
    assert not heat[2].any()


def test_overlay_is_the_picture_under_its_colours():
    rng = np.random.default_rng(0)
    heat = lay_in_frame(tf.constant(make_maps()), tf.constant(BOXES), SIZES)
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]
    encoded = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in images]
    drawn = tf.function(draw_overlays)(tf.constant(encoded), heat, SIZES)
    for png, image, one in zip(drawn.numpy(), images, heat.numpy(), strict=True):
        height, width = image.shape[:2]
        one = one[:height, :width]
        weight = 0.65 * one[..., np.newaxis]
        expected = image * (1 - weight) + 255 * colormaps["viridis"](one)[..., :3] * weight
        overlay = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
        # A step of the colour table, and the fraction that is cut off.
        np.testing.assert_allclose(overlay, expected, atol=3)
        np.testing.assert_array_equal(overlay[one == 0], image[one == 0])
