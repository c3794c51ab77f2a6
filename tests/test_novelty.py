"""Distances against scikit-learn's, percentiles against their definition, and the stored file."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors

from wbc_keras.errors import DataError, RunError
from wbc_keras.prediction.novelty import (
    NOVELTY_FILE,
    Distances,
    fit_novelty,
    percentiles,
    read_novelty,
    spread_over_classes,
    write_novelty,
)


def cells(count, *, size=12, classes=3, seed=0):
    """Features around a mean for each class, wide in some directions and narrow in others."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    means = np.random.default_rng(99).normal(0, 3, (classes, size))
    return means[labels] + rng.normal(size=(count, size)) * np.geomspace(3, 0.1, size), labels


@pytest.fixture(scope="module")
def fitted():
    features, labels = cells(300)
    return fit_novelty(features, labels, validation=cells(101, seed=1)[0])


def test_mahalanobis_is_scikit_learns_to_the_nearest_class(fitted):
    features, labels = cells(300)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    shared = LedoitWolf(assume_centered=True).fit(features - means[labels])
    asked = np.concatenate([cells(20, seed=2)[0], np.full((1, 12), 30.0)])
    each = [shared.mahalanobis(asked - mean) for mean in means]
    # The file keeps float32.
    expected = np.sqrt(np.min(each, axis=0))
    np.testing.assert_allclose(fitted.measure(asked).mahalanobis, expected, rtol=1e-4)


def test_beyond_the_widest_axes_the_spread_is_even():
    """More features than axes are kept: 200 alike, of which any two directions are equal."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, 200))
    fitted = fit_novelty(features, np.zeros(4000, int), validation=features[:50])
    asked = 5 * rng.normal(size=(5, 200))
    expected = np.linalg.norm(asked, axis=1)
    np.testing.assert_allclose(fitted.measure(asked).mahalanobis, expected, rtol=0.03)


def test_neighbours_are_scikit_learns_tenth(fitted):
    features, _ = cells(300)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    asked = cells(20, seed=2)[0]
    asked_unit = asked / np.linalg.norm(asked, axis=1, keepdims=True)
    expected = NearestNeighbors(n_neighbors=10).fit(unit).kneighbors(asked_unit)[0][:, -1]
    np.testing.assert_allclose(fitted.measure(asked).neighbours, expected, atol=2e-3)


def test_fewer_cells_than_features_and_fewer_than_neighbours():
    features, labels = cells(5, size=40)
    fitted = fit_novelty(features, labels, validation=features)
    far = fitted.measure(features + 100)
    assert np.isfinite(far.mahalanobis).all()
    assert far.mahalanobis.min() > fitted.measure(features).mahalanobis.max()


def test_cells_that_are_all_alike_are_no_division_by_nought():
    features = np.tile(cells(1)[0], (6, 1))
    fitted = fit_novelty(features, np.zeros(6, int), validation=features)
    assert fitted.score(features).tolist() == [0.5] * 6
    assert fitted.score(features + 0.1 * np.eye(12)[:6]).tolist() == [1.0] * 6


def ranks(values, known):
    """Return the share of the known values that are below each, equal ones half, by counting."""
    values, known = np.float32(values)[:, np.newaxis], np.float32(known)
    return (known < values).mean(axis=1) + (known == values).mean(axis=1) / 2


def test_score_is_the_share_of_validation_cells_that_are_less_foreign(fitted):
    known, asked = (fitted.measure(cells(101, seed=seed)[0]) for seed in (1, 7))
    farther = [
        np.maximum(
            ranks(some.mahalanobis, known.mahalanobis), ranks(some.neighbours, known.neighbours)
        )
        for some in (asked, known)
    ]
    np.testing.assert_allclose(fitted.rank(asked), ranks(*farther), atol=1e-9)
    assert fitted.rank(known).mean() == pytest.approx(0.5)
    assert fitted.score(np.full((1, 12), 1e3)) == pytest.approx(1, abs=0.01)


def test_mean_score_is_the_auroc_against_the_validation_cells(fitted):
    known, theirs = (
        fitted.score(scale * cells(101, seed=seed)[0]) for seed, scale in ((1, 1.0), (3, 1.5))
    )
    truth = np.repeat([0, 1], [len(known), len(theirs)])
    auroc = roc_auc_score(truth, np.concatenate([known, theirs]))
    assert theirs.mean() == pytest.approx(auroc, abs=1e-6)


def test_a_cell_that_is_far_by_one_distance_alone_is_foreign(fitted):
    known = fitted.measure(cells(101, seed=1)[0])
    for one, other in (("mahalanobis", "neighbours"), ("neighbours", "mahalanobis")):
        far = {one: getattr(known, one).max()[np.newaxis] * 2}
        near = {other: np.median(getattr(known, other), keepdims=True)}
        assert fitted.rank(Distances(**far, **near)) > 0.98


def test_percentiles_with_ties():
    assert percentiles([0, 1, 1.5, 2, 9], [3, 1, 2, 1]).tolist() == [0, 0.25, 0.5, 0.625, 1]


def test_cells_of_the_training_kind_score_evenly_and_others_high(fitted):
    same, _ = cells(2000, seed=5)
    scores = fitted.score(same)
    assert scores.mean() == pytest.approx(0.5, abs=0.1)
    other = same + 4 * np.random.default_rng(0).normal(size=same.shape)
    assert (fitted.score(other) > 0.99).mean() > 0.9


def test_classes_take_turns():
    labels = np.repeat([0, 1, 2], [50, 3, 20])
    chosen = spread_over_classes(labels, 13)
    assert np.bincount(labels[chosen]).tolist() == [5, 3, 5]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    np.testing.assert_array_equal(chosen, spread_over_classes(labels, 13))
    assert len(spread_over_classes(labels, 100)) == 73
    assert spread_over_classes(np.array([], int), 4).tolist() == []


def test_file_is_small_and_reads_back(fitted, tmp_path):
    write_novelty(tmp_path, fitted)
    assert [path.name for path in tmp_path.iterdir()] == [NOVELTY_FILE]
    again, asked = read_novelty(tmp_path), cells(9, seed=4)[0]
    np.testing.assert_array_equal(again.score(asked), fitted.score(asked))
    assert read_novelty(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", None])
def test_damaged_file_is_named(fitted, tmp_path, content):
    write_novelty(tmp_path, fitted)
    path = tmp_path / NOVELTY_FILE
    path.write_bytes(path.read_bytes()[:-40] if content is None else content)
    with pytest.raises(RunError, match="is damaged"):
        read_novelty(tmp_path)


def test_a_file_of_other_arrays_is_damaged(tmp_path):
    np.savez(tmp_path / NOVELTY_FILE, means=np.zeros(3))
    with pytest.raises(RunError, match="is damaged"):
        read_novelty(tmp_path)


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (np.zeros((3, 2, 2)), [0, 0, 0], "expected features"),
        (np.zeros((3, 2)), [0, 0], "expected features"),
        (np.full((3, 2), np.nan), [0, 0, 0], "not finite"),
    ],
)
def test_unusable_features_are_refused(features, labels, message):
    with pytest.raises(DataError, match=message):
        fit_novelty(features, labels, validation=np.zeros((1, 2)))


def test_features_of_another_network_are_refused(fitted):
    with pytest.raises(DataError, match=r"of the network that it was fitted on.*\(2, 5\)"):
        fitted.measure(np.zeros((2, 5)))
