"""What lies between two networks' weights: a run, and the one that was trained on from it.

    python benchmarks/between.py --run STARTED_FROM TRAINED_ON --source OWN --data ELSEWHERE

For each share of the second run's weights in their mean (`merge --weights`): accuracy and macro F1
on the first run's validation cells, accuracy on the same crops blurred and under coloured light,
and accuracy and macro F1 on another laboratory's cells. Choose the share by accuracy on the
validation cells.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
from collections.abc import Sequence

import cv2
import numpy as np
from adapting import take
from sklearn.metrics import accuracy_score, f1_score

from wbc_keras.prediction.networks import load_model
from wbc_keras.runs import open_run
from wbc_keras.selection import select_cells
from wbc_keras.statistics.probabilities import softmax

_SHARES = (0, 1 / 3, 1 / 2, 2 / 3, 4 / 5, 1)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, nargs=2, help="two runs, or models' names")
    parser.add_argument("--source", help="the first run's own cells, where they were moved")
    parser.add_argument("--data", required=True, help="another laboratory's labelled cells")
    parser.add_argument("--cells", type=int, default=1500, metavar="N", help="at most (1500)")
    arguments = parser.parse_args(argv)
    first, second = (open_run(one) for one in arguments.run)
    selections = (
        select_cells(first, data=arguments.source, split="validation"),
        select_cells(first, data=arguments.data),
    )
    (home, home_rows), (away, away_rows) = (take(first, s, arguments.cells) for s in selections)
    sets = [(home, 0), (blur(home), 0), (colour(home), 0), (away, 1)]
    rows = (home_rows, away_rows)
    truths = [np.array(s.labels())[r] for s, r in zip(selections, rows, strict=True)]
    print(f"{len(home):,} validation cells and {len(away):,} of {arguments.data}; Python ", end="")
    print(f"{platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    print(f"{'share':>6}{'accuracy':>10}{'F1':>7}{'blurred':>9}{'coloured':>9}{'away':>7}{'F1':>7}")
    # As many views as the first run takes, for both.
    model = load_model(first)
    config = dataclasses.replace(second.config, model=first.config.model)
    weights = [
        one.get_weights() for one in (model, load_model(dataclasses.replace(second, config=config)))
    ]
    for share in _SHARES:
        model.set_weights([(1 - share) * a + share * b for a, b in zip(*weights, strict=True)])
        accuracies, f1 = [], []
        for images, kind in sets:
            logits = np.asarray(model.predict(images, batch_size=64, verbose=0))
            found = selections[kind].merge(softmax(logits)).argmax(axis=1)
            accuracies.append(accuracy_score(truths[kind], found))
            labels = np.unique(truths[kind])
            f1.append(f1_score(truths[kind], found, labels=labels, average="macro"))
        print(f"{share:6.2f}{accuracies[0]:10.4f}{f1[0]:7.3f}{accuracies[1]:9.3f}", end="")
        print(f"{accuracies[2]:9.3f}{accuracies[3]:7.3f}{f1[3]:7.3f}", flush=True)


def blur(crops: np.ndarray) -> np.ndarray:
    """Return the crops out of focus, by a Gaussian of 1.5 % of their side."""
    width = 0.015 * crops.shape[1]
    return np.stack([cv2.GaussianBlur(one, (0, 0), width) for one in crops])


def colour(crops: np.ndarray) -> np.ndarray:
    """Return the crops under light of another colour and strength each."""
    gains = np.random.default_rng(0).uniform(0.65, 1.2, (len(crops), 1, 1, 3))
    return np.clip(crops * gains.astype(np.float32), 0, 255)


if __name__ == "__main__":
    main()
