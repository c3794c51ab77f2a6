"""Classify pictures: ``python -m wbc_keras.predict --model MODEL --data PATH --output CSV``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from wbc_keras.predictor import Predictor

_BATCH = 32


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("predict", "Classify pictures of single cells and write a table.")
    parser.add_argument("--model", required=True, help="run folder or SavedModel")
    parser.add_argument("--data", required=True, nargs="+", help="any source, or picture files")
    parser.add_argument("--output", required=True, help="the table to write, a .csv")
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    table = predict(arguments.model, arguments.data, output=arguments.output)
    print(table["predicted"].value_counts().to_string(header=False))
    print(f"{len(table)} cells  {arguments.output}")


def predict(
    model: str | Path, data: str | Path | Sequence[str | Path], *, output: str | Path | None = None
) -> pd.DataFrame:
    """Classify pictures and return the predictions table, written to ``output`` if given.

    Args:
        model: a run folder, a SavedModel or a model folder; the same table either way.
        data: any source, labelled or not; also a flat folder or single files.
        output: CSV file, replaced whole.

    Raises:
        DataError: pictures cannot be read (all are named, nothing is written).
        RunError: ``model`` is no model.
    """
    from wbc_keras.manifest import read_manifest, require_apart
    from wbc_keras.predictions import prediction_table, write_predictions
    from wbc_keras.runs import require_writable

    if output is not None and Path(output).is_dir():
        raise DataError(f"{output}: is a folder; --output names the table, e.g. predictions.csv")
    manifest = read_manifest(data, labelled=False)
    if output is not None:
        require_writable(Path(output))
        require_apart(manifest, data, [output])
    load_tensorflow()
    from wbc_keras.images import require_readable
    from wbc_keras.predictor import Predictor

    predictor = Predictor.load(model)
    require_readable(manifest.paths())
    probabilities, boxes = _predict_all(predictor, manifest.paths())
    rows, decisions = manifest.table, predictor.decisions
    table = prediction_table(
        list(rows["file"]),
        list(rows["label"]),
        probabilities,
        predictor.class_names,
        boxes,
        accepted=decisions.accept(probabilities) if decisions else None,
    )
    if output is not None:
        write_predictions(output, table)
    return table


def _predict_all(predictor: Predictor, paths: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    from wbc_keras.images import read_bytes

    parts = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(paths), _BATCH):
            encoded = list(pool.map(read_bytes, paths[start : start + _BATCH]))
            parts.append(predictor.predict(encoded))
    probabilities = np.concatenate([part.probabilities for part in parts])
    return probabilities, np.concatenate([part.boxes for part in parts])


if __name__ == "__main__":
    raise SystemExit(main())
