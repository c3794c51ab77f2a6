"""Tables in LaTeX: escaped, no wider than the line, and taken by LaTeX itself where it is there."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from wbc_keras.report import report
from wbc_keras.reporting.estimates import Estimate
from wbc_keras.reporting.latex import escape, render_table

FIGURE = Estimate(0.97123, 0.9, 1.0)
PREAMBLE = (
    r"\usepackage[T1]{fontenc}\usepackage{booktabs}\usepackage{graphicx}\usepackage{longtable}"
)


def render(rows, heads):
    is_text = [isinstance(cell, str) for cell in rows[0]]
    return render_table(rows, heads, title="50 % more", label="tab:t", is_text=is_text)


def forms_of(latex):
    """Return the columns' forms, as the table opens with them."""
    return re.search(r"\\begin{(?:tabular|longtable)}{@{}(.*)@{}}\n", latex)[1]


def test_everything_is_escaped_and_a_bracket_opens_no_option():
    latex = render([("x", 1), ("[5em] & $x_1$", 2), ("*<", 3)], ("a_b", "n"))
    assert r"\caption{50 \% more}" in latex
    assert r"a\_\allowbreak{}b & n" in latex
    assert "\n{[}5em] \\& \\$x\\_\\allowbreak{}1\\$ & 2 \\\\" in latex
    assert r"{*}\textless{} & 3" in latex
    assert escape("\\~^{}") == r"\textbackslash{}\textasciitilde{}\textasciicircum{}\{\}"


def test_interval_stands_beside_its_figure_where_there_is_room_and_below_it_where_not():
    assert "0.971 {[}0.900, 1.000]" in render([("x", FIGURE)], ("a", "b"))
    wide = render([("x", *[FIGURE] * 5)], tuple("abcdef"))
    assert wide.count(r"0.971\\\scriptsize {[}0.900, 1.000]") == 5


def test_long_texts_share_what_the_line_has_left():
    assert forms_of(render([("few words", 1)], ("a", "b"))) == "lr"
    forms = forms_of(render([("word " * 40, "one_word_that_is_never_broken_up", 1)], tuple("abc")))
    long, short = map(float, re.findall(r"p{(.*?)\\linewidth}", forms))
    assert forms.endswith("r")
    room = 76 - 8 - 1  # two gaps and the number
    assert long + short == pytest.approx(room / 76, abs=0.011)
    assert short >= 7 / 76  # as long as broken_
    assert long > 3 * short


def test_long_table_breaks_over_pages():
    assert "longtable" in render([(n,) for n in range(60)], ("n",))


def test_wide_table_is_small_and_fits_the_line():
    wide = render([tuple("abcdefgh" for _ in range(12))], tuple("abcdefghijkl"))
    assert r"\footnotesize\resizebox" in wide
    assert "footnotesize" not in render([("a", 1)], ("a", "b"))


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("fixture", ["scored_run", "hostile_run"])
def test_latex_takes_every_table_of_a_report_and_none_is_too_wide(request, tmp_path, fixture):
    run = shutil.copytree(request.getfixturevalue(fixture), tmp_path / "run")
    report(run)
    tables = sorted((run / "tables").glob("*.tex"))
    body = "".join(f"\\input{{{path.name}}}" for path in tables)
    document = rf"\documentclass{{article}}{PREAMBLE}\begin{{document}}{body}\end{{document}}"
    (run / "tables" / "all.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"],
        cwd=run / "tables",
        capture_output=True,
        check=False,
    )
    log = done.stdout.decode("utf-8", "replace")
    assert done.returncode == 0, log[-2000:]
    assert "Overfull" not in log
