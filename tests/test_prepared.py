"""The prepared store: made once, whole or not at all, never believed when damaged."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time
from datetime import datetime
from pathlib import Path

import cv2
import filelock
import numpy as np
import pandas as pd
import pytest

from wbc_keras.config import RoiConfig
from wbc_keras.errors import DataError
from wbc_keras.manifest import read_manifest
from wbc_keras.pictures.cells import load_cells
from wbc_keras.pictures.prepared import prepare
from wbc_keras.prepare import main
from wbc_keras.synthetic import draw_cell

SIZE = (32, 40)
ROI = RoiConfig()
# What another process runs: the arguments are the folder of cells and what to do first.
PREPARE = """
import sys
from wbc_keras.config import RoiConfig
from wbc_keras.manifest import read_manifest
{first}
from wbc_keras.pictures.prepared import prepare
print(prepare(read_manifest(sys.argv[1]), roi=RoiConfig(), image_size=(32, 40)).folder)
"""


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("WBC_KERAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def master(tmp_path_factory):
    """A hundred and fifty cells in two classes: three chunks."""
    folder = tmp_path_factory.mktemp("master")
    for number in range(150):
        label = ("monocyte", "lymphocyte")[number % 2]
        image = draw_cell(label, size=48, rng=np.random.default_rng(number)).image
        path = folder / label / f"{number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes())
    return folder


@pytest.fixture
def data(master, tmp_path):
    """A copy that a test may change; hard links would change the master with it."""
    folder = tmp_path / "cells"
    for path in master.rglob("*.png"):
        copy = folder / path.relative_to(master)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return folder


def make(data, *, roi=ROI, image_size=SIZE):
    return prepare(read_manifest(data), roi=roi, image_size=image_size)


def stores(cache):
    folder = cache / "prepared"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def start(data, *, first="", **options):
    code = PREPARE.format(first=textwrap.dedent(first))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(data)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# What it holds


def test_cells_are_those_read_from_the_files(data):
    prepared, manifest = make(data), read_manifest(data)
    files = manifest.table["file"].iloc[[149, 3, 70, 64]]
    cells = prepared.take(files)
    expected = load_cells([data / file for file in files], roi=ROI, image_size=SIZE)
    np.testing.assert_array_equal(np.asarray(cells.images), expected.images)
    np.testing.assert_array_equal(cells.boxes, expected.boxes)
    np.testing.assert_array_equal(cells.found, expected.found)
    with pytest.raises(ValueError, match="expected files"):
        prepared.take(pd.Series(["elsewhere.png"]))


def test_it_is_made_once_and_shared_by_splits_of_the_source(data, capsys):
    first = make(data)
    assert "preparing 150 cells" in capsys.readouterr().out
    stamp = (first.folder / "images.bin").stat().st_mtime_ns
    again = make(data)
    assert capsys.readouterr().out == ""
    assert (again.folder / "images.bin").stat().st_mtime_ns == stamp


def test_other_settings_and_other_pictures_are_other_stores(data, cache):
    folders = {
        make(data).folder,
        make(data, image_size=(40, 32)).folder,
        make(data, roi=dataclasses.replace(ROI, margin=0.3)).folder,
    }
    changed = next(data.rglob("*.png"))
    changed.write_bytes(next((data / "lymphocyte").glob("*1.png")).read_bytes() + b" ")
    folders.add(make(data).folder)
    next(data.rglob("*.png")).unlink()
    folders.add(make(data).folder)
    assert len(folders) == len(stores(cache)) == 5


def test_bad_pictures_are_remembered(data):
    (data / "monocyte" / "000.png").write_bytes(b"no picture")
    for prepared in (make(data), make(data)):
        files = pd.Series(["monocyte/000.png", "monocyte/002.png"])
        assert list(prepared.bad_among(files)) == ["monocyte/000.png"]
        assert prepared.bad_among(files[1:]) == {}
        assert len(prepared.take(files[1:])) == 1
        with pytest.raises(DataError, match=r"^1 picture cannot be used: .*000\.png: is not"):
            prepared.take(files)


def test_a_jpeg_cut_and_closed_is_bad_though_it_decodes(data):
    image = cv2.imread(str(data / "monocyte" / "000.png"))
    whole = cv2.imencode(".jpg", image)[1].tobytes()
    (data / "monocyte" / "whole.jpg").write_bytes(whole)
    (data / "monocyte" / "altered.jpg").write_bytes(whole[:-200] + b"\xff\xd9")
    prepared = make(data)
    (reason,) = [fault.reason for fault in prepared.bad.values()]
    assert "JPEG data are damaged" in reason
    with pytest.raises(DataError, match=r"altered\.jpg"):
        prepared.take(pd.Series(["monocyte/altered.jpg"]))
    assert prepared.take(pd.Series(["monocyte/whole.jpg"])).images[0].any()


def test_headers_decide_what_is_read_so_their_code_is_part_of_the_key(data, monkeypatch, tmp_path):
    first = make(data).folder
    changed = tmp_path / "headers.py"
    changed.write_text("MAX_PIXELS = 1")
    monkeypatch.setattr("wbc_keras.pictures.headers.__file__", str(changed))
    assert make(data).folder != first


# Kills, full disks, two at once


def test_a_killed_run_leaves_nothing_that_is_taken_for_a_store(data, cache):
    # Killed by itself, at a moment between two chunks.
    first = """
    import os, signal
    from wbc_keras.pictures import cells
    from wbc_keras.pictures import prepared
    whole = cells.iter_chunks
    def stop(paths, **settings):
        chunks = whole(paths, **settings)
        yield next(chunks)
        os.kill(os.getpid(), signal.SIGKILL)
    prepared.iter_chunks = stop
    """
    killed = start(data, first=first)
    assert killed.wait(120) == -signal.SIGKILL
    killed.communicate()
    (left,) = stores(cache)
    assert left.startswith(".")
    # Other settings are another store; what was killed is removed all the same.
    prepared = make(data, image_size=(40, 32))
    assert stores(cache) == [prepared.folder.name]
    assert len(prepared.found) == 150


def test_two_that_want_it_at_once_make_it_once(data, cache):
    both = [start(data) for _ in range(2)]
    outputs = [process.communicate(timeout=180) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert sum("preparing" in out for out, _ in outputs) == 1
    assert len({out.splitlines()[-1] for out, _ in outputs}) == 1
    assert len(stores(cache)) == 1


def test_a_full_disk_is_told_in_one_line_and_leaves_nothing(data, cache):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    process = start(data, preexec_fn=limit)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "DataError" in errors
    assert "make room there, or set the environment variable WBC_KERAS_CACHE" in errors
    assert stores(cache) == []


def test_too_little_room_is_told_before_the_work(data, cache, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with pytest.raises(DataError, match=r"0\.0 GB are needed, 0\.0 GB are free"):
        make(data)
    assert stores(cache) == []


# Damage


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("images.bin", lambda data: data[:-1]),
        ("images.bin", lambda data: data[:5000] + b"\xff\x00\xff" + data[5003:]),
        ("boxes.npy", lambda data: data[:-4] + b"abcd"),
        ("found.npy", lambda data: b""),
        ("about.json", lambda data: data[:20]),
        ("about.json", lambda data: b"[]"),
    ],
)
def test_a_damaged_store_is_made_anew(data, caplog, name, damage):
    first = make(data)
    expected = {path.name: path.read_bytes() for path in first.folder.iterdir()}
    path = first.folder / name
    path.write_bytes(damage(expected[name]))
    with caplog.at_level(logging.WARNING):
        again = make(data)
    assert f"is damaged ({name}" in caplog.text
    assert {path.name: path.read_bytes() for path in again.folder.iterdir()} == expected


def test_a_missing_file_is_damage(data):
    first = make(data)
    (first.folder / "boxes.npy").unlink()
    assert (make(data).folder / "boxes.npy").exists()


# The command


def test_command_makes_what_training_reads(data, cache, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text("data: {image_size: [32, 40]}\nmodel: {weights: none}\n")
    settings = ["--set", "train.head_epochs=0", "--set", "train.freeze_batch_norm=false"]
    arguments = ["--config", str(config), "--data", str(data), *settings]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "cells 150" in out
    assert out.splitlines()[-1] == str(make(data).folder)
    assert len(stores(cache)) == 1


def test_command_names_bad_pictures(data, tmp_path, capsys):
    for name in ("000", "002"):
        (data / "monocyte" / f"{name}.png").write_bytes(b"")
    config = tmp_path / "config.yaml"
    config.write_text("model: {weights: none}\ntrain: {head_epochs: 0, freeze_batch_norm: false}\n")
    arguments = ["--config", str(config), "--data", str(data)]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: 2 pictures cannot be used: ")
    assert "000.png: the file is empty" in line
    assert "data.bad_images=skip" in line
    assert main([*arguments, "--set", "data.bad_images=skip"]) == 0
    assert "bad pictures 2" in capsys.readouterr().out
    # Training does not ask for these.
    assert main([*arguments, "--set", "data.exclude_labels=[monocyte]"]) == 0


# What is kept


def backdate(folder: Path, *, days: float) -> None:
    then = time.time() - days * 86_400
    os.utime(folder, (then, then))


def test_list_shows_size_last_use_and_source(data, cache, capsys):
    old, new = make(data).folder, make(data, image_size=(40, 32)).folder
    backdate(old, days=40)
    capsys.readouterr()
    assert main(["--list"]) == 0
    first, second, total = capsys.readouterr().out.splitlines()
    size = sum(path.stat().st_size for path in old.iterdir()) / 1e6
    then = datetime.fromtimestamp(time.time() - 40 * 86_400)
    assert first.startswith(f"{size:,.1f} MB".rjust(12) + f"  used {then:%Y-%m-%d}")
    assert first.endswith(f"prepared/{old.name}  {data}")
    assert f"prepared/{new.name}" in second
    assert total.endswith(f" MB in {cache}")
    # Use counts, not age.
    make(data)
    assert main(["--list"]) == 0
    assert f"prepared/{new.name}" in capsys.readouterr().out.splitlines()[0]


def test_what_no_run_has_used_is_removed(data, cache, capsys):
    old, new = make(data).folder, make(data, image_size=(40, 32))
    for folder in (old, new.folder):
        backdate(folder, days=40)
    new = make(data, image_size=(40, 32))
    capsys.readouterr()
    assert main(["--remove-unused", "30"]) == 0
    out = capsys.readouterr().out
    assert old.name in out
    assert new.folder.name not in out
    assert stores(cache) == [new.folder.name]
    # A run that has it open goes on.
    cells = new.take(new.files.to_series())
    assert main(["--remove-unused", "0"]) == 0
    assert stores(cache) == []
    assert np.asarray(cells.images).any()
    assert main(["--remove-unused", "0"]) == main(["--list"]) == 0


def test_what_is_being_made_is_not_removed(data, cache):
    folder = make(data).folder
    lock = filelock.FileLock(cache / "locks" / f"prepared-{folder.name}.lock")
    with lock:
        assert main(["--remove-unused", "0"]) == 0
    assert stores(cache) == [folder.name]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--list", "--config", "a.yaml"],
        ["--list", "--remove-unused", "3"],
        ["--remove-unused"],
        ["--remove-unused", "-1"],
        ["--remove-unused", "nan"],
        ["--remove-unused", "a month"],
    ],
)
def test_mistaken_options_are_refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "error: " in capsys.readouterr().err


def test_about_names_the_source(data):
    about = json.loads((make(data).folder / "about.json").read_text())
    assert about["source"] == str(data)
    assert len(about["checksums"]) == 3


# Size


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_million_pictures_stay_under_a_gigabyte_and_a_half(tmp_path):
    """The index and the reading of batches alone: the pictures' file is one large hole."""
    code = """
    import re, sys
    sys.modules["jax"] = None  # which Keras loads where it is there: of development alone
    import numpy as np, pandas as pd, tensorflow as tf
    from wbc_keras.config import AugmentConfig
    from wbc_keras.manifest.table import make_manifest
    from wbc_keras.pipeline import make_training_batches
    from wbc_keras.pictures.prepared import Prepared
    from pathlib import Path
    n = 1_000_000
    files = [f"class_{i % 15:02d}/patient_{i % 997:04d}_cell_{i:07d}.jpg" for i in range(n)]
    labels = [f"class_{i % 15:02d}" for i in range(n)]
    manifest = make_manifest(Path(sys.argv[1]), {"file": files, "label": labels})
    del files, labels
    root = Path(sys.argv[1])
    with (root / "images.bin").open("wb") as stream:
        stream.truncate(n * 96 * 96 * 3)
    prepared = Prepared(root, pd.Index(manifest.table["file"]), {}, image_size=(96, 96),
        boxes=np.zeros((n, 4), np.float32), found=np.ones(n, bool))
    cells = prepared.take(manifest.table["file"].iloc[::-1])
    batches = make_training_batches(cells, np.zeros(n, np.int32), np.ones(n, np.float32),
        augment=AugmentConfig(), batch_size=32, seed=0, epochs=range(2))
    count = sum(1 for _ in batches.take(50))
    # Not getrusage, which counts what the process that started this one held.
    print(count, int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1e6)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, gigabytes = done.stdout.split()
    assert int(count) == 50
    assert float(gigabytes) < 1.5
