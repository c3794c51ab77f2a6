"""Score a trained run: ``python -m wbc_keras.evaluate --run RUN_DIR``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from wbc_keras.agreement import ExpertAgreement
    from wbc_keras.cells import Cells
    from wbc_keras.metrics import Evaluation
    from wbc_keras.selection import Selection

_BATCH = 64
_PLOTS = {"confusion_matrix.png", "per_class.png", "roc.png", "reliability.png"}
_SCREENING = {"screening.json", "screening.png"}
_PATIENTS = {"patients.csv", "patients.png", "differential.png"}
_TABLES = {"metrics.json", "per_class.csv", "predictions.csv", "experts.json"}
_FILES = frozenset(_TABLES | _PLOTS | _SCREENING | _PATIENTS)


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
    return folder, _evaluate([(opened, selection)], folder, notes)


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
    return Path(output), _evaluate(parts, Path(output), notes)


def _operating_points(parts: Sequence[tuple[runs.Run, Selection]]) -> dict[str, float | None]:
    """Return the thresholds that were chosen on validation, None where there is none.

    The models of several folds have thresholds of their own, so none holds for all cells.
    """
    points: dict[str, float | None] = {"sensitive": None, "specific": None}
    return points


def _evaluate(
    parts: Sequence[tuple[runs.Run, Selection]], folder: Path, notes: Mapping[str, Any]
) -> Evaluation:
    """Score each run's model on its cells, all as one set, and write ``folder``."""
    runs.require_replaceable(folder, _FILES)
    load_tensorflow()
    answers = _pool([_ask(run, selection) for run, selection in parts])
    evaluation = answers.score()
    with runs.replacing_folder(folder) as temporary:
        _write(temporary, answers, evaluation, notes, _operating_points(parts))
    return evaluation


def predict_cells(run: runs.Run, selection: Selection) -> tuple[Cells, np.ndarray]:
    """Return the selected cells, cropped, and float32 probabilities ``(n, model's classes)``."""
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


@dataclass(frozen=True, eq=False)
class _Answers:
    """What models say of n cells: all that is scored and written.

    rows: text columns file, label, group, and `REANNOTATIONS` in the shared names, if the source
    has them. labels: ``(n,)``, indices into the k ``class_names``. probabilities: ``(n, k)``.
    boxes: ``(n, 4)``. found: bool ``(n,)``. experts: how far the source's experts agree, if known.
    """

    rows: pd.DataFrame
    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    boxes: np.ndarray
    found: np.ndarray
    experts: ExpertAgreement | None

    def score(self) -> Evaluation:
        """Return the figures."""
        from wbc_keras.labels import abnormal_classes
        from wbc_keras.metrics import evaluate_predictions

        return evaluate_predictions(
            self.labels,
            self.probabilities,
            self.class_names,
            abnormal=abnormal_classes(self.class_names),
            groups=self.groups(),
        )

    def groups(self) -> list[str] | None:
        """Return each cell's group, or None where there are none."""
        groups = self.rows["group"]
        return list(groups) if (groups != "").any() else None


def _ask(run: runs.Run, selection: Selection) -> _Answers:
    import numpy as np

    cells, probabilities = predict_cells(run, selection)
    return _Answers(
        _rows(selection),
        selection.class_names,
        np.asarray(selection.labels()),
        selection.merge(probabilities),
        cells.boxes,
        cells.found,
        _compare_experts(selection.source.table),
    )


def _rows(selection: Selection) -> pd.DataFrame:
    """Return the cells' file, label and group, and what further experts called them."""
    from wbc_keras.manifest.table import REANNOTATIONS

    rows = selection.manifest.table[["file", "label", "group"]]
    source = selection.source.table.set_index("file")
    shared = selection.shared.labels
    asked = [name for name in REANNOTATIONS if name in source]
    # An answer that the model has no class for stays an answer of its own.
    return rows.assign(
        **{
            name: [shared.get(answer, answer) for answer in source.loc[rows["file"], name]]
            for name in asked
        }
    )


def _compare_experts(table: pd.DataFrame, **answers: Sequence[str]) -> ExpertAgreement | None:
    """Compare the label, two re-annotations and further answers; None where none were made."""
    from wbc_keras.agreement import ANNOTATIONS, compare_annotations
    from wbc_keras.manifest.table import REANNOTATIONS

    columns = ("label", *REANNOTATIONS)
    if not set(columns) <= set(table.columns):
        return None
    named = {who: list(table[column]) for who, column in zip(ANNOTATIONS, columns, strict=True)}
    return compare_annotations({**named, **answers})


def _pool(parts: Sequence[_Answers]) -> _Answers:
    """Return all cells as one set; several parts are put in the order of the file names."""
    import numpy as np
    import pandas as pd

    if len(parts) == 1:
        return parts[0]
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    # Whatever order the runs were given in, the bootstrap draws the same cells.
    order = np.argsort(rows["file"].to_numpy(str), kind="stable")
    arrays = ("labels", "probabilities", "boxes", "found")
    pooled = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    return _Answers(
        rows.iloc[order].reset_index(drop=True),
        parts[0].class_names,
        **{name: values[order] for name, values in pooled.items()},
        experts=parts[0].experts,
    )


def _write(
    folder: Path,
    answers: _Answers,
    evaluation: Evaluation,
    notes: Mapping[str, Any],
    thresholds: Mapping[str, float | None],
) -> None:
    from wbc_keras import plots
    from wbc_keras.metrics import bin_reliability, per_class_table
    from wbc_keras.predictions import prediction_table, write_predictions

    rows, names = answers.rows, answers.class_names
    truth, probabilities = answers.labels, answers.probabilities
    table = prediction_table(
        list(rows["file"]), list(rows["label"]), probabilities, names, answers.boxes
    )
    write_predictions(folder / "predictions.csv", table)
    runs.write_text(folder / "per_class.csv", per_class_table(evaluation).to_csv(index=False))
    figures = evaluation.to_json() | dict(notes) | {"roi_found": int(answers.found.sum())}
    runs.write_json(folder / "metrics.json", figures)
    drawn = {
        "confusion_matrix": plots.plot_confusion_matrix(evaluation.confusion, names),
        "per_class": plots.plot_per_class(evaluation),
        "roc": plots.plot_roc(truth, probabilities, names, evaluation=evaluation),
        "reliability": plots.plot_reliability(bin_reliability(truth, probabilities)),
    }
    for name, axes in drawn.items():
        plots.save_figure(cast("Figure", axes.figure), folder / f"{name}.png")
    _write_screening(folder, answers, thresholds)
    _write_experts(folder, answers)


def _write_screening(
    folder: Path, answers: _Answers, thresholds: Mapping[str, float | None]
) -> None:
    """Write what the cells, and their patients where they are known, say of early detection."""
    from wbc_keras import screening_plots
    from wbc_keras.labels import abnormal_classes, blast_classes
    from wbc_keras.patients import count_patients
    from wbc_keras.plots import save_figure
    from wbc_keras.screening import screen

    names, groups = answers.class_names, answers.groups()
    cells = (answers.labels, answers.probabilities, names)
    questions = {
        "abnormal": (abnormal_classes(names), thresholds),
        "blast": (blast_classes(names), {}),
    }
    found = {
        question: screen(*cells, classes, thresholds=points, groups=groups)
        for question, (classes, points) in questions.items()
        if classes
    }
    patients = count_patients(*cells, groups) if groups else None
    summary: dict[str, Any] = {
        question: found[question].to_json() if question in found else None for question in questions
    }
    summary["patients"] = patients.to_json() if patients else None
    runs.write_json(folder / "screening.json", summary)
    drawn = {}
    if any(one.roc for one in found.values()):
        drawn["screening"] = screening_plots.plot_screening(found)[0]
    if patients:
        runs.write_text(folder / "patients.csv", patients.table.to_csv(index=False))
        drawn["differential"] = screening_plots.plot_differential(patients)
        if patients.shares:
            drawn["patients"] = screening_plots.plot_patients(patients)[0][0]
    for name, axes in drawn.items():
        save_figure(cast("Figure", axes.figure), folder / f"{name}.png")


def _write_experts(folder: Path, answers: _Answers) -> None:
    """Write the model beside the experts, where further experts looked at the cells."""
    if answers.experts is None:
        return
    predicted = [answers.class_names[c] for c in answers.probabilities.argmax(axis=1)]
    scored = _compare_experts(answers.rows, model=predicted)
    figures = {
        "scored_cells": scored.to_json() if scored else None,
        "all_cells": answers.experts.to_json(),
    }
    runs.write_json(folder / "experts.json", figures)


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
