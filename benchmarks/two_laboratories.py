"""Makes one set of two: a run's cells in that run's splits, and another laboratory's to train on.

    python benchmarks/two_laboratories.py --run RUN --data CELLS --other OTHER --output FOLDER

FOLDER gets links to the pictures and a manifest.csv. The run's validation and test cells stay what
they are, so what is trained on FOLDER is measured on the same cells as the run. Of the other set,
cells whose label is among the run's classes by that very name are taken, all as training cells.
"""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd

from wbc_keras.manifest import read_manifest
from wbc_keras.runs import open_run, replacing_folder
from wbc_keras.splits import read_splits


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="whose classes and splits are taken")
    parser.add_argument("--data", required=True, type=Path, help="the run's cells")
    parser.add_argument("--other", required=True, type=Path, help="the other laboratory's cells")
    parser.add_argument("--label-column", default="label", help="of the other set (label)")
    parser.add_argument("--output", required=True, type=Path, help="a new folder")
    arguments = parser.parse_args(argv)
    if arguments.output.exists():
        parser.error(f"{arguments.output} is there already; name a new folder")
    run = open_run(arguments.run)
    own = read_splits(run.folder / "splits.csv").rename(columns={"group": "patient"})
    other = read_manifest(arguments.other, label_column=arguments.label_column).table
    other = other[other["label"].isin(run.class_names)]
    # Nobody says whose they are: each is a patient of its own.
    other = other.assign(split="train", patient=[f"other {row}" for row in range(len(other))])
    with replacing_folder(arguments.output) as folder:
        both = pd.concat(
            [
                own.assign(file=link(own["file"], arguments.data, folder / "own")),
                other.assign(file=link(other["file"], arguments.other, folder / "other")),
            ]
        )
        columns = ["file", "label", "patient", "split"]
        both[columns].to_csv(folder / "manifest.csv", index=False)
    print(pd.crosstab(both["label"], [both["file"].str.split("/").str[0], both["split"]]))


def link(files: Iterable[str], source: Path, target: Path) -> list[str]:
    """Link the pictures, or copy them to another disk; return their paths beside the manifest."""
    found = []
    for file in files:
        path = target / file
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / file, path)
        except OSError:
            shutil.copyfile(source / file, path)
        found.append(path.relative_to(target.parent).as_posix())
    return found


if __name__ == "__main__":
    main()
