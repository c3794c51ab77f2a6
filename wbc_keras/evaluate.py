"""Score a trained run: ``python -m wbc_keras.evaluate --run RUN_DIR``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow, make_parser, run_action

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.figure import Figure

    from wbc_keras.cells import Cells
    from wbc_keras.metrics import Evaluation
    from wbc_keras.selection import Selection

_BATCH = 64
_PLOTS = {"confusion_matrix.png", "per_class.png", "roc.png", "reliability.png"}
_FILES = frozenset({"metrics.json", "per_class.csv", "predictions.csv"} | _PLOTS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("evaluate", "Score a trained run on a split or on other cells.")
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--data", help="other cells (default: the run's own)")
    parser.add_argument(
        "--split",
        choices=["test", "validation", "train", "all"],
        help="default: test of the run's own cells, all of others",
    )
    parser.add_argument("--output", help="folder (default: RUN/evaluation/<split or data name>)")
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    folder, evaluation = evaluate(
        arguments.run, data=arguments.data, split=arguments.split, output=arguments.output
    )
    _print_summary(evaluation)
    for path in sorted(folder.iterdir()):
        print(path)


def evaluate(
    run: str | Path,
    *,
    data: str | Path | None = None,
    split: str | None = None,
    output: str | Path | None = None,
) -> tuple[Path, Evaluation]:
    """Score a run's model and write figures, tables and plots into a folder.

    Args:
        run: the run folder.
        data: other labelled cells; those whose label the model does not know are left out, and
            counted in ``metrics.json``. If it holds the run's own cells, the run's splits hold.
        split: train, validation, test or all.
        output: the folder to write; an earlier evaluation there is replaced whole.

    Returns:
        the folder, and the figures as `metrics.Evaluation`.

    Raises:
        WbcError: no finished run, or cells that it cannot be scored on.
    """
    from wbc_keras.selection import select_cells

    opened = runs.open_run(run)
    selection = select_cells(opened, data=data, split=split)
    folder = Path(output) if output else opened.folder / "evaluation" / selection.name
    runs.require_replaceable(folder, _FILES)
    load_tensorflow()
    cells, probabilities = predict_cells(opened, selection)
    evaluation = _score(opened, selection, probabilities)
    with runs.replacing_folder(folder) as temporary:
        _write(temporary, opened, selection, cells, probabilities, evaluation)
    return folder, evaluation


def predict_cells(run: runs.Run, selection: Selection) -> tuple[Cells, np.ndarray]:
    """Return the selected cells, cropped, and float32 probabilities ``(n, classes)``."""
    import keras

    from wbc_keras.pipeline import make_batches
    from wbc_keras.predictor import load_model
    from wbc_keras.prepared import prepare

    settings = run.config
    prepared = prepare(selection.source, roi=settings.roi, image_size=settings.data.image_size)
    cells = prepared.take(selection.manifest.table["file"])
    model = load_model(run)
    logits = model.predict(make_batches(cells, batch_size=_BATCH), verbose=0)
    return cells, keras.ops.convert_to_numpy(keras.ops.softmax(logits))


def _score(run: runs.Run, selection: Selection, probabilities: np.ndarray) -> Evaluation:
    from wbc_keras.labels import abnormal_classes
    from wbc_keras.metrics import evaluate_predictions

    groups = selection.manifest.table["group"]
    return evaluate_predictions(
        selection.labels(run.class_names),
        probabilities,
        run.class_names,
        abnormal=abnormal_classes(run.class_names),
        groups=list(groups) if (groups != "").any() else None,
    )


def _write(
    folder: Path,
    run: runs.Run,
    selection: Selection,
    cells: Cells,
    probabilities: np.ndarray,
    evaluation: Evaluation,
) -> None:
    from wbc_keras import plots
    from wbc_keras.metrics import bin_reliability, per_class_table
    from wbc_keras.predictions import prediction_table, write_predictions

    rows = selection.manifest.table
    table = prediction_table(
        list(rows["file"]), list(rows["label"]), probabilities, run.class_names, cells.boxes
    )
    write_predictions(folder / "predictions.csv", table)
    runs.write_text(folder / "per_class.csv", per_class_table(evaluation).to_csv(index=False))
    figures = evaluation.to_json() | {
        "left_out": dict(selection.left_out),
        "roi_found": int(cells.found.sum()),
    }
    runs.write_json(folder / "metrics.json", figures)
    truth = selection.labels(run.class_names)
    drawn = {
        "confusion_matrix": plots.plot_confusion_matrix(evaluation.confusion, run.class_names),
        "per_class": plots.plot_per_class(evaluation),
        "roc": plots.plot_roc(truth, probabilities, run.class_names, evaluation=evaluation),
        "reliability": plots.plot_reliability(bin_reliability(truth, probabilities)),
    }
    for name, axes in drawn.items():
        plots.save_figure(cast("Figure", axes.figure), folder / f"{name}.png")


def _print_summary(evaluation: Evaluation) -> None:
    figures = evaluation.to_json()
    intervals = figures["confidence_interval_95"]
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "macro_auroc"):
        if figures[name] is None:
            continue
        low_high = intervals.get(name)
        interval = f"  [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else ""
        print(f"{name:18} {figures[name]:.4f}{interval}")


if __name__ == "__main__":
    raise SystemExit(main())
