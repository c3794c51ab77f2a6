from __future__ import annotations

import subprocess
import sys

import cv2
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image
from sklearn.metrics import roc_auc_score

from wbc_keras import plots
from wbc_keras.calibration import bin_reliability
from wbc_keras.metrics import evaluate_predictions
from wbc_keras.prediction.predictions import BOX_COLUMNS
from wbc_keras.statistics.selective import measure_selective

NAMES = ["basophil", "eosinophil", "monocyte", "smudge cell"]


def simulate(counts=(40, 1300, 3, 0), seed=0):
    rng = np.random.default_rng(seed)
    y_true = np.repeat(np.arange(len(counts)), counts)
    logits = rng.normal(size=(len(y_true), len(counts))) + 2.5 * np.eye(len(counts))[y_true]
    exponentials = np.exp(logits)
    return y_true, exponentials / exponentials.sum(axis=1, keepdims=True)


def evaluate(y_true, probabilities, names=NAMES):
    return evaluate_predictions(y_true, probabilities, names, abnormal=None, draws=0)


def texts(labels):
    return [label.get_text() for label in labels]


@pytest.fixture
def history():
    epochs = np.arange(1, 8)
    return pd.DataFrame(
        {
            "epoch": epochs,
            "phase": ["head"] * 2 + ["fine-tune"] * 5,
            "loss": 2.0 / epochs,
            "macro_f1": epochs / 10,
            "val_loss": 2.2 / epochs,
            "val_macro_f1": [0.1, 0.2, 0.3, 0.6, 0.55, 0.5, 0.4],
        }
    )


def test_confusion_matrix_shows_counts_shares_and_support():
    matrix = np.array([[1995, 4, 1, 0], [0, 3, 1, 0], [2, 0, 0, 0], [0, 0, 0, 0]])
    ax = plots.plot_confusion_matrix(matrix, NAMES)
    written = {text.get_position(): text.get_text() for text in ax.texts}
    assert written == {
        (0, 0): "1,995\n>99%",
        (1, 0): "4\n<1%",
        (2, 0): "1\n<1%",
        (1, 1): "3\n75%",
        (2, 1): "1\n25%",
        (0, 2): "2\n100%",
    }
    rows = ["basophil (n=2,000)", "eosinophil (n=4)", "monocyte (n=2)", "smudge cell (n=0)"]
    assert texts(ax.get_yticklabels()) == rows
    assert texts(ax.get_xticklabels()) == NAMES
    shares = ax.images[0].get_array()
    np.testing.assert_allclose(shares[:3], matrix[:3] / matrix[:3].sum(axis=1, keepdims=True))
    assert shares.mask[3].all()  # a class without cells has no share


def luminance(color):
    """Relative luminance as WCAG 2 defines it."""
    channels = np.array(to_rgb(color))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


def test_confusion_matrix_text_stands_out_from_its_cell():
    right = np.arange(1, 100)
    matrix = np.zeros((99, 99), int)
    matrix[np.arange(99), np.arange(99)] = right
    matrix[np.arange(99), np.arange(99) - 1] = 100 - right
    ax = plots.plot_confusion_matrix(matrix, [str(c) for c in range(99)])
    picture = ax.images[0]
    for text in ax.texts:
        column, row = text.get_position()
        cell = picture.cmap(picture.norm(picture.get_array()[row, column]))
        dark, light = sorted([luminance(cell[:3]), luminance(text.get_color())])
        assert (light + 0.05) / (dark + 0.05) > 4.4


def test_confusion_matrix_colours_darken_evenly():
    ax = plots.plot_confusion_matrix(np.eye(3, dtype=int), NAMES[:3])
    colors = ax.images[0].cmap(np.linspace(0, 1, 64))[:, :3]
    lab = cv2.cvtColor(colors[np.newaxis].astype(np.float32), cv2.COLOR_RGB2LAB)[0]
    steps = -np.diff(lab[:, 0])
    assert steps.min() > 0.4 * steps.mean()


def test_history_marks_phases_and_the_best_epoch(history):
    loss, f1 = plots.plot_history(history)
    for ax, name in ((loss, "loss"), (f1, "macro_f1")):
        lines = {line.get_label(): line for line in ax.lines}
        np.testing.assert_allclose(lines["train"].get_ydata(), history[name])
        np.testing.assert_allclose(lines["validation"].get_ydata(), history[f"val_{name}"])
        star = lines["best macro F1: 0.600 (epoch 4)"]
        assert list(star.get_xdata()) == [4]
        assert list(star.get_ydata()) == [history[f"val_{name}"][3]]
        assert list(ax.lines[-1].get_xdata()) == [2.5, 2.5]
        assert texts(ax.texts) == ["head ", " fine-tune"]
    legend = texts(f1.get_legend().get_texts())
    assert legend == ["train", "validation", "best macro F1: 0.600 (epoch 4)"]


def test_history_of_one_epoch_is_drawn(history, tmp_path):
    loss, f1 = plots.plot_history(history[:1])
    assert texts(loss.texts) == []
    assert loss.get_ylim()[1] > 2.2
    plots.save_figure(f1.figure, tmp_path / "history.png")


def test_per_class_is_sorted_by_support_and_leaves_out_missing_figures():
    y, p = simulate()
    got = evaluate(y, p)
    ax = plots.plot_per_class(got)
    rows = ["smudge cell (n=0)", "monocyte (n=3)", "basophil (n=40)", "eosinophil (n=1,300)"]
    assert texts(ax.get_yticklabels()) == rows  # from the bottom up
    assert texts(ax.get_legend().get_texts()) == ["precision", "recall", "F1"]
    order = ["monocyte", "basophil", "eosinophil"]
    for line, name in zip(ax.lines, ("precision", "recall", "f1"), strict=False):
        assert list(line.get_xdata()) == [getattr(got.per_class[row], name) for row in order]
        assert list(line.get_ydata()) == [1, 2, 3]


def test_roc_names_every_class_with_its_auroc_the_worst_first():
    counts = [300, 200, 100, 80, 60, 40, 20, 10, 5, 0]
    names = [f"class {c}" for c in range(10)]
    y, p = simulate(counts)
    ax = plots.plot_roc(y, p, names, evaluation=evaluate(y, p, names))
    aurocs = sorted((roc_auc_score(y == c, p[:, c]), c) for c in range(9))
    expected = [f"{auroc:.4f} class {c} (n={counts[c]})" for auroc, c in aurocs]
    assert texts(ax.get_legend().get_texts()) == [*expected, "0.5000 chance"]
    for line in ax.lines:
        assert (np.diff(line.get_ydata()) >= 0).all()
        assert line.get_ydata()[-1] == 1
        assert line.get_xdata().min() > 0  # a logarithmic axis has no 0
    assert len({line.get_color() for line in ax.lines[:6]}) == 6


def test_reliability_shows_each_filled_bin():
    y, p = simulate()
    bins = bin_reliability(y, p)
    ax = plots.plot_reliability(bins)
    filled = bins.counts > 0
    np.testing.assert_allclose([bar.get_height() for bar in ax.patches], bins.accuracy[filled])
    assert texts(ax.texts) == [f"{n:,}" for n in bins.counts[filled]]
    assert ax.get_title().startswith(f"ECE {evaluate(y, p).ece:.3f}")


def test_calibration_stands_side_by_side():
    y, p = simulate()
    sure = p**3 / (p**3).sum(axis=1, keepdims=True)
    before, after = bin_reliability(y, sure), bin_reliability(y, p)
    axes = plots.plot_calibration(before, after)
    titles = [ax.get_title() for ax in axes]
    assert titles[0].startswith(f"as trained: ECE {evaluate(y, sure).ece:.3f}")
    assert titles[1].startswith(f"calibrated: ECE {evaluate(y, p).ece:.3f}")
    assert len(axes[0].patches) == np.count_nonzero(before.counts)


def test_risk_coverage_names_its_areas_and_marks_what_is_accepted():
    y, p = simulate()
    accepted = p.max(axis=1) >= 0.8
    got = measure_selective(y, p, accepted=accepted, draws=0)
    ax = plots.plot_risk_coverage(got)
    labels = texts(ax.get_legend().get_texts())
    right = (p.argmax(axis=1) == y)[accepted].mean()
    assert labels[0] == f"this model, area {got.curve.area:.4f}"
    assert labels[2] == f"random order, area {(p.argmax(axis=1) != y).mean():.4f}"
    assert labels[3] == f"accepted: {accepted.mean():.0%}, {right:.1%} of them right"
    model, best, _, point = ax.lines
    np.testing.assert_array_equal(model.get_ydata(), got.curve.risk)
    at = np.interp(model.get_xdata(), best.get_xdata(), best.get_ydata())
    assert (at <= model.get_ydata() + 1e-3).all()
    assert (point.get_xdata()[0], point.get_ydata()[0]) == (got.coverage, 1 - got.accuracy)
    without = plots.plot_risk_coverage(measure_selective(y, p, accepted=None, draws=0))
    assert len(without.lines) == 3


def test_cells_have_titles_and_boxes_of_their_own_size():
    images = [np.full((40, 60, 3), 200, np.uint8), np.full((30, 30, 3), 300.0), np.zeros((9, 9, 3))]
    titles = ["monocyte", "a very long title that needs lines", "c"]
    boxes = [[0.25, 0.5, 0.75, 1.0]] * 3
    figure = plots.plot_cells(images, titles, boxes=boxes, columns=2)
    assert len(figure.axes) == 4
    assert [ax.get_title().replace("\n", " ") for ax in figure.axes] == [*titles, ""]
    assert "\n" in figure.axes[1].get_title()
    assert figure.axes[0].images[0].get_array().shape == (40, 60, 3)
    assert figure.axes[1].images[0].get_array().max() == 255
    box = figure.axes[0].patches[0]
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((29.5, 9.5), 30, 20)
    assert not plots.plot_cells(images[:1], ["a"]).axes[0].patches


def test_heatmaps_stand_beside_the_cell_and_wrong_answers_are_coloured():
    images = np.full((3, 8, 8, 3), 200, np.uint8)
    heatmaps = np.zeros((3, 8, 8))
    heatmaps[:, 2, 3] = 1
    table = pd.DataFrame(
        {"label": ["a", "a", ""], "predicted": ["a", "b", "b"], "confidence": [0.9, 0.6, 0.51]}
    )
    figure = plots.plot_heatmaps(images, heatmaps, table, columns=3)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["a 90%", "a, taken for b 60%", "b 51%"]
    colors = [ax.title.get_color() for ax in figure.axes]
    assert colors[0] == colors[2] == "black"
    assert colors[1] != "black"
    pair = figure.axes[0].images[0].get_array()
    assert pair.shape == (8, 16, 3)
    changed = np.argwhere((pair != 200).any(axis=2))
    assert changed.tolist() == [[2, 8 + 3]]  # right half, where the heat is; nowhere else


def test_answers_have_their_box_and_a_mark_where_they_are_wrong_or_unsure():
    images = [np.full((40, 60, 3), 200, np.uint8)] * 4
    columns = {"label": ["a", "a", "", ""], "predicted": ["a", "b", "b", "b"]}
    boxes = dict(zip(BOX_COLUMNS, (0.25, 0.5, 0.75, 1.0), strict=True))
    table = pd.DataFrame({**columns, "confidence": [0.9, 0.6, 0.5, 0.995], **boxes})
    table.index = [7, 3, 2, 0]  # as after a choice of rows
    figure = plots.plot_answers(images, table.assign(accepted=[True, False, False, True]))
    titles = [ax.get_title().replace("\n", " ") for ax in figure.axes]
    assert titles == ["a 90%", "a, taken for b 60%?", "b 50%?", "b 100%"]
    colors = [ax.title.get_color() for ax in figure.axes]
    assert colors[1] != "black"
    assert {*colors[:1], *colors[2:]} == {"black"}
    box = figure.axes[3].patches[0]
    assert (box.get_xy(), box.get_width(), box.get_height()) == ((29.5, 9.5), 30, 20)
    assert plots.plot_answers(images, table).axes[1].get_title().endswith("60%")


def test_plots_draw_on_given_axes(history):
    figure = Figure()
    left, right = figure.subplots(1, 2)
    y, p = simulate()
    got = evaluate(y, p)
    assert plots.plot_history(history, ax=(left, right)) == (left, right)
    for draw in (
        lambda ax: plots.plot_confusion_matrix(got.confusion, NAMES, ax=ax),
        lambda ax: plots.plot_per_class(got, ax=ax),
        lambda ax: plots.plot_roc(y, p, NAMES, evaluation=got, ax=ax),
        lambda ax: plots.plot_reliability(bin_reliability(y, p), ax=ax),
        lambda ax: plots.plot_risk_coverage(measure_selective(y, p, accepted=None, draws=0), ax=ax),
    ):
        ax = Figure().subplots()
        assert draw(ax) is ax


def test_save_figure_writes_150_dots_an_inch_and_nothing_beside(tmp_path):
    figure = Figure(figsize=(4, 2))
    figure.add_axes((0, 0, 1, 1))
    path = tmp_path / "new" / "plot.png"
    plots.save_figure(figure, path)
    with Image.open(path) as picture:
        assert picture.info["dpi"] == pytest.approx((150, 150), abs=0.1)
        assert 600 <= picture.width < 720  # the labels lie outside the axes
    assert [item.name for item in path.parent.iterdir()] == ["plot.png"]


def test_import_and_drawing_leave_pyplot_without_figures():
    code = (
        "import numpy as np, matplotlib; before = dict(matplotlib.rcParams)\n"
        "from wbc_keras import plots\n"
        "plots.plot_confusion_matrix(np.eye(3, dtype=int), ['a', 'b', 'c'])\n"
        "import matplotlib.pyplot as plt\n"
        "assert plt.get_fignums() == [] and dict(matplotlib.rcParams) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
