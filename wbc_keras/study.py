"""Compare settings, each trained on every fold: ``python -m wbc_keras.study --config FILE``."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from wbc_keras import runs
from wbc_keras.commands import add_settings, make_parser, run_action
from wbc_keras.errors import ConfigError, RunError

if TYPE_CHECKING:
    from wbc_keras.studies.plan import Cell, Study
    from wbc_keras.studies.report import StudyReport
    from wbc_keras.studies.results import Result


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake or a run that failed."""
    parser = make_parser(
        "study", "Train and score each setting of a study on every fold, and say what helped."
    )
    add_settings(parser)
    parser.add_argument("--output", help="the study's folder (default: artifacts/<its name>)")
    parser.add_argument("--resume", action="store_true", help="go on where it was stopped")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, tell the runs and the time"
    )
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    from wbc_keras.studies.plan import load_study

    study = load_study(arguments.config, overrides=arguments.set, data=arguments.data)
    folder = Path(arguments.output) if arguments.output else Path("artifacts") / study.name
    if arguments.dry_run:
        plan_study(study, folder)
        print("dry run: everything is in place, nothing was trained, no folder was written")
        return
    report = run_study(study, output=folder, resume=arguments.resume)
    _print_outcome(folder, report)


def run_study(study: Study, *, output: str | Path, resume: bool = False) -> StudyReport:
    """Train and score all runs of a study, writing what is known after each.

    Each run starts a Python of its own, so a script calls this under
    ``if __name__ == "__main__":``.

    Args:
        study: of `studies.plan.load_study`.
        output: the study's folder; must be empty or missing unless ``resume``.
        resume: keep what is finished, go on with the run that was in flight from its last epoch,
            and try again what failed.

    Returns:
        what was found, as `read_study` reads it again.

    Raises:
        WbcError: a mistake in settings, data or folder, before anything is trained; or, when all
            others are finished, that runs failed.
    """
    folder = Path(output)
    runs.require_writable(folder)
    if not resume:
        runs.require_empty(folder)
    _require_study(folder)
    plan_study(study, folder)
    with _only_study_in(folder):
        if not study.keep_models:
            _remove_scored_models(study, folder)
        # Read again: until the lock was had, another study may have been at work.
        todo = _read_progress(study, folder)[1]
        for number, cell in enumerate(todo, start=1):
            print(f"[{number}/{len(todo)}] {cell.name}", flush=True)
            error = _run(cell, folder, keep_model=study.keep_models)
            print(f"  {error or 'finished'}{_time_left(study, folder, todo[number:])}", flush=True)
            if number < len(todo):
                _write_report(study, folder)
        report = _write_report(study, folder)
    _require_no_failure(report, folder)
    return report


def read_study(study: Study, folder: str | Path) -> StudyReport:
    """Read what a study has found so far, of its folder or of its ``results`` alone.

    Args:
        study: of `studies.plan.load_study`; it may have further settings by now.
        folder: the study's.

    Raises:
        RunError: a file is damaged, or of a run with other settings than the study has now.
    """
    from wbc_keras.studies.figures import measure_study
    from wbc_keras.studies.report import StudyReport
    from wbc_keras.studies.results import read_results

    results = tuple(read_results(Path(folder), study.cells()).values())
    return StudyReport(study, measure_study(study, results), results)


def plan_study(study: Study, folder: Path) -> None:
    """Check every run that is not finished, and print what is to be done.

    Args:
        study: what is planned.
        folder: the study's, which may hold finished runs.

    Raises:
        WbcError: all that is wrong, in one line.
    """
    from wbc_keras.studies.work import check_cells, in_own_process

    finished, todo = _read_progress(study, folder)
    if todo:
        faults, notes = in_own_process(check_cells, todo, folder)
        if faults:
            raise ConfigError(f"study {study.name}: {'; '.join(faults)}")
        for note in notes:
            print(f"note: {note}")
    _print_plan(study, todo, finished)


def _read_progress(study: Study, folder: Path) -> tuple[list[Result], list[Cell]]:
    """Return the results of the finished runs, and the runs that are to be made."""
    from wbc_keras.studies.results import read_results

    cells = list(study.cells())
    results = read_results(folder, cells)
    finished = [one for one in results.values() if one.error is None]
    done = {one.cell.name for one in finished}
    return finished, [cell for cell in cells if cell.name not in done]


def _require_study(folder: Path) -> None:
    """Raise RunError if the folder holds something, but no study."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if names - {".lock"} and not names & {"results", "runs"}:
        raise RunError(f"{folder}: holds no study to go on with; check --output")


def _remove_scored_models(study: Study, folder: Path) -> None:
    """Remove the models that a kill left between a run's result and their removal."""
    from wbc_keras.studies.work import RUNS, remove_heavy

    for one in _read_progress(study, folder)[0]:
        remove_heavy(folder / RUNS / one.cell.name)


def _print_plan(study: Study, todo: Sequence[Cell], finished: Sequence[Result]) -> None:
    print(f"settings  {', '.join(one.name for one in study.settings)}")
    print(f"repeats   {', '.join(one.name for one in study.repeats)}")
    print(f"runs      {len(finished)} finished, {len(todo)} to go", flush=True)
    if todo:
        seconds = _expect(todo, finished)
        time = "known after the first run" if seconds is None else f"about {_hours(seconds)}"
        print(f"time      {time}", flush=True)


def _expect(todo: Sequence[Cell], finished: Sequence[Result]) -> float | None:
    """Return the seconds that runs will take, by the finished ones, of their setting if any."""
    seconds: dict[str, list[float]] = {}
    for one in finished:
        if one.facts is not None:
            spent = one.facts.training_seconds + (one.facts.scoring_seconds or 0)
            seconds.setdefault(one.cell.setting, []).append(spent)
    every = [value for values in seconds.values() for value in values]
    if not every:
        return None
    means = (seconds.get(cell.setting, every) for cell in todo)
    return sum(sum(values) / len(values) for values in means)


def _time_left(study: Study, folder: Path, todo: Sequence[Cell]) -> str:
    seconds = _expect(todo, _read_progress(study, folder)[0])
    return f"; {len(todo)} to go, about {_hours(seconds)}" if seconds else ""


def _hours(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{max(minutes, 1)} min"


def _run(cell: Cell, folder: Path, *, keep_model: bool) -> str | None:
    """Make one run; return why it failed, if it did, which is kept with the results."""
    from wbc_keras.studies.results import write_failure
    from wbc_keras.studies.work import in_own_process, train_and_score

    log = folder / "logs" / f"{cell.name.replace('/', '-')}.txt"
    try:
        in_own_process(train_and_score, cell, folder, keep_model, log=log)
    except RunError as error:
        write_failure(folder, cell, str(error))
        return f"failed: {error} (see {log})"
    return None


def _write_report(study: Study, folder: Path) -> StudyReport:
    """Write study.csv, study.md and study.png from what is there."""
    from wbc_keras.plots import save_figure
    from wbc_keras.studies.plots import plot_study

    report = read_study(study, folder)
    table = report.table().to_csv(index=False, float_format="%.6g")
    runs.write_text(folder / "study.csv", table)
    runs.write_text(folder / "study.md", report.text())
    if len(report.figures.runs):
        save_figure(plot_study(report.figures)[0][0].figure, folder / "study.png")
    return report


@contextlib.contextmanager
def _only_study_in(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system frees it when its holder dies."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise RunError(
            f"{folder}: another study is at work here; wait for it, or stop it"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _require_no_failure(report: StudyReport, folder: Path) -> None:
    failed = [one for one in report.results if one.error]
    if failed:
        raise RunError(
            f"{folder}: {len(failed)} runs failed, first {failed[0].cell.name} "
            f"({failed[0].error}); the others are in study.md; mend what is wrong, and go on with "
            "--resume"
        )


def _print_outcome(folder: Path, report: StudyReport) -> None:
    from wbc_keras.studies.report import explain

    for paragraph in explain(report.figures):
        print(paragraph)
    for name in ("study.md", "study.csv", "study.png"):
        print(folder / name)


if __name__ == "__main__":
    raise SystemExit(main())
