"""What models say of cells: all that an evaluation scores and writes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd

from wbc_keras.gradcam import Heatmaps
from wbc_keras.labels import abnormal_classes
from wbc_keras.manifest.table import REANNOTATIONS
from wbc_keras.metrics import Evaluation, evaluate_predictions
from wbc_keras.pictures.cells import Cells
from wbc_keras.pictures.prepared import Prepared, prepare
from wbc_keras.prediction.decisions import Decisions, read_decisions
from wbc_keras.prediction.networks import ask, load_network
from wbc_keras.prediction.novelty import read_novelty
from wbc_keras.prediction.predictions import prediction_table
from wbc_keras.reporting.gallery import choose_mistakes
from wbc_keras.reporting.novelty_report import describe_foreign, describe_novelty
from wbc_keras.runs import Run
from wbc_keras.selection import Selection
from wbc_keras.statistics.agreement import ExpertAgreement, compare_reannotations
from wbc_keras.statistics.probabilities import softmax

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Verdicts:
    """What models say of n cells.

    Attributes:
        rows: text columns file, label, group, and what further experts said, if they were asked.
        root: where the files are.
        class_names: k names.
        labels: ``(n,)``, indices into the names.
        probabilities: float32 ``(n, k)``.
        boxes: ``(n, 4)``.
        found: bool ``(n,)``, whether the cell was found in its picture.
        uncalibrated: ``(n, k)``, the probabilities without the temperature.
        accepted: bool ``(n,)``.
        decisions: of each run; where one has no threshold, nothing is accepted or refused.
        run: ``(n,)``, which run's model answered.
        experts: how far the experts agree on all cells of the source, if they were asked.
        novelty: n rows of `novelty_report.describe_novelty`; None for an older run.
        foreign: rows of `novelty_report.describe_foreign`; likewise.
        heatmaps: uint8 ``(height, width)`` of the crop by file, for mistakes to look at.
    """

    rows: pd.DataFrame
    root: Path
    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    boxes: np.ndarray
    found: np.ndarray
    uncalibrated: np.ndarray
    accepted: np.ndarray | None
    decisions: tuple[Decisions | None, ...]
    run: np.ndarray
    experts: ExpertAgreement | None
    novelty: pd.DataFrame | None
    foreign: pd.DataFrame | None
    heatmaps: dict[str, np.ndarray]

    @property
    def groups(self) -> list[str] | None:
        """The cells' patients, or None where none is known."""
        groups = self.rows["group"]
        return list(groups) if (groups != "").any() else None

    def score(self) -> Evaluation:
        """Return the figures."""
        return evaluate_predictions(
            self.labels,
            self.probabilities,
            self.class_names,
            abnormal=abnormal_classes(self.class_names),
            groups=self.groups,
        )

    def table(self) -> pd.DataFrame:
        """Return the predictions table."""
        return prediction_table(
            list(self.rows["file"]),
            list(self.rows["label"]),
            self.probabilities,
            self.class_names,
            self.boxes,
            accepted=self.accepted,
            novelty=None if self.novelty is None else self.novelty["novelty"].to_numpy(),
        )

    def of_each_cell(self, decision: str) -> np.ndarray | None:
        """Return ``(n,)`` what its run decided for each cell, or None if a run did not."""
        values = self.of_each(decision)
        return None if None in values else np.array(values)[self.run]

    def of_each(self, decision: str) -> list[float | None]:
        """Return what each run decided, None where it has no decisions."""
        return [None if one is None else getattr(one, decision) for one in self.decisions]


def ask_run(run: Run, selection: Selection) -> Verdicts:
    """Return what a run's model says of the selected cells.

    Raises:
        WbcError: a file of the run is damaged, or a picture cannot be read.
    """
    decisions, novelty = read_decisions(run.folder), read_novelty(run.folder)
    if decisions is None:
        logger.warning("%s: has no decision.json, so probabilities stay as trained", run.folder)
    network, prepared = load_network(run), _prepare(run, selection)
    cells = prepared.take(selection.manifest.table["file"])
    answers = ask(network, cells)
    own = _soften(answers.logits, decisions)
    probabilities = selection.merge(own)
    return Verdicts(
        _rows(selection),
        selection.manifest.root,
        selection.class_names,
        np.asarray(selection.labels()),
        probabilities,
        cells.boxes,
        cells.found,
        uncalibrated=selection.merge(_soften(answers.logits, None)),
        accepted=decisions.accept(probabilities) if decisions else None,
        decisions=(decisions,),
        run=np.zeros(len(cells), int),
        experts=compare_reannotations(selection.source.table),
        novelty=describe_novelty(novelty, answers.features) if novelty else None,
        foreign=describe_foreign(run, network, novelty, prepared, selection) if novelty else None,
        heatmaps=_explain_mistakes(network, selection, cells, own),
    )


def predict_cells(run: Run, selection: Selection) -> tuple[Cells, np.ndarray]:
    """Return the selected cells, cropped, and float32 probabilities ``(n, model's classes)``.

    They are of the logits divided by the run's temperature.
    """
    cells = _prepare(run, selection).take(selection.manifest.table["file"])
    logits = ask(load_network(run), cells).logits
    return cells, _soften(logits, read_decisions(run.folder))


def pool(parts: Sequence[Verdicts]) -> Verdicts:
    """Return all cells as one set; several parts are put in the order of the file names."""
    if len(parts) == 1:
        return parts[0]
    rows = pd.concat([part.rows for part in parts], ignore_index=True)
    # Whatever order the runs were given in, the bootstrap draws the same cells.
    order = np.argsort(rows["file"].to_numpy(str), kind="stable")
    arrays = ["labels", "probabilities", "boxes", "found", "uncalibrated"]
    pooled = {name: np.concatenate([getattr(part, name) for part in parts]) for name in arrays}
    accepted = [part.accepted for part in parts if part.accepted is not None]
    novelty, foreign = (
        _join([getattr(part, name) for part in parts]) for name in ("novelty", "foreign")
    )
    return Verdicts(
        rows.iloc[order].reset_index(drop=True),
        parts[0].root,
        parts[0].class_names,
        **{name: values[order] for name, values in pooled.items()},
        accepted=np.concatenate(accepted)[order] if len(accepted) == len(parts) else None,
        decisions=tuple(one for part in parts for one in part.decisions),
        run=np.repeat(np.arange(len(parts)), [len(part.rows) for part in parts])[order],
        experts=parts[0].experts,
        novelty=None if novelty is None else novelty.iloc[order].reset_index(drop=True),
        foreign=foreign,
        heatmaps={file: heat for part in parts for file, heat in part.heatmaps.items()},
    )


def _prepare(run: Run, selection: Selection) -> Prepared:
    settings = run.config
    return prepare(selection.source, roi=settings.roi, image_size=settings.data.image_size)


def _soften(logits: np.ndarray, decisions: Decisions | None) -> np.ndarray:
    """Return probabilities in float32, as they are written: what is scored is what is read."""
    temperature = decisions.temperature if decisions else 1.0
    return softmax(logits, temperature=temperature).astype("float32")


def _rows(selection: Selection) -> pd.DataFrame:
    rows = selection.manifest.table[["file", "label", "group"]]
    source = selection.source.table.set_index("file").loc[rows["file"]]
    shared = selection.shared.labels
    # An answer that the model has no class for stays an answer of its own.
    asked = {
        name: [shared.get(answer, answer) for answer in source[name]]
        for name in REANNOTATIONS
        if name in source
    }
    return rows.assign(**asked)


def _explain_mistakes(
    network: keras.Model, selection: Selection, cells: Cells, probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """Return, by file, where the model saw the wrong class in the mistakes that are shown."""
    shares, table = selection.merge(probabilities), selection.manifest.table
    answers = pd.DataFrame(
        {
            "file": table["file"].to_numpy(),
            "label": table["label"].to_numpy(),
            "predicted": [selection.class_names[place] for place in shares.argmax(axis=1)],
            "confidence": shares.max(axis=1),
        }
    )
    chosen = choose_mistakes(answers).index.to_numpy()
    if not len(chosen):
        return {}
    heatmaps = Heatmaps(keras.Model(network.input, network.outputs[0]))
    classes = selection.strongest(probabilities[chosen]).tolist()
    maps = np.round(255 * heatmaps.draw(cells.images[chosen], classes)).astype(np.uint8)
    return dict(zip(answers["file"][chosen], maps, strict=True))


def _join(tables: Sequence[pd.DataFrame | None]) -> pd.DataFrame | None:
    """Return all rows, or None if a table is missing."""
    had = [table for table in tables if table is not None]
    return pd.concat(had, ignore_index=True) if len(had) == len(tables) else None
