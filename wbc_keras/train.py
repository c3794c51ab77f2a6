"""Train a classifier: ``python -m wbc_keras.train --config FILE --data PATH``."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wbc_keras import runs
from wbc_keras.commands import add_settings, load_backend, make_parser, run_action
from wbc_keras.config import Config, dump_config, load_config
from wbc_keras.errors import ConfigError, RunError
from wbc_keras.training.hosts import ALONE, Hosts, Place, announced, find_place, join

if TYPE_CHECKING:
    import keras

    from wbc_keras.pictures.cells import Cells
    from wbc_keras.training.data_plan import DataPlan
    from wbc_keras.training.devices import Devices

logger = logging.getLogger(__name__)

_FILES = ["config.yaml", "environment.json", "classes.json", "splits.csv", "bad_images.txt"]
_FILES += ["model.keras", "training_state.npz", "history.csv", "decision.json", "novelty.npz"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("train", "Train a white-blood-cell classifier and write a run folder.")
    add_settings(parser)
    parser.add_argument("--output", help="run folder (default: artifacts/<name of the config>)")
    parser.add_argument("--resume", action="store_true", help="go on from the last finished epoch")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check settings, data and network; write no run folder",
    )
    arguments = parser.parse_args(argv)
    with announced():
        return run_action(_action, arguments)


def _action(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, overrides=arguments.set)
    folder = train(
        config,
        data=arguments.data,
        output=arguments.output,
        resume=arguments.resume,
        dry_run=arguments.dry_run,
    )
    if (place := find_place(os.environ)) and place.index:
        return  # the first process tells
    if arguments.dry_run:
        print("dry run: everything is in place, nothing was trained, no run folder was written")
        return
    print(f"model    {folder / 'model.keras'}")
    print(f"history  {folder / 'history.csv'}")
    print(f"next     python -m wbc_keras.evaluate --run {folder}")


def train(
    config: Config,
    *,
    data: str | Path | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    dry_run: bool = False,
) -> Path:
    """Train a classifier and return its run folder.

    Args:
        config: the settings; ``config.data.source`` is used where ``data`` is None.
        data: what ``--data`` takes.
        output: the run folder, ``artifacts/<config.name>`` by default; must be empty or missing
            unless ``resume``.
        resume: go on from the last finished epoch; ends with the weights of an uninterrupted run.
        dry_run: check settings, data, pictures and network, then stop without a run folder.

    Where the environment says that this is one of several processes (`hosts.find_place`), they
    train one network together, each with its share of every batch, and the first writes.

    Raises:
        WbcError: a mistake in settings, data or folders, before anything is trained; or another
            process has ended.
    """
    config = config.with_source(data)
    folder = Path(output) if output is not None else Path("artifacts") / config.name
    place = find_place(os.environ)
    if place is None:
        return _train(config, folder, ALONE, resume=resume, dry_run=dry_run)
    _require_jax(place)
    with join(place, timeout=config.train.hosts_timeout) as hosts:
        return _train(config, folder, hosts, resume=resume, dry_run=dry_run)


def _train(config: Config, folder: Path, hosts: Hosts, *, resume: bool, dry_run: bool) -> Path:
    if hosts.on_first(lambda: _open_folder(folder, config, resume=resume, dry_run=dry_run)):
        return folder
    # TensorFlow takes seconds to load: only now, when the settings are known to be right.
    load_backend()
    import keras

    if keras.backend.backend() == "tensorflow":
        _run_in_order()
    from wbc_keras.backbones import check_weights
    from wbc_keras.training.data_plan import plan_data

    def plan_here() -> DataPlan:
        check_weights(config.model)
        plan = plan_data(config)
        if resume and hosts.is_first:
            _require_same_splits(folder, plan)
        return plan

    plan = hosts.everywhere(plan_here)
    # Pictures may lie elsewhere on each host, but must be the same.
    settings = dataclasses.replace(config, data=dataclasses.replace(config.data, source=None))
    versions = runs.describe_environment()["packages"]
    hosts.require_equal(config=settings, cells=plan.fingerprint(), versions=versions)
    return train_planned(config, plan, folder=folder, hosts=hosts, dry_run=dry_run)


def _require_jax(place: Place) -> None:
    load_backend()
    import keras

    if keras.backend.backend() != "jax":
        raise ConfigError(
            f"{place.count} processes are asked for by the environment (KERAS_DISTRIBUTION_..., or "
            "SLURM's srun), and only JAX trains on several: set KERAS_BACKEND=jax, or start one"
        )


def _open_folder(folder: Path, config: Config, *, resume: bool, dry_run: bool) -> bool:
    """Check that the run folder can be begun, or gone on with; tell whether it is finished."""
    if not resume:
        runs.require_empty(folder)
        return False
    if not dry_run:
        runs.remove_leftovers(folder, _FILES)
    _require_same_config(folder, config)
    if _is_finished(folder):
        logger.info("%s: is finished already, nothing to resume", folder)
        return True
    return False


def _run_in_order() -> None:
    """Let TensorFlow run one operation after the other, each still on all cores.

    Side by side, they gave other gradients in a tenth to a quarter of the steps of MobileNetV2 at
    96 pixels on two busy cores, also with `enable_op_determinism`; in order, in none of 81.
    """
    import tensorflow as tf

    try:
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        logger.info("TensorFlow is running already: a resumed run may differ in the last bits")


def train_planned(
    config: Config,
    plan: DataPlan,
    *,
    folder: Path,
    hosts: Hosts = ALONE,
    dry_run: bool = False,
) -> Path:
    """Build the network and train it on planned cells; a dry run stops when it is built.

    Raises:
        WbcError: a setting that does not fit the network or the classes.
    """
    import keras

    from wbc_keras.classifier import build_classifier

    devices = hosts.everywhere(lambda: _find_devices(config, plan))
    keras.utils.set_random_seed(config.train.seed)
    keras.config.set_dtype_policy(devices.precision)
    try:
        with devices.scope():
            model = build_classifier(
                config.model, num_classes=len(plan.class_names), image_size=config.data.image_size
            )
            if hosts.is_first:
                _print_banner(config, plan, model=model, devices=devices, folder=folder)
            if not dry_run:
                _fit(model, config, plan, devices=devices, folder=folder)
    finally:
        keras.config.set_dtype_policy("float32")
    if hosts.is_first and not dry_run:
        fit_around(runs.Run(folder, config, plan.class_names), plan)
        # Last: its absence, beside a history, says that the run is finished.
        (folder / "training_state.npz").unlink(missing_ok=True)
    return folder


def _find_devices(config: Config, plan: DataPlan) -> Devices:
    """Return what the training runs on, once it is known to fit the cells and their classes."""
    import numpy as np

    from wbc_keras.losses import build_loss
    from wbc_keras.training.devices import find_devices

    labels = plan.labels()[plan.assignment == "train"]
    devices = find_devices(config.train)
    devices.require_shares(config.train.batch_size, len(labels))
    # Now, before the folder is written: loss.alpha may not fit the classes.
    build_loss(config.loss, np.bincount(labels, minlength=len(plan.class_names)))
    return devices


def _fit(
    model: keras.Model, config: Config, plan: DataPlan, *, devices: Devices, folder: Path
) -> None:
    """Begin the run folder, load the cells and train."""
    from wbc_keras.training.fitting import fit

    hosts = devices.hosts
    hosts.on_first(lambda: _write_plan(config, plan, folder))
    train, validation = hosts.everywhere(lambda: (plan.load("train"), plan.load("validation")))
    if hosts.is_first:
        _print_found(config.roi.mode, train.cells, validation.cells)
    fit(model, train=train, validation=validation, config=config, folder=folder, devices=devices)


def fit_around(run: runs.Run, plan: DataPlan) -> None:
    """Fit what surrounds the best model: temperature, thresholds, novelty; and keep it."""
    from wbc_keras.prediction.decisions import fit_decisions, write_decisions
    from wbc_keras.prediction.networks import ask, load_network
    from wbc_keras.prediction.novelty import FIT_CELLS, fit_novelty, write_novelty

    network = load_network(run)
    train, validation = plan.load("train", at_most=FIT_CELLS), plan.load("validation")
    known = ask(network, validation.cells)
    features = ask(network, train.cells).features
    write_novelty(run.folder, fit_novelty(features, train.labels, validation=known.features))
    decisions = fit_decisions(validation.labels, known.logits, run.class_names)
    write_decisions(run.folder, decisions)
    wanted, threshold = decisions.wanted_accuracy, decisions.accept_threshold
    from_where = "cannot be had" if threshold is None else f"from confidence {threshold:.3f}"
    print(
        f"on {decisions.validation_cells} validation cells: temperature "
        f"{decisions.temperature:.3f}, accuracy {wanted:.1%} {from_where}",
        flush=True,
    )


def _is_finished(folder: Path) -> bool:
    return (folder / "history.csv").exists() and not (folder / "training_state.npz").exists()


def _require_same_config(folder: Path, config: Config) -> None:
    path = folder / "config.yaml"
    if not path.exists():
        # Killed before its first file, or never started: begun now.
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{path}: is missing, so there is no run to go on with; check --output")
        return
    if load_config(path) != config:
        raise RunError(
            f"{path}: differs from the settings given, so the run cannot go on as the same run; "
            "resume with the settings it was started with, or choose another --output"
        )


def _require_same_splits(folder: Path, plan: DataPlan) -> None:
    from wbc_keras.splits import read_splits

    path = folder / "splits.csv"
    if path.exists() and not read_splits(path).equals(plan.table()):
        raise RunError(
            f"{path}: the data has changed since the run was started; "
            "restore it, or start again with another --output"
        )


def _write_plan(config: Config, plan: DataPlan, folder: Path) -> None:
    from wbc_keras.labels import abnormal_classes
    from wbc_keras.splits import write_splits

    runs.write_text(folder / "config.yaml", dump_config(config))
    runs.write_json(folder / "environment.json", runs.describe_environment())
    abnormal = abnormal_classes(plan.class_names)
    runs.write_json(
        folder / "classes.json", {"classes": list(plan.class_names), "abnormal": abnormal}
    )
    write_splits(folder / "splits.csv", plan.manifest.table, list(plan.assignment))
    if plan.bad:
        rows = "".join(f"{image}\n" for image in plan.bad)
        runs.write_text(folder / "bad_images.txt", rows)


def _print_banner(
    config: Config, plan: DataPlan, *, model: keras.Model, devices: Devices, folder: Path
) -> None:
    import pandas as pd

    from wbc_keras.training.fitting import cell_weights

    table = plan.table()
    counts = pd.crosstab(table["label"], table["split"]).reindex(
        index=list(plan.class_names), columns=["train", "validation", "test"], fill_value=0
    )
    labels = plan.labels()[plan.assignment == "train"]
    weights = cell_weights(labels, config=config, classes=len(plan.class_names))
    first = dict(zip(labels.tolist(), weights.tolist(), strict=True))
    counts["weight"] = [f"{first[i]:.3g}" if i in first else "-" for i in range(len(counts))]
    groups = table.loc[table["group"] != "", "group"].nunique()
    print(counts.to_string())
    print(
        f"cells {len(table)}  groups {groups or 'none: split by picture'}  "
        f"bad pictures left out {len(plan.bad)}"
    )
    for note in plan.notes:
        print(f"note: {note}")
    settings = config.model
    attention = settings.attention + (" at stages" if settings.attention_at == "stages" else "")
    print(
        f"model {settings.backbone} + {attention}, weights {settings.weights}, "
        f"{model.count_params():,} parameters, {'x'.join(map(str, config.data.image_size))} px"
    )
    print(f"loss {config.loss.name}, class weights {config.loss.class_weight}")
    xla = "on" if devices.jit_compile else "off"
    print(f"device {devices}, {devices.precision}, XLA {xla}, seed {config.train.seed}")
    print(f"run folder {folder}", flush=True)


def _print_found(mode: str, *parts: Cells) -> None:
    if mode != "nucleus":
        print(f"ROI: {mode}, no cell is looked for", flush=True)
        return
    found = sum(int(cells.found.sum()) for cells in parts)
    total = sum(len(cells) for cells in parts)
    rest = ", the others cropped at the centre" if found < total else ""
    print(f"ROI: cell found in {found} of {total}{rest}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
