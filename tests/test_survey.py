"""One look at every file: faults, forms and figures, in the order of the files."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import struct
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from wbc_keras.errors import DataError
from wbc_keras.pictures.survey import Survey, survey_once, survey_pictures


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def test_figures(tmp_path: Path, noise: np.ndarray) -> None:
    flat = np.full((60, 60, 3), (10, 30, 110), np.uint8)
    grey = np.repeat(cv2.resize(noise, (60, 60))[..., :1], 3, axis=-1)
    for name, image in {"noise": noise, "flat": flat, "grey": grey}.items():
        (tmp_path / name).write_bytes(png(image))
    survey = survey_pictures(tmp_path, ["noise", "flat", "grey"])
    assert survey.sizes.tolist() == [[80, 64], [60, 60], [60, 60]]
    assert survey.is_blank().tolist() == [False, True, False]
    assert survey.colours[1] == 100
    assert survey.colours[2] == 0
    assert survey.colours[0] > 20
    assert survey.contrasts[1] == 0
    digest = hashlib.blake2b((tmp_path / "flat").read_bytes(), digest_size=8).digest()
    assert int(survey.digests[1]) == int.from_bytes(digest, "little")
    assert (survey.faults, survey.forms) == ({}, {})
    assert survey.is_seen().all()


def test_faults_and_forms(tmp_path: Path, noise: np.ndarray) -> None:
    bomb = bytearray(png(noise))
    struct.pack_into(">II", bomb, 16, 60_000, 60_000)
    files = {
        "good": png(noise),
        "bomb": bytes(bomb),
        "text": b"no picture",
        "cut": png(noise)[:60],
        "deep": png(noise.astype(np.uint16) * 256),
    }
    for name, encoded in files.items():
        (tmp_path / name).write_bytes(encoded)
    survey = survey_pictures(tmp_path, [*files, "gone"])
    problems = {row: fault.problem for row, fault in survey.faults.items()}
    assert problems == {1: "huge", 2: "unreadable", 3: "damaged", 5: "unreadable"}
    assert survey.forms == {4: "16 bits a channel; the upper 8 are read"}
    assert survey.is_seen().tolist() == [True, False, False, False, True, False]
    assert not survey.is_blank().any(), "a fault is no blank picture"
    # The same pixels in 8 and 16 bits.
    assert survey.find_copies().units.tolist() == [0, 1, 2, 3, 0, 5]
    more = survey.with_damaged({"good": "cut off", "text": "other"})
    assert (more.faults[0].reason, more.faults[2].problem) == ("cut off", "unreadable")


def test_blank_pictures_are_no_copies(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / name).write_bytes(png(np.full((40, 40, 3), 200, np.uint8)))
    assert survey_pictures(tmp_path, list("abc")).find_copies().sets() == []


def test_many_files_keep_their_order(tmp_path: Path) -> None:
    """More than one part."""
    for level in range(64):
        (tmp_path / str(level)).write_bytes(png(np.full((2, 2, 3), level, np.uint8)))
    files = [str(n % 64) for n in range(5000)]
    survey = survey_pictures(tmp_path, files)
    np.testing.assert_allclose(survey.fingerprints[:, -1], np.arange(5000) % 64, atol=1e-4)


# --- once for all runs ---


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WBC_KERAS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "surveys"


@pytest.fixture
def files(tmp_path: Path, noise: np.ndarray) -> list[str]:
    """A picture, its copy turned, one of 16 bits, a text, and none."""
    (tmp_path / "one").write_bytes(png(noise))
    (tmp_path / "turned").write_bytes(png(np.ascontiguousarray(np.rot90(noise))))
    (tmp_path / "deep").write_bytes(png(255 - noise.astype(np.uint16) * 256))
    (tmp_path / "text").write_bytes(b"no picture")
    return ["one", "turned", "deep", "text", "gone"]


def assert_equal(one: Survey, other: Survey) -> None:
    for field in dataclasses.fields(Survey):
        np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name))


def test_survey_is_made_once(
    tmp_path: Path, cache: Path, files: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    expected = survey_pictures(tmp_path, files)
    for _ in range(2):
        survey, copies = survey_once(tmp_path, files)
        assert_equal(survey, expected)
        np.testing.assert_array_equal(copies.units, expected.find_copies().units)
    assert caplog.text.count("looking for copies among 5 pictures") == 1
    assert len(list(cache.iterdir())) == 1


def test_changed_files_are_looked_at_anew(
    tmp_path: Path, cache: Path, files: list[str], noise: np.ndarray
) -> None:
    assert survey_once(tmp_path, files)[1].units.tolist() == [0, 0, 2, 3, 4]
    (tmp_path / "turned").write_bytes(png(noise[:, :40]))
    assert survey_once(tmp_path, files)[1].units.tolist() == [0, 1, 2, 3, 4]
    assert survey_once(tmp_path, files[:2])[1].units.tolist() == [0, 1]
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("survey.npz", lambda data: data[:-200]),
        ("survey.npz", lambda data: data[:300] + b"abcd" + data[304:]),
        ("survey.npz", lambda data: b""),
        ("about.json", lambda data: data[:9]),
        ("about.json", lambda data: b"[]"),
    ],
)
def test_a_damaged_survey_is_made_anew(
    tmp_path: Path, cache: Path, files: list[str], name: str, damage: Callable[[bytes], bytes]
) -> None:
    expected, _ = survey_once(tmp_path, files)
    (kept,) = cache.glob(f"*/{name}")
    kept.write_bytes(damage(kept.read_bytes()))
    assert_equal(survey_once(tmp_path, files)[0], expected)


def test_a_cache_that_cannot_be_written_is_told(
    tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WBC_KERAS_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="WBC_KERAS_CACHE to a folder of yours"):
        survey_once(tmp_path, files)
