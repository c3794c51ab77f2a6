"""A manifest of a million rows: one bad row is told by its number, in seconds and little memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from wbc_keras.manifest import read_manifest

_READ = """
import re, sys, time
import numpy, pandas
from wbc_keras.errors import DataError
from wbc_keras.manifest import read_manifest
# Not getrusage, which counts what the process that started this one held.
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
before, start = peak(), time.perf_counter()
try:
    read_manifest(sys.argv[1])
except DataError as error:
    print(error)
print(peak() - before, time.perf_counter() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_one_bad_row_of_a_million(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "cells.csv"
    with path.open("w", encoding="utf-8") as stream:
        stream.write("file,label,patient,note\n")
        for n in range(1_000_000):
            label = "" if n == 777_775 else f"class_{n % 15:02d}"
            stream.write(f"{n % 15:02d}/Patient_{n % 997:04d}_{n:07d}.jpg,{label},P{n % 997},x\n")
    done = subprocess.run(
        [sys.executable, "-c", _READ, str(path)],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    told, figures = done.stdout.splitlines()
    assert told == f"{path}: row 777777: the label is empty; fill it"
    megabytes, seconds = map(float, figures.split())
    assert megabytes < 300
    assert seconds < 60, "a few seconds on an idle machine"


def test_labels_and_patients_are_one_string_each(tmp_path: Path) -> None:
    lines = ["file,label,patient,split"]
    for n in range(40):
        (tmp_path / f"{n}.png").write_bytes(b"x")
        lines.append(f"{n}.png,{'xy'[n % 2]} label,patient {n % 4},{'val' if n % 4 else 'train'}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    # As in a plain install: pyarrow, where it is there, keeps no Python strings at all.
    with pd.option_context("mode.string_storage", "python"):
        table = read_manifest(tmp_path).table
    for column, values in (("label", 2), ("group", 4), ("split", 2)):
        assert len({id(value) for value in table[column].to_numpy(dtype=object)}) == values
