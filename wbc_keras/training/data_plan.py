"""Which cells a training learns from, and which it is judged by: read, cropped, checked, split."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from wbc_keras.checking.checks import screen
from wbc_keras.config import Config
from wbc_keras.errors import DataError
from wbc_keras.manifest import COLUMNS, Manifest, read_manifest
from wbc_keras.pictures.images import BadImage, describe_bad
from wbc_keras.pictures.prepared import Prepared, prepare
from wbc_keras.prediction.novelty import spread_over_classes
from wbc_keras.splits import make_splits
from wbc_keras.training.fitting import LabelledCells


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

    def table(self) -> pd.DataFrame:
        """Return ``file,label,group,split`` with the splits planned, as ``splits.csv`` has them."""
        return self.manifest.table[list(COLUMNS)].assign(split=self.assignment)

    def fingerprint(self) -> str:
        """Return what is equal for equal cells, labels and splits, wherever they lie."""
        return self.prepared.fingerprint() + self.table().to_csv(index=False)

    def load(self, split: str, *, at_most: int | None = None) -> LabelledCells:
        """Return the cells of a split, or some of each class; their pictures stay on disk."""
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
