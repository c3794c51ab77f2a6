"""Which cells a command looks at: a split of the run's own data, or another source."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.config import Config
from wbc_keras.errors import DataError
from wbc_keras.labels import SharedNames, share_names
from wbc_keras.manifest import Manifest, read_manifest
from wbc_keras.runs import Run
from wbc_keras.splits import read_splits

logger = logging.getLogger(__name__)

Integers = npt.NDArray[np.intp]
Floats = npt.NDArray[np.floating]

SPLITS = ("train", "validation", "test", "all")


@dataclass(frozen=True)
class Selection:
    """Labelled cells for a run's model.

    Attributes:
        name: what results are filed under: the split's name, or the other source's.
        source: all cells of the source that they are taken from.
        manifest: the cells; labels are shared names.
        shared: the names that the model's classes and the source's labels share.
        left_out: cells by label of the source that the model has no class for.
    """

    name: str
    source: Manifest
    manifest: Manifest
    shared: SharedNames
    left_out: Mapping[str, int]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The k names that the cells are scored on: the model's classes, some perhaps merged."""
        return tuple(dict.fromkeys(self.shared.classes.values()))

    def labels(self) -> list[int]:
        """Return each cell's index into `class_names`."""
        index = {name: i for i, name in enumerate(self.class_names)}
        return [index[label] for label in self.manifest.table["label"]]

    def columns(self) -> Integers:
        """Return the index into `class_names` of each of the model's classes."""
        return np.array([self.class_names.index(name) for name in self.shared.classes.values()])

    def merge(self, probabilities: Floats) -> Floats:
        """Sum a model's probabilities ``(n, classes)`` into those of `class_names`, ``(n, k)``."""
        belongs = np.eye(len(self.class_names), dtype=probabilities.dtype)[self.columns()]
        return probabilities @ belongs

    def strongest(self, probabilities: Floats) -> Integers:
        """Return a model's most probable class within the predicted, perhaps merged, one: ``(n,)``.

        Args:
            probabilities: the model's own, ``(n, classes)``.
        """
        predicted = self.merge(probabilities).argmax(axis=1)
        is_within = self.columns() == predicted[:, np.newaxis]
        return np.asarray((probabilities * is_within).argmax(axis=1))


def select_cells(
    run: Run, *, data: str | Path | None = None, split: str | None = None
) -> Selection:
    """Choose cells for a run: by default the test split of its own data.

    Args:
        run: the run folder.
        data: a source; the run's own if None. If its cells are all cells of the run, or it holds
            all of the run's, the run's splits hold for them, so that training cells are not scored
            as new ones. Cells are known by file and label; a partial overlap is warned of.
        split: train, validation, test or all. By default test of the run's own cells, and all of
            another source's.

    Raises:
        DataError: the source lacks the split, shares no label with the model, or the run's
            pictures are no longer where they were.
    """
    manifest = _read_labelled(run.config, data)
    splits = read_splits(run.splits_path)
    own = _join_splits(manifest, splits)
    if data is None and (own is None or len(own.table) < len(splits)):
        raise DataError(
            f"{run.config.data.source}: no longer holds the cells of {run.splits_path}; "
            "give the pictures' place with --data"
        )
    if own is not None:
        split = split or "test"
        same = {name: name for name in run.class_names}
        return Selection(split, manifest, _take_split(own, split), SharedNames(same, same), {})
    split = split or "all"
    name = manifest.name if split == "all" else f"{manifest.name}_{split}"
    return _share_labels(run, name, manifest, split)


def _read_labelled(config: Config, data: str | Path | None) -> Manifest:
    manifest = _read(config, data)
    unknown = int((manifest.table["label"] == "").sum())
    if unknown:
        raise DataError(
            f"{manifest.root}: {unknown} of {len(manifest.table)} pictures have no label to score "
            "against; sort them into one folder a class, or add a manifest.csv with file,label"
        )
    return manifest


def _read(config: Config, data: str | Path | None) -> Manifest:
    settings = config.data
    source = settings.source if data is None else data
    assert source is not None  # a run's config names its source
    # Another source may not have the label column that the run was trained on.
    # One class is enough to be scored on, so `labelled` is not asked here.
    manifest = read_manifest(
        source,
        label_column=settings.label_column,
        synthetic=settings.synthetic,
        labelled=False,
    )
    if data is None or manifest.class_names():
        return manifest
    return read_manifest(source, synthetic=settings.synthetic, labelled=False)


def _join_splits(manifest: Manifest, splits: pd.DataFrame) -> Manifest | None:
    """Return the run's cells with their splits, or None if ``manifest`` is other data."""
    keys = ["file", "label"]
    joined = manifest.table[keys].merge(splits, on=keys)
    if len(joined) not in (len(splits), len(manifest.table)):
        if len(joined):
            logger.warning(
                "%s: %d of %d cells have file and label of cells of the run; if they are the same, "
                "those it was trained on flatter the figures",
                manifest.root,
                len(joined),
                len(manifest.table),
            )
        return None
    return dataclasses.replace(manifest, table=joined[["file", "label", "group", "split"]])


def _take_split(manifest: Manifest, split: str) -> Manifest:
    if split == "all":
        return manifest
    chosen = manifest.select((manifest.table["split"] == split).to_numpy())
    if chosen.table.empty:
        raise DataError(
            f"{manifest.root}: has no cell in the split {split!r}; "
            "leave --split out, or give --split all"
        )
    return chosen


def _share_labels(run: Run, name: str, source: Manifest, split: str) -> Selection:
    manifest = _take_split(source, split)
    shared = share_names(run.class_names, manifest.class_names())
    labels = manifest.table["label"]
    if not shared.labels:
        raise DataError(
            f"{manifest.root}: shares no label with the model. Its labels: "
            f"{', '.join(manifest.class_names())}; the model's: {', '.join(run.class_names)}; "
            "give cells of its classes, or rename the labels"
        )
    left_out = dict(Counter(label for label in labels if label not in shared.labels))
    _log_shared(manifest.root, shared, left_out)
    kept = manifest.select(labels.isin(list(shared.labels)).to_numpy())
    table = kept.table.assign(label=kept.table["label"].map(dict(shared.labels)))
    return Selection(name, source, dataclasses.replace(kept, table=table), shared, left_out)


def _log_shared(root: Path, shared: SharedNames, left_out: Mapping[str, int]) -> None:
    if left_out:
        counts = ", ".join(f"{label} ({count})" for label, count in left_out.items())
        logger.warning("%s: left out, as the model has no such class: %s", root, counts)
    for name, classes in shared.merged.items():
        logger.warning("%s: scored as %s: the model's %s", root, name, ", ".join(classes))
    absent = dict.fromkeys(shared.classes.values()).keys() - set(shared.labels.values())
    if absent:
        names = ", ".join(sorted(absent))
        logger.info("%s: has no cell of these, which stay possible answers: %s", root, names)
