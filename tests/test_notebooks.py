"""What every notebook has in common; nbmake runs them from top to bottom."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))
BADGE = "https://colab.research.google.com/github/OWNER/wbc_keras/blob/main/notebooks/"


def read(path):
    return nbformat.read(path, as_version=4).cells


def code_of(cells):
    """Return the cells of code, without the lines that are IPython's own."""
    sources = (cell.source for cell in cells if cell.cell_type == "code")
    return [re.sub(r"^(\s*)%.*", r"\1pass", source, flags=re.MULTILINE) for source in sources]


def test_they_are_numbered_and_named_in_the_readme(root):
    assert [int(path.name[:2]) for path in NOTEBOOKS] == [1, 2, 3, 4]
    text = (root / "README.md").read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        assert path.name in text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_it_begins_with_a_badge_of_its_own_and_a_title(self, path):
        badge, _, title = read(path)[0].source.partition("\n\n")
        assert f"({BADGE}{path.name})" in badge
        assert title.startswith("# ")

    def test_it_installs_the_package_only_where_it_is_missing(self, path):
        first = code_of(read(path))[0]
        assert 'find_spec("wbc_keras") is None' in first
        # What names TensorFlow, or upgrades, takes Colab's own away.
        install = next(cell.source for cell in read(path) if "%pip" in cell.source)
        assert install.splitlines()[-1].strip() == "%pip install --quiet {SOURCE}"

    def test_it_defines_nothing_that_belongs_in_the_package(self, path):
        for source in code_of(read(path)):
            kinds = {type(node) for node in ast.walk(ast.parse(source))}
            assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.Lambda}

    def test_it_is_stored_without_outputs(self, path):
        code = [cell for cell in read(path) if cell.cell_type == "code"]
        assert not any(cell.outputs or cell.execution_count for cell in code)

    def test_it_says_what_it_is_not_for(self, path):
        assert "**For research use only.**" in read(path)[0].source
