"""What other laboratories do to a picture of a cell: changes for `roi.py`, each with its mask.

A change takes an RGB picture (uint8), its mask (0 background, 128 cytoplasm, 255 nucleus) and a
random generator, and returns both changed. Light is multiplied, dyes are scaled as optical
densities.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

Pair = tuple[np.ndarray, np.ndarray]
Change = Callable[[np.ndarray, np.ndarray, np.random.Generator], Pair]


def warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Move a picture's content, antialiased, and fill by reflection what is uncovered."""
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if scale < 1:
        image = cv2.GaussianBlur(image, (0, 0), 0.4 / scale)
    size = image.shape[1::-1]
    return cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REFLECT_101)


def warp_mask(mask: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(mask, matrix, mask.shape[::-1], flags=cv2.INTER_NEAREST)


# Colour


def _as_light(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Change:
    """Make a change of the picture's light (0-255) that leaves the mask alone."""
    return lambda image, mask, rng: (
        np.clip(np.rint(change(image.astype(np.float32), rng)), 0, 255).astype(np.uint8),
        mask,
    )


def _as_density(change: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Change:
    return _as_light(
        lambda light, rng: 256.0 * 10.0 ** -change(-np.log10((light + 1.0) / 256.0), rng) - 1.0
    )


def _mix_colors(density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.maximum(density @ (np.eye(3) + rng.uniform(-0.18, 0.18, (3, 3))), 0.0)


def _fade(light: np.ndarray, _: np.random.Generator) -> np.ndarray:
    grey = light.mean(axis=2, keepdims=True)
    return grey + 0.5 * (light - grey)


def _slope(light: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    height, width = light.shape[:2]
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.linspace(-0.5, 0.5, height), np.linspace(-0.5, 0.5, width)
    ramp = np.sin(angle) * rows[:, np.newaxis] + np.cos(angle) * columns
    return light * (1.0 + 0.3 * ramp[:, :, np.newaxis])


def _turn_hue(steps: int) -> Change:
    def change(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
        colors = cv2.cvtColor(image, cv2.COLOR_RGB2HSV).astype(int)
        colors[..., 0] = (colors[..., 0] + steps) % 180
        return cv2.cvtColor(colors.astype(np.uint8), cv2.COLOR_HSV2RGB), mask

    return change


def _compress(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 25])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR), mask


# Place


def _move(image: np.ndarray, mask: np.ndarray, *, scale: float, shift: np.ndarray) -> Pair:
    """Scale about the centre and shift, as far as the cell stays in the picture."""
    size = np.array(image.shape[1::-1])
    rows, columns = np.nonzero(mask > 64)
    start = np.array([columns.min(), rows.min()]) * scale
    stop = np.array([columns.max() + 1, rows.max() + 1]) * scale
    offset = size * (1 - scale) / 2 + shift * size
    low, high = np.minimum(-start, size - stop), np.maximum(-start, size - stop)
    matrix = np.column_stack([scale * np.eye(2), np.clip(offset, low, high)])
    return warp(image, matrix), warp_mask(mask, matrix)


def _zoom(scale: float) -> Change:
    return lambda image, mask, rng: _move(image, mask, scale=scale, shift=np.zeros(2))


def _shift(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    return _move(image, mask, scale=1.0, shift=rng.uniform(-0.15, 0.15, 2))


def _turn(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(0, 360), 1.0)
    return warp(image, matrix), warp_mask(mask, matrix)


# What lies beside the cell


def _add_frame(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    """Black out the corners, as an eyepiece does, or add a black border."""
    height, width = mask.shape
    if rng.random() < 0.5:
        seen = (mask > 64).astype(np.uint8)
        cv2.circle(seen, (width // 2, height // 2), int(0.58 * width), 1, -1)
        return image * seen[:, :, np.newaxis], mask
    border = (width // 6,) * 4
    return tuple(cv2.copyMakeBorder(part, *border, cv2.BORDER_CONSTANT) for part in (image, mask))


def _add_dirt(image: np.ndarray, mask: np.ndarray, rng: np.random.Generator) -> Pair:
    """Strew platelets and stain dirt over what is not the cell."""
    height, width = mask.shape
    near = cv2.dilate((mask > 64).astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    image = image.copy()
    for _ in range(30):
        spot = np.zeros((height, width), np.uint8)
        axes = np.maximum(rng.uniform(0.012, 0.045, 2) * width, 1).astype(int)
        place = rng.integers((width, height))
        cv2.ellipse(spot, place.tolist(), axes.tolist(), rng.uniform(0, 180), 0, 360, 255, -1)
        if not (near & (spot > 0)).any():
            image[spot > 0] = ((90, 40, 120), (40, 30, 60), (120, 60, 140))[rng.integers(3)]
    return image, mask


def add_neighbor(image: np.ndarray, mask: np.ndarray, *, other: Pair, angle: float) -> Pair:
    """Lay another cell against this one, where it first touches from outside."""
    way = np.array([np.cos(angle), np.sin(angle)])
    offset = _middle(mask) - _middle(other[1])
    for distance in range(0, 2 * max(mask.shape), 2):
        matrix = np.column_stack([np.eye(2), offset + way * distance])
        moved = warp_mask(other[1], matrix) > 64
        if not (moved & (mask > 64)).any():
            break
    share = cv2.GaussianBlur(moved.astype(np.float32), (0, 0), 0.8) * (mask <= 64)
    share = share[:, :, np.newaxis]
    return (image * (1 - share) + warp(other[0], matrix) * share).astype(np.uint8), mask


def _middle(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask > 64)
    return np.array([columns.min() + columns.max(), rows.min() + rows.max()]) / 2


CHANGES: dict[str, Change] = {
    "as they are": lambda image, mask, rng: (image, mask),
    "turned": _turn,
    "off centre": _shift,
    "at 0.6 of the size": _zoom(0.6),
    "at 0.75 of the size": _zoom(0.75),
    "at 1.3 times the size": _zoom(1.3),
    "at 1.6 times the size": _zoom(1.6),
    "pale stain (half)": _as_density(lambda density, rng: 0.5 * density),
    "deep stain (1.6 times)": _as_density(lambda density, rng: 1.6 * density),
    "other colours of the dyes": _as_density(_mix_colors),
    "hue -20 degrees": _turn_hue(-10),
    "hue +20 degrees": _turn_hue(10),
    "half the saturation": _as_light(_fade),
    "tinted light": _as_light(lambda light, rng: light * rng.uniform(0.65, 1.0, 3)),
    "dark": _as_light(lambda light, rng: 0.55 * light),
    "overexposed": _as_light(lambda light, rng: 1.25 * light),
    "uneven light (30 %)": _as_light(_slope),
    "out of focus": lambda image, mask, rng: (
        cv2.GaussianBlur(image, (0, 0), image.shape[0] / 100),
        mask,
    ),
    "noise": _as_light(lambda light, rng: light + rng.normal(0, 12, light.shape)),
    "JPEG quality 25": _compress,
    "black frame": _add_frame,
    "dirt": _add_dirt,
}


def change_all(pairs: Sequence[Pair], name: str, *, seed: int = 0) -> list[Pair]:
    """Change every picture; "a neighbour touches" takes that from among the others."""
    changed = []
    for number, (image, mask) in enumerate(pairs):
        rng = np.random.default_rng([seed, number])
        if name == NEIGHBOR:
            other, angle = pairs[rng.integers(len(pairs))], rng.uniform(0, 2 * np.pi)
            changed.append(add_neighbor(image, mask, other=_fit(other, mask.shape), angle=angle))
        else:
            changed.append(CHANGES[name](image, mask, rng))
    return changed


NEIGHBOR = "a neighbour touches"
NAMES = (*CHANGES, NEIGHBOR)


def _fit(pair: Pair, shape: tuple[int, ...]) -> Pair:
    size = shape[::-1]
    return cv2.resize(pair[0], size), cv2.resize(pair[1], size, interpolation=cv2.INTER_NEAREST)
