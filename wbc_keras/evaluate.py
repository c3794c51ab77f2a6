"""Score a trained run: ``python -m wbc_keras.evaluate --run RUN_DIR``."""

from __future__ import annotations

import argparse
import logging
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
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wbc_keras.agreement import ExpertAgreement
    from wbc_keras.cells import Cells
    from wbc_keras.decisions import Decisions
    from wbc_keras.metrics import Evaluation
    from wbc_keras.prepared import Prepared
    from wbc_keras.selection import Selection

_PLOTS = {"confusion_matrix.png", "per_class.png", "roc.png", "reliability.png"}
_PLOTS |= {"risk_coverage.png"}
_FILES = frozenset({"metrics.json", "per_class.csv", "predictions.csv"} | _PLOTS)
_FILES |= {"confusion_pairs.csv", "calibration.json", "selective.json"}
_FILES |= {"screening.json", "screening.png", "patients.csv", "patients.png", "differential.png"}
_FILES |= {"experts.json", "novelty.json", "novelty.png", "second_look.csv", "second_look.png"}

logger = logging.getLogger(__name__)


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


def _evaluate(
    parts: Sequence[tuple[runs.Run, Selection]], folder: Path, notes: Mapping[str, Any]
) -> Evaluation:
    """Score each run's model on its cells, all as one set, and write ``folder``."""
    runs.require_replaceable(folder, _FILES)
    load_tensorflow()
    answers = _pool([_ask(run, selection) for run, selection in parts])
    evaluation = answers.score()
    with runs.replacing_folder(folder) as temporary:
        _write(temporary, answers, evaluation, notes)
    return evaluation


def predict_cells(run: runs.Run, selection: Selection) -> tuple[Cells, np.ndarray]:
    """Return the selected cells, cropped, and float32 probabilities ``(n, model's classes)``.

    They are of the logits divided by the run's temperature.
    """
    from wbc_keras.decisions import read_decisions
    from wbc_keras.networks import ask, load_network

    cells = _prepare(run, selection).take(selection.manifest.table["file"])
    logits = ask(load_network(run), cells).logits
    return cells, _soften(logits, read_decisions(run.folder))


def _prepare(run: runs.Run, selection: Selection) -> Prepared:
    from wbc_keras.prepared import prepare

    settings = run.config
    return prepare(selection.source, roi=settings.roi, image_size=settings.data.image_size)


def _soften(logits: np.ndarray, decisions: Decisions | None) -> np.ndarray:
    """Return probabilities in float32, as they are written: what is scored is what is read."""
    from wbc_keras.probabilities import softmax

    temperature = decisions.temperature if decisions else 1.0
    return softmax(logits, temperature=temperature).astype("float32")


@dataclass(frozen=True, eq=False)
class _Answers:
    """What models say of n cells: all that is scored and written.

    rows: text columns file, label, group, and what further experts said, if they were asked.
    root: where the files are. labels: ``(n,)``, indices into the k ``class_names``.
    probabilities: ``(n, k)``. boxes: ``(n, 4)``. found: bool ``(n,)``. uncalibrated: ``(n, k)``,
    the probabilities without the temperature. accepted: bool ``(n,)``. decisions: of each run;
    where one has no threshold, nothing is accepted or refused. run: ``(n,)``, which run's model
    answered. experts: how far the experts agree on all cells of the source, if they were asked.
    novelty: n rows of `novelty_report.describe_novelty`, and foreign: rows of `describe_foreign`;
    None for an older run.
    """

    rows: pd.DataFrame
    root: Path
    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    boxes: np.ndarray
    found: np.ndarray
    uncalibrated: np.ndarray
    accepted: np.ndarray | None
    decisions: tuple[Decisions | None, ...]
    run: np.ndarray
    experts: ExpertAgreement | None
    novelty: pd.DataFrame | None
    foreign: pd.DataFrame | None

    @property
    def groups(self) -> list[str] | None:
        """The cells' patients, or None where none is known."""
        groups = self.rows["group"]
        return list(groups) if (groups != "").any() else None

    def score(self) -> Evaluation:
        """Return the figures."""
        from wbc_keras.labels import abnormal_classes
        from wbc_keras.metrics import evaluate_predictions

        return evaluate_predictions(
            self.labels,
            self.probabilities,
            self.class_names,
            abnormal=abnormal_classes(self.class_names),
            groups=self.groups,
        )

    def of_each_cell(self, decision: str) -> np.ndarray | None:
        """Return ``(n,)`` what its run decided for each cell, or None if a run did not."""
        import numpy as np

        values = self.of_each(decision)
        return None if None in values else np.array(values)[self.run]

    def of_each(self, decision: str) -> list[float | None]:
        """Return what each run decided, None where it has no decisions."""
        return [None if one is None else getattr(one, decision) for one in self.decisions]


def _ask(run: runs.Run, selection: Selection) -> _Answers:
    import numpy as np

    from wbc_keras.decisions import read_decisions
    from wbc_keras.networks import ask, load_network
    from wbc_keras.novelty import read_novelty
    from wbc_keras.novelty_report import describe_foreign, describe_novelty

    decisions, novelty = read_decisions(run.folder), read_novelty(run.folder)
    if decisions is None:
        logger.warning("%s: has no decision.json, so probabilities stay as trained", run.folder)
    network, prepared = load_network(run), _prepare(run, selection)
    cells = prepared.take(selection.manifest.table["file"])
    answers = ask(network, cells)
    probabilities = selection.merge(_soften(answers.logits, decisions))
    return _Answers(
        _rows(selection),
        selection.manifest.root,
        selection.class_names,
        np.asarray(selection.labels()),
        probabilities,
        cells.boxes,
        cells.found,
        uncalibrated=selection.merge(_soften(answers.logits, None)),
        accepted=decisions.accept(probabilities) if decisions else None,
        decisions=(decisions,),
        run=np.zeros(len(cells), int),
        experts=_compare_experts(selection.source.table),
        novelty=describe_novelty(novelty, answers.features) if novelty else None,
        foreign=describe_foreign(run, network, novelty, prepared, selection) if novelty else None,
    )


def _rows(selection: Selection) -> pd.DataFrame:
    from wbc_keras.manifest.table import REANNOTATIONS

    rows = selection.manifest.table[["file", "label", "group"]]
    source = selection.source.table.set_index("file").loc[rows["file"]]
    shared = selection.shared.labels
    # An answer that the model has no class for stays an answer of its own.
    asked = {
        name: [shared.get(answer, answer) for answer in source[name]]
        for name in REANNOTATIONS
        if name in source
    }
    return rows.assign(**asked)


def _compare_experts(table: pd.DataFrame, **answers: Sequence[str]) -> ExpertAgreement | None:
    """Compare labels, re-annotations and a model's answers; None if no one was asked twice."""
    from wbc_keras.agreement import ANNOTATIONS, compare_annotations
    from wbc_keras.manifest.table import REANNOTATIONS

    columns = ["label", *REANNOTATIONS]
    if not set(columns) <= set(table):
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
    arrays = ["labels", "probabilities", "boxes", "found", "uncalibrated"]
    pooled = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    accepted = [part.accepted for part in parts if part.accepted is not None]
    novelty, foreign = (
        _join([getattr(part, name) for part in parts]) for name in ("novelty", "foreign")
    )
    return _Answers(
        rows.iloc[order].reset_index(drop=True),
        parts[0].root,
        parts[0].class_names,
        **{name: values[order] for name, values in pooled.items()},
        accepted=np.concatenate(accepted)[order] if len(accepted) == len(parts) else None,
        decisions=tuple(one for part in parts for one in part.decisions),
        run=np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])[order],
        experts=parts[0].experts,
        novelty=None if novelty is None else novelty.iloc[order].reset_index(drop=True),
        foreign=foreign,
    )


def _join(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame | None:
    """Return all rows, or None if a table is missing."""
    import pandas as pd

    had = [table for table in tables if table is not None]
    return pd.concat(had, ignore_index=True) if len(had) == len(tables) else None


def _write(
    folder: Path, answers: _Answers, evaluation: Evaluation, notes: Mapping[str, Any]
) -> None:
    from wbc_keras import plots
    from wbc_keras.metrics import confusion_pairs, per_class_table
    from wbc_keras.novelty_report import write_novelty_report
    from wbc_keras.predictions import prediction_table, write_predictions
    from wbc_keras.screening_report import write_screening
    from wbc_keras.second_look_report import write_second_look

    rows, names = answers.rows, answers.class_names
    truth, probabilities = answers.labels, answers.probabilities
    table = prediction_table(
        list(rows["file"]),
        list(rows["label"]),
        probabilities,
        names,
        answers.boxes,
        accepted=answers.accepted,
        novelty=None if answers.novelty is None else answers.novelty["mahalanobis"].to_numpy(),
    )
    write_predictions(folder / "predictions.csv", table)
    write_second_look(folder, table, root=answers.root)
    runs.write_text(folder / "per_class.csv", per_class_table(evaluation).to_csv(index=False))
    pairs = confusion_pairs(evaluation)
    runs.write_text(folder / "confusion_pairs.csv", pairs.to_csv(index=False))
    figures = evaluation.to_json() | dict(notes) | {"roi_found": int(answers.found.sum())}
    runs.write_json(folder / "metrics.json", figures)
    drawn = {
        "confusion_matrix": plots.plot_confusion_matrix(evaluation.confusion, names),
        "per_class": plots.plot_per_class(evaluation),
        "roc": plots.plot_roc(truth, probabilities, names, evaluation=evaluation),
        "reliability": _write_calibration(folder, answers),
        "risk_coverage": _write_selective(folder, answers),
    }
    for name, axes in drawn.items():
        plots.save_figure(cast("Figure", axes.figure), folder / f"{name}.png")
    write_screening(
        folder,
        truth,
        probabilities,
        names,
        thresholds={
            name: answers.of_each_cell(f"{name}_threshold") for name in ("sensitive", "specific")
        },
        groups=answers.groups,
    )
    if answers.novelty is not None and answers.foreign is not None:
        write_novelty_report(folder, answers.novelty, answers.foreign, groups=answers.groups)
    if answers.experts is not None:
        scored = _compare_experts(rows, model=list(table["predicted"]))
        experts = {
            "scored_cells": scored and scored.to_json(),
            "all_cells": answers.experts.to_json(),
        }
        runs.write_json(folder / "experts.json", experts)


def _write_calibration(folder: Path, answers: _Answers) -> Axes:
    """Write ``calibration.json``, before the temperature and after, and return its plot."""
    from wbc_keras import plots
    from wbc_keras.calibration import measure_calibration

    before, after = (
        measure_calibration(answers.labels, shares, groups=answers.groups)
        for shares in (answers.uncalibrated, answers.probabilities)
    )
    about = {"temperatures": answers.of_each("temperature")}
    figures = about | {"before": before.to_json(), "after": after.to_json()}
    runs.write_json(folder / "calibration.json", figures)
    return plots.plot_calibration(before.reliability, after.reliability)[0]


def _write_selective(folder: Path, answers: _Answers) -> Axes:
    """Write ``selective.json``, what withholding unsure answers gives, and return its plot."""
    from wbc_keras import plots
    from wbc_keras.selective import measure_selective

    selective = measure_selective(
        answers.labels, answers.probabilities, accepted=answers.accepted, groups=answers.groups
    )
    about = {
        "wanted_accuracies": answers.of_each("wanted_accuracy"),
        "thresholds": answers.of_each("accept_threshold"),
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
