"""From picture files to cropped cells: the same from every format, bad ones told, memory flat."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf

from wbc_keras.config import RoiConfig
from wbc_keras.pictures.cells import StoredImages, crop_chunk, iter_chunks, load_cells
from wbc_keras.pictures.images import BadImage
from wbc_keras.pictures.localize import crop, locate, make_thumbnail
from wbc_keras.synthetic import draw_cell

SIZE = (40, 48)
ROI = RoiConfig()


def write(path, image):
    _, encoded = cv2.imencode(path.suffix, np.ascontiguousarray(image[..., ::-1]))
    path.write_bytes(encoded.tobytes())
    return path


def drawn(size, seed=0):
    return draw_cell("monocyte", size=size, rng=np.random.default_rng(seed)).image


def test_same_picture_in_each_format_gives_the_same_crop(tmp_path):
    image = drawn(100)
    paths = [write(tmp_path / f"cell{suffix}", image) for suffix in (".png", ".tiff", ".bmp")]
    cells = load_cells(paths, roi=ROI, image_size=SIZE)
    assert cells.images.shape == (3, *SIZE, 3)
    assert cells.images.dtype == np.uint8
    for i in (1, 2):
        np.testing.assert_array_equal(cells.images[i], cells.images[0])
        np.testing.assert_array_equal(cells.boxes[i], cells.boxes[0])


def test_pictures_of_several_sizes_come_out_in_order(tmp_path):
    # 70 cells are more than one chunk.
    sizes = [50 + 3 * (i % 11) for i in range(70)]
    images = [drawn(size, seed) for seed, size in enumerate(sizes)]
    paths = [write(tmp_path / f"{i}.png", image) for i, image in enumerate(images)]
    cells = load_cells(paths, roi=ROI, image_size=SIZE)
    assert (len(cells), cells.boxes.shape, cells.found.shape) == (70, (70, 4), (70,))
    for i in (0, 1, 63, 64, 69):
        alone = locate(
            make_thumbnail(images[i])[None],
            tf.constant([images[i].shape[:2]]),
            mode=ROI.mode,
            margin=ROI.margin,
        )
        np.testing.assert_allclose(cells.boxes[i], alone.boxes[0], atol=1e-6)
        assert cells.found[i] == bool(alone.found[0])
        expected = crop(tf.constant(images[i]), tf.constant(cells.boxes[i]), image_size=SIZE)
        np.testing.assert_array_equal(cells.images[i], expected)


def test_whole_picture_of_the_right_size_is_untouched(tmp_path):
    image = drawn(64)
    path = write(tmp_path / "cell.png", image)
    cells = load_cells([path], roi=RoiConfig(mode="none"), image_size=(64, 64))
    np.testing.assert_array_equal(cells.images[0], image)
    np.testing.assert_array_equal(cells.boxes[0], [0, 0, 1, 1])


def test_crop_is_the_box_of_the_picture(tmp_path):
    # A picture of the pixel's own place shows which part was taken.
    rows, columns = np.mgrid[:120, :200]
    image = np.stack([rows, columns, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    path = write(tmp_path / "place.png", image)
    cells = load_cells([path], roi=RoiConfig(mode="center"), image_size=(32, 32))
    y0, x0, y1, x1 = cells.boxes[0] * [120, 200, 120, 200]
    assert y1 - y0 == pytest.approx(x1 - x0, abs=0.01)
    step = (y1 - y0) / 32
    centers = (np.arange(32) + 0.5) * step - 0.5
    np.testing.assert_allclose(cells.images[0, :, 16, 0], y0 + centers, atol=0.6)
    np.testing.assert_allclose(cells.images[0, 16, :, 1], x0 + centers, atol=0.6)


def test_cells_are_yielded_in_chunks_and_no_path_is_asked_for_long_before_its_turn(tmp_path):
    path = write(tmp_path / "cell.png", drawn(40))
    asked = 0

    def paths():
        nonlocal asked
        for asked in range(1, 2001):  # noqa: B007
            yield path

    chunks = iter_chunks(paths(), roi=ROI, image_size=SIZE)
    assert len(next(chunks).cells) == 64
    assert asked < 2000
    assert sum(len(chunk.cells) for chunk in chunks) == 2000 - 64


def test_threads_that_crop_first_are_not_warned_of_retracing(tmp_path, caplog):
    paths = [write(tmp_path / f"{i}.png", drawn(40 + i)) for i in range(16)]
    load_cells(paths, roi=ROI, image_size=(33, 37))
    assert not caplog.text


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_of_large_pictures_one_a_core_is_held(tmp_path):
    """Decoded, each of these is 94 MB; side by side in the graph, ten of them would be."""
    image = cv2.resize(drawn(100), (2500, 2500))
    paths = [write(tmp_path / f"{i}.jpg", image) for i in range(12)]
    code = """
    import re, sys
    from pathlib import Path
    from wbc_keras.pictures.cells import crop_chunk
    from wbc_keras.config import RoiConfig
    # Not getrusage, which counts what the process that started this one held.
    peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
    paths = [Path(path) for path in sys.argv[1:]]
    settings = {"roi": RoiConfig(), "image_size": (32, 32)}
    crop_chunk(paths[:1], **settings)
    before = peak()
    crop_chunk(paths, **settings)
    print(peak() - before)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, paths)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout) < 200


def test_unreadable_picture_is_named(tmp_path):
    good, bad = write(tmp_path / "good.png", drawn(40)), tmp_path / "bad.png"
    bad.write_bytes(good.read_bytes()[:200])
    with pytest.raises(BadImage, match=r"bad\.png"):
        load_cells([good, bad], roi=ROI, image_size=SIZE)


@pytest.mark.parametrize("workers", [1, 4])
def test_bad_pictures_are_told_by_place_and_change_no_other(tmp_path, workers, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: workers)
    paths = [write(tmp_path / f"{i}.png", drawn(40 + i, i)) for i in range(6)]
    alone = load_cells(paths, roi=ROI, image_size=SIZE)
    good = paths[0].read_bytes()
    faults = {
        "cut.png": good[: len(good) // 2],
        "empty.jpg": b"",
        "text.jpg": b"no picture",
        "thin.png": cv2.imencode(".png", np.zeros((1, 30, 3), np.uint8))[1].tobytes(),
    }
    for name, data in faults.items():
        (tmp_path / name).write_bytes(data)
    mixed = [*paths[:3], *(tmp_path / name for name in faults), tmp_path / "gone.png", *paths[3:]]
    (chunk,) = iter_chunks(mixed, roi=ROI, image_size=SIZE)
    assert [chunk.bad[place].path for place in sorted(chunk.bad)] == mixed[3:8]
    assert "30x1" in chunk.bad[6].reason
    kept = [0, 1, 2, 8, 9, 10]
    np.testing.assert_array_equal(chunk.cells.images[kept], alone.images)
    np.testing.assert_array_equal(chunk.cells.boxes[kept], alone.boxes)
    assert not chunk.cells.found[3:8].any()
    assert chunk.cells.images[3:8].max() == 0


def test_a_chunk_of_bad_pictures_only(tmp_path):
    chunk = crop_chunk([tmp_path / "a.png", tmp_path / "b.png"], roi=ROI, image_size=SIZE)
    assert sorted(chunk.bad) == [0, 1]
    assert chunk.cells.images.shape == (2, *SIZE, 3)


def test_stored_images_are_rows_of_the_file(tmp_path):
    array = np.arange(5 * 2 * 2 * 3, dtype=np.uint8).reshape(5, 2, 2, 3)
    path = tmp_path / "images.bin"
    array.tofile(path)
    images = StoredImages(path, image_size=(2, 2), rows=np.array([4, 0, 2]))
    path.unlink()  # a cache that is cleared under a run
    assert (len(images), images.shape) == (3, (3, 2, 2, 3))
    np.testing.assert_array_equal(images[1], array[0])
    np.testing.assert_array_equal(images[np.array([2, 0])], array[[2, 4]])
    np.testing.assert_array_equal(np.asarray(images), array[[4, 0, 2]])


def test_stored_images_are_read_by_many_threads_at_once(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (200, 4, 5, 3)).astype(np.uint8)
    array.tofile(tmp_path / "images.bin")
    images = StoredImages(tmp_path / "images.bin", image_size=(4, 5), rows=np.arange(200))
    with ThreadPoolExecutor(8) as pool:
        orders = [np.random.default_rng(seed).permutation(200) for seed in range(40)]
        for order, read in zip(orders, pool.map(images.__getitem__, orders), strict=True):
            np.testing.assert_array_equal(read, array[order])
