"""The command: files where they belong, again at any time, one line for a mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wbc_keras.report import main, report


@pytest.fixture
def run(scored_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(scored_run, tmp_path / "run"))


def test_writes_page_card_and_tables(run, capsys):
    assert main(["--run", str(run)]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [run / "report.html", run / "model_card.md", run / "tables"]
    assert {path.suffix for path in (run / "tables").iterdir()} == {".csv", ".tex"}
    assert (run / "tables/per_class.csv").read_text().startswith("class,")


def test_again_with_what_has_come_since(run):
    shutil.move(run / "evaluation", run.parent / "kept")
    report(run)
    assert "was not scored yet" in (run / "report.html").read_text("utf-8")
    assert not (run / "tables/figures.csv").exists()
    shutil.move(run.parent / "kept", run / "evaluation")
    report(run)
    assert "was not scored yet" not in (run / "report.html").read_text("utf-8")
    assert (run / "tables/figures.csv").exists()


def test_pictures_left_out_are_counted(run):
    (run / "bad_images.txt").write_text("a.png: is cut off\nb.png: is blank\n")
    report(run)
    assert "were left out: 2 " in (run / "report.html").read_text("utf-8")


def test_no_pictures(run):
    assert main(["--run", str(run), "--no-pictures"]) == 0
    assert "data:image/jpeg" not in (run / "report.html").read_text("utf-8")


def test_something_of_the_users_in_tables_is_kept(run, capsys):
    (run / "tables").mkdir()
    (run / "tables" / "mine.txt").write_text("mine")
    assert main(["--run", str(run)]) == 2
    assert "mine.txt" in capsys.readouterr().err
    assert not (run / "report.html").exists()


def test_mistakes_are_one_line(run, capsys):
    (run / "evaluation/test/metrics.json").write_text("{")
    for arguments in (["--run", str(run)], ["--run", str(run.parent / "none")]):
        assert main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_no_tensorflow_is_loaded(run):
    code = (
        "import json, sys\nfrom wbc_keras.report import main\n"
        f"assert main(['--run', {str(run)!r}]) == 0\n"
        "heavy = {'tensorflow', 'keras', 'tf_keras_vis'}\n"
        "print(json.dumps(sorted(heavy & set(sys.modules))))"
    )
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_of_a_real_run(run_copy, evaluation):
    """A run that `train` and `evaluate` wrote, its classes all normal and without patients."""
    shutil.copytree(evaluation, run_copy / "evaluation" / "test")
    report(run_copy)
    page = (run_copy / "report.html").read_text("utf-8")
    assert "screening is not judged" in page
    assert 'id="out-coverage"' in page
    assert 'id="out-sensitivity"' not in page
