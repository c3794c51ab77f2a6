from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from wbc_keras.statistics.ranking import Ranking


def simulate(n=300, seed=0):
    """Scores with many ties, and weights of which some are 0 and some no whole numbers."""
    rng = np.random.default_rng(seed)
    positive = rng.random(n) < 0.3
    scores = np.round(rng.normal(size=n) + positive, 1)
    return positive, scores, rng.integers(0, 4, (4, n)) * 1.1


def test_every_figure_is_scikit_learns_for_any_weights():
    positive, scores, weights = simulate()
    weighed = Ranking(positive, scores).weigh(weights)
    for i, w in enumerate(weights):
        auroc = sk.roc_auc_score(positive, scores, sample_weight=w)
        assert weighed.auroc()[i] == pytest.approx(auroc, abs=1e-12)
        auprc = sk.average_precision_score(positive, scores, sample_weight=w)
        assert weighed.auprc()[i] == pytest.approx(auprc, abs=1e-12)
        false, true, _ = sk.roc_curve(positive, scores, sample_weight=w, drop_intermediate=False)
        for specificity in (0.5, 0.9, 0.95):
            best = true[false <= 1 - specificity + 1e-9].max()
            assert weighed.sensitivity(specificity)[i] == pytest.approx(best, abs=1e-12)


def test_one_kind_alone_has_no_auroc():
    positive, scores, weights = simulate()
    for kind in (np.ones_like(positive), np.zeros_like(positive)):
        weighed = Ranking(kind, scores).weigh(weights)
        assert np.isnan(weighed.auroc()).all()
        assert np.isnan(weighed.sensitivity(0.95)).all()
    assert np.isnan(weighed.auprc()).all()
