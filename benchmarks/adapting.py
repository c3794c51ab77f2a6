"""Changing cells or statistics when a trained model is used: views, colours, normalisation.

    python benchmarks/adapting.py --run RUN                      # on its own validation cells
    python benchmarks/adapting.py --run RUN --data ELSEWHERE     # on another laboratory's cells

Each way is held against the model as it is, on the same cells, with paired intervals (by patient
where patients are known). Choose on validation or on cells that are not reported otherwise.

- views: logits averaged over 2, 4 or 8 symmetries of the square (`model.symmetries`; whatever the
  run's own setting, the model as it is takes one).
- white balance: each crop's 95th percentiles made those of the run's training cells.
- colours of each crop, colours of the set: mean and deviation of each channel made those of the
  training cells (Reinhard et al. 2001, in RGB), by crop or for all crops alike.
- batch statistics: batch normalisation's moving statistics taken anew from these cells
  (Li et al. 2016, "Revisiting batch normalization for practical domain adaptation").
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
from collections.abc import Callable, Sequence

import keras
import numpy as np

from wbc_keras.pictures.cells import Cells
from wbc_keras.pictures.prepared import prepare
from wbc_keras.prediction.networks import load_model
from wbc_keras.runs import Run, open_run
from wbc_keras.selection import Selection, select_cells
from wbc_keras.statistics.comparison import Comparison, compare_models
from wbc_keras.statistics.probabilities import softmax

_BATCH = 128
_REFERENCE = 1000  # training cells that colours are made like
_AS_IT_IS = "as it is"
_FIGURES = ("accuracy", "macro_f1")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="a trained run, or a model's name")
    parser.add_argument("--source", help="the run's own cells, where they were moved")
    parser.add_argument("--data", help="other labelled cells (default: the run's validation cells)")
    parser.add_argument("--cells", type=int, default=3000, metavar="N", help="at most (3000)")
    arguments = parser.parse_args(argv)
    run, own = with_one_view(open_run(arguments.run)), arguments.source
    selection = (
        select_cells(run, data=arguments.data)
        if arguments.data
        else select_cells(run, data=own, split="validation")
    )
    images, rows = take(run, selection, arguments.cells)
    reference, _ = take(run, select_cells(run, data=own, split="train"), _REFERENCE)
    print(f"{len(rows):,} cells of {selection.manifest.name}, model {arguments.run}; ", end="")
    print(f"Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores")
    answers = {
        name: selection.merge(softmax(logits))
        for name, logits in try_ways(load_model(run), images, reference).items()
    }
    report(selection, rows, answers)


def with_one_view(run: Run) -> Run:
    model = dataclasses.replace(run.config.model, symmetries=1)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, model=model))


def take(run: Run, selection: Selection, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 crops ``(n, height, width, 3)`` of at most so many cells, and their rows."""
    rows = np.arange(len(selection.manifest.table))
    if len(rows) > count:
        # Drawn, not spread over the classes: the ways that take statistics must see the real mix.
        rows = np.sort(np.random.default_rng(0).choice(rows, count, replace=False))
    store = prepare(selection.source, roi=run.config.roi, image_size=run.config.data.image_size)
    cells: Cells = store.take(selection.manifest.table["file"].iloc[rows])
    return cells.images[np.arange(len(rows))].astype(np.float32), rows


def try_ways(
    model: keras.Model, images: np.ndarray, reference: np.ndarray
) -> dict[str, np.ndarray]:
    """Return each way's logits ``(n, classes)``; the model's statistics are adapted afterwards."""

    def ask(crops: np.ndarray) -> np.ndarray:
        return np.asarray(model.predict(crops, batch_size=_BATCH, verbose=0))

    views = [ask(view) for view in symmetries(images)]
    answers = {_AS_IT_IS: views[0]}
    answers |= {f"{count} views": np.mean(views[:count], axis=0) for count in (2, 4, 8)}
    ways: dict[str, Callable[[], np.ndarray]] = {
        "white balance": lambda: ask(balance_white(images, reference)),
        "colours of each crop": lambda: ask(match_colours(images, reference, axis=(1, 2))),
        "colours of the set": lambda: ask(match_colours(images, reference, axis=(0, 1, 2))),
        "batch statistics": lambda: adapt(model, images) or ask(images),
    }
    return answers | {name: way() for name, way in ways.items()}


def symmetries(images: np.ndarray) -> list[np.ndarray]:
    """Return eight views, in the order in which `symmetries.MakeViews` takes them."""
    upright = [images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]]
    return upright + [view.transpose(0, 2, 1, 3) for view in upright]


def balance_white(images: np.ndarray, reference: np.ndarray) -> np.ndarray:
    white, aim = (np.percentile(one, 95, axis=(1, 2)) for one in (images, reference))
    return np.clip(images * (aim.mean(axis=0) / white)[:, np.newaxis, np.newaxis], 0, 255)


def match_colours(
    images: np.ndarray, reference: np.ndarray, *, axis: tuple[int, ...]
) -> np.ndarray:
    aim, spread = reference.mean(axis=(1, 2)).mean(axis=0), reference.std(axis=(1, 2)).mean(axis=0)
    mean, deviation = (measure(images, axis=axis, keepdims=True) for measure in (np.mean, np.std))
    return np.clip((images - mean) / deviation * spread + aim, 0, 255)


def adapt(model: keras.Model, images: np.ndarray) -> None:
    """Take batch normalisation's statistics from the crops; the weights stay."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable, layer.momentum = True, 0.9
        elif isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    order = np.random.default_rng(0).permutation(len(images))
    for start in range(0, len(images) - _BATCH + 1, _BATCH):
        model(images[order[start : start + _BATCH]], training=True)


def report(selection: Selection, rows: np.ndarray, answers: dict[str, np.ndarray]) -> None:
    """Print accuracy and macro F1 of each way, and the differences to the model as it is."""
    groups = list(selection.manifest.table["group"].iloc[rows])
    comparisons = compare_models(
        np.array(selection.labels())[rows],
        answers,
        selection.class_names,
        groups=groups if any(groups) else None,
    )
    print(f"{'':20} {'accuracy, difference':>36} {'macro F1, difference':>36}")
    against = [one for one in comparisons if one.first == _AS_IT_IS]
    print(
        f"{_AS_IT_IS:20}", *(f"{against[0].figures[name].first:8.4f}{'':28}" for name in _FIGURES)
    )
    for one in against:
        print(f"{one.second:20}", *(say(one, name) for name in _FIGURES))


def say(one: Comparison, name: str) -> str:
    figure = one.figures[name]
    low, high = figure.interval or (np.nan, np.nan)
    return f"{figure.second:8.4f} {figure.difference:+8.4f} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    main()
