"""Make a run one that comes with the project: ``python -m wbc_keras.ship --run RUN --name NAME``.

For those who develop the project. What is shipped is an ordinary run folder, but for three things:
its weights are stored with 16 bits, its figures are those of the weights so rounded, and it holds
no picture of a cell.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.errors import RunError

_FILES = ["config.yaml", "environment.json", "classes.json", "splits.csv", "history.csv"]
_FILES += ["decision.json", "novelty.npz", runs.MERGED_FILE]
_WEIGHTS = "model.weights.h5"  # within a .keras file


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("ship", "Put a finished run among the models that come with the project.")
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--name", required=True, help="what the model is to be called")
    parser.add_argument("--data", help="its cells, where they are not where the run found them")
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    load_tensorflow()
    print(ship(arguments.run, name=arguments.name, data=arguments.data))


def ship(run: str | Path, *, name: str, data: str | Path | None = None) -> Path:
    """Copy a run to ``artifacts/models/NAME``, score it there, and return the folder.

    Raises:
        RunError: it is no finished run, or the name is taken.
    """
    from wbc_keras.evaluate import evaluate
    from wbc_keras.report import report

    opened = runs.open_run(run)
    folder = runs.SHIPPED / name
    runs.require_empty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as temporary:
        made = Path(temporary) / name  # the card is headed by the folder's name
        made.mkdir()
        for file in _FILES:
            if (opened.folder / file).exists():
                shutil.copy(opened.folder / file, made / file)
        halve(opened.model_path, made / "model.keras")
        evaluate(made, data=data)
        report(made)
        _remove_pictures(made)
        os.replace(made, folder)
    return folder


def halve(source: Path, target: Path) -> None:
    """Write a .keras file again with its weights as float16; Keras reads it as any other.

    Raises:
        RunError: a weight is beyond what 16 bits hold.
    """
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, _halve_weights(content) if name == _WEIGHTS else content)


def _halve_weights(content: bytes) -> bytes:
    import h5py
    import numpy as np

    result = io.BytesIO()
    with h5py.File(io.BytesIO(content), "r") as old, h5py.File(result, "w") as new:

        def copy(name: str, item: h5py.Group | h5py.Dataset) -> None:
            if isinstance(item, h5py.Group):
                made = new.require_group(name)
            else:
                values = item[()]
                if values.dtype == np.float32:
                    with np.errstate(over="ignore"):
                        values = values.astype(np.float16)
                    if not np.isfinite(values).all():
                        raise RunError(f"{name}: a weight does not fit 16 bits; train it again")
                made = new.create_dataset(name, data=values)
            made.attrs.update(item.attrs)

        new.attrs.update(old.attrs)
        old.visititems(copy)
    return result.getvalue()


def _remove_pictures(folder: Path) -> None:
    """Remove the galleries, and the page that holds some of their cells."""
    (folder / "report.html").unlink()
    for path in folder.rglob("*"):
        if any(word in path.name for word in ("mistakes", "second_look")) and path.suffix == ".png":
            path.unlink()


if __name__ == "__main__":
    raise SystemExit(main())
