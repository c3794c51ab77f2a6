"""Which cells a command looks at: a split of the run's own data, or another source."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from wbc_keras.config import Config
from wbc_keras.errors import DataError
from wbc_keras.labels import shared_names
from wbc_keras.manifest import Manifest, read_manifest
from wbc_keras.runs import Run
from wbc_keras.splits import read_splits

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test", "all")


@dataclass(frozen=True)
class Selection:
    """Labelled cells for a run's model.

    Attributes:
        name: what results are filed under: the split's name, or the other source's.
        source: all cells of the source that they are taken from.
        manifest: the cells; labels are class names of the model.
        left_out: cells by label of the source that the model has no class for.
    """

    name: str
    source: Manifest
    manifest: Manifest
    left_out: Mapping[str, int]

    def labels(self, class_names: tuple[str, ...]) -> list[int]:
        """Return each cell's index into ``class_names``."""
        index = {name: i for i, name in enumerate(class_names)}
        return [index[label] for label in self.manifest.table["label"]]


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
        return Selection(split, manifest, _take_split(own, split), {})
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
    mapping = shared_names(run.class_names, manifest.class_names())
    labels = manifest.table["label"]
    left_out = Counter(label for label in labels if label not in mapping)
    if not mapping:
        raise DataError(
            f"{manifest.root}: shares no label with the model. Its labels: "
            f"{', '.join(manifest.class_names())}; the model's: {', '.join(run.class_names)}; "
            "give cells of its classes, or rename the labels"
        )
    if left_out:
        counts = ", ".join(f"{label} ({count})" for label, count in left_out.items())
        logger.warning("%s: left out, as the model has no such class: %s", manifest.root, counts)
    shared = manifest.select(labels.isin(list(mapping)).to_numpy())
    table = shared.table.assign(label=shared.table["label"].map(mapping))
    return Selection(name, source, dataclasses.replace(shared, table=table), dict(left_out))
