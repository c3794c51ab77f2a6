"""Stain planes against NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from wbc_keras.pictures.stain import (
    count_stain,
    enlarge,
    grow,
    halve,
    measure_absorbance,
    measure_stain,
    shrink,
    split_classes,
)

FIELD = (250, 232, 215)


def _thumbnails(*colors):
    """Return fields of 96x96 with a square of 40x40 in each colour at the centre."""
    images = np.full((len(colors), 96, 96, 3), FIELD, np.float32)
    images[:, 28:68, 28:68] = np.array(colors)[:, np.newaxis, np.newaxis]
    return tf.constant(images)


def test_absorbance_is_the_share_of_the_fields_light_that_is_missing():
    green, blue, smear = measure_absorbance(_thumbnails((90, 58, 129), (125, 116, 43)))
    np.testing.assert_allclose(green[0, 48, 48], [191, 128], atol=0.5)
    np.testing.assert_allclose(blue[0, 48, 48], [102, 204], atol=0.5)
    assert not np.asarray(green)[0, :20].any()
    assert np.asarray(smear).all()


def test_a_tint_of_the_light_changes_nothing():
    thumbnails = _thumbnails((90, 60, 130))
    tinted = thumbnails * [0.9, 0.8, 0.6]
    for one, other in zip(measure_absorbance(thumbnails), measure_absorbance(tinted), strict=True):
        np.testing.assert_allclose(one, other, atol=1)


def test_what_is_black_is_no_smear():
    images = _thumbnails((90, 60, 130)).numpy()
    images[:, :12] = 3.0
    green, _, smear = measure_absorbance(tf.constant(images))
    assert not np.asarray(smear)[0, :12].any()
    assert np.asarray(smear)[0, 18:].all()
    assert not np.asarray(green)[0, :12].any()


def test_stain_keeps_its_order_where_both_colours_are_dark():
    colors = [np.array(FIELD) * 10.0 ** -(amount * np.array([0.4, 0.6, 0.25])) for amount in (1, 2)]
    stain = measure_stain(measure_absorbance(_thumbnails(*colors))).numpy()[0, 48, 48]
    assert 0 < stain[0] < stain[1]


def test_red_cells_have_little_stain():
    nucleus, red_cell = measure_stain(
        measure_absorbance(_thumbnails((85, 45, 130), (205, 172, 165)))
    ).numpy()[0, 48, 48]
    assert red_cell < 0.25 * nucleus


def _otsu(values):
    """Return the means of the three classes of least variance within, by trying all cuts."""
    values = np.sort(values)
    sums, squares = (np.concatenate([[0], np.cumsum(values**power)]) for power in (1, 2))

    def spread(start, stop):
        total, count = sums[stop] - sums[start], max(stop - start, 1)
        return squares[stop] - squares[start] - total**2 / count

    ends = np.searchsorted(values, np.unique(values))
    cuts = [(one, two) for one in ends for two in ends if one < two]
    one, two = min(
        cuts, key=lambda cut: spread(0, cut[0]) + spread(*cut) + spread(cut[1], len(values))
    )
    return values[:one].mean(), values[one:two].mean(), values[two:].mean()


def test_classes_equal_numpy():
    rng = np.random.default_rng(0)
    levels = np.concatenate(
        [rng.normal(mean, 12, count) for mean, count in ((30, 500), (95, 300), (190, 200))]
    )
    bins = np.clip(np.floor(levels / 4), 0, 63)
    stain = tf.constant(4.0 * bins.reshape(1, 40, 25, 1), tf.float32)
    classes = split_classes(count_stain(stain, tf.ones_like(stain)))
    # A bin stands for the stain at its middle.
    np.testing.assert_allclose(np.ravel(classes), np.array(_otsu(4 * bins)) + 2, rtol=1e-5)


def test_pixels_of_no_weight_do_not_count():
    stain = tf.constant(np.arange(16.0).reshape(1, 4, 4, 1), tf.float32)
    counts = count_stain(stain, tf.cast(stain < 4.0, tf.float32)).numpy()
    np.testing.assert_array_equal(counts[0, :2], [4, 0])
    assert counts.sum() == 4


def test_shapes_grow_shrink_halve_and_enlarge():
    planes = np.zeros((1, 12, 12, 2), np.float32)
    planes[0, 4:8, 4:8, 0] = 1
    grown, shrunk = np.zeros_like(planes), np.zeros_like(planes)
    grown[0, 3:9, 3:9, 0] = 1
    shrunk[0, 5:7, 5:7, 0] = 1
    np.testing.assert_array_equal(grow(planes, 3), grown)
    np.testing.assert_array_equal(shrink(planes, 3), shrunk)
    np.testing.assert_array_equal(enlarge(halve(planes)), planes)
