"""The page of the review desk, in Gradio: nothing in it asks another host for anything."""

from __future__ import annotations

from html import escape
from importlib import resources
from typing import Any

import gradio as gr

from wbc_keras.errors import WbcError
from wbc_keras.manifest import IMAGE_SUFFIXES
from wbc_keras.review import fragments
from wbc_keras.review.desk import Desk
from wbc_keras.review.view import View
from wbc_keras.review.worklist import ANSWERS, STATES

_TICK = 1.0  # seconds between looks at how far classifying has come
_LARGEST_FILE = "400mb"  # 64 million pixels of 16 bits, the most that is read
_RESEARCH = "Research use only. Not a medical device, not for diagnosis."
_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
_CERTAINTIES = [("any", 1.0)] + [(f"up to {share:.0%}", share) for share in (0.95, 0.8, 0.5)]
_TOP = """
<header><h1>Review desk</h1> <span class="soft">{name}</span>
<label>Reviewer
<input id="reviewer" autocomplete="off" placeholder="name or initials" maxlength="60">
</label></header>
<p id="research" role="note">{research}</p>
<div id="note"><p role="status" aria-live="polite"></p></div>
"""


def build_page(desk: Desk, *, name: str) -> gr.Blocks:
    """Return the page, to be launched with `appearance`.

    Args:
        desk: what it shows.
        name: of the model.
    """
    page = gr.Blocks(title="Review desk", analytics_enabled=False, fill_width=True)
    with page:
        _build(page, desk, name)
    return page.queue(default_concurrency_limit=16)


def appearance() -> dict[str, Any]:
    """Return what `gr.Blocks.launch` needs to show the page as it is meant."""
    # The system's own fonts: others would be fetched.
    theme = gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        spacing_size="sm",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    return {
        "theme": theme,
        "css": _template("review.css"),
        "footer_links": [],
        "max_file_size": _LARGEST_FILE,
        "ssr_mode": False,
    }


def _template(name: str) -> str:
    return (resources.files("wbc_keras") / "templates" / name).read_text(encoding="utf-8")


def _build(page: gr.Blocks, desk: Desk, name: str) -> None:
    view = View(desk)
    gr.HTML(_TOP.format(name=escape(name), research=_RESEARCH), elem_id="top")
    smear, number = gr.State(view.first), gr.State(0)
    with gr.Row(elem_id="now"):
        upload = gr.File(
            show_label=False,
            file_count="multiple",
            file_types=list(IMAGE_SUFFIXES),
            height=56,
            scale=2,
            min_width=260,
            elem_id="upload",
        )
        with gr.Column(scale=5, min_width=300):
            status = gr.HTML(elem_id="status")
    with gr.Tab("Cells"), gr.Row(elem_id="work"):
        with gr.Column(scale=5, min_width=320):
            filters = _filters(desk)
            grid = gr.HTML(elem_id="grid")
            with gr.Row(elem_id="pages"):
                back = gr.Button("Earlier", size="sm", elem_id="previous-page")
                place = gr.HTML(elem_id="place")
                on = gr.Button("Later", size="sm", elem_id="next-page")
        with gr.Column(scale=3, min_width=300):
            functions = _server_functions(view)
            gr.HTML(elem_id="cell", js_on_load=_template("review.js"), server_functions=functions)
    with gr.Tab("Count") as count_tab:
        differential = gr.HTML()
    with gr.Tab("Agreement") as agreement_tab:
        agreement = gr.HTML()
    # Pressed by review.js after a correction.
    recount = gr.Button("Count again", elem_id="recount", elem_classes="unseen")
    timer = gr.Timer(_TICK)
    cells = [smear, number, *filters]
    shown = [grid, status, differential, place, back, on, timer]

    def show_after(event: Any, function: Any, inputs: Any, outputs: Any) -> None:
        first = event(function, inputs, outputs, **_QUIET)
        first.then(view.show, cells, shown, **_QUIET)

    page.load(view.show, cells, shown, **_QUIET)
    timer.tick(view.tick, cells, shown, **_QUIET)
    show_after(upload.upload, view.upload, upload, [upload, smear, number, status, filters[3]])
    for one in filters:
        show_after(one.change, lambda: 0, None, number)
    show_after(back.click, lambda n: n - 1, number, number)
    show_after(on.click, lambda n: n + 1, number, number)
    for event in (recount.click, count_tab.select):
        event(view.count, [smear, *filters], [status, differential], **_QUIET)
    agreement_tab.select(view.agreement, None, agreement, **_QUIET)


def _server_functions(view: View) -> list[Any]:
    """Return what review.js calls, as functions: Gradio marks them, which methods do not take."""

    def open_cell(request: dict[str, Any]) -> dict[str, str]:
        return view.open_cell(request)

    def correct(request: dict[str, Any]) -> dict[str, str]:
        return view.correct(request)

    return [open_cell, correct]


def _filters(desk: Desk) -> list[Any]:
    classes = [("all classes", "")] + [
        (fragments.say_class_and_code(label), label) for label in desk.class_names
    ]
    patients = _patients(desk, "data")
    with gr.Row(elem_id="filters"):
        return [
            gr.Dropdown(classes, value="", label="Predicted class", min_width=150),
            gr.Dropdown(list(ANSWERS), value="all", label="The model", min_width=130),
            gr.Dropdown(list(STATES), value="all", label="Review", min_width=120),
            gr.Dropdown(
                patients, value="", label="Patient", min_width=120, visible=len(patients) > 1
            ),
            gr.Dropdown(_CERTAINTIES, value=1.0, label="Certainty", min_width=110),
        ]


def _patients(desk: Desk, key: str) -> list[tuple[str, str]]:
    try:
        groups = set(desk.smear(key).source.manifest.table["group"])
    except WbcError:
        groups = set()
    return [("all patients", "")] + [(one, one) for one in sorted(groups - {""})]
