"""Compare what a run answers, whoever is asked: evaluation, `predict`, its SavedModel, XLA.

    python benchmarks/parity.py --run RUN --data ../shared/data/pbc

Pictures spread over the folder, every other one saved anew as PNG. All are held against what
`evaluate` writes of them: `predict` by each engine that is installed, ``serving_default`` of an
export at batch 1, 7 and 64, and the network as XLA compiles it on the crops, at the same batches.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from wbc_keras.runs import Run

_BATCHES = (1, 7, 64)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", required=True, help="trained run folder")
    parser.add_argument("--data", required=True, help="class folders of JPEGs that the run knows")
    parser.add_argument("--pictures", type=int, default=500, metavar="N", help="default: 500")
    parser.add_argument("--no-xla", action="store_true", help="leave XLA out: it takes minutes")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from wbc_keras.commands import load_tensorflow

    load_tensorflow()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WBC_KERAS_CACHE"] = f"{folder}/cache"
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Print for each way the largest difference of probabilities and the labels that differ."""
    import numpy as np

    from wbc_keras import runs
    from wbc_keras.evaluate import evaluate
    from wbc_keras.prediction.predictions import class_columns, read_predictions

    pictures = gather(Path(arguments.data), arguments.pictures, folder / "pictures")
    run = runs.open_run(arguments.run)
    evaluate(run.folder, data=pictures, output=folder / "evaluation")
    table = read_predictions(folder / "evaluation" / "predictions.csv")
    classes = class_columns(table)
    expected = table[classes].to_numpy()
    print(f"{len(table)} pictures, {os.cpu_count()} cores; against evaluation:", flush=True)
    for way, probabilities in ask_all(run, table, classes, pictures, folder, arguments):
        difference = np.abs(probabilities - expected).max()
        others = (probabilities.argmax(axis=1) != expected.argmax(axis=1)).sum()
        print(f"{way:24} {difference:.1e}  {others} other labels", flush=True)
    print("asked: at most 1e-4, no other label")


def gather(source: Path, count: int, folder: Path) -> Path:
    """Copy pictures spread over the class folders, every other one as PNG."""
    import cv2
    import numpy as np

    found = sorted(source.rglob("*.jpg"))
    places = np.linspace(0, len(found) - 1, min(count, len(found))).astype(int)
    for number, place in enumerate(places):
        target = folder / found[place].relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if number % 2:
            cv2.imwrite(str(target.with_suffix(".png")), cv2.imread(str(found[place])))
        else:
            shutil.copy(found[place], target)
    return folder


def ask_all(
    run: Run,
    table: pd.DataFrame,
    classes: list[str],
    pictures: Path,
    folder: Path,
    arguments: argparse.Namespace,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the name and the probabilities of each way, in the order of the table."""
    import tensorflow as tf

    from wbc_keras.export import export
    from wbc_keras.pictures.cells import load_cells
    from wbc_keras.predict import predict
    from wbc_keras.prediction import engines
    from wbc_keras.prediction.predictor import load_classifier

    paths = [pictures / file for file in table["file"]]
    for engine in filter(engines.is_installed, ("tensorflow", "openvino", "onnx", "litert")):
        answers = predict(run.folder, pictures, engine=engine).set_index("file")
        yield f"predict, {engine}", answers.loc[table["file"], classes].to_numpy()
    saved = tf.saved_model.load(str(export(run.folder, output=folder / "saved_model")))
    serve = saved.signatures["serving_default"]
    encoded = [path.read_bytes() for path in paths]
    for batch in _BATCHES:
        given = ask(lambda part: serve(image_bytes=tf.constant(part)), encoded, batch)
        yield f"SavedModel, batch {batch}", given
    if arguments.no_xla:
        return
    cells = load_cells(paths, roi=run.config.roi, image_size=run.config.data.image_size)
    decide = tf.function(load_classifier(run).decide, jit_compile=True)
    for batch in _BATCHES:
        # Whole batches, as XLA compiles for each size anew; the last one overlaps.
        yield f"XLA, batch {batch}", ask(decide, cells.images, batch, whole=True)


def ask(
    answer: Callable[[Any], Any], pictures: Any, batch: int, *, whole: bool = False
) -> np.ndarray:
    import numpy as np

    given: list[np.ndarray] = [np.empty(0)] * len(pictures)
    for start in range(0, len(pictures), batch):
        first = max(min(start, len(pictures) - batch), 0) if whole else start
        rows = answer(pictures[first : first + batch])["probabilities"].numpy()
        given[first : first + len(rows)] = list(rows)
    return np.stack(given)


if __name__ == "__main__":
    main()
