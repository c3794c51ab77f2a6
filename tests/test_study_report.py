"""A study's tables, words and picture."""

from __future__ import annotations

import dataclasses
import io

import pandas as pd
import pytest
from simulated_study import GRID, GRID_SKILLS, SKILLS, read_study, simulate

from wbc_keras.plots import save_figure
from wbc_keras.statistics.comparison import Difference
from wbc_keras.studies.figures import measure_study
from wbc_keras.studies.plots import plot_study
from wbc_keras.studies.report import StudyReport, explain, verdict


@pytest.fixture
def study(tmp_path):
    return read_study(tmp_path)


def fail(result, error):
    return dataclasses.replace(result, error=error, answers=None, facts=None)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((0.01, 0.05), "helped"),
        ((-0.05, -0.01), "hurt"),
        ((-0.01, 0.05), "not shown to help or hurt"),
        ((0.0, 0.05), "not shown to help or hurt"),
        (None, "not shown to help or hurt"),
    ],
)
def test_verdict(interval, expected):
    middle = 0.03 if interval is None else sum(interval) / 2
    assert verdict(Difference(0.5, 0.5 + middle, middle, interval)) == expected


def test_words_say_what_helped_and_how_sure_that_is(study):
    (words,) = explain(measure_study(study, simulate(study, SKILLS)))
    assert words.startswith("Against the baseline `plain`.")
    first = words[words.index("On **macro F1**") : words.index("On **rare")]
    assert "helped: `better` (+" in first
    assert "not shown to help or hurt: `same` (" in first
    assert "anywhere from \N{MINUS SIGN}" in first
    assert "hurt: `" not in first.replace("help or hurt: `", "")


def test_words_name_what_hurt(study):
    skills = {"plain": 2.5, "better": 1.0, "same": 2.5}
    (words,) = explain(measure_study(study, simulate(study, skills)))
    assert "On **macro F1**, hurt: `better` (\N{MINUS SIGN}" in words


def test_words_of_a_grid_are_of_its_components(tmp_path):
    grid = read_study(tmp_path, GRID)
    results = simulate(grid, GRID_SKILLS)
    figures = measure_study(grid, results)
    (words,) = explain(figures)
    assert "`model.attention cbam` (+" in words
    text = StudyReport(grid, figures, results).text()
    assert "| model.attention | `cbam` | `none` | 2 |" in text


def test_nothing_to_say_before_two_settings_have_run(study):
    results = [one for one in simulate(study, SKILLS) if one.cell.setting == "plain"]
    figures = measure_study(study, results)
    assert explain(figures) == []
    text = StudyReport(study, figures, results).text()
    assert "3 of 9 runs are finished. **This is a part of the study**" in text


def test_text_holds_every_setting_and_what_failed(study):
    results = simulate(study, SKILLS)
    results[-1] = fail(results[-1], "the run's process was ended by SIGKILL | memory")
    report = StudyReport(study, measure_study(study, results), results)
    text = report.text()
    assert "8 of 9 runs are finished, 1 failed." in text
    assert "| `same` | 2 of 3 |" in text
    assert "- `same/fold3_seed0`: the run's process was ended by SIGKILL \\| memory" in text
    assert "- `better`: model.attention cbam" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    # A notebook has no file beside it for the text's picture.
    assert "![" in text
    shown = report._repr_markdown_()
    assert "![" not in shown
    assert shown.splitlines()[0] == text.splitlines()[0]
    assert table == [line for line in shown.splitlines() if line.startswith("|")]


def test_table_has_a_row_for_each_setting_and_run(study):
    results = simulate(study, SKILLS)
    results[-1] = fail(results[-1], "no room")
    figures = measure_study(study, results)
    table = pd.read_csv(
        io.StringIO(StudyReport(study, figures, results).table().to_csv(index=False))
    )
    assert table["kind"].value_counts().to_dict() == {"run": 9, "setting": 3}
    better = table[(table["kind"] == "setting") & (table["name"] == "better")].iloc[0]
    difference = figures.settings[1].differences["macro_f1"]
    assert better["macro_f1_difference"] == pytest.approx(difference.difference)
    assert better["macro_f1_difference_low"] == pytest.approx(difference.interval[0])
    assert better["training_minutes"] == 10
    assert better["validation_macro_f1"] == 0.5
    runs = table[table["kind"] == "run"].set_index(["name", "repeat"])
    assert runs.loc[("same", "fold3_seed0"), "error"] == "no room"
    assert runs.loc[("same", "fold2_seed0"), "epochs"] == 10
    assert runs["macro_f1"].notna().sum() == 8


@pytest.mark.parametrize("text", [None, GRID])
def test_picture_has_a_row_for_each_setting_and_what_it_is_held_against(tmp_path, text):
    study = read_study(tmp_path, text) if text else read_study(tmp_path)
    skills = GRID_SKILLS if text else SKILLS
    axes = plot_study(measure_study(study, simulate(study, skills)))
    assert axes.shape == (2, 4)
    above, below = ([label.get_text() for label in one.get_yticklabels()] for one in axes[:, 0])
    assert above == [one.name for one in study.settings]
    assert below == (["model.attention cbam", "loss.name focal"] if text else ["better", "same"])
    save_figure(axes[0][0].figure, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 1000


def test_picture_of_the_first_run_alone(study):
    results = simulate(study, SKILLS)[:1]
    assert plot_study(measure_study(study, results)).shape == (2, 4)
