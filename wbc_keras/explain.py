"""Show where a model looks: ``python -m wbc_keras.explain --run RUN_DIR``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow, make_parser, run_action

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from wbc_keras.selection import Selection

_METHODS = ("gradcam", "gradcam++", "scorecam")
_FILES = frozenset({"cells.png", "cells.csv"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("explain", "Draw heatmaps of what speaks for the predicted class.")
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--data", help="other cells (default: the run's own test cells)")
    parser.add_argument(
        "--samples", type=_positive, default=32, metavar="N", help="how many cells (default: 32)"
    )
    parser.add_argument(
        "--method", choices=_METHODS, default="gradcam", help="kind of heatmap (default: gradcam)"
    )
    parser.add_argument("--output", help="folder (default: RUN/explanations)")
    return run_action(_action, parser.parse_args(argv))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1. Received: {text}")
    return int(text)


def _action(arguments: argparse.Namespace) -> None:
    folder = explain(
        arguments.run,
        data=arguments.data,
        samples=arguments.samples,
        method=arguments.method,
        output=arguments.output,
    )
    for path in sorted(folder.iterdir()):
        print(path)


def explain(
    run: str | Path,
    *,
    data: str | Path | None = None,
    samples: int = 32,
    method: str = "gradcam",
    output: str | Path | None = None,
) -> Path:
    """Write a sheet of cells by class, right and wrong, each beside its heatmap.

    Args:
        run: the run folder.
        data: other labelled cells; the run's own test cells if None.
        samples: how many cells, spread evenly over the classes; half of a class's share goes to
            wrong answers where there are any.
        method: gradcam, gradcam++ or scorecam.
        output: the folder to write; earlier explanations there are replaced whole.

    Returns:
        the folder, with ``cells.png`` and ``cells.csv`` (file, label, predicted, confidence).

    Raises:
        WbcError: no finished run, or cells that cannot be used.
    """
    from wbc_keras.selection import select_cells

    opened = runs.open_run(run)
    selection = select_cells(opened, data=data)
    folder = Path(output) if output else opened.folder / "explanations"
    runs.require_replaceable(folder, _FILES)
    load_tensorflow()
    from wbc_keras.evaluate import predict_cells
    from wbc_keras.gradcam import make_heatmaps
    from wbc_keras.predictor import load_model

    cells, own = predict_cells(opened, selection)
    probabilities = selection.merge(own)
    chosen = choose_samples(selection.labels(), probabilities, samples=samples)
    images, table = cells.images[chosen], _describe(selection, chosen, probabilities)
    classes = strongest_classes(selection, own[chosen])
    heatmaps = make_heatmaps(load_model(opened), images, classes.tolist(), method=method)
    with runs.replacing_folder(folder) as temporary:
        _draw(temporary / "cells.png", images, heatmaps, table)
        runs.write_text(temporary / "cells.csv", table.to_csv(index=False))
    return folder


def choose_samples(labels: Sequence[int], probabilities: np.ndarray, *, samples: int) -> np.ndarray:
    """Choose cells to look at: the classes in turn, in each a wrong answer and a right one in turn.

    Of the right ones the surest come first, of the wrong ones the surest too: they are the worst.

    Args:
        labels: ``n`` true class indices.
        probabilities: ``(n, classes)``.
        samples: how many to choose at most.

    Returns:
        int indices, ordered by class, right answers before wrong ones.
    """
    import numpy as np

    truth, predicted = np.asarray(labels), probabilities.argmax(axis=1)
    by_confidence = np.argsort(-probabilities.max(axis=1), kind="stable")
    ranks = np.empty(len(truth), int)
    for right in (True, False):
        for label in np.unique(truth):
            mine = by_confidence[
                (truth[by_confidence] == label) & ((predicted == truth)[by_confidence] == right)
            ]
            ranks[mine] = np.arange(len(mine)) * 2 + (not right)
    first = np.argsort(ranks, kind="stable")[:samples]
    return first[np.lexsort((ranks[first], (predicted != truth)[first], truth[first]))]


def strongest_classes(selection: Selection, probabilities: np.ndarray) -> np.ndarray:
    """Return the model's most probable class within the predicted, perhaps merged, one: ``(n,)``.

    Args:
        selection: how the model's classes are merged.
        probabilities: the model's own, ``(n, classes)``.
    """
    predicted = selection.merge(probabilities).argmax(axis=1)
    is_within = selection.columns() == predicted[:, None]
    return (probabilities * is_within).argmax(axis=1)


def _describe(selection: Selection, chosen: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    table = selection.manifest.table.iloc[chosen][["file", "label"]].reset_index(drop=True)
    chances = probabilities[chosen]
    table["predicted"] = [selection.class_names[i] for i in chances.argmax(axis=1)]
    table["confidence"] = chances.max(axis=1)
    return table


def _draw(path: Path, images: np.ndarray, heatmaps: np.ndarray, table: pd.DataFrame) -> None:
    from wbc_keras.plots import plot_heatmaps, save_figure

    save_figure(plot_heatmaps(images, heatmaps, table), path)


if __name__ == "__main__":
    raise SystemExit(main())
