"""A stained smear as light passes through it: the field, its dyes, red cells and platelets.

Every part (red cells, cytoplasm, chromatin, granules) holds some of five dyes; absorbances add up,
and the picture is ``background * 10 ** -sum(absorbance)`` (Beer and Lambert), so that overlaps
darken as in a smear. Lengths are micrometres; shapes are contours, float64 ``(points, 2)``, x and y
about a centre. Colours and sizes were set by eye and by median against stained smears.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import cv2
import numpy as np

FIELD_WIDTH = 28.0  # micrometres across a picture of any size
_SUBPIXEL_BITS = 6

# Absorbance of red, green and blue light by one unit of dye.
_DYES = {
    "purple": (0.27, 0.45, 0.11),  # azure and eosin together: chromatin
    "blue": (0.45, 0.38, 0.13),  # azure: ribosomes
    "pink": (0.20, 0.45, 0.26),  # eosin
    "orange": (0.17, 0.45, 0.40),  # eosin in the eosinophil's granules
    "tan": (0.30, 0.45, 0.28),  # haemoglobin
}
_PAPER = (254.0, 230.0, 205.0)  # empty field, warm light
_DAYLIGHT = (240.0, 234.0, 238.0)  # empty field, white light


@dataclass(frozen=True)
class Stain:
    """How one patient's smear took the dyes, and the light it was photographed in."""

    background: np.ndarray  # float64 (3,): RGB of the empty field, 0-255
    dyes: Mapping[str, np.ndarray]  # name -> float64 (3,): absorbance of a unit of dye
    red_cells: int  # about how many lie in a field


_ANGLES = np.linspace(0, 2 * np.pi, 48, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)
_WAVES = np.arange(2, 7)[:, None]  # bumps around an outline


def blob(
    rng: np.random.Generator, radius: float, *, stretch: float = 1.0, wobble: float = 0.04
) -> np.ndarray:
    """Return an uneven ellipse of about the area of a circle of ``radius``."""
    heights = rng.normal(0, wobble, len(_WAVES)) * 2 / _WAVES[:, 0]
    phases = rng.uniform(0, 2 * np.pi, (len(_WAVES), 1))
    radii = radius * (1 + heights @ np.cos(_WAVES * _ANGLES + phases))
    axes = np.array([math.sqrt(stretch), 1 / math.sqrt(stretch)])
    return turn(radii[:, None] * _CIRCLE * axes, rng.uniform(0, 2 * np.pi))


def turn(points: np.ndarray, angle: float) -> np.ndarray:
    """Turn contours about the origin by ``angle`` radians."""
    cos, sin = math.cos(angle), math.sin(angle)
    turned: np.ndarray = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


def disc(centre: np.ndarray, radius: float) -> np.ndarray:
    """Return a circle."""
    return centre + radius * _CIRCLE


@dataclass
class Slide:
    """A field being drawn: layers of dye are added to it."""

    size: int
    rng: np.random.Generator
    stain: Stain
    layers: dict[str, np.ndarray] = field(init=False)  # dye -> float32 (size, size), units

    def __post_init__(self) -> None:
        self.layers = {name: self.empty() for name in _DYES}

    def empty(self) -> np.ndarray:
        """Return a layer of zeros, float32 (size, size)."""
        return np.zeros((self.size, self.size), np.float32)

    @property
    def scale(self) -> float:
        """Pixels per micrometre."""
        return self.size / FIELD_WIDTH

    def fill(self, contours: list[np.ndarray], centre: np.ndarray) -> np.ndarray:
        """Return the union of closed contours as coverage 0..1, float32 (size, size)."""
        coverage = np.zeros((self.size, self.size), np.uint8)
        for contour in contours:
            pixels = ((contour + centre) * self.scale - 0.5) * 2**_SUBPIXEL_BITS
            points = np.round(pixels).astype(np.int32)
            cv2.fillPoly(coverage, [points], 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL_BITS)
        return coverage.astype(np.float32) / 255

    def blur(self, layer: np.ndarray, sigma: float) -> np.ndarray:
        """Blur by ``sigma`` micrometres."""
        return cv2.GaussianBlur(layer, (0, 0), max(sigma * self.scale, 0.3))

    def texture(self, pitch: float) -> np.ndarray:
        """Return smooth noise -1..1 whose grains are about ``pitch`` micrometres wide."""
        cells = max(2, round(FIELD_WIDTH / pitch))
        grid = self.rng.standard_normal((cells, cells), dtype=np.float32)
        shape = (self.size, self.size)
        grains: np.ndarray = cv2.resize(grid, shape, interpolation=cv2.INTER_CUBIC)
        return np.asarray(np.tanh(1.6 * grains))

    def add(self, layer: np.ndarray, dyes: Mapping[str, float]) -> None:
        """Add dyes where ``layer`` (size, size) says, in units."""
        for name, amount in dyes.items():
            self.layers[name] += np.float32(amount) * layer

    def clear(self, share: np.ndarray) -> None:
        """Take away a share (size, size), 0..1, of every dye."""
        for layer in self.layers.values():
            layer *= 1 - share

    def transmittance(self) -> np.ndarray:
        """Return the share of red, green and blue light that passes, float32 (3, size, size)."""
        dyes = np.stack([self.stain.dyes[name] for name in self.layers], axis=1) * np.log(10)
        amounts = np.stack(list(self.layers.values())).reshape(len(self.layers), -1)
        passed: np.ndarray = np.exp(-dyes.astype(np.float32) @ amounts)
        return passed.reshape(3, self.size, self.size)

    def dots(self, density: float, radius: float) -> np.ndarray:
        """Return soft dots strewn over the field, peaks of about 1."""
        count = self.rng.poisson(density * FIELD_WIDTH**2)
        rows, columns = self.rng.integers(0, self.size, (2, count))
        layer = self.empty()
        # The same amount of dye at any resolution, also where a granule is less than a pixel.
        amount = 2 * np.pi * (radius * self.scale) ** 2
        np.add.at(layer, (rows, columns), self.rng.uniform(0.4, 1.0, count) * amount)
        return np.asarray(np.minimum(self.blur(layer, radius), 1.3))


def draw_stain(rng: np.random.Generator) -> Stain:
    """Draw one patient's stain and light."""
    daylight = rng.beta(0.5, 2.5)
    background = (1 - daylight) * np.array(_PAPER) + daylight * np.array(_DAYLIGHT)
    strength = rng.normal(1.0, 0.06)
    dyes = {
        name: np.array(colour) * strength * rng.normal(1.0, 0.05) * rng.normal(1.0, 0.04, 3)
        for name, colour in _DYES.items()
    }
    return Stain(background + rng.normal(0, 2, 3), dyes, red_cells=int(rng.integers(8, 22)))


def add_red_cells(slide: Slide, centre: np.ndarray, radius: float) -> None:
    """Strew red cells over the field, around a cell of ``radius`` that lies at ``centre``."""
    rng = slide.rng
    cover, pallor = slide.empty(), slide.empty()
    for place, red in _scatter_red_cells(rng, slide.stain.red_cells, centre, radius):
        outline = blob(rng, red, stretch=rng.uniform(1.0, 1.25), wobble=0.03)
        cover += slide.fill([outline], place) * rng.uniform(0.85, 1.15)
        pallor += slide.fill([outline * rng.uniform(0.4, 0.65)], place) * rng.beta(1.2, 0.7)
    rim = np.clip(cover - slide.blur(cover, 0.5), 0, 1)
    pallor = slide.blur(pallor, 0.45)
    thickness = cover * (1 + 0.5 * rim) * np.maximum(1 - 0.9 * pallor, 0.1)
    slide.add(thickness, {"tan": 0.34})


def _scatter_red_cells(
    rng: np.random.Generator, count: int, centre: np.ndarray, radius: float
) -> list[tuple[np.ndarray, float]]:
    """Return places and radii of red cells; few overlap each other or reach under the cell."""
    placed = [(centre, radius)]
    for place in rng.uniform(-3, FIELD_WIDTH + 3, (3 * count, 2)):
        red = rng.uniform(3.2, 4.0)
        nearness = 1.05 - 0.35 * rng.beta(0.5, 1.5)
        if len(placed) <= count and all(
            math.dist(place, other) > nearness * (red + size) for other, size in placed
        ):
            placed.append((place, red))
    return placed[1:]


def add_platelets(slide: Slide, centre: np.ndarray, radius: float) -> None:
    """Add a platelet or two, or none, beside a cell of ``radius`` that lies at ``centre``."""
    rng = slide.rng
    for _ in range(rng.poisson(0.5)):
        place, small = rng.uniform(0, FIELD_WIDTH, 2), rng.uniform(0.7, 1.4)
        if np.linalg.norm(place - centre) > radius + 2 * small:
            layer = slide.fill([blob(rng, small, stretch=1.3, wobble=0.12)], place)
            slide.add(layer * (1 + 0.5 * slide.texture(0.6)), {"purple": 0.5, "pink": 0.1})


def photograph(slide: Slide) -> np.ndarray:
    """Return the field as a camera sees it: uneven light, optics, noise and JPEG."""
    rng, size = slide.rng, slide.size
    across, down = rng.uniform(-0.03, 0.03, 2)
    ramp = np.linspace(-1, 1, size)
    lamp = (1 + across * ramp[None, :] + down * ramp[:, None]).astype(np.float32)
    channels = slide.transmittance() * lamp * slide.stain.background[:, None, None]
    light = slide.blur(cv2.merge(list(channels.astype(np.float32))), rng.uniform(0.06, 0.16))
    # Grey noise only: JPEG would smooth away what differs between the channels.
    noise = rng.standard_normal((size, size, 1), dtype=np.float32) * np.float32(rng.uniform(1, 2.5))
    return _through_jpeg(np.clip(np.rint(light + noise), 0, 255).astype(np.uint8), rng)


def _through_jpeg(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(82, 96))]
    encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)[1]
    decoded = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)
