"""Find the cell in a picture and crop it: batched graph operations, no loop over pictures.

The same functions run in training, in the `roi` command and inside the exported model. The nucleus
is what takes most of the stain (see `stain`) near the centre; its cell is followed along rays from
the middle of the nucleus. What lies around a nucleus is measured in sizes of that nucleus, so that
a cell is cut alike at any magnification.

Inside, pictures and masks are planes, see `stain`. Sums over pixels are sums of whole numbers below
2**24, exact in any order, so that a picture gives the same box eagerly, in a graph, in `tf.data`,
alone or in a batch.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

from wbc_keras.pictures.stain import (
    Absorbance,
    Classes,
    add_up,
    count_stain,
    enlarge,
    grow,
    halve,
    measure_absorbance,
    measure_stain,
    shrink,
    split_classes,
)

Mode = Literal["nucleus", "center", "none"]

THUMBNAIL_SIZE = 96
CENTER_SHARE = 0.75  # of the shorter side: the central square

_NUCLEUS_CUT = 0.5  # of the way from the middle class's mean to the darkest one's
_CELL_CUT = 0.4  # of the way from the palest class's mean to the middle one's
_SURROUNDINGS = 0.3  # how far around the nucleus its stain is looked at, in longer sides of it
_LEAST_CYTOPLASM = 0.08  # around every nucleus, however pale, in longer sides of it
_REACH = 1.2  # how far from its nucleus's middle a cell is followed, in longer sides of it
_LOBE_REACH = 2.5  # the same from a single lobe
_RAYS = 48  # a multiple of 4, so that quarter turns and flips map rays onto rays
_STEPS = 64  # along a ray
_GAP = 2  # steps without stain that end a cell
_NARROWEST = 11  # rays: what sticks out of a cell over fewer is another one that touches it
_BULGE = 1.1  # how much further than its surroundings a cell may stick out
_WEAKEST_CONTRAST = 8.0  # of its stain, to the whole picture's
_LEAST_PURPLE = 0.3  # of the green that a nucleus takes, this share more than of the blue
_DEEPEST_RED_CELL = 155.0  # takes less green than this, whatever its tint
_SMALLEST_NUCLEUS = 30  # thumbnail pixels
_SEED_SPREAD = 0.22  # of the side: how near the centre the cell is expected


class Roi(NamedTuple):
    """Where the cells of a batch are.

    Attributes:
        boxes: float32 ``(b, 4)``, y0, x0, y1, x1 in shares of the picture, 0 to 1.
        found: bool ``(b,)``, False where no nucleus was seen and the box is the central square.
        masks: float32 ``(b, 96, 96)``, over 0.5 on the nucleus and falling smoothly through 0.5 at
            its edge, so that it can be enlarged before the cut; 0 where nothing was looked for.
    """

    boxes: tf.Tensor
    found: tf.Tensor
    masks: tf.Tensor


def make_thumbnail(image: tf.Tensor) -> tf.Tensor:
    """Shrink a whole picture to the size that `locate` works on.

    Args:
        image: ``(height, width, 3)``, RGB, 0-255, uint8 or float.

    Returns:
        float32 ``(96, 96, 3)``, whole numbers from 0 to 255, averaged over the area (antialiased).
    """
    whole = tf.constant([0.0, 0.0, 1.0, 1.0])
    return _resample(image, whole, image_size=(THUMBNAIL_SIZE, THUMBNAIL_SIZE))


def crop(image: tf.Tensor, box: tf.Tensor, *, image_size: tuple[int, int]) -> tf.Tensor:
    """Cut a box out of a picture and resize it, antialiased, in one operation.

    Args:
        image: ``(height, width, 3)``, RGB, 0-255, uint8 or float.
        box: ``(4,)``, y0, x0, y1, x1 in shares of the picture.
        image_size: height and width of the result.

    Returns:
        uint8 ``(*image_size, 3)``.
    """
    return tf.cast(_resample(image, box, image_size=image_size), tf.uint8)


def _resample(image: tf.Tensor, box: tf.Tensor, *, image_size: tuple[int, int]) -> tf.Tensor:
    image = tf.cast(image, tf.float32)
    source = tf.cast(tf.shape(image)[:2], tf.float32)
    start, stop = tf.cast(box[:2], tf.float32) * source, tf.cast(box[2:], tf.float32) * source
    scale = tf.constant(image_size, tf.float32) / (stop - start)
    resized = tf.raw_ops.ScaleAndTranslate(
        images=image[tf.newaxis],
        size=tf.constant(image_size, tf.int32),
        scale=scale,
        translation=-start * scale,
        kernel_type="triangle",
        antialias=True,
    )[0]
    return tf.round(tf.clip_by_value(tf.ensure_shape(resized, (*image_size, 3)), 0.0, 255.0))


def locate(thumbnails: tf.Tensor, sizes: tf.Tensor, *, mode: Mode, margin: float) -> Roi:
    """Find the cell of each picture.

    Args:
        thumbnails: float32 ``(b, 96, 96, 3)`` from `make_thumbnail`.
        sizes: int32 ``(b, 2)``, height and width of each picture in pixels.
        mode: "nucleus" finds the nucleus and the cytoplasm around it; "center" is the central
            square, three quarters of the shorter side; "none" the whole picture.
        margin: room left around the cell on every side, in shares of the nucleus's longer side.

    Returns:
        Boxes are square in pixels; one that would leave the picture is shifted into it, and one
        that is larger than the picture's shorter side is clipped to it.

    Raises:
        ValueError: ``mode`` is none of the three.
    """
    if mode == "nucleus":
        return _locate_nuclei(thumbnails, sizes, margin)
    if mode not in ("center", "none"):
        raise ValueError(f"mode is nucleus, center or none. Received: mode={mode!r}")
    whole = tf.tile(tf.constant([[0.0, 0.0, 1.0, 1.0]]), (tf.shape(sizes)[0], 1))
    return Roi(
        boxes=_center_boxes(sizes) if mode == "center" else whole,
        found=tf.ones(tf.shape(sizes)[:1], tf.bool),
        masks=tf.zeros_like(thumbnails[..., 0]),
    )


def _locate_nuclei(thumbnails: tf.Tensor, sizes: tf.Tensor, margin: float) -> Roi:
    absorbance = measure_absorbance(thumbnails)
    stain = measure_stain(absorbance)
    stained = _find_cells(absorbance)
    nucleus = _whole_nucleus(stain, stained, absorbance.smear)
    classes = split_classes(count_stain(stain, absorbance.smear * _around(nucleus, _SURROUNDINGS)))
    mask = _dark_parts(stain, classes)
    nucleus = _spread(nucleus * mask, grow(mask, 3)) * mask
    found = _is_nucleus(nucleus, stain, absorbance)
    boxes = _square_boxes(nucleus, _cell_extent(nucleus, stained), sizes, margin)
    masks = _soften(nucleus, stain, classes) * tf.cast(found, tf.float32)
    return Roi(
        boxes=tf.where(found[:, tf.newaxis], boxes, _center_boxes(sizes)),
        found=found,
        masks=tf.transpose(masks[0], (2, 0, 1)),
    )


def _find_cells(absorbance: Absorbance) -> tf.Tensor:
    """Return planes of all cells, red ones too: cytoplasm can have any colour."""
    green = absorbance.green
    classes = split_classes(count_stain(green, absorbance.smear))
    return _over(green, _between(classes.pale, classes.middle, _CELL_CUT))


def _whole_nucleus(stain: tf.Tensor, stained: tf.Tensor, smear: tf.Tensor) -> tf.Tensor:
    """Return planes of the central nucleus, with its other lobes and without other nuclei."""
    mask = _dark_parts(stain, split_classes(count_stain(stain, smear)))
    main = _central_part(mask)
    # Opened, or the rim of a nucleus that reaches into the region would bring all of it.
    return tf.maximum(main, _open(mask * _region(main, stained, reach=_LOBE_REACH), 3))


def _between(low: tf.Tensor, high: tf.Tensor, share: float) -> tf.Tensor:
    return low + share * (high - low)


def _over(stain: tf.Tensor, cut: tf.Tensor) -> tf.Tensor:
    """Return planes of 1 where a picture's stain is over its cut, ``(b,)``."""
    return tf.cast(stain > cut, tf.float32)


# Shape


def _spread(values: tf.Tensor, within: tf.Tensor) -> tf.Tensor:
    """Let the largest value fill each connected part of the planes ``within``.

    Works on blocks of two by two pixels, which takes an eighth of the time; a gap of one pixel,
    at some places two, connects.
    """
    return enlarge(_spread_blocks(halve(values * within), halve(within))) * within


def _spread_blocks(values: tf.Tensor, within: tf.Tensor) -> tf.Tensor:
    def step(values: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        further = grow(grow(values, 3) * within, 3) * within
        return further, tf.reduce_max(further - values) > 0.0

    return tf.while_loop(lambda _, moved: moved, step, (values, tf.constant(True)))[0]


def _nucleus_cut(classes: Classes) -> tf.Tensor:
    return _between(classes.middle, classes.dark, _NUCLEUS_CUT)


def _dark_parts(stain: tf.Tensor, classes: Classes) -> tf.Tensor:
    """Return planes of nuclei: of dark stain, without what is thinner than five pixels.

    A cell's edge bends light and looks as dark as its nucleus, but is thin.
    """
    dark = _over(stain, _nucleus_cut(classes))
    return _open(shrink(grow(dark, 3), 3), 5)


def _open(mask: tf.Tensor, size: int) -> tf.Tensor:
    """Take away what is thinner than ``size`` pixels."""
    return grow(shrink(mask, size), size)


def _central_part(mask: tf.Tensor) -> tf.Tensor:
    """Return the connected part that is largest when pixels count less the further out they lie.

    The weight is divided by the square root of the area: a small nucleus at the centre comes before
    a large one at the edge.
    """
    blocks = halve(mask)
    side, batch = blocks.shape[1], tf.shape(mask)[-1]
    numbers = tf.reshape(tf.range(1.0, side * side + 1.0), (1, side, side, 1))
    numbers = tf.cast(_spread_blocks(numbers * blocks, blocks), tf.int32)
    count = side * side + 1
    weights, areas = (
        add_up(
            4.0 * tf.nn.avg_pool2d(values, 2, 2, "VALID"),
            numbers + count * tf.range(batch),
            count * batch,
        )
        for values in (_centrality() * mask, mask)
    )
    # weight / sqrt(area), squared, as a root may differ in its last bit with the batch
    ranks = tf.reshape(weights * weights / tf.maximum(areas, 1.0), (batch, count))
    best = tf.argmax(ranks, axis=1, output_type=tf.int32)
    return enlarge(tf.cast(numbers == best, tf.float32)) * mask


def _centrality() -> tf.Tensor:
    """Return whole weights, 256 at the centre, ``(1, 96, 96, 1)``."""
    offset = (tf.range(THUMBNAIL_SIZE, dtype=tf.float32) + 0.5) / THUMBNAIL_SIZE - 0.5
    weight = tf.exp(-((offset / _SEED_SPREAD) ** 2) / 2.0)
    return tf.round(256.0 * weight[:, tf.newaxis] * weight)[tf.newaxis, :, :, tf.newaxis]


def _area(mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(mask, axis=(0, 1, 2))


def _mean(planes: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    total = tf.reduce_sum(tf.round(planes) * mask, axis=(0, 1, 2))
    return total / tf.maximum(_area(mask), 1.0)


def _is_nucleus(nucleus: tf.Tensor, stain: tf.Tensor, absorbance: Absorbance) -> tf.Tensor:
    """Tell nuclei from red cells, which are not purple, and from an uneven blank field."""
    contrast = _mean(stain, nucleus) - _mean(stain, tf.ones_like(stain))
    green, blue = _mean(absorbance.green, nucleus), _mean(absorbance.blue, nucleus)
    purple = green - blue > _LEAST_PURPLE * green
    large = _area(nucleus) >= _SMALLEST_NUCLEUS
    return large & (contrast > _WEAKEST_CONTRAST) & (purple | (green > _DEEPEST_RED_CELL))


def _soften(nucleus: tf.Tensor, stain: tf.Tensor, classes: Classes) -> tf.Tensor:
    """Return planes that cross 0.5 where the stain crosses its cut."""
    width = tf.maximum((classes.dark - classes.middle) / 2.0, 1.0)
    edge = tf.clip_by_value(0.5 + (stain - _nucleus_cut(classes)) / width, 0.0, 1.0)
    return tf.maximum(edge * grow(nucleus, 3), shrink(nucleus, 3))


# Rays, from the middle of the nucleus outwards, in shares of its longer side


def _cell_extent(nucleus: tf.Tensor, stained: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the cell's first row and column, and one past its last: two ``(b, 2)``."""
    center, side = _place(nucleus)
    steps = _reach(nucleus, stained, reach=_REACH)[:, :, tf.newaxis]
    ends = steps * _ray_steps(_REACH)[:, 0] * side[:, :, tf.newaxis]
    return center + tf.reduce_min(ends, axis=1), center + tf.reduce_max(ends, axis=1)


def _region(nucleus: tf.Tensor, stained: tf.Tensor, *, reach: float) -> tf.Tensor:
    """Return planes of 1 within the cell, in blocks of two by two pixels."""
    center, side = _place(nucleus)
    # Middles are whole or half pixels, so the tables hold offsets of half a pixel.
    rays, radii, first = _offset_tables(reach)
    block = tf.range(2, 2 * THUMBNAIL_SIZE, 4)[tf.newaxis, :, tf.newaxis] - first
    offset = block - tf.cast(2.0 * center, tf.int32)[:, tf.newaxis]
    index = offset[..., :1] * (1 - 2 * first) + tf.transpose(offset[..., 1:], (0, 2, 1))
    ends = _reach(nucleus, stained, reach=reach) * side
    within = tf.gather(ends, tf.gather(rays, index), batch_dims=1) > tf.gather(radii, index)
    return enlarge(tf.transpose(tf.cast(within, tf.float32), (1, 2, 0))[tf.newaxis])


def _reach(nucleus: tf.Tensor, stained: tf.Tensor, *, reach: float) -> tf.Tensor:
    """Return how far the cell goes along each ray, ``(b, rays)``, in steps, at most to ``reach``.

    A ray leaves the cell at the first gap in the stain beyond the nucleus. Where cells touch there
    is none; but a cell is round, so what sticks out over a narrow angle is cut off, as an opening
    does it (Serra 1982).
    """
    samples = _sample_rays(nucleus, 2.0 * nucleus + stained, reach=reach)
    steps = tf.range(1, _STEPS + 1)
    core = tf.reduce_max(tf.where(samples > 1.0, steps, 0), axis=2)
    empty = (samples == 0.0) & (steps > core[:, :, tf.newaxis])
    for _ in range(_GAP - 1):
        empty &= tf.pad(empty[:, :, 1:], ((0, 0), (0, 0), (0, 1)), constant_values=True)
    end = tf.reduce_min(tf.where(empty, steps - 1, _STEPS), axis=2)
    end, core = tf.cast(end, tf.float32), tf.cast(core, tf.float32)
    opened = _grow_circle(-_grow_circle(-end))
    return tf.maximum(tf.minimum(end, _BULGE * opened), core)


def _sample_rays(nucleus: tf.Tensor, planes: tf.Tensor, *, reach: float) -> tf.Tensor:
    """Return the planes' values along rays from the nucleus, ``(b, rays, steps)``, 0 outside."""
    center, side = _place(nucleus)
    way = _ray_steps(reach) * (tf.range(_STEPS, dtype=tf.float32) + 0.5)[:, tf.newaxis]
    # Axis by axis: work over a last axis of two is slow.
    y, x = (
        center[:, axis, tf.newaxis, tf.newaxis] + way[:, :, axis] * side[:, :, tf.newaxis]
        for axis in (0, 1)
    )
    end = float(THUMBNAIL_SIZE)
    inside = (y >= 0.0) & (y < end) & (x >= 0.0) & (x < end)
    batch = tf.shape(planes)[-1]
    index = (tf.cast(y, tf.int32) * THUMBNAIL_SIZE + tf.cast(x, tf.int32)) * batch
    index += tf.range(batch)[:, tf.newaxis, tf.newaxis]
    samples = tf.gather(tf.reshape(planes, [-1]), tf.where(inside, index, 0))
    return tf.where(inside, samples, 0.0)


def _ray_steps(reach: float) -> tf.Tensor:
    """Return a step along each ray, y and x in longer sides of the nucleus, ``(rays, 1, 2)``."""
    angles = (np.arange(_RAYS) + 0.5) * 2.0 * np.pi / _RAYS
    ways = np.stack([np.sin(angles), np.cos(angles)], axis=1) * reach / _STEPS
    return tf.constant(ways[:, np.newaxis], tf.float32)


def _offset_tables(reach: float) -> tuple[tf.Tensor, tf.Tensor, int]:
    """Return ray and radius (in steps) of every offset, flat, and the first offset."""
    most = 2 * THUMBNAIL_SIZE
    y, x = np.mgrid[-most : most + 1, -most : most + 1]
    rays = np.floor(np.arctan2(y, x) / (2.0 * np.pi) * _RAYS).astype(np.int32) % _RAYS
    radii = np.hypot(y, x) / 2.0 * _STEPS / reach
    return tf.constant(rays.ravel()), tf.constant(radii.ravel(), tf.float32), -most


def _grow_circle(values: tf.Tensor) -> tf.Tensor:
    """Return the largest of the neighbouring rays' values, ``(b, rays)``."""
    half = _NARROWEST // 2
    wrapped = tf.concat([values[:, -half:], values, values[:, :half]], axis=1)
    return tf.nn.max_pool1d(wrapped[:, :, tf.newaxis], _NARROWEST, 1, "VALID")[:, :, 0]


def _place(nucleus: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the middle ``(b, 2)`` and the longer side ``(b, 1)`` of the nucleus, in pixels."""
    start, stop = _extent(nucleus)
    return (start + stop) / 2.0, tf.reduce_max(stop - start, axis=1, keepdims=True)


def _around(nucleus: tf.Tensor, share: float) -> tf.Tensor:
    """Return planes of 1 as far from the nucleus's box as ``share`` of its longer side."""
    start, stop = _extent(nucleus)
    reach = share * tf.reduce_max(stop - start, axis=1, keepdims=True)
    pixel = tf.range(THUMBNAIL_SIZE, dtype=tf.float32)[:, tf.newaxis, tf.newaxis]
    inside = (pixel >= start - reach) & (pixel < stop + reach)
    rows, columns = tf.unstack(tf.cast(inside, tf.float32), axis=2)
    return (rows[:, tf.newaxis] * columns)[tf.newaxis]


# Boxes


def _center_boxes(sizes: tf.Tensor) -> tf.Tensor:
    size = tf.cast(sizes, tf.float32)
    half = CENTER_SHARE / 2.0 * tf.reduce_min(size, axis=1, keepdims=True) / size
    return tf.concat([0.5 - half, 0.5 + half], axis=1)


def _square_boxes(
    nucleus: tf.Tensor, extent: tuple[tf.Tensor, tf.Tensor], sizes: tf.Tensor, margin: float
) -> tf.Tensor:
    """Box the cell with the margin, square it and shift it into the picture."""
    size = tf.cast(sizes, tf.float32)
    side = _longer_side(nucleus, sizes)
    start, stop = (edge * _pixel(sizes) for edge in _extent(nucleus))
    cell_start, cell_stop = (edge * _pixel(sizes) for edge in extent)
    start = tf.minimum(cell_start, start - _LEAST_CYTOPLASM * side) - margin * side
    stop = tf.maximum(cell_stop, stop + _LEAST_CYTOPLASM * side) + margin * side
    start, stop = tf.maximum(start, 0.0), tf.minimum(stop, size)
    side = tf.minimum(tf.reduce_max(stop - start, axis=1, keepdims=True), size)
    start = tf.clip_by_value((start + stop - side) / 2.0, 0.0, size - side)
    box = tf.concat([start / size, (start + side) / size], axis=1)
    return tf.clip_by_value(box, 0.0, 1.0)


def _longer_side(nucleus: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Return the longer side of the nucleus's box in pixels of the picture, ``(b, 1)``."""
    start, stop = _extent(nucleus)
    return tf.reduce_max((stop - start) * _pixel(sizes), axis=1, keepdims=True)


def _pixel(sizes: tf.Tensor) -> tf.Tensor:
    """Return a thumbnail pixel's height and width in pixels of the picture, ``(b, 2)``."""
    # Multiplied: a graph turns division by a constant into this, an eager call does not.
    return tf.cast(sizes, tf.float32) * (1.0 / THUMBNAIL_SIZE)


def _extent(planes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the first row and column, and one past the last, of each mask: two ``(b, 2)``."""
    used = tf.stack([tf.reduce_max(planes, axis=(0, axis)) for axis in (2, 1)], axis=2)
    first = tf.argmax(used, axis=0, output_type=tf.int32)
    last = THUMBNAIL_SIZE - tf.argmax(used[::-1], axis=0, output_type=tf.int32)
    return tf.cast(first, tf.float32), tf.cast(last, tf.float32)
