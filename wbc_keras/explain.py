"""Show where a model looks: ``python -m wbc_keras.explain --run RUN_DIR``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow, make_parser, run_action

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from wbc_keras.gradcam import Heatmaps
    from wbc_keras.pictures.cells import Cells
    from wbc_keras.selection import Selection
    from wbc_keras.statistics.faithfulness import Checks

_METHODS = ("gradcam", "gradcam++", "scorecam")
_FILES = frozenset({"cells.png", "cells.csv", "checks.json", "checks.png"})
# Cells that the heatmaps are checked on; Score-CAM takes a second for each map.
_CHECKED = {"gradcam": 64, "gradcam++": 64, "scorecam": 8}


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
        the folder, with ``cells.png`` and ``cells.csv`` (file, label, predicted, confidence), and
        ``checks.json`` and ``checks.png``, whether the heatmaps explain (`faithfulness`), on cells
        spread evenly over the classes.

    Raises:
        WbcError: no finished run, or cells that cannot be used.
    """
    from wbc_keras.selection import select_cells

    opened = runs.open_run(run)
    selection = select_cells(opened, data=data)
    folder = Path(output) if output else opened.folder / "explanations"
    runs.require_replaceable(folder, _FILES)
    load_tensorflow()
    from wbc_keras.gradcam import Heatmaps
    from wbc_keras.prediction.networks import load_model
    from wbc_keras.reporting.verdicts import predict_cells

    cells, own = predict_cells(opened, selection)
    probabilities = selection.merge(own)
    chosen = choose_samples(selection.labels(), probabilities, samples=samples)
    images, table = cells.images[chosen], _describe(selection, chosen, probabilities)
    classes = selection.strongest(own[chosen])
    heatmaps = Heatmaps(load_model(opened), method)
    maps = heatmaps.draw(images, classes.tolist())
    checks, groups = _check(heatmaps, selection, cells, own)
    with runs.replacing_folder(folder) as temporary:
        _write_checks(temporary, checks, groups)
        _draw(temporary / "cells.png", images, maps, table)
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


def _describe(selection: Selection, chosen: np.ndarray, probabilities: np.ndarray) -> pd.DataFrame:
    table = selection.manifest.table.iloc[chosen][["file", "label"]].reset_index(drop=True)
    chances = probabilities[chosen]
    table["predicted"] = [selection.class_names[i] for i in chances.argmax(axis=1)]
    table["confidence"] = chances.max(axis=1)
    return table


def _check(
    heatmaps: Heatmaps, selection: Selection, cells: Cells, probabilities: np.ndarray
) -> tuple[Checks, list[str]]:
    """Return the checks of the heatmaps, and the patients of the cells they were made on."""
    from wbc_keras.pictures.images import read_image
    from wbc_keras.prediction.novelty import spread_over_classes
    from wbc_keras.statistics.faithfulness import check_heatmaps, find_regions

    chosen = spread_over_classes(selection.labels(), _CHECKED[heatmaps.method])
    table, images = selection.manifest.table.iloc[chosen], cells.images[chosen]
    pictures = [read_image(selection.manifest.root / file) for file in table["file"]]
    regions = find_regions(pictures, cells.boxes[chosen], image_size=images.shape[1:3])
    classes = selection.strongest(probabilities[chosen]).tolist()
    return check_heatmaps(heatmaps, images, classes, regions), list(table["group"])


def _write_checks(folder: Path, checks: Checks, groups: list[str]) -> None:
    from wbc_keras.plots import save_figure
    from wbc_keras.reporting.faithfulness_plots import plot_checks

    runs.write_json(folder / "checks.json", checks.to_json(groups))
    save_figure(cast("Figure", plot_checks(checks)[0].figure), folder / "checks.png")


def _draw(path: Path, images: np.ndarray, heatmaps: np.ndarray, table: pd.DataFrame) -> None:
    from wbc_keras.plots import plot_heatmaps, save_figure

    save_figure(plot_heatmaps(images, heatmaps, table), path)


if __name__ == "__main__":
    raise SystemExit(main())
