from __future__ import annotations

import argparse
import errno
import logging
import os
import subprocess
import sys

import pytest

from wbc_keras.commands import make_parser, run_action, silent_stderr
from wbc_keras.errors import ConfigError, DataError, RunError, WbcError


def _raise(error):
    def action(arguments):
        raise error

    return action


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Keep what run_action sets for the process out of the other tests."""
    monkeypatch.setattr(logging, "basicConfig", lambda **options: None)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")


def test_done_is_0_and_action_gets_the_arguments(capsys):
    seen = []
    assert run_action(seen.append, argparse.Namespace(run="here")) == 0
    assert seen == [argparse.Namespace(run="here")]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", [WbcError, ConfigError, DataError, RunError])
def test_users_mistake_is_2_and_one_line(capsys, kind):
    assert run_action(_raise(kind("cells: no such folder")), argparse.Namespace()) == 2
    assert capsys.readouterr() == ("", "error: cells: no such folder\n")


@pytest.mark.parametrize("bug", [ValueError("a bug"), KeyError("a bug"), OSError("a bug")])
def test_bug_is_left_to_python(bug):
    with pytest.raises(type(bug), match="a bug"):
        run_action(_raise(bug), argparse.Namespace())


def test_bug_ends_with_1_and_a_traceback(root):
    code = (
        "import argparse, sys; from wbc_keras.commands import run_action\n"
        "sys.exit(run_action(lambda arguments: 1 / 0, argparse.Namespace()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_users_log_level_for_tensorflow_wins():
    run_action(lambda arguments: None, argparse.Namespace())
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"


def test_tensorflow_starts_without_a_word_and_gives_no_advice():
    code = (
        "from wbc_keras.commands import load_tensorflow; load_tensorflow()\n"
        "import tensorflow as tf; same = lambda x: x\n"
        "for _ in range(9): tf.function(same)(tf.constant(1.0))"  # is advised not to
    )
    unset = {key: value for key, value in os.environ.items() if key != "TF_CPP_MIN_LOG_LEVEL"}
    done = subprocess.run([sys.executable, "-c", code], env=unset, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_what_a_failing_block_wrote_is_shown(capfd):
    with silent_stderr():
        os.write(2, b"chatter")
    assert capfd.readouterr().err == ""
    with pytest.raises(ValueError, match="bad"), silent_stderr():
        os.write(2, b"why it failed")
        raise ValueError("bad")
    assert capfd.readouterr().err == "why it failed"


def test_full_disk_is_one_line_and_code_2(capsys):
    def action(arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "run/model.keras")

    assert run_action(action, argparse.Namespace()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: run/model.keras: No space left")
    assert error.count("\n") == 1


def test_parser_names_itself_as_typed(capsys):
    with pytest.raises(SystemExit) as end:
        make_parser("train", "Train a model.").parse_args(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m wbc_keras.train ")
    assert "Train a model." in shown


def test_parser_ends_with_2_on_an_unknown_option(capsys):
    with pytest.raises(SystemExit) as end:
        make_parser("train", "Train a model.").parse_args(["--speed"])
    assert end.value.code == 2
    assert "--speed" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [ConfigError, DataError, RunError])
def test_every_error_is_a_users_mistake(kind):
    assert issubclass(kind, WbcError)


def test_output_that_nobody_reads_any_more_is_no_error(root):
    code = (
        "import argparse, sys; from wbc_keras.commands import run_action\n"
        "sys.exit(run_action(lambda arguments: print('x' * 100), argparse.Namespace()))"
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
