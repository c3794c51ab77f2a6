from __future__ import annotations

import cv2
import numpy as np
import pytest
import tensorflow as tf

from wbc_keras.pictures.images import read_image
from wbc_keras.pictures.localize import THUMBNAIL_SIZE, Roi, crop, locate, make_thumbnail
from wbc_keras.synthetic import CLASS_NAMES, draw_cell

MARGIN = 0.1
FIELD, RED_CELL = (250, 232, 215), (205, 172, 165)
CYTOPLASM, NUCLEUS = (205, 185, 222), (85, 45, 130)


def _draw(size=160, *, center=None, nuclei=((0, 0, 22),), radius=38, red_cells=True):
    """Return a drawn cell and its nucleus; lobes are (y, x, radius) from the cell's centre."""
    image = np.full((size, size, 3), FIELD, np.uint8)
    y, x = center or (size // 2, size // 2)
    corners = ((18, 18), (20, size - 16), (size - 18, 22), (size - 20, size - 20))
    for row, column in corners if red_cells else ():
        cv2.circle(image, (column, row), 14, RED_CELL, -1, cv2.LINE_AA)
    cv2.circle(image, (x, y), radius, CYTOPLASM, -1, cv2.LINE_AA)
    nucleus = np.zeros((size, size), np.uint8)
    for row, column, lobe in nuclei:
        cv2.circle(image, (x + column, y + row), lobe, NUCLEUS, -1, cv2.LINE_AA)
        cv2.circle(nucleus, (x + column, y + row), lobe, 1, -1)
    return image, nucleus.astype(bool)


def _locate(*images, mode="nucleus", margin=MARGIN) -> Roi:
    thumbnails = tf.stack([make_thumbnail(image) for image in images])
    sizes = tf.constant([image.shape[:2] for image in images])
    return locate(thumbnails, sizes, mode=mode, margin=margin)


def _iou(mask, truth):
    enlarged = cv2.resize(np.asarray(mask), truth.shape[::-1]) > 0.5
    return (enlarged & truth).sum() / (enlarged | truth).sum()


def _pixels(box, image):
    return np.asarray(box, np.float64) * np.tile(image.shape[:2], 2)


LOBES = ((-20, -8, 11), (14, -16, 11), (10, 20, 11))


@pytest.mark.parametrize("nuclei", [((0, 0, 22),), ((6, -8, 20),), LOBES], ids=len)
@pytest.mark.parametrize("tint", [(255, 255, 255), (255, 250, 150), (215, 225, 255)])
def test_finds_nucleus_and_keeps_cell(nuclei, tint):
    image, nucleus = _draw(nuclei=nuclei)
    image = np.round(image * (np.array(tint) / 255)).astype(np.uint8)
    roi = _locate(image)
    top, left, bottom, right = _pixels(roi.boxes[0], image)
    assert roi.found.numpy().all()
    assert _iou(roi.masks[0], nucleus) > 0.9
    assert max(top, left) <= 80 - 38
    assert min(bottom, right) >= 80 + 38
    assert bottom - top < 1.4 * 76


def test_follows_a_shift():
    moves = [(0, 0), (0, 14), (-10, 0), (12, -15)]
    images = [_draw(center=(80 + y, 80 + x), nuclei=LOBES)[0] for y, x in moves]
    boxes = _locate(*images).boxes.numpy() * 160
    np.testing.assert_allclose(boxes - boxes[0], [[y, x, y, x] for y, x in moves], atol=3.5)


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_follows_a_quarter_turn_and_a_flip(turns):
    image, _ = _draw(center=(74, 88), nuclei=LOBES)
    turned = np.ascontiguousarray(np.rot90(image, turns)[:, ::-1])
    original, other = _locate(image, turned).boxes.numpy() * 160
    corners = np.zeros((160, 160), bool)
    top, left, bottom, right = np.round(original).astype(int)
    corners[top:bottom, left:right] = True
    rows, columns = np.where(np.rot90(corners, turns)[:, ::-1])
    expected = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    np.testing.assert_allclose(other, expected, atol=3.5)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.5])
def test_box_grows_with_the_cell(scale):
    nuclei = [(int(y * scale), int(x * scale), int(r * scale)) for y, x, r in LOBES]
    image, _ = _draw(nuclei=nuclei, radius=int(38 * scale), red_cells=False)
    top, left, bottom, right = _pixels(_locate(image).boxes[0], image)
    diameter = 2 * int(38 * scale)
    assert diameter <= bottom - top <= 1.45 * diameter
    assert (top + bottom) / 2 == pytest.approx(80, abs=4)
    assert (left + right) / 2 == pytest.approx(80, abs=4)


def test_margin_widens_by_the_nucleus():
    image, nucleus = _draw(red_cells=False)
    narrow, wide = (_pixels(_locate(image, margin=margin).boxes[0], image) for margin in (0.1, 0.3))
    side = np.ptp(np.where(nucleus)[0]) + 1
    np.testing.assert_allclose(wide - narrow, 0.2 * side * np.array([-1, -1, 1, 1]), atol=2)


def test_leaves_a_neighbour_out():
    image, nucleus = _draw(size=200)
    cv2.circle(image, (185, 60), 24, CYTOPLASM, -1)
    cv2.circle(image, (185, 60), 20, NUCLEUS, -1)
    roi = _locate(image)
    assert _iou(roi.masks[0], nucleus) > 0.9
    assert _pixels(roi.boxes[0], image)[3] < 161


def _drawn(class_name, *, seed=0, size=160):
    """Return a cell of `synthetic` with its masks of nucleus and cell."""
    cell = draw_cell(class_name, size=size, rng=np.random.default_rng(seed))
    return cell.image, cell.mask == 255, cell.mask > 0


def _kept(box, cell):
    top, left, bottom, right = np.round(_pixels(box, cell)).astype(int)
    return cell[top:bottom, left:right].sum() / cell.sum()


def _dyed(image, mix):
    """Change the colours of the dyes: optical densities times a matrix (Beer and Lambert)."""
    density = -np.log10((image + 1.0) / 256.0)
    return np.clip(256.0 * 10.0 ** -(density @ mix) - 1.0, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("class_name", CLASS_NAMES)
@pytest.mark.parametrize(
    "mix",
    [0.5 * np.eye(3), 1.4 * np.eye(3), np.eye(3) + 0.15 * np.roll(np.eye(3), 1, axis=0)],
    ids=["pale", "deep", "other dyes"],
)
def test_other_stains(class_name, mix):
    image, nucleus, cell = _drawn(class_name, seed=1)
    roi = _locate(_dyed(image, mix))
    assert roi.found.numpy().all()
    assert _iou(roi.masks[0], nucleus) > 0.7
    assert _kept(roi.boxes[0], cell) > 0.98


@pytest.mark.parametrize("angle", [0.0, 0.8, 2.5, 4.0])
def test_leaves_a_cell_that_touches_out(angle):
    image, nucleus = _draw(red_cells=False)
    y, x = 80 + int(70 * np.sin(angle)), 80 + int(70 * np.cos(angle))
    cv2.circle(image, (x, y), 34, CYTOPLASM, -1)
    cv2.circle(image, (x, y), 29, NUCLEUS, -1)
    roi = _locate(image)
    assert _iou(roi.masks[0], nucleus) > 0.9
    assert _area(roi.boxes[0]) * 160**2 < 1.6 * 77**2


def _area(box):
    top, left, bottom, right = np.asarray(box)
    return (bottom - top) * (right - left)


def test_red_cells_that_touch_do_not_widen_the_box():
    image, _ = _draw(red_cells=False)
    alone = _locate(image).boxes[0]
    for angle in (0.3, 1.9, 3.4, 5.0):
        place = (80 + int(57 * np.cos(angle)), 80 + int(57 * np.sin(angle)))
        cv2.circle(image, place, 19, RED_CELL, -1, cv2.LINE_AA)
    cv2.circle(image, (80, 80), 38, CYTOPLASM, -1, cv2.LINE_AA)
    cv2.circle(image, (80, 80), 22, NUCLEUS, -1, cv2.LINE_AA)
    assert _area(_locate(image).boxes[0]) < 1.35 * _area(alone)


def test_keeps_pale_cytoplasm_and_its_lobes_without_any_purple():
    image, nucleus = _draw(nuclei=LOBES, red_cells=False)
    image[(image == CYTOPLASM).all(axis=2)] = (226, 196, 168)
    roi = _locate(image)
    assert _iou(roi.masks[0], nucleus) > 0.85
    assert _kept(roi.boxes[0], cv2.circle(np.zeros((160, 160)), (80, 80), 38, 1, -1) > 0) > 0.99


def test_small_central_nucleus_comes_before_a_large_one_at_the_edge():
    image, nucleus = _draw(nuclei=((0, 0, 12),), radius=20, red_cells=False)
    cv2.circle(image, (150, 30), 42, CYTOPLASM, -1)
    cv2.circle(image, (150, 30), 38, NUCLEUS, -1)
    assert _iou(_locate(image).masks[0], nucleus) > 0.85


@pytest.mark.parametrize("frame", ["corners", "bars", "border"])
def test_black_frame_is_not_a_nucleus(frame):
    image, nucleus, cell = _drawn("neutrophil_segmented")
    if frame == "corners":
        seen = cv2.circle(np.zeros((160, 160), np.uint8), (80, 80), 85, 1, -1)
        image = image * seen[:, :, np.newaxis]
    elif frame == "bars":
        image[:, :22] = 4
        image[:, -22:] = 4
    else:
        width = ((30, 30), (30, 30))
        image = np.pad(image, (*width, (0, 0)))
        nucleus, cell = np.pad(nucleus, width), np.pad(cell, width)
    roi = _locate(image)
    assert _iou(roi.masks[0], nucleus) > 0.85
    assert _kept(roi.boxes[0], cell) > 0.97
    assert _area(roi.boxes[0]) < 0.6


def test_dirt_and_platelets_are_left_out():
    image, nucleus = _draw(red_cells=False)
    for place in ((16, 30), (140, 20), (30, 140), (150, 120), (90, 150)):
        cv2.circle(image, place, 6, (60, 30, 90), -1)
    roi, alone = _locate(image), _locate(_draw(red_cells=False)[0])
    assert _iou(roi.masks[0], nucleus) > 0.95
    np.testing.assert_allclose(roi.boxes[0], alone.boxes[0], atol=0.03)


def test_smudge_without_cytoplasm_is_found():
    image, _ = _draw(nuclei=(), radius=0)
    smudge = cv2.ellipse(np.zeros((160, 160), np.uint8), (84, 76), (44, 27), 20, 0, 360, 1, -1) > 0
    image[smudge] = (190, 110, 170)
    roi = _locate(cv2.GaussianBlur(image, (0, 0), 2))
    assert _iou(roi.masks[0], smudge) > 0.9


def test_same_cell_at_any_magnification():
    image, _, _ = _drawn("neutrophil_band", seed=3, size=400)
    sides = []
    for field in (270, 330, 400):  # pixels of the large picture that are seen
        start = (400 - field) // 2
        part = image[start : start + field, start : start + field]
        box = _locate(part).boxes[0].numpy()
        sides.append((box[2] - box[0]) * field)
    np.testing.assert_allclose(sides, sides[0], rtol=0.06)


@pytest.mark.parametrize("class_name", CLASS_NAMES[::2])
def test_box_of_a_drawn_cell_follows(class_name):
    image, _, _ = _drawn(class_name, seed=2)
    top, left, bottom, right = box = _locate(image).boxes[0].numpy()
    shifted = np.roll(np.pad(image, ((16, 16), (16, 16), (0, 0)), "reflect"), (9, -7), (0, 1))
    expected = np.array([9, -7, 9, -7]) / 160 + box
    pairs = [
        (shifted[16:-16, 16:-16], expected),
        (np.rot90(image), np.array([1 - right, top, 1 - left, bottom])),
        (image[::-1], np.array([1 - bottom, left, 1 - top, right])),
    ]
    for moved, expected in pairs:
        found = _locate(np.ascontiguousarray(moved)).boxes[0].numpy()
        start, stop = np.maximum(found[:2], expected[:2]), np.minimum(found[2:], expected[2:])
        common = np.prod(np.maximum(stop - start, 0))
        assert common / (_area(found) + _area(expected) - common) >= 0.9


@pytest.mark.parametrize(
    "image",
    [
        np.full((120, 90, 3), 255, np.uint8),
        np.zeros((120, 90, 3), np.uint8),
        np.random.default_rng(0).integers(225, 240, (120, 90, 3), dtype=np.uint8),
    ],
    ids=["white", "black", "noise"],
)
def test_blank_picture_falls_back_to_the_centre(image):
    roi, center = _locate(image), _locate(image, mode="center")
    assert not roi.found.numpy().any()
    assert center.found.numpy().all()
    np.testing.assert_array_equal(roi.boxes, center.boxes)
    assert not roi.masks.numpy().any()


def test_red_cells_alone_are_not_a_nucleus():
    image = np.full((160, 160, 3), FIELD, np.uint8)
    for y, x in ((75, 85), (30, 30), (130, 50)):
        cv2.circle(image, (x, y), 22, RED_CELL, -1, cv2.LINE_AA)
    assert not _locate(image).found.numpy().any()


@pytest.mark.parametrize("shape", [(160, 160), (120, 200), (240, 100), (2, 2), (37, 501)])
@pytest.mark.parametrize("mode", ["nucleus", "center"])
def test_box_is_inside_and_square(shape, mode):
    height, width = shape
    image = cv2.resize(_draw(center=(50, 110))[0], (width, height))
    box = _locate(image, mode=mode, margin=0.2).boxes[0]
    top, left, bottom, right = _pixels(box, image)
    assert np.all((np.asarray(box) >= 0) & (np.asarray(box) <= 1))
    assert top < bottom
    assert left < right
    shorter = min(shape)
    if max(bottom - top, right - left) < shorter - 0.01:
        assert bottom - top == pytest.approx(right - left, abs=0.01)
    else:
        assert min(bottom - top, right - left) == pytest.approx(shorter, abs=0.01)


def test_center_and_none_are_what_they_say():
    image = np.zeros((100, 200, 3), np.uint8)
    np.testing.assert_allclose(
        _locate(image, mode="center").boxes[0], [0.125, 0.3125, 0.875, 0.6875]
    )
    np.testing.assert_array_equal(_locate(image, mode="none").boxes[0], [0, 0, 1, 1])
    with pytest.raises(ValueError, match="Received: mode='middle'"):
        _locate(image, mode="middle")


@pytest.mark.parametrize("mode", ["nucleus", "center", "none"])
def test_same_eagerly_in_a_graph_in_data_and_alone(mode, pbc):
    images = [read_image(path) for path in sorted(pbc.glob("*/*.jpg"))[::1000]]
    thumbnails = tf.stack([make_thumbnail(image) for image in images])
    sizes = tf.constant([image.shape[:2] for image in images])

    def find(thumbnails, sizes):
        return locate(thumbnails, sizes, mode=mode, margin=MARGIN)

    def shrink_and_find(image, size):
        return find(make_thumbnail(image)[tf.newaxis], size[tf.newaxis])

    eager = find(thumbnails, sizes)
    graph = tf.function(find)(thumbnails, sizes)
    data = tf.data.Dataset.from_tensor_slices((np.stack(images), sizes)).map(
        shrink_and_find, num_parallel_calls=2
    )
    singly = Roi(*(tf.concat(parts, axis=0) for parts in zip(*data, strict=True)))
    for other in (graph, singly):
        for name in Roi._fields:
            np.testing.assert_array_equal(getattr(other, name), getattr(eager, name), name)


def test_empty_batch_gives_an_empty_result():
    empty = tf.zeros((0, THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3))
    roi = locate(empty, tf.zeros((0, 2), tf.int32), mode="nucleus", margin=MARGIN)
    assert [part.shape[0] for part in roi] == [0, 0, 0]


def _weights(source, start, stop, count):
    """Return (count, source) triangle weights, as wide as an output pixel or an input one."""
    step = (stop - start) / count
    width = max(step, 1.0)
    centers = start + (np.arange(count) + 0.5) * step
    distance = np.abs(np.arange(source) + 0.5 - centers[:, np.newaxis]) / width
    weights = np.maximum(1.0 - distance, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _resize(image, box, image_size):
    height, width = image.shape[:2]
    rows = _weights(height, box[0] * height, box[2] * height, image_size[0])
    columns = _weights(width, box[1] * width, box[3] * width, image_size[1])
    return np.einsum("ih,jw,hwc->ijc", rows, columns, image.astype(np.float64))


@pytest.mark.parametrize("image_size", [(40, 32), (90, 120)])
@pytest.mark.parametrize("box", [(0, 0, 1, 1), (0.2, 0.125, 0.8, 0.875), (0.5, 0.31, 1, 0.83)])
def test_crop_equals_numpy(box, image_size):
    image = np.random.default_rng(1).integers(0, 256, (100, 80, 3), dtype=np.uint8)
    ours = crop(image, np.array(box, np.float32), image_size=image_size).numpy()
    assert ours.dtype == np.uint8
    assert np.abs(ours - _resize(image, box, image_size)).max() < 0.52


def test_thumbnail_equals_numpy():
    image = np.random.default_rng(2).integers(0, 256, (200, 150, 3), dtype=np.uint8)
    ours = make_thumbnail(image).numpy()
    assert ours.dtype == np.float32
    assert np.abs(ours - _resize(image, (0, 0, 1, 1), (96, 96))).max() < 0.52
    np.testing.assert_array_equal(ours, np.round(ours))


def test_crop_does_not_alias():
    stripes = np.zeros((160, 160, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = crop(stripes, np.array([0, 0, 1, 1], np.float32), image_size=(40, 40)).numpy()
    assert np.ptp(shrunk[:, 2:-2].astype(int)) <= 4
    assert shrunk.mean() == pytest.approx(127.5, abs=3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_crop_of_everything_at_the_same_size_is_the_picture(dtype):
    image = np.random.default_rng(2).integers(0, 256, (31, 47, 3)).astype(dtype)
    same = crop(image, np.array([0, 0, 1, 1], np.float32), image_size=(31, 47))
    np.testing.assert_array_equal(same, image)


def test_crop_is_the_same_eagerly_in_a_graph_and_in_data():
    image = np.random.default_rng(3).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    box = np.array([0.1, 0.2, 0.7, 0.73], np.float32)

    def cut(image, box):
        return crop(image, box, image_size=(32, 24))

    eager = cut(image, box)
    graph = tf.function(cut)(tf.constant(image), tf.constant(box))
    data = next(iter(tf.data.Dataset.from_tensors((image, box)).map(cut)))
    np.testing.assert_array_equal(eager, graph)
    np.testing.assert_array_equal(eager, data)
    assert data.shape == (32, 24, 3)
