"""Augmentation: exact where it can be, against plain NumPy where it is not, the same everywhere."""

from __future__ import annotations

import dataclasses

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from wbc_keras.augment import CellAugmentation, draw_uniforms, make_augmentation
from wbc_keras.config import AugmentConfig

COLUMNS = ("flip", "turn", "rotation", "shift_y", "shift_x", "zoom")
COLUMNS += ("brightness", "contrast", "hue", "saturation")
STAINS = ("haematoxylin", "eosin", "dab")
COLUMNS += (*STAINS, *(f"{stain}_shift" for stain in STAINS), "sharpness", "red", "green", "blue")
OFF = {"flip": False, "quarter_turns": False}
# Random numbers at which nothing is changed, whatever the strengths.
NEUTRAL = {"flip": 0.9, "turn": 0.0}
ALMOST_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
SETTINGS = AugmentConfig(stain=0.05, sharpness=0.5, tint=0.3)
DEFAULTS = {
    name: value
    for name, value in dataclasses.asdict(SETTINGS).items()
    if name not in ("mixup", "cutmix")  # of two cells
}


def uniforms(**given):
    """Return one cell's random numbers, neutral but for those given."""
    return np.array([[(NEUTRAL | given).get(name, 0.5) for name in COLUMNS]], np.float32)


def apply(images, random, **strengths):
    return np.asarray(CellAugmentation(**(OFF | strengths))(images, random))


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (6, 24, 24, 3)).astype(np.uint8)


@pytest.fixture
def random():
    return draw_uniforms(6, seed=3, epoch=0)


@pytest.fixture
def mild():
    """One picture of moderate colours, which no moderate change drives out of 0 to 255."""
    return np.random.default_rng(2).uniform(80, 170, (1, 16, 16, 3)).astype(np.float32)


# What is drawn


def test_uniforms_are_one_row_a_cell_between_0_and_1():
    drawn = draw_uniforms(1000, seed=0, epoch=0)
    assert drawn.shape == (1000, len(COLUMNS))
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    np.testing.assert_allclose(drawn.mean(axis=0), 0.5, atol=0.05)
    np.testing.assert_allclose(np.corrcoef(drawn.T), np.eye(len(COLUMNS)), atol=0.12)


def test_uniforms_are_a_function_of_seed_and_epoch():
    first = draw_uniforms(50, seed=1, epoch=4)
    np.testing.assert_array_equal(first, draw_uniforms(50, seed=1, epoch=4))
    assert not np.isclose(first, draw_uniforms(50, seed=1, epoch=5)).all(axis=1).any()
    assert not np.isclose(first, draw_uniforms(50, seed=2, epoch=4)).all(axis=1).any()
    # (1, 4) and (4, 1) must not share their numbers, as seed + epoch would.
    assert not np.isclose(first, draw_uniforms(50, seed=4, epoch=1)).all(axis=1).any()


# Geometry


def test_all_off_is_the_identity(images, random):
    out = apply(images, random)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, images, atol=1e-3)


def test_neutral_numbers_are_the_identity_at_any_strength(images):
    random = np.repeat(uniforms(), len(images), axis=0)
    out = np.asarray(CellAugmentation(**DEFAULTS)(images, random))
    np.testing.assert_allclose(out, images, atol=0.05)


@pytest.mark.parametrize("turns", range(4))
def test_quarter_turns_are_exact(images, turns):
    out = apply(images[:1], uniforms(turn=turns / 4 + 0.1), quarter_turns=True)
    np.testing.assert_allclose(out[0], np.rot90(images[0], turns), atol=0.01)


def test_flip_is_exact(images):
    out = apply(images[:1], uniforms(flip=0.1), flip=True)
    np.testing.assert_allclose(out[0], images[0][:, ::-1], atol=1e-3)


def test_flip_and_turns_reach_the_eight_symmetries(images):
    image = images[0]
    reached = [
        apply(image[None], uniforms(flip=flip, turn=turn), flip=True, quarter_turns=True)[0]
        for flip in (0.1, 0.9)
        for turn in (0.0, 0.25, 0.5, 0.75)
    ]
    symmetries = [np.rot90(side, k) for side in (image, image[:, ::-1]) for k in range(4)]
    near = np.array([[np.abs(a - b).max() < 0.01 for b in symmetries] for a in reached])
    np.testing.assert_array_equal(near.sum(axis=0), 1)
    np.testing.assert_array_equal(near.sum(axis=1), 1)


def test_half_turn_of_a_picture_that_is_not_square():
    image = np.random.default_rng(0).uniform(0, 255, (1, 12, 20, 3)).astype(np.float32)
    out = apply(image, uniforms(turn=0.6), quarter_turns=True)
    np.testing.assert_allclose(out[0], np.rot90(image[0], 2), atol=0.01)


@pytest.mark.parametrize(("uniform", "pixels"), [(0.0, -4), (0.25, -2), (0.75, 2)])
def test_shift_moves_by_a_share_of_the_side(images, uniform, pixels):
    image = images[:1, :16, :16]
    inside = slice(4, 12)
    moved = slice(4 + pixels, 12 + pixels)
    down = apply(image, uniforms(shift_y=uniform), shift=0.25)
    np.testing.assert_allclose(down[0, inside], image[0, moved], atol=1e-3)
    right = apply(image, uniforms(shift_x=uniform), shift=0.25)
    np.testing.assert_allclose(right[0, :, inside], image[0, :, moved], atol=1e-3)


def test_what_comes_in_from_outside_mirrors_the_picture(images):
    image = images[:1, :16, :16].astype(np.float32)
    out = apply(image, uniforms(shift_y=0.0), shift=0.25)
    np.testing.assert_allclose(out[0, :4], image[0, :4][::-1], atol=1e-3)


@pytest.mark.parametrize(("uniform", "factor"), [(ALMOST_ONE, 1.25), (0.0, 0.75), (0.5, 1.0)])
def test_zoom_magnifies_by_its_share(uniform, factor):
    # A disc's area grows with the square of the magnification.
    rows, columns = np.mgrid[:64, :64]
    disc = 255.0 * (np.hypot(rows - 31.5, columns - 31.5) < 16)
    out = apply(np.repeat(disc[None, ..., None], 3, axis=-1), uniforms(zoom=uniform), zoom=0.25)
    assert out[0, ..., 0].sum() / disc.sum() == pytest.approx(factor**2, rel=0.02)


@pytest.mark.parametrize(("uniform", "degrees"), [(0.0, -30), (0.75, 15), (ALMOST_ONE, 30)])
def test_rotation_turns_by_its_degrees(uniform, degrees):
    # A spot right of the centre travels along a circle; rotations are counter-clockwise.
    rows, columns = np.mgrid[:65, :65]
    spot = 255.0 * np.exp(-((rows - 32) ** 2 + (columns - 52) ** 2) / 8)
    out = apply(
        np.repeat(spot[None, ..., None], 3, axis=-1), uniforms(rotation=uniform), rotation=30
    )
    mass = out[0, ..., 0]
    y, x = (mass * rows).sum() / mass.sum() - 32, (mass * columns).sum() / mass.sum() - 32
    assert np.hypot(y, x) == pytest.approx(20, abs=0.1)
    assert np.degrees(np.arctan2(-y, x)) == pytest.approx(degrees, abs=0.2)


# Sharpness


@pytest.mark.parametrize(("height", "width"), [(96, 96), (64, 80)])
@pytest.mark.parametrize(
    ("uniform", "shares"),
    [(0.75, (1.5, -0.5, 0)), (0.375, (0.5, 0.5, 0)), (0.25, (0, 1, 0)), (0.0, (0, 0, 1))],
)
def test_sharpness_is_an_unsharp_mask_or_a_gaussian_blur(height, width, uniform, shares):
    image = np.random.default_rng(4).uniform(100, 150, (height, width, 3)).astype(np.float32)
    out = apply(image[None], uniforms(sharpness=uniform), sharpness=1.0)[0]
    soft, softer = (
        cv2.GaussianBlur(image, (0, 0), share * min(height, width), borderType=cv2.BORDER_REFLECT)
        for share in (0.015, 0.03)
    )
    expected = shares[0] * image + shares[1] * soft + shares[2] * softer
    np.testing.assert_allclose(out, expected, atol=0.5)


# Stain


@pytest.mark.parametrize(("uniform", "added"), [(0.0, -51.0), (0.75, 25.5), (0.5, 0.0)])
def test_brightness_adds_a_share_of_255(mild, uniform, added):
    out = apply(mild, uniforms(brightness=uniform), brightness=0.2)
    np.testing.assert_allclose(out, mild + added, atol=0.01)


@pytest.mark.parametrize(("uniform", "factor"), [(0.0, 0.6), (0.75, 1.2)])
def test_contrast_stretches_about_the_mean_colour(mild, uniform, factor):
    out = apply(mild, uniforms(contrast=uniform), contrast=0.4)
    mean = mild.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(out, mean + factor * (mild - mean), atol=0.02)


def chroma(image):
    """Return luma and the complex chroma I + jQ, from the colour differences of the NTSC rule."""
    r, g, b = np.moveaxis(image.astype(np.float64), -1, 0)
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    v, u = 0.877 * (r - luma), 0.492 * (b - luma)
    # I and Q are V and U turned by 33 degrees.
    turn = np.radians(33)
    return luma, (v * np.cos(turn) - u * np.sin(turn)) + 1j * (v * np.sin(turn) + u * np.cos(turn))


@pytest.mark.parametrize(("uniform", "degrees"), [(0.0, -20), (0.75, 10)])
def test_hue_turns_the_chroma_and_keeps_the_luma(mild, uniform, degrees):
    luma, before = chroma(mild)
    luma_after, after = chroma(apply(mild, uniforms(hue=uniform), hue=20))
    np.testing.assert_allclose(luma_after, luma, atol=0.3)
    coloured = np.abs(before) > 10
    np.testing.assert_allclose(np.degrees(np.angle(after / before))[coloured], degrees, atol=0.5)
    np.testing.assert_allclose(np.abs(after / before)[coloured], 1, atol=0.02)


@pytest.mark.parametrize(("uniform", "factor"), [(0.0, 0.5), (0.75, 1.25)])
def test_saturation_stretches_the_chroma_and_keeps_the_luma(mild, uniform, factor):
    luma, before = chroma(mild)
    luma_after, after = chroma(apply(mild, uniforms(saturation=uniform), saturation=0.5))
    np.testing.assert_allclose(luma_after, luma, atol=0.2)
    np.testing.assert_allclose(after, factor * before, atol=0.5)


def test_no_saturation_is_grey(mild):
    out = apply(mild, uniforms(saturation=0.0), saturation=1.0)
    np.testing.assert_allclose(out.max(axis=-1) - out.min(axis=-1), 0, atol=0.1)


# Unit vectors of Ruifrok and Johnston's table 1, to four digits as scikit-image documents them.
STAIN_OF = {
    "haematoxylin": [0.6511, 0.7012, 0.2905],
    "eosin": [0.0701, 0.9911, 0.1101],
    "dab": [0.2696, 0.5692, 0.7789],
}


def picture_of(amounts):
    """Return 16 pixels of the stains mixed by Beer and Lambert, with white as 255."""
    density = amounts @ np.array([STAIN_OF[stain] for stain in STAINS])
    return (256 * np.exp(-density) - 1).reshape(1, 4, 4, 3).astype(np.float32)


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize(("uniform", "change"), [(0.0, -0.2), (0.75, 0.1)])
def test_stain_makes_one_dye_absorb_more_or_less(place, uniform, change):
    amounts = np.random.default_rng(3).uniform(0.2, 0.6, (16, 3))
    expected = amounts.copy()
    expected[:, place] *= 1 + change
    out = apply(picture_of(amounts), uniforms(**{STAINS[place]: uniform}), stain=0.2)
    np.testing.assert_allclose(out, picture_of(expected), atol=0.2)


@pytest.mark.parametrize("place", range(3))
def test_stain_adds_or_takes_an_even_film_of_dye(place):
    amounts = np.random.default_rng(3).uniform(0.2, 0.6, (16, 3))
    expected = amounts.copy()
    expected[:, place] += 0.1
    out = apply(picture_of(amounts), uniforms(**{f"{STAINS[place]}_shift": 0.75}), stain=0.2)
    np.testing.assert_allclose(out, picture_of(expected), atol=0.2)


def test_tint_is_coloured_light_as_bright_in_its_strongest_channel(mild):
    out = apply(mild, uniforms(red=0.75, green=0.5, blue=0.0), tint=0.4)
    gains = np.exp([0.2, 0.0, -0.4]) / np.exp(0.2)
    np.testing.assert_allclose(out, mild * gains, rtol=1e-5)


def test_values_stay_between_0_and_255_at_full_strength(images):
    strong = CellAugmentation(
        rotation=180,
        shift=0.5,
        zoom=0.5,
        brightness=1,
        contrast=1,
        hue=180,
        saturation=1,
        stain=0.5,
        sharpness=1,
        tint=1,
    )
    for epoch in range(10):
        out = np.asarray(strong(images, draw_uniforms(len(images), seed=0, epoch=epoch)))
        assert np.isfinite(out).all()
        assert out.min() >= 0
        assert out.max() <= 255


# The same everywhere


def test_each_cell_follows_its_own_numbers_alone(images, random):
    layer = CellAugmentation(**DEFAULTS)
    together = np.asarray(layer(images, random))
    for i in range(len(images)):
        alone = np.asarray(layer(images[i : i + 1], random[i : i + 1]))
        np.testing.assert_allclose(together[i], alone[0], atol=1e-3)
    assert not np.allclose(together[0], np.asarray(layer(images[:1], random[1:2]))[0], atol=5)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_same_in_a_graph_and_under_xla(images, random, jit_compile):
    layer = CellAugmentation(**DEFAULTS)
    compiled = tf.function(layer, jit_compile=jit_compile)
    eager = np.asarray(layer(images, random))
    np.testing.assert_allclose(compiled(images, random), eager, atol=0.02)


def test_same_in_tf_data(images, random):
    layer = CellAugmentation(**DEFAULTS)
    batches = tf.data.Dataset.from_tensor_slices((images, random)).batch(4).map(layer)
    out = np.concatenate(list(batches.as_numpy_iterator()))
    np.testing.assert_allclose(out, layer(images, random), atol=1e-3)


def test_config_round_trip(images, random):
    layer = CellAugmentation(**DEFAULTS, name="augmentation")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert isinstance(again, CellAugmentation)
    assert again.get_config() == layer.get_config()
    np.testing.assert_array_equal(again(images, random), layer(images, random))


def test_settings_are_the_layers_arguments():
    given = make_augmentation(SETTINGS).get_config()
    assert {name: given[name] for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_changes_no_picture(policy):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3)).astype(np.uint8)
    uniforms = draw_uniforms(3, seed=0, epoch=0)
    expected = np.asarray(make_augmentation(SETTINGS)(images, uniforms))
    keras.config.set_dtype_policy(policy)
    try:
        changed = np.asarray(make_augmentation(SETTINGS)(images, uniforms))
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_array_equal(changed, expected)
