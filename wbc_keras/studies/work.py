"""What a study does in processes of their own: check the plan, train and score one run.

A fresh process has a fresh TensorFlow, and its end, of whatever kind, is not the study's.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wbc_keras import runs
from wbc_keras.errors import RunError, WbcError
from wbc_keras.studies.plan import Cell

if TYPE_CHECKING:
    from wbc_keras.training.data_plan import DataPlan

T = TypeVar("T")

_TIME_TO_END = 60  # seconds

RUNS = "runs"
# Of a run that was scored: large, and of no use to the study.
_HEAVY = ("model.keras", "novelty.npz")


def in_own_process(work: Callable[..., T], *arguments: Any, log: Path | None = None) -> T:
    """Call ``work`` in a fresh Python, which ends with this one, also if this one is killed.

    Args:
        work: a function of a module.
        arguments: its arguments; these and what it returns can be pickled.
        log: what it prints is added to this file; None leaves it where this process prints.

    Raises:
        RunError: ``work`` raised, or its process was ended; in one line.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_answer, args=(sender, log, work, arguments), daemon=True)
    child.start()
    sender.close()
    try:
        done, outcome = receiver.recv()
    except EOFError:
        child.join()
        raise RunError(_describe_end(child.exitcode)) from None
    finally:
        # After an answer it is ending by itself; after Ctrl-C here it might go on for hours.
        if sys.exc_info()[0] is None:
            child.join(_TIME_TO_END)
        child.kill()
        child.join()
        receiver.close()
    if not done:
        raise RunError(outcome)
    return outcome  # type: ignore[no-any-return]


def _answer(sender: Connection, log: Path | None, work: Callable[..., Any], arguments: Any) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if log is not None:
        _print_to(log)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        sender.send((True, work(*arguments)))
    except Exception as error:
        traceback.print_exc()
        sender.send((False, _describe(error)))


def _print_to(log: Path) -> None:
    """Let this process print to a file, its C++ libraries too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _describe(error: Exception) -> str:
    if isinstance(error, WbcError):
        return str(error)
    reason = " ".join(str(error).split())
    return f"{type(error).__name__}: {reason[:300]}"


def _describe_end(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        hint = ", as the system does when memory runs out" if name == "SIGKILL" else ""
        return f"the run's process was ended by {name}{hint}"
    return f"the run's process ended with exit code {code}"


def check_cells(cells: Sequence[Cell], folder: Path) -> tuple[list[str], list[str]]:
    """Plan the data of each repeat and build the network of each setting, training nothing.

    Args:
        cells: the runs that are to be trained.
        folder: the study's.

    Returns:
        what is wrong, and what is noted of the data, one sentence each.
    """
    from wbc_keras.commands import load_tensorflow
    from wbc_keras.training.data_plan import plan_data

    load_tensorflow()
    faults: list[str] = []
    notes: dict[str, None] = {}
    plans: dict[Any, DataPlan | None] = {}
    checked: set[str] = set()
    for cell in cells:
        config = cell.config
        key = (config.data, config.split, config.roi)
        if key not in plans:
            try:
                plan = plans[key] = plan_data(config)
                faults += _fold_faults(plan, cell)
                notes |= dict.fromkeys(plan.notes)
            except WbcError as error:
                plans[key] = None
                faults.append(str(error))
        if (planned := plans[key]) is not None and cell.setting not in checked:
            checked.add(cell.setting)
            faults += _network_faults(cell, planned, folder)
    return list(dict.fromkeys(faults)), list(notes)


def _fold_faults(plan: DataPlan, cell: Cell) -> list[str]:
    """Name the classes that a repeat does not train or does not test, and folds that are none."""
    fold = cell.config.split.fold
    if fold is not None and (plan.manifest.table["split"] != "").any():
        return [
            "folds: the data has a split column, which is obeyed, so that all folds would test the "
            "same cells; leave folds out, or drop the column"
        ]
    labels = plan.manifest.table["label"]
    lacking = {
        split: sorted(set(plan.class_names) - set(labels[plan.assignment == split]))
        for split in ("train", "test")
    }
    where = "the split" if fold is None else f"fold {fold}"
    return [
        f"{where} has no {split} cell of {', '.join(names)}; ask for fewer folds, leave the class "
        "out (data.exclude_labels), or try another split.seed"
        for split, names in lacking.items()
        if names
    ]


def _network_faults(cell: Cell, plan: DataPlan, folder: Path) -> list[str]:
    import keras

    from wbc_keras.backbones import check_weights
    from wbc_keras.train import train_planned

    try:
        check_weights(cell.config.model)
        # The banner of each network would bury the plan.
        with contextlib.redirect_stdout(None):
            train_planned(cell.config, plan, folder=folder / RUNS / cell.name, dry_run=True)
    except (WbcError, ValueError) as error:
        # Keras refuses an impossible network by a ValueError.
        return [f"{cell.setting}: {_describe(error)}"]
    finally:
        keras.backend.clear_session()
    return []


def train_and_score(cell: Cell, folder: Path, keep_model: bool) -> None:
    """Train one run of the study, or go on with it, score its test cells, and keep the result.

    Args:
        cell: which.
        folder: the study's.
        keep_model: whether its model stays.
    """
    from wbc_keras.commands import load_tensorflow

    load_tensorflow()  # or its messages would begin the log
    from wbc_keras.evaluate import evaluate
    from wbc_keras.prediction.networks import load_model
    from wbc_keras.studies.results import write_result
    from wbc_keras.train import train

    place = train(cell.config, output=folder / RUNS / cell.name, resume=True)
    seconds = None
    # The test cells are asked once, also if the study was killed in between.
    if not (place / "evaluation" / "test" / "predictions.csv").is_file():
        started = time.monotonic()
        evaluate(place, split="test")
        seconds = round(time.monotonic() - started, 1)
    run = runs.open_run(place)
    parameters = load_model(run).count_params()
    write_result(folder, cell, run, parameters=parameters, scoring_seconds=seconds)
    if not keep_model:
        remove_heavy(place)


def remove_heavy(run: Path) -> None:
    """Remove what takes room in a scored run: its model and what belongs to it."""
    for name in _HEAVY:
        (run / name).unlink(missing_ok=True)
    shutil.rmtree(run / "tensorboard", ignore_errors=True)
