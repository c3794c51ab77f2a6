"""Whole groups into splits: a seeded local search for the shares nearest to those asked."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# Starts, swaps tried in one step, what a split's size weighs beside the mean over its classes, what
# an absent class weighs (more than any deviation), the smallest gain.
_STARTS = 12
_SWAPS = 4000
_SIZE_WEIGHT = 2.0
_ABSENCE = 1000.0
_GAIN = 1e-6

Integers = npt.NDArray[np.intp]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def search_groups(
    counts: Integers, shares: Floats, *, required: Bools, rng: np.random.Generator
) -> Integers:
    """Return the split of each group, intp (groups,): the best of several descents.

    Args:
        counts: cells of each class in each group, (groups, classes).
        shares: of the cells, (splits,).
        required: whether a class must be present, (splits, classes).
        rng: of the starts and the swaps tried.
    """
    aim = _Aim(shares, counts.sum(axis=0), required)
    # Many groups need fewer starts: chance evens them out.
    starts = int(np.clip(2000 // len(counts), 2, _STARTS))
    ends = [_descend(counts, aim, rng=rng) for _ in range(starts)]
    return min(ends, key=lambda end: end[0])[1]


@dataclass(frozen=True, eq=False)
class _Aim:
    """What the search wants of each split; lower penalties are better."""

    shares: Floats  # (splits,)
    total: Integers  # (classes,)
    required: Bools  # (splits, classes): the class must not be absent

    def penalties(self, sizes: Integers, split: Integers) -> Floats:
        """Return the penalty of splits that would hold ``sizes`` (..., classes); ``split`` (...).

        Squared deviations over the share, as in a chi-squared statistic: a small split is held to
        its share as strictly as a large one. The classes' mean makes a rare class count in full.
        """
        share = self.shares[split]
        by_class = sizes / np.maximum(self.total, 1) - share[..., None]
        by_size = sizes.sum(axis=-1) / self.total.sum() - share
        absent = ((sizes == 0) & self.required[split]).sum(axis=-1) + (sizes.sum(axis=-1) == 0)
        deviation = (by_class**2).mean(axis=-1) + _SIZE_WEIGHT * by_size**2
        return np.asarray(deviation / share + _ABSENCE * absent)


def _descend(counts: Integers, aim: _Aim, *, rng: np.random.Generator) -> tuple[float, Integers]:
    """Move or swap groups while that helps; return the penalty and the split of each group."""
    bins = rng.choice(len(aim.shares), size=len(counts), p=aim.shares / aim.shares.sum())
    every = np.arange(len(aim.shares))
    while True:
        sizes = np.stack([counts[bins == split].sum(axis=0) for split in every])
        now = aim.penalties(sizes, every)
        gain, changed = _best_move(counts, bins, aim=aim, sizes=sizes, now=now)
        if gain < _GAIN:
            gain, changed = _best_swap(counts, bins, aim=aim, sizes=sizes, now=now, rng=rng)
        if gain < _GAIN:
            return float(now.sum()), bins
        bins = changed


def _best_move(
    counts: Integers, bins: Integers, *, aim: _Aim, sizes: Integers, now: Floats
) -> tuple[float, Integers]:
    """Return the gain of moving the best group to the best split, and the bins after it."""
    every = np.arange(len(sizes))
    added = aim.penalties(sizes + counts[:, None], np.tile(every, (len(counts), 1))) - now
    removed = aim.penalties(sizes[bins] - counts, bins) - now[bins]
    change = added + removed[:, None]
    change[np.arange(len(bins)), bins] = 0
    group, split = np.unravel_index(change.argmin(), change.shape)
    moved = bins.copy()
    moved[group] = split
    return float(-change[group, split]), moved


def _best_swap(
    counts: Integers,
    bins: Integers,
    *,
    aim: _Aim,
    sizes: Integers,
    now: Floats,
    rng: np.random.Generator,
) -> tuple[float, Integers]:
    """Return the gain of the best exchange of two groups, and the bins after it."""
    one, other = _pairs(len(bins), rng)
    apart = bins[one] != bins[other]
    one, other = one[apart], other[apart]
    if not len(one):
        return 0.0, bins
    difference = counts[other] - counts[one]
    a, b = bins[one], bins[other]
    change = aim.penalties(sizes[a] + difference, a) + aim.penalties(sizes[b] - difference, b)
    change -= now[a] + now[b]
    best = change.argmin()
    swapped = bins.copy()
    swapped[[one[best], other[best]]] = b[best], a[best]
    return float(-change[best]), swapped


def _pairs(size: int, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """Return all pairs of ``size`` things, or a random choice where there are too many."""
    if size * (size - 1) // 2 <= _SWAPS:
        return np.triu_indices(size, k=1)
    return rng.integers(size, size=_SWAPS), rng.integers(size, size=_SWAPS)
