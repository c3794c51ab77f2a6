"""Compare runs on the same test cells: ``python -m wbc_keras.compare RUN_A RUN_B``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from wbc_keras import runs
from wbc_keras.commands import make_parser, run_action
from wbc_keras.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from wbc_keras.statistics.comparison import Comparison, Difference

_FILES = frozenset({"comparison.json", "differences.csv", "per_class.csv", "comparison.png"})
_SHOWN = ("accuracy", "macro_f1", "balanced_accuracy", "macro_auroc", "abnormal_auroc", "ece")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser(
        "compare", "Compare runs on the same test cells; each was scored by evaluate before."
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="two run folders or more, or folders that evaluate --output wrote",
    )
    parser.add_argument(
        "--output", help="folder (default: comparison_<RUN>_<RUN> beside the first)"
    )
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    folder, comparisons = compare(arguments.runs, output=arguments.output)
    for one in comparisons:
        _print_comparison(one)
    for path in sorted(folder.iterdir()):
        print(path)


def compare(
    folders: Sequence[str | Path], *, output: str | Path | None = None
) -> tuple[Path, tuple[Comparison, ...]]:
    """Compare the predictions that `evaluate` wrote for the test cells of two or more runs.

    Intervals are drawn by patient if the first run's splits.csv names any.

    Args:
        folders: run folders, or what `evaluate --output` wrote; the differences are those of a
            later one minus an earlier one.
        output: the folder to write; an earlier comparison there is replaced whole.

    Returns:
        the folder, and a `comparison.Comparison` for each two runs.

    Raises:
        WbcError: fewer than two runs, no predictions, or not of the same cells and classes.
    """
    from wbc_keras.statistics.comparison import compare_models

    names = _name_runs(folders)
    folder = Path(output) if output else _default_output(names)
    runs.require_replaceable(folder, _FILES)
    scored = [_read_run(place) for place in names.values()]
    for other in scored[1:]:
        _require_same_cells(scored[0], other)
    groups = _read_groups(scored[0])
    comparisons = compare_models(
        scored[0].labels(),
        {name: run.probabilities(like=scored[0]) for name, run in zip(names, scored, strict=True)},
        scored[0].class_names,
        groups=groups,
    )
    with runs.replacing_folder(folder) as temporary:
        _write(temporary, names, scored[0], comparisons, groups)
    return folder, comparisons


def _name_runs(folders: Sequence[str | Path]) -> dict[str, Path]:
    """Return the runs by a short name: the folder's, with those above it where two are alike."""
    places = [Path(folder) for folder in folders]
    resolved = [place.resolve() for place in places]
    if len(places) < 2 or len(set(resolved)) < len(places):
        raise ConfigError(
            "compare: give two different run folders or more. "
            f"Received: {', '.join(map(str, places))}"
        )
    depth = 1
    while len({place.parts[-depth:] for place in resolved}) < len(places):
        depth += 1
    names = ["/".join(place.parts[-depth:]) for place in resolved]
    return dict(zip(names, places, strict=True))


def _default_output(names: dict[str, Path]) -> Path:
    places = [place.resolve() for place in names.values()]
    return places[0].parent / "_".join(["comparison", *(place.name for place in places)])


@dataclass(frozen=True, eq=False)
class _Scored:
    """The predictions table of a run's or its folds' test cells, by file, and its classes."""

    folder: Path
    path: Path
    table: pd.DataFrame
    class_names: tuple[str, ...]

    def labels(self) -> np.ndarray:
        """Return each cell's index into ``class_names``."""
        import numpy as np

        index = {name: c for c, name in enumerate(self.class_names)}
        return np.array([index[label] for label in self.table["label"]])

    def probabilities(self, *, like: _Scored) -> np.ndarray:
        """Return (n, k) in the order of cells and of classes of another run's table."""
        columns = list(like.class_names)
        return self.table.loc[like.table.index, columns].to_numpy(float)


def _read_run(folder: Path) -> _Scored:
    from wbc_keras.prediction.predictions import class_columns, read_predictions

    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder; give the folders that train wrote")
    path = folder / "evaluation" / "test" / "predictions.csv"
    pooled = folder / "predictions.csv"
    if pooled.is_file() and (folder / "splits.csv").is_file():
        path = pooled
    if not path.is_file():
        raise RunError(
            f"{path}: no such file; score the run first: python -m wbc_keras.evaluate "
            f"--run {folder}"
        )
    table = read_predictions(path)
    class_names = tuple(class_columns(table))
    _check(path, table, class_names)
    return _Scored(folder, path, table.set_index("file"), class_names)


def _check(path: Path, table: pd.DataFrame, class_names: Sequence[str]) -> None:
    """Raise DataError unless the table holds labelled cells, each once, with probabilities."""
    if not class_names or table.empty:
        what = "no probabilities" if not class_names else "no cells"
        raise DataError(f"{path}: holds {what}; run evaluate again")
    shares = table[list(class_names)].to_numpy(float)
    within = ((shares >= 0) & (shares <= 1 + 1e-3)).all(axis=1)  # also refuses NaN
    faults = {
        "the file stands in an earlier row": table["file"].duplicated().to_numpy(),
        "the label is none of the classes": ~table["label"].isin(class_names).to_numpy(),
        "expected probabilities of 0 to 1 that sum to one": ~(
            within & (abs(shares.sum(axis=1) - 1) <= 1e-3)
        ),
    }
    for what, faulty in faults.items():
        if faulty.any():
            row = int(faulty.argmax())
            raise DataError(
                f"{path}: row {row + 2} ({table['file'][row]}): {what} ({int(faulty.sum())} rows); "
                "run evaluate again"
            )


def _require_same_cells(first: _Scored, other: _Scored) -> None:
    if set(first.class_names) != set(other.class_names):
        apart = sorted({*first.class_names} ^ {*other.class_names})
        raise DataError(
            f"{other.path}: has other classes than {first.path} (not in both: "
            f"{', '.join(apart)}); compare runs of the same classes"
        )
    one, two = (set(run.table["label"].items()) for run in (first, other))
    if one != two:
        raise DataError(
            f"{other.path}: holds other test cells than {first.path} ({len(one ^ two)} differ in "
            f"file or label, first {min(one ^ two)[0]}); train with the same data, split.seed and "
            "split.fold, so that the test cells are the same"
        )


def _read_groups(run: _Scored) -> list[str] | None:
    """Return each cell's patient as the run's splits name it, or None if they name none."""
    from wbc_keras.splits import read_splits

    splits = read_splits(run.folder / "splits.csv").set_index("file")
    missing = run.table.index.difference(splits.index)
    if len(missing):
        raise DataError(
            f"{run.path}: {len(missing)} cells are not in the run's splits.csv, first "
            f"{missing[0]}; run evaluate again"
        )
    groups = splits.loc[run.table.index, "group"].tolist()
    return groups if any(groups) else None


def _write(
    folder: Path,
    names: dict[str, Path],
    first: _Scored,
    comparisons: Sequence[Comparison],
    groups: Sequence[str] | None,
) -> None:
    from wbc_keras.plots import save_figure
    from wbc_keras.reporting.screening_plots import plot_differences
    from wbc_keras.statistics.comparison import class_table, difference_table

    summary: dict[str, Any] = {
        "samples": len(first.table),
        "classes": list(first.class_names),
        "patients": len({name for name in groups if name}) if groups else None,
        "runs": {name: str(place) for name, place in names.items()},
        "comparisons": [one.to_json() for one in comparisons],
    }
    runs.write_json(folder / "comparison.json", summary)
    for name, table in (
        ("differences", difference_table(comparisons)),
        ("per_class", class_table(comparisons)),
    ):
        runs.write_text(folder / f"{name}.csv", table.to_csv(index=False))
    # More than one baseline would need a picture each: the tables have every pair.
    baseline = [one for one in comparisons if one.first == next(iter(names))]
    axes = plot_differences(baseline)
    save_figure(cast("Figure", axes[0].figure), folder / "comparison.png")


def _print_comparison(one: Comparison) -> None:
    print(f"{one.second} minus {one.first}")
    for name in _SHOWN:
        if one.figures[name].difference is not None:
            print(f"  {name:18} {_describe(one.figures[name])}")
    test = one.mcnemar
    print(
        f"  {'McNemar':18} right in the first only {test.only_first}, in the second only "
        f"{test.only_second}: p {test.p:.3g}, Holm-corrected {test.p_holm:.3g}"
    )
    for kind in ("better", "worse"):
        moved = [name for name, change in one.per_class.items() if change.moved == kind]
        if moved:
            print(f"  {kind + ' (F1)':18} {', '.join(moved)}")


def _describe(one: Difference) -> str:
    interval = "" if one.interval is None else f"  [{one.interval[0]:+.4f}, {one.interval[1]:+.4f}]"
    return f"{one.first:.4f} -> {one.second:.4f}  {one.difference:+.4f}{interval}"


if __name__ == "__main__":
    raise SystemExit(main())
