"""The desk with a real model: cells are explained, corrections kept, bad input told."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from wbc_keras.errors import DataError, RunError
from wbc_keras.evaluate import main as evaluate
from wbc_keras.manifest import read_manifest
from wbc_keras.manifest.reviews import read_rows
from wbc_keras.prediction.predictor import Predictor
from wbc_keras.train import main as train

gradio = pytest.importorskip("gradio", reason="gradio is not installed (pip install .[review])")

from wbc_keras.review.__main__ import main  # noqa: E402
from wbc_keras.review.desk import Desk, find_typical  # noqa: E402
from wbc_keras.review.smears import open_data  # noqa: E402
from wbc_keras.review.view import View  # noqa: E402

ALL = ("", "all", "all", "", 1.0)


@pytest.fixture(scope="module")
def models(trained_run: Path) -> tuple[Predictor, Predictor]:
    return Predictor.load(trained_run), Predictor.load(trained_run, heatmaps=True)


@pytest.fixture
def desk(models: tuple[Predictor, Predictor], tmp_path: Path) -> Any:
    desk = Desk(*models, tmp_path / "out")
    yield desk
    desk.close()


@pytest.fixture
def patients(drawn_cells: Path, tmp_path: Path) -> Path:
    """Drawn cells with patients, and a file that is none."""
    folder = Path(shutil.copytree(drawn_cells, tmp_path / "cells"))
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    (folder / "monocyte" / "text.jpg").write_text("not a picture")
    rows = [f"{file},P{place % 3}\n" for place, file in enumerate([*files, "monocyte/text.jpg"])]
    (folder / "manifest.csv").write_text("file,patient\n" + "".join(rows))
    return folder


def _open(desk: Desk, data: Path) -> str:
    key = desk.open_data(open_data(data))
    desk.smear(key).start()
    desk.smear(key).see()
    desk.smear(key).wait(60)
    assert not desk.smear(key).is_running
    return key


def _rows(html: str) -> list[int]:
    return [int(row) for row in re.findall(r'data-row="(\d+)"', html)]


def _pixels(html: str, name: str) -> np.ndarray:
    address = re.search(rf'class="{name}" src="data:image/jpeg;base64,([^"]+)"', html)
    assert address is not None
    data = np.frombuffer(base64.b64decode(address[1]), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR).astype(float)


def write_bomb(path: Path) -> Path:
    """Write a sound grey PNG of 200 million pixels, 25 kB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = zlib.compress(bytes((20_000 // 8 + 1) * 10_000), 9)
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_answers_are_those_of_predict(desk, models, drawn_cells):
    key = _open(desk, drawn_cells)
    table = desk.smear(key).table()
    files = list(table["file"])
    again = models[0].tabulate(files, [(drawn_cells / file).read_bytes() for file in files])
    assert table["predicted"].tolist() == again["predicted"].tolist()
    assert np.abs(table["confidence"] - again["confidence"]).max() < 1e-5


def test_opened_cell_shows_picture_heat_box_and_bars(desk, models, drawn_cells):
    view, key = View(desk), _open(desk, drawn_cells)
    html = view.open_cell({"smear": key, "row": 5, "reviewer": ""})["cell"]
    table = desk.smear(key).table()
    plain, heat = _pixels(html, "plain"), _pixels(html, "heat")
    truth = cv2.imread(str(drawn_cells / table["file"][5])).astype(float)
    assert np.abs(plain - truth).mean() < 4  # JPEG
    png = models[1].predict([(drawn_cells / table["file"][5]).read_bytes()]).overlays[0]
    overlay = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).astype(float)
    assert np.abs(heat - overlay).mean() < 4
    assert np.abs(heat - plain).mean() > 4
    box = [float(value) for value in re.findall(r"(?:top|left|height|width):([\d.]+)%", html)[:4]]
    corners = table.loc[5, ["roi_y0", "roi_x0", "roi_y1", "roi_x1"]].to_numpy(float) * 100
    wanted = [corners[0], corners[1], corners[2] - corners[0], corners[3] - corners[1]]
    assert box == pytest.approx(wanted, abs=0.02)
    for name in ("Eosinophil", "Lymphocyte", "Monocyte", "Neutrophil segmented"):
        assert f"Call it {name}, normal" in html


def test_cells_by_page_and_sums(desk, drawn_cells):
    view, key = View(desk), _open(desk, drawn_cells)
    first, status, differential, place, *_ = view.show(key, 0, *ALL)
    second = view.show(key, 1, *ALL)[0]
    assert len(_rows(first)) == 48
    assert sorted(_rows(first) + _rows(second)) == list(range(96))
    assert view.show(key, 99, *ALL)[0] == second  # no such page
    assert "Page 1 of 2" in place
    assert "<b>96</b> cells" in status
    assert "Differential count, 96 cells" in differential
    counts = desk.smear(key).table()["predicted"].value_counts()
    name = str(counts.index[0])
    chosen = view.show(key, 0, name, *ALL[1:])
    assert f"<b>{counts.iloc[0]}</b> cells" in chosen[1]


def test_page_has_its_first_cell_before_the_rest_takes_the_cores(desk, drawn_cells):
    key = desk.open_data(open_data(drawn_cells))
    smear = desk.smear(key)
    assert smear.total > 64
    smear.start()
    while not smear.done:
        time.sleep(0.05)
    smear.wait(1)  # Far less than it waits for a page that nobody opens.
    assert smear.done == 64
    assert desk.open_cell(key, 0).heat
    smear.wait(60)
    assert smear.done == smear.total


def test_correction_is_kept_and_shown(desk, patients):
    view, key = View(desk), _open(desk, patients)
    table = desk.smear(key).table()
    request = {"smear": key, "row": 7, "reviewer": " Dr  A "}
    answer = view.correct({**request, "label": "monocyte"})
    assert answer["note"] == "Kept: Monocyte."
    view.correct({**request, "flagged": True})
    row = read_rows(desk.corrections.path)[-1]
    assert (row.corrected, row.flagged, row.reviewer) == ("monocyte", True, "Dr A")
    assert (row.file, row.predicted) == (table["file"][7], table["predicted"][7])
    assert (row.folder, row.patient) == (str(patients), "P1")
    assert "<b>Dr A</b> Monocyte, flagged" in view.open_cell(request)["cell"]
    assert view.correct({**request, "undo": True})["note"] == "Taken back."
    assert desk.corrections.standing() == {}


def test_second_reviewer_is_told_and_both_are_kept(desk, drawn_cells):
    view, key = View(desk), _open(desk, drawn_cells)
    request = {"smear": key, "row": 0, "label": "monocyte"}
    view.correct({**request, "reviewer": "A"})
    answer = view.correct({**request, "label": "lymphocyte", "reviewer": "B"})
    assert "A has called this cell Monocyte. The last answer counts." in answer["note"]
    agreement = view.agreement()
    assert "A and B" in agreement
    assert "Reviewers differ" in agreement
    assert [row.corrected for row in read_rows(desk.corrections.path)] == ["monocyte", "lymphocyte"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reviewer": "  "}, "Write your name or initials first"),
        ({"label": "<b>no class"}, "is none of the model&#39;s classes|is none of the model's"),
        ({"row": 96}, "no such cell"),
        ({"row": -1}, "no such cell"),
        ({"smear": "upload-99"}, "no longer on the desk"),
    ],
)
def test_correction_that_cannot_be_is_told_and_nothing_is_written(desk, drawn_cells, change, told):
    key = _open(desk, drawn_cells)
    request = {"smear": key, "row": 0, "label": "monocyte", "reviewer": "A"}
    assert re.search(told, View(desk).correct({**request, **change})["note"])
    assert not desk.corrections.path.exists()


def test_full_disk_is_told(desk, drawn_cells, monkeypatch):
    key = _open(desk, drawn_cells)
    request = {"smear": key, "row": 0, "label": "monocyte", "reviewer": "A"}
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left")))
    assert View(desk).correct(request)["note"] == "NOT KEPT: No space left"
    monkeypatch.undo()
    assert View(desk).correct(request)["note"] == "Kept: Monocyte."
    assert len(read_rows(desk.corrections.path)) == 1


def test_upload_is_kept_once_corrected_and_known_again(desk, drawn_cells, tmp_path):
    picture = Path(shutil.copy(drawn_cells / "monocyte" / "03.png", tmp_path / "my cell.png"))
    view = View(desk)
    _, key, *_ = view.upload([str(picture)])
    desk.smear(key).wait(60)
    view.open_cell({"smear": key, "row": 0, "reviewer": "A"})
    assert not (desk.output / "pictures").exists()
    view.correct({"smear": key, "row": 0, "label": "eosinophil", "reviewer": "A"})
    row = read_rows(desk.corrections.path)[0]
    assert (desk.output / row.file).read_bytes() == picture.read_bytes()
    assert row.file.endswith("-my cell.png")
    _, again, *_ = view.upload([str(picture)])
    desk.smear(again).wait(60)
    assert "<b>A</b> Eosinophil" in view.open_cell({"smear": again, "row": 0})["cell"]
    assert again != key


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.write_text("hello"), "is not a JPEG, PNG, TIFF or BMP picture"),
        (write_bomb, "says it has 20000x10000 pixels"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
    ],
)
def test_picture_that_cannot_be_read_is_told_on_the_page(desk, tmp_path, make, told):
    path = tmp_path / "renamed.jpg"
    make(path)
    view = View(desk)
    _, key, *_ = view.upload([str(path)])
    desk.smear(key).wait(60)
    grid, status, *_ = view.show(key, 0, *ALL)
    assert "cannot be read" in grid
    assert "<b>1</b> cannot be read" in status
    html = view.open_cell({"smear": key, "row": 0})["cell"]
    assert f"Cannot be read:</b> {told}" in html
    assert "NaN" not in html


def test_no_picture_and_other_files_are_told(desk, tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for files in ([], [str(tmp_path / "notes.txt")]):
        message = View(desk).upload(files)[3]
        assert "not picture files" in message
    assert "Drop pictures of cells above" in View(desk).show("", 0, *ALL)[0]


def test_names_are_shown_as_they_stand(desk, drawn_cells, tmp_path):
    name = "<img src=x onerror=alert(1)>${7*7}{{7*7}}.png"
    path = Path(shutil.copy(drawn_cells / "monocyte" / "03.png", tmp_path / name))
    view = View(desk)
    _, key, *_ = view.upload([str(path)])
    desk.smear(key).wait(60)
    request = {"smear": key, "row": 0, "label": "monocyte", "reviewer": "<script>"}
    pages = [view.show(key, 0, *ALL)[0], *view.correct(request).values(), view.agreement()]
    for page in pages:
        assert "<img src=x" not in page
        assert "<script" not in page
    assert "&lt;script&gt;" in pages[2]


def test_large_picture_is_explained_in_time(desk, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (4000, 6000, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "large.jpg"), image)
    view = View(desk)
    _, key, *_ = view.upload([str(tmp_path / "large.jpg")])
    desk.smear(key).wait(60)
    html = view.open_cell({"smear": key, "row": 0})["cell"]
    assert _pixels(html, "heat").shape == (480, 720, 3)
    assert len(html) < 3_000_000


def test_hundred_thousand_cells_never_block_the_page(desk, drawn_cells, tmp_path):
    folder = tmp_path / "many"
    folder.mkdir()
    # A file has at most 65,000 names on ext4.
    pictures = [shutil.copy(drawn_cells / "monocyte" / "03.png", tmp_path / n) for n in "ab"]
    for number in range(100_000):
        os.link(pictures[number % 2], folder / f"{number:06}.png")
    view = View(desk)
    key = desk.open_data(open_data(folder))
    desk.smear(key).start()
    while desk.smear(key).done < 200:
        time.sleep(0.05)
    started = time.perf_counter()
    grid, status, *_ = view.show(key, 1, *ALL)
    taken = time.perf_counter() - started
    assert len(_rows(grid)) == 48
    assert 'max="100000"' in status
    assert taken < 30, "half a second on an idle machine"
    desk.close()


def test_reviews_train_and_evaluate(desk, patients, trained_run, train_arguments, tmp_path, capsys):
    key = _open(desk, patients)
    files = desk.smear(key).table()["file"]
    for row, file in enumerate(files):
        if row % 2:
            label = file.split("/")[0]
            desk.correct(key, row, label=label, flagged=False, reviewer="A")
    reviews = str(desk.corrections.path)
    manifest = read_manifest(reviews)
    assert manifest.root == patients
    assert set(manifest.table["group"]) == {"P0", "P1", "P2"}
    assert (
        evaluate(["--run", str(trained_run), "--data", reviews, "--output", str(tmp_path / "e")])
        == 0
    )
    assert (tmp_path / "e" / "metrics.json").is_file()
    arguments = [*train_arguments[:2], "--data", reviews, "--dry-run"]
    assert train([*arguments, "--output", str(tmp_path / "run")]) == 0
    assert "groups 3" in capsys.readouterr().out


def test_typical_cells_come_from_the_models_own_sheet(run_copy, drawn_cells):
    assert find_typical(run_copy) == {}
    folder = run_copy / "explanations"
    folder.mkdir()
    lines = ["file,label,predicted,confidence"]
    lines += [f"monocyte/{n:02}.png,monocyte,monocyte,0.{n + 10}" for n in range(5)]
    lines += ["monocyte/09.png,monocyte,lymphocyte,0.99"]
    (folder / "cells.csv").write_text("\n".join(lines) + "\n")
    found = find_typical(run_copy)
    assert found == {"monocyte": [drawn_cells / f"monocyte/{n:02}.png" for n in (4, 3, 2)]}


def test_output_is_looked_at_before_the_model_is_loaded(tmp_path, trained_run):
    (tmp_path / "file").write_text("")
    started = time.perf_counter()
    with pytest.raises(RunError, match="cannot be written"):
        Desk.load(trained_run, tmp_path / "file")
    (tmp_path / "reviews.csv").write_text("something else\n")
    with pytest.raises(DataError, match="is no table of reviews"):
        Desk.load(trained_run, tmp_path)
    assert time.perf_counter() - started < 10, "a moment on an idle machine"


# The command


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--model", "nowhere"], "nowhere: no such run folder or SavedModel"),
        (["--model", "docs"], "docs: is neither a run folder"),
        (["--model", "MODEL", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["--model", "MODEL", "--output", "README.md"], "README.md/reviews.csv: cannot be written"),
        (["--model", "MODEL", "--host", "no.such.host.invalid"], "is no address of this machine"),
        (["--model", "MODEL", "--host", "192.0.2.1"], "cannot be listened at"),
        (["--model", "MODEL", "--port", "99999"], "expected 1 to 65535"),
    ],
)
def test_mistake_ends_in_one_line(arguments, told, trained_run, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    arguments = [str(trained_run) if one == "MODEL" else one for one in arguments]
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert told in lines[0]


def test_port_in_use_is_told_before_anything_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--model", "nowhere", "--port", str(port)]) == 2
    assert (
        f"--port {port}: cannot be listened at (Address already in use)" in capsys.readouterr().err
    )
