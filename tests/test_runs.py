from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import time
from importlib import metadata

import pytest

import wbc_keras
from wbc_keras.config import Config, ModelConfig, dump_config
from wbc_keras.errors import RunError
from wbc_keras.runs import (
    describe_environment,
    open_run,
    replacing,
    replacing_folder,
    require_empty,
    require_replaceable,
    write_json,
    write_text,
)

CONFIG = Config(name="cells", model=ModelConfig(backbone="mobilenetv2"))


@pytest.fixture
def run_folder(tmp_path):
    """A folder with what `open_run` reads; the model itself is not opened."""
    (tmp_path / "config.yaml").write_text(dump_config(CONFIG), encoding="utf-8")
    (tmp_path / "classes.json").write_text('{"classes": ["lymphocyte", "blast"]}', encoding="utf-8")
    (tmp_path / "model.keras").write_bytes(b"")
    return tmp_path


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


# Writing


def test_new_file_is_there_only_after_the_block(tmp_path):
    path = tmp_path / "history.csv"
    with replacing(path) as temporary:
        temporary.write_text("epoch\n")
        assert not path.exists()
    assert path.read_text() == "epoch\n"
    assert _names(tmp_path) == ["history.csv"]


def test_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "history.csv"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["history.csv"]


def test_failed_first_write_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "history.csv"):
        raise ZeroDivisionError
    assert _names(tmp_path) == []


def test_temporary_lies_beside_and_is_hidden_and_keeps_the_suffix(tmp_path):
    # os.replace is atomic within one file system only; Keras chooses a format by the suffix.
    with replacing(tmp_path / "state.weights.h5") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".weights.h5")


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "evaluation" / "test" / "note.txt", "x")
    assert (tmp_path / "evaluation" / "test" / "note.txt").read_text() == "x"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_file_has_the_rights_of_any_file_of_the_user(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        write_text(tmp_path / "note.txt", "x")
        assert os.umask(mask) == mask, "the mask itself stays as it was"
    finally:
        os.umask(before)
    assert (tmp_path / "note.txt").stat().st_mode & 0o777 == mode


def test_text_is_utf8(tmp_path):
    write_text(tmp_path / "note.txt", "sel darah putih: limfosit \u00b5m")
    assert (tmp_path / "note.txt").read_bytes().decode("utf-8").endswith("\u00b5m")


def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path, root):
    path = tmp_path / "state.txt"
    texts = {mark: mark * 2_000_000 for mark in "ab"}
    write_text(path, texts["a"])
    code = (
        "import itertools, sys; from pathlib import Path; from wbc_keras.runs import write_text\n"
        "print('ready', flush=True)\n"
        "for mark in itertools.cycle('ba'): write_text(Path(sys.argv[1]), mark * 2_000_000)"
    )
    for pause in (0.0, 0.003, 0.01, 0.02, 0.05):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(path)], cwd=root, stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(pause)
            writer.send_signal(signal.SIGKILL)
        assert path.read_text() in texts.values()


def test_folder_is_there_only_after_the_block(tmp_path):
    folder = tmp_path / "saved_model" / "1"
    with replacing_folder(folder) as temporary:
        (temporary / "model.pb").write_text("x")
        assert not folder.exists()
        assert temporary.parent == folder.parent
        assert temporary.name.startswith(".")
    assert _names(folder) == ["model.pb"]
    assert _names(folder.parent) == ["1"]


def test_folder_is_replaced_whole(tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "stale.csv").write_text("old")
    with replacing_folder(folder) as temporary:
        (temporary / "metrics.json").write_text("{}")
        assert _names(folder) == ["stale.csv"]
    assert _names(folder) == ["metrics.json"]
    assert _names(tmp_path) == ["test"]


def test_failed_folder_keeps_the_old_one_and_leaves_nothing(tmp_path):
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "metrics.json").write_text("old")
    with pytest.raises(ZeroDivisionError), replacing_folder(folder) as temporary:
        (temporary / "metrics.json").write_text("half")
        raise ZeroDivisionError
    assert (folder / "metrics.json").read_text() == "old"
    assert _names(tmp_path) == ["test"]


def test_folder_that_cannot_take_its_place_leaves_the_old_one(tmp_path, monkeypatch):
    folder = tmp_path / "test"
    folder.mkdir()
    (folder / "metrics.json").write_text("old")
    with pytest.raises(OSError, match="new one"), replacing_folder(folder) as temporary:
        replace = os.replace

        def refuse_the_new_one(source, target):
            if source == temporary:
                raise OSError("new one")
            replace(source, target)

        monkeypatch.setattr(os, "replace", refuse_the_new_one)
    assert (folder / "metrics.json").read_text() == "old"


def test_folder_has_the_rights_of_any_folder_of_the_user(tmp_path):
    with replacing_folder(tmp_path / "made"):
        pass
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "made").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_json_is_indented_and_ends_in_a_newline(tmp_path):
    write_json(tmp_path / "classes.json", {"classes": ["blast"], "f1": None})
    text = (tmp_path / "classes.json").read_text()
    assert json.loads(text) == {"classes": ["blast"], "f1": None}
    assert text.startswith('{\n  "classes"')
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_refuses_what_json_does_not_know(tmp_path, value):
    write_json(tmp_path / "metrics.json", {"f1": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "metrics.json", {"f1": value})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"f1": 1}
    assert _names(tmp_path) == ["metrics.json"]


# The environment


def test_environment_names_versions_and_machine():
    environment = describe_environment()
    assert environment["python"] == platform.python_version()
    assert environment["processor_count"] == os.cpu_count()
    for package in ("tensorflow", "keras", "numpy", "opencv-python-headless", "scikit-learn"):
        assert environment["packages"][package] == metadata.version(package)
    json.dumps(environment, allow_nan=False)


def test_environment_does_without_a_package(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    versions = describe_environment()["packages"]
    assert versions.pop("wbc_keras") == wbc_keras.__version__
    assert set(versions.values()) == {None}


# The run folder


def test_missing_and_empty_folders_may_be_written(tmp_path):
    require_empty(tmp_path)
    require_empty(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["config.yaml", ".hidden", "sub"])
def test_folder_with_anything_in_it_is_refused(tmp_path, name):
    (tmp_path / name).mkdir() if name == "sub" else (tmp_path / name).write_text("")
    with pytest.raises(RunError, match=r"not empty.*--output.*--resume") as error:
        require_empty(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}: ")


def test_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "run").write_text("")
    with pytest.raises(RunError, match="run: "):
        require_empty(tmp_path / "run")


def test_folder_of_ours_may_be_replaced(tmp_path):
    ours = frozenset({"metrics.json", "per_class.csv"})
    require_replaceable(tmp_path / "new", ours)
    require_replaceable(tmp_path, ours)
    (tmp_path / "metrics.json").write_text("{}")
    require_replaceable(tmp_path, ours)


def test_folder_with_something_else_is_not_replaced(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    (tmp_path / "thesis.docx").write_text("")
    with pytest.raises(RunError, match=r"thesis\.docx; choose another --output"):
        require_replaceable(tmp_path, frozenset({"metrics.json"}))


def test_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "test").write_text("")
    with pytest.raises(RunError, match="test: "):
        require_replaceable(tmp_path / "test", frozenset({"metrics.json"}))


@pytest.mark.parametrize("as_type", [str, lambda path: path])
def test_open_run_reads_config_and_classes(run_folder, as_type):
    run = open_run(as_type(run_folder))
    assert run.folder == run_folder
    assert run.config == CONFIG
    assert run.class_names == ("lymphocyte", "blast")
    assert run.model_path == run_folder / "model.keras"
    assert run.splits_path == run_folder / "splits.csv"


def test_open_run_of_no_folder(tmp_path):
    with pytest.raises(RunError, match=r"none: no such run folder.*--run"):
        open_run(tmp_path / "none")


@pytest.mark.parametrize("name", ["config.yaml", "classes.json", "model.keras"])
def test_open_run_names_the_file_that_is_missing(run_folder, name):
    (run_folder / name).unlink()
    with pytest.raises(RunError, match=rf"holds no {name}.*wbc_keras\.train") as error:
        open_run(run_folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"classes": 3}', '{"classes": "blast"}', '{"classes": [1]}']
)
def test_open_run_with_spoilt_classes_is_a_users_mistake(run_folder, text):
    (run_folder / "classes.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunError, match=r"classes\.json") as error:
        open_run(run_folder)
    assert "\n" not in str(error.value)
