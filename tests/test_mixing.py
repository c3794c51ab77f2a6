"""Mixtures of two cells: shares, targets and weights against plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from wbc_keras.training.mixing import draw_mixing, mix

SIZE = 40


def mixed(mixing):
    """Mix a black batch of class 0 and weight 1 with a white one of class 1 and weight 3."""
    count = len(mixing)
    images = np.repeat([0.0, 255.0], count)[:, None, None, None] * np.ones((1, SIZE, SIZE, 3))
    targets = np.repeat(np.eye(2), count, axis=0)
    weights = np.repeat([1.0, 3.0], count)
    rows = np.concatenate([mixing, mixing[::-1]])
    parts = (np.float32(part) for part in (images, targets, weights, rows))
    return [np.asarray(part)[:count] for part in mix(*parts)]


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_blends_every_pixel_by_a_share_of_the_beta_distribution(alpha):
    mixing = draw_mixing(200, mixup=alpha, cutmix=0.0, seed=0, epoch=0)
    images, targets, weights = mixed(mixing)
    shares = images[:, 0, 0, 0] / 255
    np.testing.assert_allclose(
        images, np.broadcast_to(255 * shares[:, None, None, None], images.shape), atol=0.01
    )
    np.testing.assert_allclose(targets, np.stack([1 - shares, shares], axis=1), atol=1e-5)
    np.testing.assert_allclose(weights, 1 + 2 * shares, atol=1e-5)
    assert stats.kstest(shares, "beta", args=(alpha, alpha)).pvalue > 0.01


def test_cutmix_puts_in_one_rectangle_and_counts_its_pixels():
    mixing = draw_mixing(200, mixup=0.0, cutmix=1.0, seed=0, epoch=0)
    images, targets, weights = mixed(mixing)
    white = images[..., 0] > 127
    np.testing.assert_array_equal(images, 255.0 * np.repeat(white[..., None], 3, axis=-1))
    shares = white.mean(axis=(1, 2))
    np.testing.assert_allclose(targets[:, 1], shares, atol=1e-5)
    np.testing.assert_allclose(weights, 1 + 2 * shares, atol=1e-5)
    # Full as far as its rows and columns go, and never more than was drawn.
    box = white.any(axis=2).sum(axis=1) * white.any(axis=1).sum(axis=1)
    np.testing.assert_array_equal(box, white.sum(axis=(1, 2)))
    assert (np.sqrt(shares) <= np.sqrt(mixing[:, 0]) + 1 / SIZE).all()
    inside = np.abs(mixing[:, 2:] - 0.5).max(axis=1) + np.sqrt(mixing[:, 0]) / 2 < 0.5
    assert inside.sum() > 10
    np.testing.assert_allclose(np.sqrt(shares[inside]), np.sqrt(mixing[inside, 0]), atol=1.5 / SIZE)


def test_with_both_on_each_is_used_for_half_of_the_cells():
    cut = draw_mixing(2000, mixup=0.2, cutmix=1.0, seed=0, epoch=0)[:, 1]
    assert set(cut) == {0.0, 1.0}
    assert cut.mean() == pytest.approx(0.5, abs=0.05)


def test_mixing_is_a_function_of_seed_and_epoch():
    settings = {"mixup": 0.3, "cutmix": 0.0}
    first = draw_mixing(20, seed=1, epoch=2, **settings)
    np.testing.assert_array_equal(first, draw_mixing(20, seed=1, epoch=2, **settings))
    assert not np.allclose(first, draw_mixing(20, seed=1, epoch=3, **settings))
    assert not np.allclose(first, draw_mixing(20, seed=2, epoch=2, **settings))
