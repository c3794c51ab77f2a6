"""Drawn pictures without a cell: what they hold, and that they are drawn the same again."""

from __future__ import annotations

import numpy as np
import pytest

from wbc_keras.pictures.non_cells import KINDS, draw_non_cell
from wbc_keras.synthetic import draw_cell

SIZE = 96


def drawn(kind, count=8):
    rngs = (np.random.default_rng([3, number]) for number in range(count))
    return np.stack([draw_non_cell(kind, size=SIZE, rng=rng) for rng in rngs])


def dark_share(images):
    """The share of each picture that is as dark in green as a nucleus."""
    return (images[..., 1] < 90).mean(axis=(1, 2))


def sharpness(images):
    """How much neighbouring pixels differ."""
    return np.abs(np.diff(images.astype(float), axis=2)).mean(axis=(1, 2, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_are_drawn_the_same_again_and_differ(kind):
    images = drawn(kind)
    assert (images.shape, images.dtype) == ((8, SIZE, SIZE, 3), np.uint8)
    np.testing.assert_array_equal(images, drawn(kind))
    assert len({image.tobytes() for image in images}) == 8


def test_a_field_and_a_clump_hold_no_nucleus_and_dirt_is_darker_than_one():
    assert dark_share(drawn("empty_field")).max() < 0.02
    assert dark_share(drawn("platelet_clump")).max() < 0.04
    assert drawn("dirt")[..., 1].min(axis=(1, 2)).max() < 60


def test_out_of_focus_is_softer_than_any_cell():
    cells = np.stack(
        [draw_cell("monocyte", size=SIZE, rng=np.random.default_rng(n)).image for n in range(8)]
    )
    assert sharpness(drawn("out_of_focus")).max() < 0.6 * sharpness(cells).min()


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="expected one of"):
        draw_non_cell("lint", size=SIZE, rng=np.random.default_rng(0))
