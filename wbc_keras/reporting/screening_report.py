"""Early detection in an evaluation's folder: ``screening.json``, ``patients.csv``, their plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from wbc_keras import runs
from wbc_keras.labels import abnormal_classes, blast_classes
from wbc_keras.plots import save_figure
from wbc_keras.reporting import screening_plots
from wbc_keras.statistics.patients import Patients, count_patients
from wbc_keras.statistics.screening import Screening, Threshold, screen


def write_screening(
    folder: Path,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    *,
    thresholds: Mapping[str, Mapping[str, Threshold | None]],
    groups: Sequence[str] | None,
) -> None:
    """Write what the cells, and their patients where they are known, say of early detection.

    Args:
        folder: an evaluation's.
        labels: integers (n,).
        probabilities: (n, k).
        class_names: k names; a question that they do not answer is null in the file.
        thresholds: for "abnormal" and "blast", those of the cells' probability by name, as
            chosen on validation.
        groups: n patients, or None.
    """
    cells = (labels, probabilities, class_names)
    questions = {"abnormal": abnormal_classes(class_names), "blast": blast_classes(class_names)}
    found = {
        question: screen(*cells, classes, thresholds=thresholds[question], groups=groups)
        if classes
        else None
        for question, classes in questions.items()
    }
    patients = count_patients(*cells, groups) if groups else None
    summary = {name: one and one.to_json() for name, one in {**found, "patients": patients}.items()}
    runs.write_json(folder / "screening.json", summary)
    if patients:
        runs.write_text(folder / "patients.csv", patients.table.to_csv(index=False))
    for name, axes in _draw(found, patients).items():
        save_figure(cast("Figure", axes.figure), folder / f"{name}.png")


def _draw(found: Mapping[str, Screening | None], patients: Patients | None) -> dict[str, Axes]:
    """Return what there is to draw, by the picture's name."""
    drawn = {}
    curves = {name: one for name, one in found.items() if one is not None and one.roc is not None}
    if curves:
        drawn["screening"] = screening_plots.plot_screening(curves)[0]
    if patients and patients.shares:
        drawn["patients"] = screening_plots.plot_patients(patients)[0][0]
    if patients and any(one.patients for one in patients.differential.values()):
        drawn["differential"] = screening_plots.plot_differential(patients)
    return drawn
