"""A bar for who watches, lines for a file: on a pipe, a terminal and in a notebook's own kernel."""

from __future__ import annotations

import os
import subprocess
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from wbc_keras import progress
from wbc_keras.progress import show_progress

# What a C library would print of a bad picture stands for all of them.
WORK = """
import os, time
from wbc_keras.progress import keras_verbosity, show_progress
with show_progress(40, "cells", done=10) as tell:
    for _ in range(30):
        os.write(2, b"libjpeg: bad\\n")
        time.sleep(0.02)
        tell(1)
print("verbose", keras_verbosity())
"""


def test_a_short_work_leaves_nothing_in_a_file(root):
    done = subprocess.run(
        [sys.executable, "-c", WORK], cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert done.stdout == "verbose 2\n"


def test_a_long_work_leaves_lines_in_a_file(capfd, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS", 0)
    with show_progress(40, "cells", done=10) as tell:
        tell(20)
        os.write(2, b"libjpeg: bad\n")
        tell(10)
    out, err = capfd.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first.startswith("75% 30/40 [")
    assert second.startswith("100% 40/40 [")
    assert "cells/s" in second
    assert "\r" not in err


def test_a_mistake_is_told_with_what_was_hidden(capfd):
    with pytest.raises(ValueError, match="no"), show_progress(40, "cells"):
        os.write(2, b"why it failed\n")
        raise ValueError("no")
    assert "why it failed" in capfd.readouterr().err


def test_a_terminal_has_a_bar(root):
    master, slave = os.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", WORK], cwd=root, stdout=slave, stderr=slave
    ) as process:
        os.close(slave)
        seen = b""
        while chunk := _read(master):
            seen += chunk
    os.close(master)
    assert process.returncode == 0
    assert seen.count(b"\r") > 2
    assert b"40/40" in seen
    assert b"libjpeg" not in seen
    assert b"verbose 1" in seen


def _read(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # Linux's word for a terminal whose other end is closed
        return b""


def test_a_notebook_has_a_bar_among_what_is_printed(root):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(WORK)])
    NotebookClient(notebook, resources={"metadata": {"path": str(root)}}).execute()
    outputs = notebook.cells[0].outputs
    assert {output.name for output in outputs} == {"stdout"}
    text = "".join(output.text for output in outputs)
    assert "40/40" in text
    assert "verbose 1" in text
