"""Drawn smear cells with masks: the embedded default data and the tests' ground truth.

A cell lies in a field of `smear`; lengths are micrometres.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from wbc_keras.config import SyntheticConfig
from wbc_keras.pictures.smear import (
    FIELD_WIDTH,
    Slide,
    Stain,
    add_platelets,
    add_red_cells,
    blob,
    disc,
    draw_stain,
    photograph,
    turn,
)


@dataclass(frozen=True)
class Cell:
    """A drawn cell."""

    image: np.ndarray  # uint8 (size, size, 3): RGB
    mask: np.ndarray  # uint8 (size, size): 0 background, 128 cytoplasm, 255 nucleus


@dataclass(frozen=True)
class _Chromatin:
    density: float  # units of purple
    contrast: float  # of clumps against the mean, share
    pitch: float  # micrometres between clumps


@dataclass(frozen=True)
class _Granules:
    dyes: Mapping[str, float]
    density: float  # granules per square micrometre
    radius: float  # micrometres
    on_nucleus: float = 0.0  # share of them that also lies over the nucleus


@dataclass(frozen=True)
class _Kind:
    diameter: tuple[float, float]  # of the cell, micrometres
    nucleus: Callable[[np.random.Generator, float], list[np.ndarray]]  # rng, cell radius
    chromatin: _Chromatin
    cytoplasm: Mapping[str, float]
    granules: tuple[_Granules, ...] = ()
    wobble: float = 0.03  # unevenness of the outline, share of the radius
    off_centre: float = 0.3  # share of the free room the nucleus is pushed aside
    vacuoles: int = 0  # at most
    nucleoli: int = 0  # at most
    blue_edge: float = 0.0  # units of blue more at the rim
    pale_zone: float = 0.0  # share of the cytoplasm's dye missing beside the nucleus


# Shapes: contours, float64 (points, 2), micrometres, x and y about the cell's centre. ----------


def _arc(length: float, bend: float, points: int) -> np.ndarray:
    """Return ``points`` along a bow of ``length`` that turns by ``bend`` radians."""
    turns = np.linspace(-bend / 2, bend / 2, points)
    return length / bend * np.stack([np.sin(turns), np.cos(turns)], axis=1)


def _round(
    rng: np.random.Generator, cell: float, share: tuple[float, float], *, stretch: float = 1.1
) -> list[np.ndarray]:
    return [blob(rng, cell * rng.uniform(*share), stretch=rng.uniform(1.0, stretch), wobble=0.025)]


def _bow(rng: np.random.Generator, *, length: float, width: float, bend: float) -> list[np.ndarray]:
    """Return a bent sausage as discs along a bow; its width varies slowly."""
    steps = np.linspace(0, 1, 18)
    wave = np.cos(2 * np.pi * (steps * rng.uniform(0.7, 1.5) + rng.uniform()))
    radii = width / 2 * (1 + 0.13 * wave + 0.25 * (2 * steps - 1) ** 2 - 0.1)
    spine = _arc(length, bend, len(steps)) + rng.normal(0, 0.04 * width, 2)
    return [disc(point, radius) for point, radius in zip(spine, radii, strict=True)]


def _lobes(rng: np.random.Generator, count: int, *, area: float, bend: float) -> list[np.ndarray]:
    """Return ``count`` lobes along a bow, joined by thin strands."""
    sizes = rng.uniform(0.75, 1.25, count)
    radii = np.sqrt(area / np.pi * sizes / sizes.sum())
    length = 2.55 * radii.mean() * (count - 1)
    centres = _arc(length, bend, count) + rng.normal(0, 0.12 * radii.mean(), (count, 2))
    lobes = [
        centre + blob(rng, radius, stretch=rng.uniform(1.0, 1.25), wobble=0.05)
        for centre, radius in zip(centres, radii, strict=True)
    ]
    strands = [_strand(a, b) for a, b in itertools.pairwise(centres)]
    return lobes + strands


def _strand(start: np.ndarray, end: np.ndarray, width: float = 0.7) -> np.ndarray:
    along = (end - start) / np.linalg.norm(end - start)
    aside = width / 2 * np.array([-along[1], along[0]])
    return np.stack([start + aside, end + aside, end - aside, start - aside])


def _kidney(rng: np.random.Generator, cell: float) -> list[np.ndarray]:
    width = cell * rng.uniform(0.6, 0.8)
    return _bow(rng, length=cell * rng.uniform(0.9, 1.35), width=width, bend=rng.uniform(1.6, 3.4))


def _band(rng: np.random.Generator, cell: float) -> list[np.ndarray]:
    width = cell * rng.uniform(0.4, 0.52)
    return _bow(rng, length=cell * rng.uniform(1.7, 2.1), width=width, bend=rng.uniform(2.9, 4.0))


def _segments(rng: np.random.Generator, cell: float) -> list[np.ndarray]:
    count = int(rng.choice([3, 4, 5], p=[0.45, 0.4, 0.15]))
    area = cell**2 * rng.uniform(1.15, 1.45)
    return _lobes(rng, count, area=area, bend=rng.uniform(2.6, 4.4))


def _two_lobes(rng: np.random.Generator, cell: float) -> list[np.ndarray]:
    return _lobes(rng, 2, area=cell**2 * rng.uniform(1.15, 1.45), bend=rng.uniform(0.8, 1.8))


def _clover(rng: np.random.Generator, cell: float) -> list[np.ndarray]:
    """Return the basophil's nucleus: two or three lobes that run into one another."""
    radius = cell * rng.uniform(0.5, 0.58)
    count = int(rng.integers(2, 4))
    centres = _arc(radius * 1.05 * (count - 1), 2.2, count)
    return [centre + blob(rng, radius, stretch=1.15, wobble=0.06) for centre in centres]


# From the most to the least frequent in the Munich set: `imbalance` follows this order.
_KINDS = {
    "neutrophil_segmented": _Kind(
        diameter=(11.8, 14.5),
        nucleus=_segments,
        chromatin=_Chromatin(density=1.95, contrast=0.3, pitch=0.6),
        cytoplasm={"pink": 0.2, "purple": 0.06},
        granules=(_Granules({"purple": 0.35, "pink": 0.2}, density=1.6, radius=0.14),),
    ),
    "lymphocyte": _Kind(
        diameter=(8.8, 11.6),
        nucleus=lambda rng, cell: _round(rng, cell, (0.82, 0.92), stretch=1.15),
        chromatin=_Chromatin(density=1.95, contrast=0.32, pitch=0.8),
        cytoplasm={"blue": 0.48, "purple": 0.1},
        off_centre=0.7,
        blue_edge=0.2,
    ),
    "myeloblast": _Kind(
        diameter=(14.5, 18.0),
        nucleus=lambda rng, cell: _round(rng, cell, (0.8, 0.89), stretch=1.2),
        chromatin=_Chromatin(density=1.25, contrast=0.28, pitch=0.5),
        cytoplasm={"blue": 0.45, "purple": 0.12},
        wobble=0.05,
        off_centre=0.7,
        nucleoli=4,
        blue_edge=0.3,
    ),
    "monocyte": _Kind(
        diameter=(14.0, 18.0),
        nucleus=_kidney,
        chromatin=_Chromatin(density=1.45, contrast=0.28, pitch=0.55),
        cytoplasm={"blue": 0.28, "purple": 0.2},
        granules=(_Granules({"purple": 0.2}, density=1.0, radius=0.13),),
        wobble=0.06,
        vacuoles=9,
    ),
    "eosinophil": _Kind(
        diameter=(12.2, 15.0),
        nucleus=_two_lobes,
        chromatin=_Chromatin(density=1.8, contrast=0.3, pitch=0.6),
        cytoplasm={"pink": 0.22, "purple": 0.08},
        granules=(_Granules({"orange": 0.42}, density=3.0, radius=0.26),),
        off_centre=0.6,
    ),
    "neutrophil_band": _Kind(
        diameter=(12.0, 14.8),
        nucleus=_band,
        chromatin=_Chromatin(density=1.8, contrast=0.3, pitch=0.6),
        cytoplasm={"pink": 0.2, "purple": 0.08},
        granules=(_Granules({"purple": 0.35, "pink": 0.2}, density=1.6, radius=0.14),),
    ),
    "basophil": _Kind(
        diameter=(10.8, 13.2),
        nucleus=_clover,
        chromatin=_Chromatin(density=1.6, contrast=0.25, pitch=0.6),
        cytoplasm={"purple": 0.3, "pink": 0.1},
        granules=(
            _Granules({"purple": 0.95, "blue": 0.15}, density=1.6, radius=0.24, on_nucleus=0.7),
        ),
        wobble=0.05,
    ),
    "erythroblast": _Kind(
        diameter=(8.2, 10.6),
        nucleus=lambda rng, cell: _round(rng, cell, (0.52, 0.64)),
        chromatin=_Chromatin(density=2.15, contrast=0.25, pitch=0.9),
        cytoplasm={"tan": 0.36, "blue": 0.12, "pink": 0.05},
        wobble=0.06,
        off_centre=0.5,
    ),
    "promyelocyte": _Kind(
        diameter=(15.0, 18.5),
        nucleus=lambda rng, cell: _round(rng, cell, (0.62, 0.73), stretch=1.35),
        chromatin=_Chromatin(density=1.55, contrast=0.28, pitch=0.55),
        cytoplasm={"blue": 0.26, "purple": 0.16},
        granules=(
            _Granules({"purple": 0.65, "pink": 0.2}, density=1.4, radius=0.2, on_nucleus=0.35),
        ),
        off_centre=0.9,
        nucleoli=2,
        pale_zone=0.6,
    ),
}

CLASS_NAMES: tuple[str, ...] = tuple(_KINDS)


# Drawing. --------------------------------------------------------------------------------------


def draw_cell(
    class_name: str, *, size: int, rng: np.random.Generator, stain: Stain | None = None
) -> Cell:
    """Draw one cell near the centre of a field of red cells.

    Args:
        class_name: one of `CLASS_NAMES`.
        size: pixels, both sides.
        rng: where every random choice comes from.
        stain: the patient's; a new one is drawn if None.

    Raises:
        ValueError: unknown class.
    """
    if class_name not in _KINDS:
        raise ValueError(f"class_name: expected one of {CLASS_NAMES}. Received: {class_name!r}")
    kind = _KINDS[class_name]
    slide = Slide(size, rng, draw_stain(rng) if stain is None else stain)
    centre = FIELD_WIDTH / 2 + rng.uniform(-2, 2, 2)
    radius = rng.uniform(*kind.diameter) / 2
    nucleus = slide.fill(_place_nucleus(kind, radius, rng), centre)
    outline = blob(rng, radius, stretch=rng.uniform(1.0, 1.18), wobble=kind.wobble)
    body = np.maximum(slide.fill([outline], centre), nucleus)
    add_red_cells(slide, centre, radius)
    add_platelets(slide, centre, radius)
    slide.clear(0.9 * body)
    _add_cytoplasm(slide, kind, body, nucleus)
    _add_chromatin(slide, kind.chromatin, nucleus, nucleoli=kind.nucleoli)
    _add_granules(slide, kind.granules, body, nucleus)
    mask = np.where(nucleus > 0.5, 255, np.where(body > 0.5, 128, 0)).astype(np.uint8)
    return Cell(photograph(slide), mask)


def _place_nucleus(kind: _Kind, radius: float, rng: np.random.Generator) -> list[np.ndarray]:
    """Return the nucleus turned at random, pushed aside, and inside a cell of ``radius``."""
    contours = kind.nucleus(rng, radius)
    points = np.concatenate(contours)
    middle = (points.min(axis=0) + points.max(axis=0)) / 2
    reach = np.linalg.norm(points - middle, axis=1).max()
    shrink = min(1.0, 0.94 * radius / reach)
    room = max(0.0, 0.96 * radius - reach * shrink)
    push = kind.off_centre * room * rng.uniform(0.4, 1.0) * np.array([1.0, 0.0])
    angle, direction = rng.uniform(0, 2 * np.pi, 2)
    push = turn(push[None], direction)
    return [turn((contour - middle) * shrink, angle) + push for contour in contours]


def _add_cytoplasm(slide: Slide, kind: _Kind, body: np.ndarray, nucleus: np.ndarray) -> None:
    layer = body * (1 + 0.16 * slide.texture(0.6) + 0.14 * slide.texture(3.0))
    layer *= 1 - kind.pale_zone * slide.blur(nucleus, 0.8)
    layer *= 1 - 0.8 * _bubbles(slide, body - nucleus, count=(0, kind.vacuoles), radius=(0.25, 0.8))
    layer *= 1 - 0.8 * nucleus  # the chromatin's density counts what lies over and under it
    slide.add(layer, kind.cytoplasm)
    edge = np.clip(body - slide.blur(body, 0.7), 0, 1) * (1 - nucleus)
    slide.add(edge, {"purple": 0.15, "blue": 0.1 + 2 * kind.blue_edge})


def _bubbles(
    slide: Slide, where: np.ndarray, *, count: tuple[int, int], radius: tuple[float, float]
) -> np.ndarray:
    """Return a number of discs, 0..1, whose centres lie where ``where`` is near 1."""
    rows, columns = np.nonzero(where > 0.9)
    fewest, most = count if len(rows) else (0, 0)
    chosen = slide.rng.integers(0, max(len(rows), 1), slide.rng.integers(fewest, most + 1))
    places = (np.stack([columns[chosen], rows[chosen]], axis=1) + 0.5) / slide.scale
    discs = [disc(place, slide.rng.uniform(*radius)) for place in places]
    return slide.blur(slide.fill(discs, np.zeros(2)), 0.1)


def _add_chromatin(
    slide: Slide, chromatin: _Chromatin, nucleus: np.ndarray, *, nucleoli: int
) -> None:
    clumps = slide.texture(chromatin.pitch) + 0.6 * slide.texture(2 * chromatin.pitch)
    rim = np.clip(nucleus - slide.blur(nucleus, 0.45), 0, 1)
    layer = chromatin.density * nucleus * (1 + chromatin.contrast * clumps + 0.35 * rim)
    if nucleoli:
        inner = slide.blur(nucleus, 0.8) * nucleus
        spots = _bubbles(slide, inner, count=(1, nucleoli), radius=(0.7, 1.2))
        layer *= 1 - 0.4 * spots
    slide.add(layer, {"purple": 1.0})
    slide.add(nucleus * np.maximum(1 - clumps, 0), {"pink": 0.12})  # between the clumps


def _add_granules(
    slide: Slide, granules: tuple[_Granules, ...], body: np.ndarray, nucleus: np.ndarray
) -> None:
    for kind in granules:
        where = body * (1 - (1 - kind.on_nucleus) * nucleus)
        slide.add(slide.dots(kind.density, kind.radius) * where, kind.dyes)


# The set. --------------------------------------------------------------------------------------


def write_cells(folder: Path, settings: SyntheticConfig) -> None:
    """Draw a labelled set: ``<class>/<class>_0001.png``, its mask under ``masks/``, manifest.csv.

    The manifest (``file,label,patient``) is written last. Every patient has a stain of its own, and
    each class is dealt out over the patients in turn. The same settings give the same bytes.
    """
    stains = [
        draw_stain(np.random.default_rng([settings.seed, 1, patient]))
        for patient in range(settings.patients)
    ]
    rows = ["file,label,patient"]
    for class_name, count in zip(CLASS_NAMES, class_counts(settings), strict=True):
        rows += _write_class(folder, settings, class_name=class_name, count=count, stains=stains)
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def _write_class(
    folder: Path, settings: SyntheticConfig, *, class_name: str, count: int, stains: list[Stain]
) -> list[str]:
    """Write the cells of one class and return their rows of the manifest."""
    seed = [settings.seed, 2, CLASS_NAMES.index(class_name)]
    order = np.random.default_rng(seed).permutation(len(stains))
    rows = []
    for number in range(1, count + 1):
        patient = order[number % len(stains)]
        file = f"{class_name}/{class_name}_{number:04d}.png"
        rng = np.random.default_rng([*seed, number])
        cell = draw_cell(class_name, size=settings.image_size, rng=rng, stain=stains[patient])
        _write_png(folder / file, cv2.cvtColor(cell.image, cv2.COLOR_RGB2BGR))
        _write_png(folder / "masks" / file, cell.mask)
        rows.append(f"{file},{class_name},patient_{patient + 1:02d}")
    return rows


def class_counts(settings: SyntheticConfig) -> list[int]:
    """Return the cells of each class, in the order of `CLASS_NAMES`.

    They add up to ``settings.cells``, fall geometrically, the first ``imbalance`` times the last
    but for rounding, and no class is left empty.
    """
    classes = len(CLASS_NAMES)
    weights = settings.imbalance ** -(np.arange(classes) / (classes - 1))
    exact = settings.cells * weights / weights.sum()
    counts = np.floor(exact).astype(int)
    most_cut = np.argsort(counts - exact, kind="stable")
    counts[most_cut[: settings.cells - counts.sum()]] += 1
    counts = np.maximum(counts, 1)
    counts[0] -= counts.sum() - settings.cells
    return [int(count) for count in counts]


def _write_png(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", picture)[1].tobytes())
