"""The interval of a plain share: so many of so many."""

from __future__ import annotations

from scipy import stats

from wbc_keras.statistics.bootstrap import Interval


def wilson(count: int, total: int) -> Interval:
    """Return the 95 % interval of ``count`` in ``total`` independent cases, None if there are none.

    Wilson 1927, as SciPy has it: right also for few cases, and for none or all of them.
    """
    if not total:
        return None
    bounds = stats.binomtest(count, total).proportion_ci(method="wilson")
    return float(bounds.low), float(bounds.high)
