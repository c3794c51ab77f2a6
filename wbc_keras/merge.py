"""Average several runs in one model: ``python -m wbc_keras.merge RUN RUN [...] --output DIR``."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wbc_keras import runs
from wbc_keras.cache import hash_file
from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.config import dump_config
from wbc_keras.errors import RunError

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser(
        "merge", "Make one model of several runs: the mean of their logits, or of their weights."
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="two run folders or more, of the same classes"
    )
    parser.add_argument("--output", required=True, help="the new run folder")
    parser.add_argument(
        "--weights",
        nargs="+",
        type=float,
        metavar="SHARE",
        help="average their weights instead, with a share for each run as in 1 2: one network, of "
        "a run and the one it started from",
    )
    parser.add_argument("--data", help="their cells, where they are not where the runs found them")
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    load_tensorflow()
    folder = merge(
        arguments.runs,
        output=arguments.output,
        weights=arguments.weights,
        data=arguments.data,
    )
    print(f"model    {folder / 'model.keras'}")
    print(f"next     python -m wbc_keras.evaluate --run {folder}")


def merge(
    folders: Sequence[str | Path],
    *,
    output: str | Path,
    weights: Sequence[float] | None = None,
    data: str | Path | None = None,
) -> Path:
    """Write a run folder whose model gives the mean of the runs' logits, and return it.

    With ``weights`` it is one network with the weighted mean of their weights (`average_weights`).

    It is a run like any other: evaluated, explained and exported. A cell that any of the runs was
    trained on counts as trained on; one that all of them tested is tested. Temperature, thresholds
    and novelty are fitted anew on the cells that are left for validation. Folds leave none, nor
    any to test: their mean goes without, and is to be scored on other cells.

    Args:
        folders: two runs or more.
        output: the new run folder; must be empty or missing.
        weights: each run's share in a mean of the weights, above 0; their sum does not matter. If
            None, the logits are averaged.
        data: what ``--data`` of `train` takes; where the first run found its cells, if None.

    Raises:
        WbcError: the runs do not go together, or their cells cannot be had.
    """
    from wbc_keras.classifier import average_weights, merge_classifiers
    from wbc_keras.prediction.networks import load_model
    from wbc_keras.train import fit_around
    from wbc_keras.training.data_plan import plan_data

    members = [runs.open_run(folder) for folder in folders]
    target = Path(output)
    shares = weights or [1.0] * len(members)
    _require_alike(members)
    if weights is not None and (
        len(weights) != len(members) or not all(0 < share < math.inf for share in weights)
    ):
        raise RunError(f"--weights: takes {len(members)} shares above 0, one for each run")
    runs.require_empty(target)
    splits = _join_splits(members)
    config = dataclasses.replace(members[0].config, name=target.name).with_source(data)
    if weights is not None:
        model = average_weights([load_model(_one_view(one)) for one in members], weights)
    else:  # each member's views are within the model
        model = merge_classifiers([load_model(one) for one in members])
        config = _one_view(dataclasses.replace(members[0], config=config)).config
    plan = plan_data(config)
    assignment = _assign(plan.manifest.table, splits, members[0])
    plan = dataclasses.replace(plan, assignment=assignment)
    with runs.replacing_folder(target) as made:
        run = dataclasses.replace(members[0], folder=made, config=config)
        shutil.copyfile(members[0].folder / "classes.json", made / "classes.json")
        runs.write_text(made / "config.yaml", dump_config(config))
        runs.write_json(made / "environment.json", runs.describe_environment())
        record = {
            "mean_of": "logits" if weights is None else "weights",
            "members": [
                _describe(one) | {"share": share / sum(shares)}
                for one, share in zip(members, shares, strict=True)
            ],
        }
        runs.write_json(made / runs.MERGED_FILE, record)
        runs.write_text(made / "splits.csv", splits.to_csv(index=False, lineterminator="\n"))
        model.save(run.model_path)
        if (assignment == "validation").any():
            fit_around(run, plan)
        else:
            logger.warning(
                "each cell was trained on by one of the runs: the model has no temperature, no "
                "thresholds and no novelty, and no cells of its own to be tested on; score it on "
                "others: python -m wbc_keras.evaluate --run %s --data OTHER_CELLS",
                target,
            )
    return target


def _require_alike(members: Sequence[runs.Run]) -> None:
    if len(members) < 2:
        raise RunError("merge: takes two runs or more")
    first = members[0]
    hashes = [hash_file(one.model_path) for one in members]
    for place, one in enumerate(members[1:], start=1):
        if hashes[place] in hashes[:place]:
            raise RunError(f"{one.folder}: is given twice, or a copy of another one")
        for what, mine, theirs in (
            ("classes", first.class_names, one.class_names),
            ("data.image_size", first.config.data.image_size, one.config.data.image_size),
            ("roi", first.config.roi, one.config.roi),
        ):
            if mine != theirs:
                raise RunError(
                    f"{one.folder}: cannot be averaged with {first.folder}, as their {what} "
                    f"differ: {mine} and {theirs}"
                )


def _one_view(run: runs.Run) -> runs.Run:
    """Return the run as one whose model does not average over views."""
    model = dataclasses.replace(run.config.model, symmetries=1)
    return dataclasses.replace(run, config=dataclasses.replace(run.config, model=model))


def _join_splits(members: Sequence[runs.Run]) -> pd.DataFrame:
    """Return the first run's split table, each cell with what it was to all of the runs."""
    from wbc_keras.splits import read_splits

    tables = [read_splits(one.splits_path) for one in members]
    first = tables[0].set_index("file")
    for one, table in zip(members[1:], tables[1:], strict=True):
        other = table.set_index("file")
        if set(first.index) != set(other.index):
            raise RunError(
                f"{one.splits_path}: its cells are not those of {members[0].splits_path}; only "
                "runs on the same cells can be averaged"
            )
        was = first["split"].where(first["split"] == other["split"].reindex(first.index), "")
        trained = (first["split"] == "train") | (other["split"].reindex(first.index) == "train")
        first["split"] = was.replace("", "validation").mask(trained, "train")
    return first.reset_index()[tables[0].columns]


def _assign(table: pd.DataFrame, splits: pd.DataFrame, first: runs.Run) -> Any:
    assignment = table["file"].map(splits.set_index("file")["split"])
    if assignment.isna().any() or len(table) != len(splits):
        raise RunError(
            f"{first.splits_path}: the data has changed since the runs were made; restore it, or "
            "name the right folder with --data"
        )
    return assignment.to_numpy(str)


def _describe(run: runs.Run) -> dict[str, Any]:
    config = run.config
    return {
        "name": run.folder.resolve().name,
        "network": f"{config.model.backbone}, attention {config.model.attention}",
        "seed": config.train.seed,
        "fold": config.split.fold,
        "sha256": hash_file(run.model_path),
    }


if __name__ == "__main__":
    raise SystemExit(main())
