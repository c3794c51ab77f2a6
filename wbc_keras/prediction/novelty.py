"""How far a cell lies from all that the model learned from, in its own features: ``novelty.npz``.

Two distances, both fitted on training cells: Mahalanobis to the nearest class under one covariance
(Lee et al. 2018), which is the better at other laboratories and at what is no cell, and to the k-th
nearest neighbour (Sun et al. 2022), the better at cells between the classes. Validation cells,
which the fit never saw, tell what is far; a cell is as foreign as the farther of the two has it.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.covariance import ledoit_wolf

from wbc_keras.errors import DataError, RunError
from wbc_keras.runs import replacing
from wbc_keras.statistics.probabilities import Array, Integers

NOVELTY_FILE = "novelty.npz"
FIT_CELLS = 20_000  # of a training set at most: a covariance gains nothing from more
_REFERENCES = 1_000  # kept for their neighbourhood; what makes the file small
_AXES = 128  # of the covariance, the widest; across all others the spread is taken as even
NEIGHBOURS = 10
_BLOCK = 2_000  # cells whose distances are held at once


@dataclass(frozen=True, eq=False)
class Novelty:
    """What is foreign to a model, by its d features.

    Attributes:
        means: (k, d), of each class.
        axes: (d, r), the orthonormal directions in which cells of a class differ most.
        variances: (r,), along the axes.
        rest: the variance along any other direction.
        references: (m, d), features of length 1.
        known: (v, 2), both distances of the validation cells, Mahalanobis first.
    """

    means: npt.NDArray[np.float32]
    axes: npt.NDArray[np.float32]
    variances: npt.NDArray[np.float32]
    rest: npt.NDArray[np.float32]
    references: npt.NDArray[np.float16]
    known: npt.NDArray[np.float32]

    def measure(self, features: npt.ArrayLike) -> Distances:
        """Return the distances of n cells from their features (n, d)."""
        rows = np.asarray(features, np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.means.shape[1] or not np.isfinite(rows).all():
            raise DataError(
                f"novelty: expected finite features (n, {self.means.shape[1]}), of the network "
                f"that it was fitted on. Received: {rows.shape}"
            )
        blocks = [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]
        return Distances(
            *(
                np.concatenate([np.empty(0), *map(distance, blocks)])
                for distance in (self._to_classes, self._to_neighbours)
            )
        )

    def score(self, features: npt.ArrayLike) -> Array:
        """Return how foreign n cells are from their features (n, d), as `rank` tells it."""
        return self.rank(self.measure(features))

    def rank(self, distances: Distances) -> Array:
        """Return (n,) in [0, 1]: the share of validation cells that are less foreign.

        How foreign a cell is, is the larger of its two shares of validation cells that are nearer.
        The mean score of some cells is their AUROC against the validation cells.
        """
        return percentiles(self._farther(distances), self.farther_known)

    @property
    def farther_known(self) -> Array:
        """(v,), the larger of both shares of each validation cell, rising."""
        return np.sort(self._farther(Distances(*self.known.T.astype(np.float64))))

    def shares(self, distances: Distances) -> tuple[Array, Array]:
        """Return, each (n,), the share of validation cells that are nearer by either distance."""
        mahalanobis, neighbours = self.known.T
        return (
            percentiles(distances.mahalanobis, mahalanobis),
            percentiles(distances.neighbours, neighbours),
        )

    def _farther(self, distances: Distances) -> Array:
        return np.maximum(*self.shares(distances))

    def _to_classes(self, rows: Array) -> Array:
        means, axes = self.means.astype(np.float64), self.axes.astype(np.float64)
        # Along the axes, and what is left of the length across them.
        along = (rows @ axes)[:, np.newaxis] - means @ axes
        square = _square_distances(rows, means)
        left = np.maximum(square - (along**2).sum(axis=2), 0)
        distance = (along**2 / self.variances).sum(axis=2) + left / self.rest
        nearest: Array = np.sqrt(distance.min(axis=1))
        return nearest

    def _to_neighbours(self, rows: Array) -> Array:
        square = _square_distances(_unit(rows), self.references.astype(np.float64))
        place = min(NEIGHBOURS, len(self.references)) - 1
        distance: Array = np.sqrt(np.partition(square, place, axis=1)[:, place])
        return distance


@dataclass(frozen=True, eq=False)
class Distances:
    """Of n cells, each (n,)."""

    mahalanobis: Array
    neighbours: Array


def fit_novelty(
    features: npt.ArrayLike, labels: npt.ArrayLike, *, validation: npt.ArrayLike
) -> Novelty:
    """Fit both distances on training cells, and what is far on validation cells.

    The covariance is shrunk (Ledoit and Wolf 2004): there may be fewer cells than features.

    Args:
        features: (n, d), finite, at least two cells.
        labels: integers (n,).
        validation: (v, d), features of at least one cell that the model did not train on.

    Raises:
        DataError: shapes disagree or a value is not finite.
    """
    rows, classes = np.asarray(features, np.float64), np.asarray(labels)
    _check(rows, classes)
    names, index = np.unique(classes, return_inverse=True)
    means = np.stack([rows[index == c].mean(axis=0) for c in range(len(names))])
    axes, variances, rest = _fit_covariance(rows - means[index])
    references = rows[spread_over_classes(classes, _REFERENCES)]
    novelty = Novelty(
        means=means.astype(np.float32),
        axes=axes.astype(np.float32),
        variances=variances.astype(np.float32),
        rest=np.array(rest, np.float32),
        references=_unit(references).astype(np.float16),
        known=np.empty((0, 2), np.float32),
    )
    distances = novelty.measure(validation)
    known = np.stack([distances.mahalanobis, distances.neighbours], axis=1)
    return dataclasses.replace(novelty, known=known.astype(np.float32))


def percentiles(distances: npt.ArrayLike, known: npt.ArrayLike) -> Array:
    """Return for each distance the share of the known ones below it, equal ones half."""
    ordered, values = np.sort(np.asarray(known, np.float32)), np.asarray(distances, np.float32)
    below, up_to = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    shares: Array = (below + up_to) / (2 * len(ordered))
    return shares


def spread_over_classes(labels: npt.ArrayLike, count: int) -> Integers:
    """Choose at most ``count`` of n cells, the classes in turn, at random within each.

    The same labels give the same cells.

    Returns:
        indices, rising.
    """
    classes = np.asarray(labels)
    order = np.random.default_rng(0).permutation(len(classes))
    turn = np.empty(len(classes), np.int64)
    for one in np.unique(classes):
        mine = order[classes[order] == one]
        turn[mine] = np.arange(len(mine))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:count])


def write_novelty(folder: Path, novelty: Novelty) -> None:
    """Write ``novelty.npz`` into a run folder, whole or not at all."""
    with replacing(folder / NOVELTY_FILE) as temporary:
        # Older NumPy would store its argument allow_pickle as one more array.
        np.savez_compressed(temporary, **_arrays(novelty))  # type: ignore[arg-type]


def read_novelty(folder: Path) -> Novelty | None:
    """Read ``novelty.npz`` of a run; None where an older run has none.

    Raises:
        RunError: the file does not hold what `write_novelty` wrote.
    """
    path = folder / NOVELTY_FILE
    try:
        with np.load(io.BytesIO(path.read_bytes())) as stored:
            return Novelty(**stored)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{path}: is damaged, or of an older version; restore it, train again, or remove it to "
            "go on without novelty"
        ) from error


def _arrays(novelty: Novelty) -> dict[str, npt.NDArray[Any]]:
    return {field.name: getattr(novelty, field.name) for field in dataclasses.fields(novelty)}


def _fit_covariance(residuals: Array) -> tuple[Array, Array, float]:
    """Return the widest axes (d, r), the variances along them, and the mean variance across."""
    covariance, _ = ledoit_wolf(residuals, assume_centered=True)
    variances, axes = np.linalg.eigh(covariance)  # rising
    # Cells that are all alike have no spread to divide by.
    variances = np.maximum(variances, max(float(variances[-1]), 1.0) * 1e-9)
    others = max(len(variances) - _AXES, 0)
    return axes[:, others:], variances[others:], float(variances[: max(others, 1)].mean())


def _check(rows: Array, classes: npt.NDArray[Any]) -> None:
    if rows.ndim != 2 or len(rows) < 2 or classes.shape != rows.shape[:1]:
        raise DataError(
            "novelty: expected features (n, d) and labels (n,), n at least 2. "
            f"Received: {rows.shape} and {classes.shape}"
        )
    if not np.isfinite(rows).all():
        raise DataError("novelty: a feature is not finite; train with a lower learning rate")


def _unit(rows: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = rows / np.maximum(lengths, 1e-12)
    return unit


def _square_distances(rows: Array, others: Array) -> Array:
    """Return (n, m), never below 0."""
    squares = (rows**2).sum(axis=1)[:, np.newaxis] + (others**2).sum(axis=1)
    distances: Array = np.maximum(squares - 2 * rows @ others.T, 0)
    return distances
