"""Drawn pictures that hold no white cell to name: what a model should find foreign.

A cell finder on a real smear also stops at these: an empty field, a clump of platelets, a speck of
stain, and a cell so far out of focus that nobody could name it.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np

from wbc_keras.pictures.smear import (
    FIELD_WIDTH,
    Slide,
    add_platelets,
    add_red_cells,
    blob,
    draw_stain,
    photograph,
)
from wbc_keras.synthetic import CLASS_NAMES, draw_cell

_BLUR = (1.4, 2.2)  # of a cell out of focus, micrometres


def draw_non_cell(kind: str, *, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one picture, uint8 ``(size, size, 3)``, RGB.

    Args:
        kind: one of `KINDS`.
        size: pixels, both sides.
        rng: where every random choice comes from.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in _DRAWN:
        raise ValueError(f"kind: expected one of {KINDS}. Received: {kind!r}")
    return _DRAWN[kind](size, rng)


def _draw_empty_field(size: int, rng: np.random.Generator) -> np.ndarray:
    # No room is kept free at the centre.
    return photograph(_strew(size, rng, free=0.0))


def _draw_platelet_clump(size: int, rng: np.random.Generator) -> np.ndarray:
    slide = _strew(size, rng, free=4.0)
    middle, body = _centre(rng), slide.empty()
    for place in middle + rng.normal(0, 1.7, (int(rng.integers(8, 20)), 2)):
        platelet = blob(rng, rng.uniform(0.7, 1.3), stretch=rng.uniform(1.0, 1.5), wobble=0.12)
        body = np.maximum(body, slide.fill([platelet], place) * rng.uniform(0.6, 1.1))
    slide.add(body * (1 + 0.5 * slide.texture(0.6)), {"purple": 0.5, "pink": 0.12, "blue": 0.08})
    return photograph(slide)


def _draw_dirt(size: int, rng: np.random.Generator) -> np.ndarray:
    """Draw precipitate: ragged, even, nearly black grains, the largest near the centre."""
    slide = _strew(size, rng, free=3.0)
    middle, grains = _centre(rng), slide.empty()
    for number in range(int(rng.integers(5, 25))):
        radius = rng.uniform(1.2, 3.2) if number == 0 else rng.uniform(0.15, 0.9)
        place = middle + (0 if number == 0 else rng.normal(0, 3.5, 2))
        ragged = blob(rng, radius, stretch=rng.uniform(1.0, 2.2), wobble=0.45)
        grains = np.maximum(grains, slide.fill([ragged], place))
    slide.add(grains, {"purple": rng.uniform(1.5, 3.0), "blue": rng.uniform(0.4, 2.0)})
    return photograph(slide)


def _draw_out_of_focus(size: int, rng: np.random.Generator) -> np.ndarray:
    cell = draw_cell(str(rng.choice(CLASS_NAMES)), size=size, rng=rng)
    sigma = rng.uniform(*_BLUR) * size / FIELD_WIDTH
    return np.asarray(cv2.GaussianBlur(cell.image, (0, 0), sigma), np.uint8)


def _strew(size: int, rng: np.random.Generator, *, free: float) -> Slide:
    """Return a field of red cells and platelets that leaves a disc at the centre free."""
    slide = Slide(size, rng, draw_stain(rng))
    middle = np.full(2, FIELD_WIDTH / 2)
    add_red_cells(slide, middle, free)
    add_platelets(slide, middle, free)
    return slide


def _centre(rng: np.random.Generator) -> np.ndarray:
    return FIELD_WIDTH / 2 + rng.uniform(-2, 2, 2)


_DRAWN: dict[str, Callable[[int, np.random.Generator], np.ndarray]] = {
    "empty_field": _draw_empty_field,
    "platelet_clump": _draw_platelet_clump,
    "dirt": _draw_dirt,
    "out_of_focus": _draw_out_of_focus,
}
KINDS: tuple[str, ...] = tuple(_DRAWN)
