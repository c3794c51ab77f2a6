"""Score a trained run: ``python -m wbc_keras.evaluate --run RUN_DIR``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.errors import ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wbc_keras.metrics import Evaluation
    from wbc_keras.reporting.verdicts import Verdicts
    from wbc_keras.selection import Selection
    from wbc_keras.statistics.agreement import ExpertAgreement

_PLOTS = {"confusion_matrix.png", "per_class.png", "roc.png", "reliability.png"}
_PLOTS |= {"risk_coverage.png"}
_FILES = frozenset({"metrics.json", "per_class.csv", "predictions.csv"} | _PLOTS)
_FILES |= {"confusion_pairs.csv", "calibration.json", "selective.json"}
_FILES |= {"screening.json", "screening.png", "patients.csv", "patients.png", "differential.png"}
_FILES |= {"experts.json", "novelty.json", "novelty.png", "second_look.csv", "second_look.png"}
_FILES |= {"mistakes.npz", "splits.csv"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser(
        "evaluate",
        "Score a trained run on a split or on other cells, or the runs of all folds together.",
    )
    parser.add_argument(
        "--run",
        required=True,
        nargs="+",
        action="extend",
        help="run folder, or one for each fold (split.fold)",
    )
    parser.add_argument("--data", help="other cells (default: the run's own)")
    parser.add_argument(
        "--split",
        choices=["test", "validation", "train", "all"],
        help="default: test of the run's own cells, all of others",
    )
    parser.add_argument("--output", help="folder (default: RUN/evaluation/<split or data name>)")
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    data, output = arguments.data, arguments.output
    if len(arguments.run) == 1:
        folder, evaluation = evaluate(
            arguments.run[0], data=data, split=arguments.split, output=output
        )
    elif output is None or arguments.split not in (None, "test"):
        raise ConfigError(
            "several runs are the folds of one data set, scored on their test cells: name the "
            "folder to write with --output, and leave --split out"
        )
    else:
        folder, evaluation = evaluate_folds(arguments.run, data=data, output=output)
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
        data: other labelled cells, scored on the labels that they share with the model
            (`labels.share_names`); those left out are counted, and classes of the model that were
            merged are named, in ``metrics.json``. If it holds the run's own cells, the run's splits
            hold.
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
    notes: dict[str, Any] = {"left_out": dict(selection.left_out)}
    if selection.shared.merged:
        notes["merged"] = selection.shared.merged
    named = "test" if split in (None, "all") else split
    return folder, _evaluate([(opened, selection)], folder, notes, split=named if output else None)


def evaluate_folds(
    folds: Sequence[str | Path], *, data: str | Path | None = None, output: str | Path
) -> tuple[Path, Evaluation]:
    """Score the runs of all folds together: each cell by the one model that never saw it.

    The out-of-fold predictions are pooled and scored as one set of cells, as in Matek et al. 2019;
    ``metrics.json`` names the runs.

    Args:
        folds: one run folder for each fold of ``split.fold``, in any order.
        data: where the runs' cells are now, if they were moved.
        output: the folder to write; an earlier evaluation there is replaced whole.

    Returns:
        the folder, and the figures as `metrics.Evaluation`.

    Raises:
        WbcError: a run is not finished, or the runs do not test each cell of one data set once.
    """
    from wbc_keras.folds import select_folds

    opened = [runs.open_run(fold) for fold in folds]
    parts = list(zip(opened, select_folds(opened, data=data), strict=True))
    notes = {"left_out": {}, "folds": [str(run.folder) for run in opened]}
    return Path(output), _evaluate(parts, Path(output), notes, split="test")


def _evaluate(
    parts: Sequence[tuple[runs.Run, Selection]],
    folder: Path,
    notes: Mapping[str, Any],
    *,
    split: str | None,
) -> Evaluation:
    """Score each run's model on its cells, all as one set, and write ``folder``.

    With a split's name the folder stands by itself: it says in ``splits.csv`` whose its cells are.
    """
    runs.require_replaceable(folder, _FILES)
    load_tensorflow()
    from wbc_keras.reporting.verdicts import ask_run, pool

    verdicts = pool([ask_run(run, selection) for run, selection in parts])
    evaluation = verdicts.score()
    with runs.replacing_folder(folder) as temporary:
        write_evaluation(temporary, verdicts, evaluation, notes)
        if split:
            from wbc_keras.splits import write_splits

            rows = verdicts.rows.assign(split="")
            write_splits(temporary / "splits.csv", rows, [split] * len(rows))
    return evaluation


def write_evaluation(
    folder: Path, verdicts: Verdicts, evaluation: Evaluation, notes: Mapping[str, Any]
) -> None:
    """Write an evaluation's files.

    Args:
        folder: an empty one.
        verdicts: what is scored.
        evaluation: its figures.
        notes: what ``metrics.json`` says beside them.
    """
    from wbc_keras import plots
    from wbc_keras.metrics import confusion_pairs, per_class_table
    from wbc_keras.prediction.predictions import write_predictions
    from wbc_keras.reporting.gallery import write_heatmaps
    from wbc_keras.reporting.novelty_report import write_novelty_report
    from wbc_keras.reporting.screening_report import write_screening
    from wbc_keras.reporting.second_look_report import write_second_look

    truth, probabilities = verdicts.labels, verdicts.probabilities
    names, table = verdicts.class_names, verdicts.table()
    write_predictions(folder / "predictions.csv", table)
    write_heatmaps(folder, verdicts.heatmaps)
    write_second_look(folder, table, root=verdicts.root)
    runs.write_text(folder / "per_class.csv", per_class_table(evaluation).to_csv(index=False))
    pairs = confusion_pairs(evaluation)
    runs.write_text(folder / "confusion_pairs.csv", pairs.to_csv(index=False))
    figures = evaluation.to_json() | dict(notes) | {"roi_found": int(verdicts.found.sum())}
    runs.write_json(folder / "metrics.json", figures)
    drawn = {
        "confusion_matrix": plots.plot_confusion_matrix(evaluation.confusion, names),
        "per_class": plots.plot_per_class(evaluation),
        "roc": plots.plot_roc(truth, probabilities, names, evaluation=evaluation),
        "reliability": _write_calibration(folder, verdicts),
        "risk_coverage": _write_selective(folder, verdicts),
    }
    for name, axes in drawn.items():
        plots.save_figure(cast("Figure", axes.figure), folder / f"{name}.png")
    write_screening(
        folder,
        truth,
        probabilities,
        names,
        thresholds={
            question: {
                name: verdicts.of_each_cell(f"{prefix}{name}_threshold")
                for name in ("sensitive", "specific")
            }
            for question, prefix in (("abnormal", ""), ("blast", "blast_"))
        },
        groups=verdicts.groups,
    )
    if verdicts.novelty is not None and verdicts.foreign is not None:
        write_novelty_report(folder, verdicts.novelty, verdicts.foreign, groups=verdicts.groups)
    if verdicts.experts is not None:
        _write_experts(folder, verdicts.experts, verdicts.rows, list(table["predicted"]))


def _write_experts(
    folder: Path, experts: ExpertAgreement, rows: pd.DataFrame, predicted: Sequence[str]
) -> None:
    """Write ``experts.json``, the model beside them."""
    from wbc_keras.statistics.agreement import compare_reannotations

    scored = compare_reannotations(rows, model=predicted)
    figures = {"scored_cells": scored and scored.to_json(), "all_cells": experts.to_json()}
    runs.write_json(folder / "experts.json", figures)


def _write_calibration(folder: Path, verdicts: Verdicts) -> Axes:
    """Write ``calibration.json``, before the temperature and after, and return its plot."""
    from wbc_keras import plots
    from wbc_keras.calibration import measure_calibration

    before, after = (
        measure_calibration(verdicts.labels, shares, groups=verdicts.groups)
        for shares in (verdicts.uncalibrated, verdicts.probabilities)
    )
    about = {"temperatures": verdicts.of_each("temperature")}
    figures = about | {"before": before.to_json(), "after": after.to_json()}
    runs.write_json(folder / "calibration.json", figures)
    return plots.plot_calibration(before.reliability, after.reliability)[0]


def _write_selective(folder: Path, verdicts: Verdicts) -> Axes:
    """Write ``selective.json``, what withholding unsure answers gives, and return its plot."""
    from wbc_keras import plots
    from wbc_keras.statistics.selective import measure_selective

    selective = measure_selective(
        verdicts.labels, verdicts.probabilities, accepted=verdicts.accepted, groups=verdicts.groups
    )
    about = {
        "wanted_accuracies": verdicts.of_each("wanted_accuracy"),
        "thresholds": verdicts.of_each("accept_threshold"),
    }
    runs.write_json(folder / "selective.json", about | selective.to_json())
    return plots.plot_risk_coverage(selective)


def _print_summary(evaluation: Evaluation) -> None:
    figures = evaluation.to_json()
    intervals = figures["confidence_interval_95"]
    for name in ("accuracy", "macro_f1", "balanced_accuracy", "macro_auroc"):
        if figures[name] is None:
            continue
        low_high = intervals.get(name)
        interval = f"  [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high else ""
        print(f"{name:18} {figures[name]:.4f}{interval}")
    if absent := evaluation.without_cells():
        over = len(evaluation.class_names) - len(absent)
        print(f"macro figures are over {over} classes; no cell has: {', '.join(absent)}")
    if evaluation.resampled_by is None:
        print("no intervals: there is but one patient, or one cell in each class, to draw from")


if __name__ == "__main__":
    raise SystemExit(main())
