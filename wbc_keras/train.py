"""Train a classifier: ``python -m wbc_keras.train --config FILE --data PATH``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wbc_keras import runs
from wbc_keras.commands import add_settings, load_tensorflow, make_parser, run_action
from wbc_keras.config import Config, TrainConfig, dump_config, load_config
from wbc_keras.errors import DataError, RunError

if TYPE_CHECKING:
    import keras
    import numpy as np
    import pandas as pd

    from wbc_keras.cells import Cells
    from wbc_keras.fitting import LabelledCells
    from wbc_keras.images import BadImage
    from wbc_keras.manifest import Manifest
    from wbc_keras.prepared import Prepared

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
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, overrides=arguments.set)
    folder = train(
        config,
        data=arguments.data,
        output=arguments.output,
        resume=arguments.resume,
        dry_run=arguments.dry_run,
    )
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

    Raises:
        WbcError: a mistake in settings, data or folders, before anything is trained.
    """
    config = config.with_source(data)
    folder = Path(output) if output is not None else Path("artifacts") / config.name
    if resume:
        if not dry_run:
            runs.remove_leftovers(folder, _FILES)
        _require_same_config(folder, config)
        if _is_finished(folder):
            logger.info("%s: is finished already, nothing to resume", folder)
            return folder
    else:
        runs.require_empty(folder)
    # TensorFlow takes seconds to load: only now, when the settings are known to be right.
    load_tensorflow()
    _run_in_order()
    from wbc_keras.backbones import check_weights

    check_weights(config.model)
    plan = plan_data(config)
    if resume:
        _require_same_splits(folder, plan)
    return train_planned(config, plan, folder=folder, dry_run=dry_run)


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


@dataclass(frozen=True)
class DataPlan:
    """The readable, labelled cells with their splits; bad pictures apart."""

    manifest: Manifest
    prepared: Prepared
    assignment: np.ndarray
    class_names: tuple[str, ...]
    notes: tuple[str, ...]
    bad: tuple[BadImage, ...]

    def labels(self) -> np.ndarray:
        """Return int32 ``(n,)``, indices into ``class_names``."""
        index = {name: i for i, name in enumerate(self.class_names)}
        return self.manifest.table["label"].map(index).to_numpy("int32")

    def load(self, split: str, *, at_most: int | None = None) -> LabelledCells:
        """Return the cells of a split, or some of each class; their pictures stay on disk."""
        import numpy as np

        from wbc_keras.fitting import LabelledCells
        from wbc_keras.novelty import spread_over_classes

        labels, chosen = self.labels(), np.flatnonzero(self.assignment == split)
        if at_most is not None:
            chosen = chosen[spread_over_classes(labels[chosen], at_most)]
        cells = self.prepared.take(self.manifest.table["file"].iloc[chosen])
        return LabelledCells(cells, labels[chosen])


def plan_data(config: Config) -> DataPlan:
    """Read the manifest, find the cell in every picture, and split; copies stay together.

    Raises:
        DataError: what is wrong with the source; all bad pictures are named together.
    """
    from wbc_keras.checks import screen
    from wbc_keras.images import describe_bad
    from wbc_keras.manifest import read_manifest
    from wbc_keras.prepared import prepare
    from wbc_keras.splits import make_splits

    settings, split = config.data, config.split
    assert settings.source is not None  # `train` has seen to it
    source = read_manifest(
        settings.source, label_column=settings.label_column, synthetic=settings.synthetic
    )
    manifest = source.without_labels(settings.exclude_labels)
    prepared = prepare(source, roi=config.roi, image_size=settings.image_size)
    bad = prepared.bad_among(manifest.table["file"])
    if bad and settings.bad_images == "error":
        raise DataError(
            f"{describe_bad(list(bad.values()))}; mend or remove them, or leave them out with "
            "--set data.bad_images=skip"
        )
    manifest = manifest.select(~manifest.table["file"].isin(list(bad)).to_numpy())
    names = manifest.class_names()
    if len(names) < 2:
        raise DataError(
            f"{settings.source}: a classifier needs at least two classes. Received: {names}; "
            "sort the pictures into one folder a class, or check data.exclude_labels"
        )
    screening = screen(manifest, near_duplicates=settings.near_duplicates)
    k, folds = split.fold_of or (None, 5)
    splits = make_splits(
        manifest.table,
        validation=split.validation,
        test=split.test,
        fold=k,
        folds=folds,
        seed=split.seed,
        units=screening.units,
    )
    return DataPlan(
        manifest,
        prepared,
        splits.assignment,
        tuple(names),
        notes=(*splits.notes, *screening.notes),
        bad=tuple(bad.values()),
    )


def train_planned(config: Config, plan: DataPlan, *, folder: Path, dry_run: bool = False) -> Path:
    """Build the network and train it on planned cells; a dry run stops when it is built.

    Raises:
        WbcError: a setting that does not fit the network or the classes.
    """
    import keras
    import numpy as np

    from wbc_keras.classifier import build_classifier
    from wbc_keras.fitting import fit
    from wbc_keras.losses import build_loss

    device, precision, jit_compile = choose_device(config.train)
    keras.utils.set_random_seed(config.train.seed)
    keras.config.set_dtype_policy(precision)
    try:
        model = build_classifier(
            config.model, num_classes=len(plan.class_names), image_size=config.data.image_size
        )
        _print_banner(config, plan, model=model, device=device, folder=folder)
        # Now, before the folder is written: loss.alpha may not fit the classes.
        train_labels = plan.labels()[plan.assignment == "train"]
        build_loss(config.loss, np.bincount(train_labels, minlength=len(plan.class_names)))
        if dry_run:
            return folder
        _write_plan(config, plan, folder)
        train_cells, validation_cells = plan.load("train"), plan.load("validation")
        _print_found(config.roi.mode, train_cells.cells, validation_cells.cells)
        fit(
            model,
            train=train_cells,
            validation=validation_cells,
            config=config,
            folder=folder,
            jit_compile=jit_compile,
        )
    finally:
        keras.config.set_dtype_policy("float32")
    fit_around(runs.Run(folder, config, plan.class_names), plan)
    # Last: its absence, beside a history, says that the run is finished.
    (folder / "training_state.npz").unlink(missing_ok=True)
    return folder


def fit_around(run: runs.Run, plan: DataPlan) -> None:
    """Fit what surrounds the best model: temperature, thresholds, novelty; and keep it."""
    from wbc_keras.decisions import fit_decisions, write_decisions
    from wbc_keras.networks import ask, load_network
    from wbc_keras.novelty import FIT_CELLS, fit_novelty, write_novelty

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


def choose_device(settings: TrainConfig) -> tuple[str, str, bool]:
    """Return device name, dtype policy and whether XLA compiles the step.

    Measured on CPUs: bfloat16 and XLA both train slower there, so `auto` uses them on a GPU only.
    """
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    policy = settings.precision
    if policy == "auto":
        policy = "mixed_bfloat16" if gpus else "float32"
    jit = bool(gpus) if settings.jit_compile == "auto" else settings.jit_compile
    return (f"{len(gpus)} GPU" if gpus else "CPU"), policy, jit


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
    if path.exists() and not read_splits(path).equals(_split_table(plan)):
        raise RunError(
            f"{path}: the data has changed since the run was started; "
            "restore it, or start again with another --output"
        )


def _split_table(plan: DataPlan) -> pd.DataFrame:
    from wbc_keras.manifest import COLUMNS

    return plan.manifest.table[list(COLUMNS)].assign(split=plan.assignment)


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
    config: Config, plan: DataPlan, *, model: keras.Model, device: str, folder: Path
) -> None:
    import keras
    import pandas as pd

    from wbc_keras.fitting import cell_weights

    table = _split_table(plan)
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
    policy, jit = keras.config.dtype_policy().name, choose_device(config.train)[2]
    print(f"device {device}, {policy}, XLA {'on' if jit else 'off'}, seed {config.train.seed}")
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
