"""Copies of one picture: the same bytes, encoded anew, scaled, turned by quarters, mirrored.

A copy in two splits is a test on what was trained. Each picture is reduced to a fingerprint: how
strong its lowest spatial frequencies are. Taken together over the eight symmetries of the square,
amplitudes do not change when a picture is turned or mirrored; they change little when it is moved,
so that many a cell photographed twice is found as well. Pictures with near fingerprints are then
compared themselves, so that two cells that only look alike are not taken for one.

Of the 24,031 cells of `pbc` and `aml_jhu` no two different ones lie within 5, and of those within
9 none correlates by more than 0.95; `benchmarks/copies.py` says what is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.intp]
Pictures = npt.NDArray[np.uint8]

SIDE = 48  # pixels of the small square pictures that are compared
# How far two fingerprints may be apart, in grey levels, in sets of up to so many pictures. JPEG and
# scaling move them by 2; a cell photographed twice is further off, and looked for where strangers
# as near are few.
_RADII = ((20_000, 9.0), (200_000, 5.0))
_SMALLEST_RADIUS = 3.0
# How well the pictures must correlate.
_CORRELATION = 0.97
_SHIFT = 4  # pixels of the small picture that a copy may be moved
_NEIGHBOURS = 6
_FREQUENCIES = 6
_BLOCK = 1 << 16
_REDUCED = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)
TURNS = (
    "encoded anew or moved",
    "turned by 90 degrees",
    "turned by 180 degrees",
    "turned by 270 degrees",
    "mirrored",
    "mirrored and turned by 90 degrees",
    "mirrored and turned by 180 degrees",
    "mirrored and turned by 270 degrees",
)


def shrink(encoded: bytes, *, size: tuple[int, int], kind: str) -> Pictures | None:
    """Return an encoded picture as a small square.

    Args:
        encoded: the file's bytes; their header has been read, so that this is no bomb.
        size: width and height that the header tells.
        kind: the format that the header tells; a large JPEG is decoded at reduced size.

    Returns:
        uint8 (`SIDE`, `SIDE`, 3), BGR, or None if OpenCV cannot decode it.
    """
    reduced = (flag for factor, flag in _REDUCED if min(size) >= 2 * SIDE * factor)
    flag = next(reduced, cv2.IMREAD_COLOR) if kind == "JPEG" else cv2.IMREAD_COLOR
    buffer = np.frombuffer(encoded, np.uint8)
    try:
        image = cv2.imdecode(buffer, flag | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if image is None:
        return None
    smaller = min(image.shape[:2]) < SIDE
    method = cv2.INTER_LINEAR if smaller else cv2.INTER_AREA
    return np.asarray(cv2.resize(image, (SIDE, SIDE), interpolation=method), np.uint8)


def fingerprint(pictures: Pictures) -> Floats:
    """Return the fingerprints of small pictures.

    Args:
        pictures: uint8 (n, `SIDE`, `SIDE`, 3).

    Returns:
        float32 (n, 23), in grey levels: 20 amplitudes, each taken together over the places that
        turning and mirroring exchange, and the three channels' means.
    """
    # Channel by channel: NumPy is slow along an axis of three.
    channels = [pictures[..., channel].astype(np.float32) for channel in range(3)]
    means = [channel.mean(axis=(1, 2)) for channel in channels]
    spectrum = np.abs(np.fft.rfft2(sum(channels))) * (4 / 3 / SIDE**2)
    waves = [
        _symmetric(spectrum, u, v) for u in range(_FREQUENCIES) for v in range(u, _FREQUENCIES)
    ]
    # The first is the mean again.
    return np.column_stack([*waves[1:], *means]).astype(np.float32)


def _symmetric(spectrum: npt.NDArray[np.floating], u: int, v: int) -> npt.NDArray[np.floating]:
    # Along an axis -v is v again.
    places = {(0, v), (v, 0)} if u == 0 else {(u, v), (-u, v), (v, u), (-v, u)}
    square = sum(spectrum[:, row, column] ** 2 for row, column in places)
    return np.asarray(np.sqrt(square / 2))


def compare(one: Pictures, other: Pictures) -> tuple[float, int]:
    """Return how alike two small pictures are, and which of the `TURNS` makes them so.

    The first, without its margin, is moved over the second in all eight positions; the likeness is
    the best correlation of their grey values, -1 to 1.
    """
    core, whole = (cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY) for picture in (one, other))
    core = np.ascontiguousarray(core[_SHIFT:-_SHIFT, _SHIFT:-_SHIFT])
    found = [
        float(cv2.matchTemplate(turned, core, cv2.TM_CCOEFF_NORMED).max())
        for turned in _symmetries(np.asarray(whole, np.uint8))
    ]
    best = int(np.argmax(found))
    return found[best], best


def _symmetries(picture: Pictures) -> Iterator[Pictures]:
    for image in (picture, picture[:, ::-1]):
        for turns in range(4):
            yield np.ascontiguousarray(np.rot90(image, turns))


@dataclass(frozen=True, eq=False)
class Copies:
    """Which pictures are copies of one.

    Attributes:
        units: intp (n,); copies share a number, the row of the first of them. Other pictures have
            their own row's.
    """

    units: Integers

    def sets(self) -> list[Integers]:
        """Return the rows of each set of two or more copies, in the order of their first."""
        order = np.argsort(self.units, kind="stable")
        starts = np.flatnonzero(np.diff(self.units[order])) + 1
        return [rows for rows in np.split(order, starts) if len(rows) > 1]


def find_copies(
    fingerprints: Floats,
    digests: npt.NDArray[np.uint64],
    *,
    rows: Integers,
    load: Callable[[int], Pictures | None],
) -> Copies:
    """Find the copies among pictures.

    Args:
        fingerprints: float32 (n, 23).
        digests: uint64 (n,), of the files' bytes.
        rows: intp (m,), the pictures to compare: those that can be read and are not blank.
        load: gives the small picture of a row, or None if it cannot be read.
    """
    units = np.arange(len(digests))
    _, first, inverse = np.unique(digests[rows], return_index=True, return_inverse=True)
    units[rows] = rows[first][inverse]
    different = np.sort(rows[first])
    for one, other in _near_pairs(fingerprints, different):
        a, b = _find(units, one), _find(units, other)
        if a != b and _are_copies(load(one), load(other)):
            units[max(a, b)] = min(a, b)
    return Copies(np.array([_find(units, row) for row in range(len(units))], np.intp))


def _find(units: Integers, row: int) -> int:
    """Follow the links to the first of a set; on the way, shorten them."""
    while units[row] != row:
        units[row] = units[units[row]]
        row = units[row]
    return int(row)


def _are_copies(one: Pictures | None, other: Pictures | None) -> bool:
    return one is not None and other is not None and compare(one, other)[0] >= _CORRELATION


def _near_pairs(fingerprints: Floats, rows: Integers) -> Iterator[tuple[int, int]]:
    """Yield pairs of ``rows`` with near fingerprints; few for each row, so that it stays linear."""
    if len(rows) < 2:
        return
    tree = cKDTree(fingerprints[rows])
    radius = next((r for most, r in _RADII if len(rows) <= most), _SMALLEST_RADIUS)
    neighbours = min(_NEIGHBOURS, len(rows))
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        _, found = tree.query(
            fingerprints[block], k=neighbours, distance_upper_bound=radius, workers=-1
        )
        # Where there are fewer, the index is one past the last.
        mine, place = np.nonzero(found < len(rows))
        pairs = np.sort(np.column_stack([block[mine], rows[found[mine, place]]]), axis=1)
        yield from ((a, b) for a, b in np.unique(pairs, axis=0).tolist() if a != b)
