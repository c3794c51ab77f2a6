"""Labels worth a second look: cells whose prediction contradicts their label most.

Confident learning (Northcutt et al. 2021): what counts is not a probability but how far it lies
over the mean that the class has among the cells labelled so, as models are surer of some classes
than of others. Cells are ranked by how far another class is ahead of the label then (the adjusted
margin of Kuan and Mueller 2022). Predictions must be of cells that the model did not train on, or
it has learned the wrong labels too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.statistics.probabilities import Array, check_probabilities


def rank_labels(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, class_names: Sequence[str]
) -> pd.DataFrame:
    """Return the cells to look at again, the most contradicted first.

    Args:
        labels: integers (n,), 0 to k - 1.
        probabilities: (n, k), out of sample.
        class_names: k names.

    Returns:
        ``cell`` (an index from 0), ``label``, ``suggested``, ``label_probability``,
        ``suggested_probability``, and ``margin``, over 0: the latter less the former, each less its
        class's mean.

    Raises:
        DataError: shapes disagree, or a value is out of range.
    """
    truth, shares = check_probabilities(labels, probabilities, class_names)
    suggested, margins = _contradict(truth, shares)
    # A last digit contradicts nothing.
    cells = np.flatnonzero(margins > 1e-9)
    cells = cells[np.argsort(-margins[cells], kind="stable")]
    names = np.array(class_names, object)
    return pd.DataFrame(
        {
            "cell": cells,
            "label": names[truth[cells]],
            "suggested": names[suggested[cells]],
            "label_probability": shares[cells, truth[cells]],
            "suggested_probability": shares[cells, suggested[cells]],
            "margin": margins[cells],
        }
    )


def _contradict(truth: npt.NDArray[np.int64], shares: Array) -> tuple[npt.NDArray[np.int64], Array]:
    """Return of each cell the class that is ahead of all but the label, and how far of that."""
    # A class that no cell is labelled as is never suggested: nothing tells how sure is sure.
    means = np.full(shares.shape[1], np.inf)
    for one in np.unique(truth):
        means[one] = shares[truth == one, one].mean()  # eq. 2 of Northcutt et al.
    over, cells = shares - means, np.arange(len(truth))
    own = over[cells, truth]
    over[cells, truth] = -np.inf
    suggested: npt.NDArray[np.int64] = over.argmax(axis=1)
    return suggested, over[cells, suggested] - own
