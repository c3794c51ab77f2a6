"""Copies are found however they were turned or encoded, and different cells are told apart."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from wbc_keras.checking.duplicates import (
    SIDE,
    TURNS,
    Copies,
    compare,
    find_copies,
    fingerprint,
    shrink,
)
from wbc_keras.synthetic import draw_cell


@pytest.fixture(scope="module")
def cells() -> list[np.ndarray]:
    """Forty drawn cells, RGB, of odd and even sizes."""
    rng = np.random.default_rng(0)
    names = ["lymphocyte", "monocyte", "eosinophil", "promyelocyte"]
    return [draw_cell(names[n % 4], size=120 + n % 3, rng=rng).image for n in range(40)]


def encode(image: np.ndarray, quality: int = 92) -> bytes:
    _, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return jpeg.tobytes()


def small(image: np.ndarray, quality: int = 92) -> np.ndarray:
    found = shrink(encode(image, quality), size=image.shape[1::-1], kind="JPEG")
    assert found is not None
    return found


def turn(image: np.ndarray, number: int) -> np.ndarray:
    """Return one of the eight symmetries of the square."""
    image = image[:, ::-1] if number >= 4 else image
    return np.ascontiguousarray(np.rot90(image, number % 4))


def scale(image: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def move(image: np.ndarray, pixels: int) -> np.ndarray:
    return np.roll(image, (pixels, -pixels), axis=(0, 1))


CHANGES = {
    "encoded anew": lambda image: small(image, 40),
    "half the size": lambda image: small(scale(image, 0.5)),
    "larger": lambda image: small(scale(image, 1.5)),
    "moved": lambda image: small(move(image, 6)),
}


def link(pictures: list[np.ndarray]) -> Copies:
    return find_copies(
        fingerprint(np.stack(pictures)),
        np.arange(len(pictures), dtype=np.uint64),
        rows=np.arange(len(pictures)),
        load=pictures.__getitem__,
    )


@pytest.mark.parametrize("number", range(8))
def test_each_symmetry_leaves_the_fingerprint_and_is_named(
    cells: list[np.ndarray], number: int
) -> None:
    one = small(cells[0])
    other = turn(one, number)
    np.testing.assert_allclose(*fingerprint(np.stack([one, other])), atol=1e-3)
    # What brings the other back to the first.
    back = number if number >= 4 else -number % 4
    assert compare(one, other) == (pytest.approx(1, abs=1e-5), back)
    assert len(TURNS) == 8


def test_amplitudes_are_those_of_the_transform() -> None:
    """A plain wave of 10 grey levels, three to the picture's side, has one amplitude."""
    wave = 128 + 10 * np.cos(2 * np.pi * 3 * np.arange(SIDE) / SIDE)
    picture = np.repeat(np.tile(np.rint(wave), (SIDE, 1))[..., None], 3, axis=-1).astype(np.uint8)
    found = fingerprint(picture[None])[0]
    assert found.shape == (23,)
    # Amplitude 10 is 2 * 10 as it is scaled here, over the root of the two places (0, 3), (3, 0).
    assert found[2] == pytest.approx(20 / np.sqrt(2), abs=0.3)
    assert np.abs(np.delete(found[:20], 2)).max() < 0.3
    np.testing.assert_allclose(found[20:], 128, atol=0.5)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_are_found_and_nothing_else(cells: list[np.ndarray], change: str) -> None:
    copies = [CHANGES[change](turn(cells[n], n % 8)) for n in range(16)]
    pictures = [*map(small, cells), *copies]
    assert [rows.tolist() for rows in link(pictures).sets()] == [[n, 40 + n] for n in range(16)]


def test_real_cells_and_their_copies(pbc: Path) -> None:
    paths = sorted(pbc.glob("*/*.jpg"))[::60]
    images = [cv2.imread(str(path)) for path in paths]
    copies = [small(scale(turn(image, n % 8), 0.7), 60) for n, image in enumerate(images)]
    found = link([*map(small, images), *copies]).sets()
    assert [rows.tolist() for rows in found] == [[n, len(paths) + n] for n in range(len(paths))]


def test_same_cell_photographed_twice(pbc: Path) -> None:
    names = ["erythroblast/ERB_287222", "erythroblast/ERB_984537", "monocyte/MO_231316"]
    pictures = [small(cv2.imread(str(pbc / f"{name}.jpg"))) for name in names]
    assert link(pictures).units.tolist() == [0, 0, 2]


def test_sets_are_closed_and_named_by_their_first(cells: list[np.ndarray]) -> None:
    a, b = small(cells[0]), small(cells[1])
    pictures = [b, a, turn(a, 3), b, turn(a, 5), small(cells[2])]
    copies = link(pictures)
    assert copies.units.tolist() == [0, 1, 1, 0, 1, 5]
    assert [rows.tolist() for rows in copies.sets()] == [[0, 3], [1, 2, 4]]
    assert link(pictures[-1:]).sets() == []


def test_many_copies_of_one(cells: list[np.ndarray]) -> None:
    """More than the neighbours that are looked at: they hang together all the same."""
    pictures = [small(cells[0], quality) for quality in range(40, 100)]
    assert len(link(pictures).sets()[0]) == 60


def test_same_bytes_need_no_comparison(cells: list[np.ndarray]) -> None:
    digests = np.array([7, 8, 7, 7], np.uint64)
    prints = fingerprint(np.stack([small(cells[n]) for n in range(4)]))
    rows = np.array([0, 1, 2])
    copies = find_copies(prints, digests, rows=rows, load=lambda row: None)
    assert copies.units.tolist() == [0, 1, 0, 3], "row 3 is not among those to compare"


@pytest.mark.parametrize("side", [8, 28, 47, 48, 96, 97, 400, 900])
def test_every_size_is_shrunk_alike(cells: list[np.ndarray], side: int) -> None:
    image = cv2.resize(cells[0], (side, side), interpolation=cv2.INTER_AREA)
    assert small(image).shape == (SIDE, SIDE, 3)
    if side >= 97:
        assert compare(small(cells[0]), small(image))[0] > 0.99


def test_what_cannot_be_decoded_is_none() -> None:
    assert shrink(b"\xff\xd8\xff\xe0 no more", size=(100, 100), kind="JPEG") is None
