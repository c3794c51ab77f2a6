"""Classify pictures: ``python -m wbc_keras.predict --model MODEL --data PATH --output TABLE``."""

from __future__ import annotations

import argparse
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from wbc_keras.manifest import Manifest
    from wbc_keras.prediction.archive import Tally

# As in `formats`, whose import would load TensorFlow.
ENGINES = ("auto", "tensorflow", "openvino", "onnx", "litert")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("predict", "Classify pictures of single cells and write a table.")
    parser.add_argument(
        "--model", required=True, help="run folder, SavedModel or a shipped model's name"
    )
    parser.add_argument("--data", required=True, nargs="+", help="any source, or picture files")
    parser.add_argument(
        "--output",
        default="predictions.csv",
        help="the table to write, .csv or .parquet (default: predictions.csv)",
    )
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="what runs the network (default: auto, the fastest that is installed)",
    )
    parser.add_argument("--resume", action="store_true", help="go on after a kill")
    parser.add_argument("--heatmaps", metavar="DIR", help="write pictures under their heatmaps")
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    tally = predict_archive(
        arguments.model,
        arguments.data,
        output=arguments.output,
        engine=arguments.engine,
        resume=arguments.resume,
        heatmaps=arguments.heatmaps,
    )
    print(f"{tally}  {arguments.output}")


def predict(
    model: str | Path, data: str | Path | Sequence[str | Path], *, engine: str = "auto"
) -> pd.DataFrame:
    """Classify pictures and return the predictions table.

    Args:
        model: a run folder, a SavedModel or a model folder; the same table either way.
        data: any source, labelled or not; also a flat folder or single files.
        engine: what runs a run's network, one of `formats.ENGINES`.

    Raises:
        WbcError: ``model`` is no model, or ``data`` no source. A picture that cannot be used is a
            row that says so in ``error``.
    """
    manifest = _read(data)
    import pandas as pd

    from wbc_keras.prediction.archive import classify_chunks
    from wbc_keras.prediction.predictor import Predictor

    predictor = Predictor.load(model, engine=engine, workers=os.cpu_count() or 1)
    return pd.concat(classify_chunks(predictor, manifest), ignore_index=True)


def predict_archive(
    model: str | Path,
    data: str | Path | Sequence[str | Path],
    *,
    output: str | Path,
    engine: str = "auto",
    resume: bool = False,
    heatmaps: str | Path | None = None,
) -> Tally:
    """Classify any number of pictures into a table on disk, in flat memory.

    Args:
        model: as for `predict`.
        data: as for `predict`.
        output: a .csv or a .parquet, replaced whole when all is done; until then what is done lies
            in ``<output>.parts``.
        engine: as for `predict`.
        resume: whether to go on with what a killed run has left there.
        heatmaps: an empty folder for pictures under their heatmaps, ``<file>.png``.

    Raises:
        WbcError: as `predict`, or ``output`` or ``heatmaps`` cannot be written.
    """
    path, folder = Path(output), Path(heatmaps) if heatmaps is not None else None
    _check_output(path)
    manifest = _read(data)
    _check_apart(manifest, data, path, folder, resume=resume)
    from wbc_keras.prediction.archive import classify_archive, describe
    from wbc_keras.prediction.predictor import Predictor, find_model

    about = describe(find_model(model), manifest, engine=engine, overlays=folder)
    predictor = Predictor.load(
        model, engine=engine, workers=os.cpu_count() or 1, heatmaps=folder is not None
    )
    return classify_archive(predictor, manifest, path, about=about, resume=resume, overlays=folder)


def _read(data: str | Path | Sequence[str | Path]) -> Manifest:
    from wbc_keras.manifest import read_manifest

    manifest = read_manifest(data, labelled=False)
    load_tensorflow()
    return manifest


def _check_output(path: Path) -> None:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; --output names the table, e.g. predictions.csv")
    if path.suffix not in (".csv", ".parquet"):
        raise DataError(f"{path}: --output names a .csv or a .parquet. Received: {path.name}")
    if path.suffix == ".parquet" and not importlib.util.find_spec("pyarrow"):
        raise DataError(
            f"{path}: Parquet needs pyarrow; pip install 'wbc_keras[parquet]', or give a .csv"
        )
    runs.require_writable(path)


def _check_apart(
    manifest: Manifest,
    data: str | Path | Sequence[str | Path],
    output: Path,
    heatmaps: Path | None,
    *,
    resume: bool,
) -> None:
    from wbc_keras.manifest import require_apart

    require_apart(manifest, data, [output])
    if heatmaps is None:
        return
    if heatmaps.resolve().is_relative_to(manifest.root.resolve()):
        raise DataError(
            f"{heatmaps}: lies in the data, whose next reading would take the heatmaps for cells; "
            "choose another place"
        )
    if not resume:
        runs.require_empty(heatmaps)


if __name__ == "__main__":
    raise SystemExit(main())
