"""Export a run for TensorFlow Serving: ``python -m wbc_keras.export --run RUN_DIR``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.errors import RunError
from wbc_keras.pictures.headers import MAX_PIXELS

logger = logging.getLogger(__name__)

# `formats` has the others, whose import would load TensorFlow.
FORMATS = ("saved_model", "onnx", "openvino", "litert", "keras")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("export", "Export a trained run as a SavedModel for TensorFlow Serving.")
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--output", help="folder (default: RUN/<format>)")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="saved_model",
        help="saved_model takes encoded pictures, the others cropped cells (docs/formats.md)",
    )
    parser.add_argument(
        "--max-pixels",
        type=_positive,
        default=MAX_PIXELS,
        metavar="N",
        help="larger pictures are refused before they are decoded (default: %(default)s)",
    )
    parser.add_argument(
        "--rollback",
        type=_positive,
        metavar="VERSION",
        help="export nothing; have this earlier version served",
    )
    return run_action(_action, parser.parse_args(argv))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1. Received: {text}")
    return int(text)


def _action(arguments: argparse.Namespace) -> None:
    if arguments.rollback:
        config = rollback(arguments.run, arguments.rollback, output=arguments.output)
        print(f"served from now on: version {arguments.rollback}  {config}")
        return
    if arguments.format != "saved_model":
        load_tensorflow()
        from wbc_keras.prediction.formats import export_format

        folder = export_format(arguments.run, arguments.format, output=arguments.output)
        print(f"{arguments.format}  {folder}")
        return
    version = export(arguments.run, output=arguments.output, max_pixels=arguments.max_pixels)
    print(f"SavedModel  {version}")


def export(
    run: str | Path, *, output: str | Path | None = None, max_pixels: int = MAX_PIXELS
) -> Path:
    """Write the run's model as the next version in a model folder and return that version.

    The SavedModel needs TensorFlow alone: ``serving_default`` takes ``image_bytes`` and gives the
    decision, ``images``, ``explain`` and ``explain_class`` beside it (`inference.CellClassifier`).
    What it was made from lies in ``assets.extra/`` (`provenance`), and ``models.config`` in
    the model folder names the new version as the one to serve (`model_folder`).

    Args:
        run: the run folder; what it lacks, calibration or thresholds, is left out and logged.
        output: the model folder; RUN/saved_model if None.
        max_pixels: larger pictures are refused before they are decoded.

    Raises:
        RunError: no finished run, a model that cannot be loaded, ``output`` holds something else
            than versions of a model, or cannot be written: then it is as it was.
    """
    from wbc_keras.serving.model_folder import add_version, list_versions

    opened = runs.open_run(run)
    folder = _model_folder(opened, output)
    list_versions(folder)
    runs.require_writable(folder / "1")
    load_tensorflow()
    import tensorflow as tf

    from wbc_keras.prediction.predictor import EXTRA, load_classifier
    from wbc_keras.serving.provenance import find_absent, write_extras

    classifier = load_classifier(opened, max_pixels=max_pixels)
    absent = find_absent(classifier.decisions, classifier.novelty)
    for sentence in absent:
        logger.warning("%s: %s", opened.folder, sentence)

    # Its notes name the temporary folder and the graph's own inputs, neither of use to anyone.
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)

    def write(version: Path) -> None:
        classifier.save(version)
        write_extras(
            version / EXTRA,
            opened,
            decisions=classifier.decisions,
            max_pixels=max_pixels,
            absent=absent,
        )

    try:
        return add_version(folder, write)
    except tf.errors.OpError as error:
        reason = str(error).strip().splitlines()[0]
        raise RunError(
            f"{folder}: the export cannot be written ({reason}); nothing changed"
        ) from error


def rollback(run: str | Path, version: int, *, output: str | Path | None = None) -> Path:
    """Have an earlier version of a model folder served, and return the file that names it.

    Later versions stay; the next export is served again.

    Raises:
        RunError: no run folder, or no such version.
    """
    from wbc_keras.serving.model_folder import serve_version

    return serve_version(_model_folder(runs.open_run(run, needs_model=False), output), version)


def _model_folder(run: runs.Run, output: str | Path | None) -> Path:
    return Path(output) if output is not None else run.folder / "saved_model"


if __name__ == "__main__":
    raise SystemExit(main())
