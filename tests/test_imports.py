"""Imports point one way, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "wbc_keras"

# A module imports from its own layer or an earlier one, never in a circle.
LAYERS = (
    # 0: plain Python, NumPy, pandas; `commands` is here because every command stands on it
    "__init__ balance cache calibration checking.checks checking.duplicates checking.report "
    "commands config errors folds group_search labels manifest metrics pictures.headers "
    "pictures.non_cells pictures.shards pictures.smear pictures.survey prediction.decisions "
    "prediction.novelty prediction.pieces prediction.predictions prediction.spread progress "
    "reporting.checklists reporting.estimates reporting.gallery reporting.latex reporting.pages "
    "reporting.record reporting.report_tables reporting.score_tables reporting.summary "
    "reporting.tables review review.corrections review.worklist runs selection "
    "serving.model_folder sets.catalogue sets.download splits statistics.agreement "
    "statistics.bootstrap statistics.comparison statistics.patients statistics.probabilities "
    "statistics.proportions statistics.ranking statistics.screening statistics.second_look "
    "statistics.selective studies.figures studies.plan studies.report studies.results synthetic",
    # 1: TensorFlow and Keras parts
    "augment backbones layers losses pictures.cells pictures.images pictures.localize "
    "pictures.packing pictures.prepared pictures.stain pipeline prediction.engines "
    "prediction.intake prediction.symmetries serving.warmup training.depthwise training.devices "
    "training.drawing training.feeds training.hosts training.mixing",
    # 2: assembly
    "checking.data_check classifier gradcam plots prediction.archive prediction.formats "
    "prediction.inference prediction.networks prediction.overlays prediction.predictor "
    "prediction.scoring pretrained reporting.faithfulness_plots reporting.model_card "
    "reporting.novelty_report reporting.report_page reporting.screening_plots "
    "reporting.screening_report reporting.second_look_report reporting.verdicts review.desk "
    "review.fragments review.page review.smears review.view serving.provenance "
    "statistics.faithfulness studies.plots training.averaging training.data_plan "
    "training.fitting training.state",
    # 3: commands
    "compare datasets evaluate explain export manifest.__main__ merge predict prepare report "
    "review.__main__ roi score ship studies.work study train",
)
LAYER_OF = {module: layer for layer, names in enumerate(LAYERS) for module in names.split()}
TENSORFLOW = {"tensorflow", "keras", "tf_keras_vis"}
# What --help has no use for; each costs a newcomer's first second.
HEAVY = TENSORFLOW | {"cv2", "jinja2", "matplotlib", "pandas", "scipy", "seaborn", "sklearn"}
# Where a package is not imported by the name it is installed by.
DISTRIBUTIONS = {"cv2": "opencv-python-headless", "sklearn": "scikit-learn", "yaml": "PyYAML"}


def _dotted(path: Path) -> str:
    """Return a module's name within the package: "config", "manifest.munich", "manifest"."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


def _layer(module: str) -> int | None:
    """Return a module's layer; a folder's is that of its modules, but for its command."""
    if module in FOLDERS:
        return 0  # a name and a docstring
    return LAYER_OF.get(module, LAYER_OF.get(module.split(".")[0]))


MODULES = {_dotted(path): ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
# Folders that hold modules of several layers, and nothing of their own.
FOLDERS = {name.split(".")[0] for name in LAYER_OF if "." in name} - LAYER_OF.keys()
COMMANDS = sorted(
    name.removesuffix(".__main__")
    for name, tree in MODULES.items()
    if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
)


def _imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted names that a module imports anywhere, also inside its functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute: from wbc_keras.x import y"
            if str(node.module).split(".")[0] == "wbc_keras":
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            yield str(node.module)


def _own(module: str) -> set[str]:
    """Return the modules of the package that ``module`` imports."""
    names = {name.removeprefix("wbc_keras.") for name in _imports(MODULES[module])}
    return {name for name in names if name in MODULES}


def _third_party(module: str) -> set[str]:
    top = {name.split(".")[0] for name in _imports(MODULES[module])}
    return top - set(sys.stdlib_module_names) - {"wbc_keras"}


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_from_its_layer_or_an_earlier_one(module):
    layer = _layer(module)
    assert layer is not None, f"{module}: give it a layer, here and in the design"
    assert {name for name in _own(module) if (_layer(name) or 0) > layer} == set()


def test_imports_have_no_circle():
    waiting = {module: _own(module) for module in MODULES}
    while free := {module for module, needs in waiting.items() if not needs & waiting.keys()}:
        waiting = {module: needs for module, needs in waiting.items() if module not in free}
    assert not waiting


# `commands` loads TensorFlow for those that ask it to.
@pytest.mark.parametrize(
    "module",
    [name for name in sorted(MODULES) if _layer(name) == 0 and name != "commands"],
)
def test_plain_layer_never_names_tensorflow(module):
    assert not _third_party(module) & TENSORFLOW


def test_plain_layer_loads_no_tensorflow():
    plain = [f"wbc_keras.{name}" for name in sorted(MODULES) if _layer(name) == 0]
    loaded = _loaded_after(f"for name in {plain!r}: importlib.import_module(name)")
    assert not loaded & TENSORFLOW


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_heavy(command):
    loaded = _loaded_after(
        f"sys.argv = ['{command}', '--help']\n"
        f"try: runpy.run_module('wbc_keras.{command}', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "else: raise AssertionError('--help did not end the command')"
    )
    assert not loaded & HEAVY


def test_commands_are_those_of_the_design():
    design = "train evaluate explain predict roi export prepare"
    assert not set(design.split()) - set(COMMANDS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_every_import_is_a_declared_dependency(module):
    for name in _third_party(module):
        assert _normal(DISTRIBUTIONS.get(name, name)) in _declared()


def _declared() -> set[str]:
    """Return the dependencies, optional ones too, of pyproject.toml (Python 3.10: no tomllib)."""
    text = (PACKAGE.parent / "pyproject.toml").read_text("utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    extras = re.search(r"^\[project.optional-dependencies\](.*?)^dev = ", text, re.DOTALL | re.M)
    assert block is not None
    assert extras is not None
    return {_normal(name) for name in re.findall(r'"([\w-]+)', block[1] + extras[1])}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _loaded_after(code: str) -> set[str]:
    """Run ``code`` in a fresh Python and return the top-level modules that it loaded."""
    lines = [
        "import importlib, json, runpy, sys",
        code,
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=PACKAGE.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))
