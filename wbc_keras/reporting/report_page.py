"""The page of a run: one file that holds all it shows and asks nothing of any network."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from wbc_keras import __version__
from wbc_keras.errors import RunError
from wbc_keras.labels import abnormal_classes
from wbc_keras.plots import plot_history
from wbc_keras.prediction.predictions import class_columns
from wbc_keras.reporting.estimates import Cell, Estimate, as_text, count, percent
from wbc_keras.reporting.gallery import Mistakes, embed
from wbc_keras.reporting.record import Record, Scored
from wbc_keras.reporting.summary import headlines, limits, say_heatmaps, summarise
from wbc_keras.reporting.tables import Table, sort_key

_MOST_CELLS = 100_000  # whose numbers are put into the page: at most 1.2 MB
_LARGE_PICTURE = 700_000  # bytes; a larger one is put in as JPEG
_WIDEST = 1600  # pixels

_PLOTS = {
    "per_class": "Precision, recall and F1 of each class",
    "confusion_matrix": "True classes in rows, answers in columns",
    "screening": "Early detection: ROC and precision-recall, with 95 % bands",
    "roc": "Each class against the rest",
    "reliability": "Confidence against accuracy, before and after the temperature",
    "risk_coverage": "Wrong answers among the cells answered, the surest first",
    "novelty": "How far pictures lie from what the model was trained on",
    "patients": "Shares by patient: predicted against true, and their differences",
    "differential": "Differential count: error of each class's share over patients",
}


@dataclass(frozen=True)
class Plot:
    """A picture in the page: its caption, its alternative text, and itself as an address."""

    title: str
    alt: str
    address: str


def render_page(record: Record, tables: Mapping[str, Table], mistakes: Mistakes | None) -> str:
    """Return the page.

    Args:
        record: the run.
        tables: by name (`report_tables.make_tables`), and ``checklists``.
        mistakes: to look at; None if no cell may be shown, in a sheet of heatmaps either.
    """
    names = list(record.run.class_names)
    page = make_templates(autoescape=True).get_template("report.html.j2")
    shown = mistakes or Mistakes((), "left out, as was asked")
    plots = _embed_plots(record, explanations=mistakes is not None)
    context: dict[str, Any] = {
        "name": record.run.folder.resolve().name,
        "version": __version__,
        "made": date.today().isoformat(),
        "record": record,
        "tables": _Known(tables),
        "plots": _Known(plots),
        "headlines": headlines(record),
        "summary": summarise(record),
        "limits": limits(record),
        "classes": names,
        "abnormal": abnormal_classes(names),
        "source": describe_source(record),
        "gallery": shown.by_class(),
        "gallery_size": len(shown.cells),
        "heat_warning": say_heatmaps(record.checks),
        "heat": any(cell.heat for cell in shown.cells),
        "no_pictures": shown.no_pictures,
        **_describe_main(record),
    }
    return page.render(context, contents=_contents(context)) + "\n"


def make_templates(*, autoescape: bool) -> Environment:
    """Return the package's templates, with the filters that they use."""
    templates = Environment(
        loader=PackageLoader("wbc_keras"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"figure": _figure, "bounds": _bounds}
    templates.filters |= {"key": sort_key, "percent": percent}
    return templates


def _figure(cell: Cell) -> str:
    return cell.figure if isinstance(cell, Estimate) else as_text(cell)


def _bounds(cell: Cell) -> str:
    return cell.bounds if isinstance(cell, Estimate) else ""


class _Known(dict[str, Any]):
    """What is not there is None to the templates, which leave it out."""

    def __missing__(self, name: str) -> None:
        return None


def _contents(context: Mapping[str, Any]) -> list[tuple[str, str]]:
    main, tables, plots = context["record"].main, context["tables"], context["plots"]
    wanted = {
        ("summary", "In a minute"): True,
        ("asked", "What was asked"): True,
        ("data-and-splits", "Data"): True,
        ("training", "Training"): True,
        ("results", "Results"): main,
        ("classes", "Class by class"): main,
        ("detection", "Early detection"): main,
        ("thresholds", "Thresholds"): context["sliders"],
        ("certainty", "How sure"): main,
        ("patients", "Patients"): tables["patients"],
        ("experts", "Experts"): tables["experts"],
        ("mistakes", "Mistakes"): main,
        ("explanations", "Where it looks"): plots["explanations"] or tables["heatmaps"],
        ("limits", "Limits"): True,
        ("missing", "Not shown"): context["record"].missing,
        ("checklists", "For a paper"): True,
    }
    return [entry for entry, there in wanted.items() if there]


def describe_source(record: Record, *, cells: bool = True) -> str:
    """Return the name of the data, with the number of its cells if that is wanted and known."""
    source = record.run.config.data.source or "not named"
    # The last part only: the way there tells of the machine and its people.
    name = Path(source).name or source
    if not cells or record.splits is None:
        return name
    return f"{name}, {count(len(record.splits), 'cell')}"


def _describe_main(record: Record) -> dict[str, Any]:
    main = record.main
    if main is None or main.predictions is None:
        return {"sliders": None, "wrong": None, "roi_found": "", "detection": ""}
    wrong = int((main.predictions["label"] != main.predictions["predicted"]).sum())
    return {
        "sliders": _pack_sliders(record, main),
        "wrong": f"{wrong:,}",
        "roi_found": _say_found(main.metrics.get("roi_found"), len(main.predictions)),
        "detection": _say_detection(main),
    }


def _say_found(found: int | None, cells: int) -> str:
    if found is None:
        return ""
    if found == cells:
        return "In each of the cells scored a cell was found and cropped."
    return (
        f"In {found:,} of the {cells:,} pictures scored a cell was found and cropped; the others "
        "were cropped at the centre."
    )


def _say_detection(scored: Scored) -> str:
    found = (scored.question("patients") or {}).get("detection")
    if not found:
        return ""
    over = len(found["found"]) + len(found["missed"])
    under = len(found["false_alarms"]) + len(found["cleared"])
    told = f"{len(found['found'])} of {over} patients" if over else "There is no patient"
    return (
        f"{told} with {found['threshold']:.0%} blasts or more{' found' if over else ''}; "
        f"{len(found['false_alarms'])} of {count(under, 'other patient')} falsely alarmed."
    )


# The sliders


def _pack_sliders(record: Record, scored: Scored) -> dict[str, Any]:
    """Return what the sliders need of each cell, little-endian float32 and bytes in base64."""
    assert scored.predictions is not None
    cells = len(scored.predictions)
    taken = np.linspace(0, cells - 1, min(cells, _MOST_CELLS)).round().astype(int)
    table = scored.predictions.iloc[taken]
    names = class_columns(table)
    abnormal = abnormal_classes(names)
    right = (table["label"] == table["predicted"]).to_numpy()
    flags = right.astype(np.uint8)
    scores = None
    if abnormal is not None:
        flags |= 2 * table["label"].isin(abnormal).to_numpy(np.uint8)
        scores = table[abnormal].to_numpy(np.float64).sum(axis=1)
    points = _chosen_points(record) if abnormal is not None else []
    packed = {
        "confidence": _base64(table["confidence"].to_numpy("<f4")),
        "scores": None if scores is None else _base64(scores.astype("<f4")),
        "flags": _base64(flags),
        "call": points[0][1] if points else 0.5,
    }
    gauges = [("coverage", "coverage"), ("accuracy", "right of those answered")]
    screened = [(name, name) for name in ("sensitivity", "specificity")]
    return {
        "packed": packed,
        "scored": f"{cells:,}",
        "shown": f"{len(taken):,}",
        "points": points,
        "accept": record.decisions and record.decisions.accept_threshold,
        "gauges": gauges if scores is None else [*screened, ("ppv", "PPV"), *gauges],
    }


def _chosen_points(record: Record) -> list[tuple[str, float]]:
    if record.decisions is None:
        return []
    chosen = {
        "sensitive": record.decisions.sensitive_threshold,
        "specific": record.decisions.specific_threshold,
    }
    return [(title, value) for title, value in chosen.items() if value is not None]


def _base64(values: np.ndarray) -> str:
    return embed(values.tobytes(), "png").partition(",")[2]


# Pictures


def _embed_plots(record: Record, *, explanations: bool) -> dict[str, Plot]:
    plots = {}
    if record.history is not None and {"val_loss", "val_macro_f1"} <= set(record.history):
        axes = plot_history(record.history)[0]
        best = record.history["val_macro_f1"].max()
        alt = f"Loss and macro F1 over {len(record.history)} epochs; best on validation {best:.3f}"
        plots["history"] = Plot("Loss and macro F1 by epoch", alt, _draw(axes.figure))
    if record.main:
        for name, title in _PLOTS.items():
            path = record.main.folder / f"{name}.png"
            if path.is_file():
                alt = f"{title}. The numbers are in the tables of this section."
                plots[name] = Plot(title, alt, _embed_file(path))
    if record.explanations and explanations:
        title = "Cells, each beside itself under its heatmap; wrong answers have coloured titles"
        plots["explanations"] = Plot(title, title, _embed_file(record.explanations))
    checks = record.run.folder / "explanations" / "checks.png"
    if record.checks and checks.is_file():
        title = "Heatmaps checked: where the heat lies, deletion, insertion, shuffled weights"
        plots["checks"] = Plot(title, title, _embed_file(checks))
    return plots


def _draw(figure: Any) -> str:
    stream = io.BytesIO()
    cast("Figure", figure).savefig(stream, dpi=130, format="png", bbox_inches="tight")
    return embed(stream.getvalue(), "png")


def _embed_file(path: Path) -> str:
    data = path.read_bytes()
    if len(data) <= _LARGE_PICTURE:
        return embed(data, "png")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if image is None:
        raise RunError(f"{path}: is no picture; make it again, or remove it")
    scale = min(1.0, _WIDEST / image.shape[1])
    size = [round(side * scale) for side in image.shape[1::-1]]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return embed(cv2.imencode(".jpg", small)[1].tobytes(), "jpeg")
