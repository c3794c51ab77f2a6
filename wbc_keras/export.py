"""Export a run for TensorFlow Serving: ``python -m wbc_keras.export --run RUN_DIR``."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.errors import RunError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("export", "Export a trained run as a SavedModel for TensorFlow Serving.")
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--output", help="folder (default: RUN/<format>)")
    parser.add_argument(
        "--format",
        choices=["saved_model", "onnx", "openvino", "litert", "keras"],
        default="saved_model",
        help="saved_model takes encoded pictures, the others cropped cells (docs/formats.md)",
    )
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    if arguments.format != "saved_model":
        load_tensorflow()
        from wbc_keras.formats import export_format

        folder = export_format(arguments.run, arguments.format, output=arguments.output)
        print(f"{arguments.format}  {folder}")
        return
    print(f"SavedModel  {export(arguments.run, output=arguments.output)}")


def export(run: str | Path, *, output: str | Path | None = None) -> Path:
    """Write the run's model as the next version in a model folder and return that version.

    The SavedModel needs TensorFlow alone: ``serving_default`` takes ``image_bytes`` and gives
    ``probabilities``, ``label`` and ``roi`` (see `inference.CellClassifier`); the temperature is
    in the graph, the thresholds are in ``assets.extra/decision.json``. It is written aside
    and renamed, so that a server that polls the folder never sees half of one.

    Raises:
        RunError: no finished run, or ``output`` holds something else than versions of a model.
    """
    opened = runs.open_run(run)
    folder = Path(output) if output is not None else opened.folder / "saved_model"
    version = folder / str(next_version(folder))
    runs.require_writable(version)
    load_tensorflow()
    import tensorflow as tf

    from wbc_keras.decisions import read_decisions, write_decisions
    from wbc_keras.predictor import EXTRA, load_classifier

    classifier, decisions = load_classifier(opened), read_decisions(opened.folder)
    # Its notes name the temporary folder and the graph's own inputs, neither of use to anyone.
    for name in ("absl", "tensorflow"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with runs.replacing_folder(version) as temporary:
        signatures = {
            "serving_default": classifier.serve,
            "images": classifier.serve_images,
            "explain": classifier.explain,
            "explain_class": classifier.explain_class,
        }
        tf.saved_model.save(classifier, str(temporary), signatures=signatures)
        classes = {"classes": list(opened.class_names)}
        runs.write_json(temporary / EXTRA / "classes.json", classes)
        if decisions:
            write_decisions(temporary / EXTRA, decisions)
    return version


def next_version(folder: Path) -> int:
    """Return one more than the highest version in a model folder, 1 if there is none."""
    if not folder.exists():
        return 1
    if not folder.is_dir():
        raise RunError(f"{folder}: is a file; --output names a folder")
    # What begins with a dot is an export that was killed, or the system's own.
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    others = sorted(name for name in names if not name.isdigit())
    if others:
        raise RunError(
            f"{folder}: is not a model folder, it holds {', '.join(others[:3])}; "
            "give an empty folder, or one with numbered versions only"
        )
    return 1 + max((int(name) for name in names), default=0)


if __name__ == "__main__":
    raise SystemExit(main())
