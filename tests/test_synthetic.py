from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from wbc_keras.config import SyntheticConfig
from wbc_keras.synthetic import (
    CLASS_NAMES,
    FIELD_WIDTH,
    Cell,
    class_counts,
    draw_cell,
    draw_stain,
    write_cells,
)

SIZE = 128


@lru_cache
def drawn(class_name: str, count: int = 16) -> tuple[Cell, ...]:
    rngs = (np.random.default_rng([11, number]) for number in range(count))
    return tuple(draw_cell(class_name, size=SIZE, rng=rng) for rng in rngs)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic") / "cells"
    write_cells(folder, SyntheticConfig(cells=120, image_size=64, imbalance=4.0, patients=6))
    return folder


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def nuclei(class_name: str) -> list[np.ndarray]:
    return [(cell.mask == 255).astype(np.uint8) for cell in drawn(class_name)]


def solidity(nucleus: np.ndarray) -> float:
    """Area over that of the convex hull; 1 for anything round."""
    points = cv2.findNonZero(nucleus)
    return float(nucleus.sum() / cv2.contourArea(cv2.convexHull(points)))


def count_lobes(nucleus: np.ndarray) -> int:
    """The most pieces that openings of 1 to 2.5 micrometres leave of a nucleus."""
    kernels = [cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (k, k)) for k in (5, 7, 9, 11)]
    opened = [cv2.morphologyEx(nucleus, cv2.MORPH_OPEN, kernel) for kernel in kernels]
    return max(cv2.connectedComponents(pieces)[0] - 1 for pieces in opened)


def lab(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean CIELAB colour; a is red against green, b yellow against blue."""
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[where].mean(axis=0)


def cytoplasm_lab(class_name: str) -> np.ndarray:
    return np.mean([lab(cell.image, cell.mask == 128) for cell in drawn(class_name)], axis=0)


def test_classes() -> None:
    assert len(set(CLASS_NAMES)) == len(CLASS_NAMES) >= 8
    assert all(name == name.lower() and name.isidentifier() for name in CLASS_NAMES)


@pytest.mark.parametrize("class_name", CLASS_NAMES)
@pytest.mark.parametrize("size", [32, 101])
def test_cell_has_the_asked_size(class_name: str, size: int) -> None:
    cell = draw_cell(class_name, size=size, rng=np.random.default_rng(0))
    assert cell.image.shape == (size, size, 3)
    assert cell.image.dtype == np.uint8
    assert cell.mask.shape == (size, size)
    assert cell.mask.dtype == np.uint8
    assert set(np.unique(cell.mask)) == {0, 128, 255}


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_cell_keeps_its_proportions_at_any_size(class_name: str) -> None:
    # The masks use the same first draws at each size, so the same cell comes out.
    small, large = (
        draw_cell(class_name, size=size, rng=np.random.default_rng(4)).mask for size in (64, 256)
    )
    shrunk = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)
    assert np.mean((small > 64) == (shrunk > 64)) > 0.98


def test_unknown_class() -> None:
    with pytest.raises(ValueError, match="Received: 'heterophil'"):
        draw_cell("heterophil", size=32, rng=np.random.default_rng(0))


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_mask_agrees_with_picture(class_name: str) -> None:
    for cell in drawn(class_name):
        green = cell.image[..., 1].astype(float)
        nucleus, cytoplasm, field = (green[cell.mask == value] for value in (255, 128, 0))
        assert nucleus.mean() < cytoplasm.mean() - 20
        assert cytoplasm.mean() < np.percentile(field, 95) - 15
        # Stained nuclei are purple: green is held back most, and blue passes better than red.
        red, green, blue = cell.image[cell.mask == 255].mean(axis=0)
        assert green < red < blue


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_cell_lies_whole_near_the_centre(class_name: str) -> None:
    centres = []
    for cell in drawn(class_name):
        body = cell.mask > 0
        assert body[1:-1, 1:-1].sum() == body.sum()
        assert cv2.connectedComponents(body.astype(np.uint8))[0] == 2
        centres.append(np.argwhere(body).mean(axis=0))
    assert np.abs(np.array(centres) - (SIZE - 1) / 2).max() < 0.15 * SIZE
    assert np.std(centres, axis=0).min() > 0.02 * SIZE


def test_otsu_finds_most_nuclei() -> None:
    shares = {}
    for class_name in CLASS_NAMES:
        shares[class_name] = np.mean([nucleus_iou(cell) for cell in drawn(class_name)])
    # A basophil's granules are as dark as the nucleus they lie on.
    granular = shares.pop("basophil")
    assert granular > 0.45
    assert min(shares.values()) > 0.75, shares


def nucleus_iou(cell: Cell) -> float:
    """IoU of the mask with what is darker than the upper of two Otsu thresholds."""
    _, green, blue = cv2.split(cell.image.astype(np.float32))
    purple = np.clip((255 - green) - (255 - blue) / 2, 0, 255).astype(np.uint8)
    low, _ = cv2.threshold(purple, 0, 255, cv2.THRESH_OTSU)
    stained = purple[purple > low].reshape(-1, 1)
    high, _ = cv2.threshold(stained, 0, 255, cv2.THRESH_OTSU)
    found, nucleus = purple > high, cell.mask == 255
    return float((found & nucleus).sum() / (found | nucleus).sum())


def test_nucleus_areas_are_ordered_as_in_blood() -> None:
    area = {name: np.mean([nucleus.mean() for nucleus in nuclei(name)]) for name in CLASS_NAMES}
    order = ["erythroblast", "neutrophil_segmented", "lymphocyte", "monocyte", "myeloblast"]
    values = [area[name] * FIELD_WIDTH**2 for name in order]
    assert values == sorted(values)
    assert 20 < values[0] < 40  # square micrometres
    assert 120 < values[-1] < 220


def test_lymphocyte_has_least_cytoplasm_of_the_small_cells() -> None:
    def nucleus_share(class_name: str) -> float:
        return float(
            np.mean([(c.mask == 255).sum() / (c.mask > 0).sum() for c in drawn(class_name)])
        )

    assert nucleus_share("lymphocyte") > 0.65 > 0.5 > nucleus_share("erythroblast")


def test_nucleus_shapes_differ() -> None:
    shape = {name: np.median([solidity(n) for n in nuclei(name)]) for name in CLASS_NAMES}
    for name in ("lymphocyte", "myeloblast", "erythroblast", "promyelocyte"):
        assert shape[name] > 0.93, name
    assert shape["neutrophil_band"] < shape["monocyte"] < shape["lymphocyte"]
    assert shape["neutrophil_segmented"] < 0.85
    assert shape["neutrophil_band"] < 0.8


def test_lobes() -> None:
    lobes = {name: [count_lobes(n) for n in nuclei(name)] for name in CLASS_NAMES}
    for name in ("lymphocyte", "myeloblast", "erythroblast", "promyelocyte", "monocyte"):
        assert set(lobes[name]) == {1}, name
    assert max(lobes["eosinophil"]) == 2
    assert np.mean(lobes["neutrophil_band"]) < 1.2
    assert 2.2 < np.mean(lobes["neutrophil_segmented"]) < 4
    assert max(lobes["neutrophil_segmented"]) <= 5


def test_cytoplasm_colours_differ() -> None:
    eosinophil, neutrophil = cytoplasm_lab("eosinophil"), cytoplasm_lab("neutrophil_segmented")
    monocyte, myeloblast = cytoplasm_lab("monocyte"), cytoplasm_lab("myeloblast")
    assert eosinophil[1] > neutrophil[1] > monocyte[1]  # orange and pink are redder than grey-blue
    assert eosinophil[2] > neutrophil[2] > max(monocyte[2], myeloblast[2])  # and yellower
    assert myeloblast[0] < monocyte[0] < neutrophil[0]  # deep blue, grey-blue, pale pink


def test_granules_roughen_the_cytoplasm() -> None:
    def roughness(class_name: str) -> float:
        return float(np.mean([detail(cell) for cell in drawn(class_name)]))

    plain = max(roughness("erythroblast"), roughness("monocyte"))
    assert min(roughness(name) for name in ("eosinophil", "basophil", "promyelocyte")) > plain


def detail(cell: Cell) -> float:
    """Spread of the green channel about its blur, inside the cytoplasm."""
    green = cell.image[..., 1].astype(np.float32)
    inside = cv2.erode((cell.mask == 128).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    return float((green - cv2.GaussianBlur(green, (0, 0), 3))[inside].std())


def test_red_cells_and_light_vary_between_patients() -> None:
    stains = [draw_stain(np.random.default_rng([5, patient])) for patient in range(30)]
    backgrounds = np.array([stain.background for stain in stains])
    assert np.all(backgrounds.std(axis=0) > 1)
    assert len({stain.red_cells for stain in stains}) > 4
    cells = [
        draw_cell("lymphocyte", size=64, rng=np.random.default_rng(0), stain=stain)
        for stain in stains[:4]
    ]
    assert len({cell.image.tobytes() for cell in cells}) == 4


def test_counts_fall_geometrically() -> None:
    counts = class_counts(SyntheticConfig(cells=2000, imbalance=20.0))
    assert sum(counts) == 2000
    assert counts[0] / counts[-1] == pytest.approx(20, rel=0.05)
    steps = np.array(counts[:-1]) / np.array(counts[1:])
    assert steps == pytest.approx(20 ** (1 / (len(counts) - 1)), rel=0.05)


@pytest.mark.parametrize(
    ("cells", "imbalance"), [(16, 1.0), (16, 10.0), (16, 1e6), (100, 1e6), (801, 1.0), (7777, 37.0)]
)
def test_counts_add_up_and_none_is_empty(cells: int, imbalance: float) -> None:
    counts = class_counts(SyntheticConfig(cells=cells, imbalance=imbalance))
    assert len(counts) == len(CLASS_NAMES)
    assert sum(counts) == cells
    assert min(counts) >= 1
    assert counts == sorted(counts, reverse=True)


def test_even_counts_differ_by_one_at_most() -> None:
    counts = class_counts(SyntheticConfig(cells=803))
    assert max(counts) - min(counts) <= 1


def test_written_set(folder: Path) -> None:
    settings = SyntheticConfig(cells=120, image_size=64, imbalance=4.0, patients=6)
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    assert list(table.columns) == ["file", "label", "patient"]
    assert table.file.is_unique
    assert table.label.value_counts().to_dict() == dict(
        zip(CLASS_NAMES, class_counts(settings), strict=True)
    )
    pictures = {p.relative_to(folder).as_posix() for p in folder.rglob("*.png")}
    assert pictures == set(table.file) | {f"masks/{file}" for file in table.file}
    for file, label in zip(table.file, table.label, strict=True):
        assert file.startswith(f"{label}/{label}_")
        image = cv2.imread(str(folder / file), cv2.IMREAD_UNCHANGED)
        mask = cv2.imread(str(folder / "masks" / file), cv2.IMREAD_UNCHANGED)
        assert image.shape == (64, 64, 3)
        assert mask.shape == (64, 64)
        assert set(np.unique(mask)) == {0, 128, 255}
        # In RGB order the empty field is warm or white, and nuclei are purple, never brown.
        blue, _, red = image[mask == 255].mean(axis=0)
        assert red < blue


def test_classes_are_dealt_over_the_patients(folder: Path) -> None:
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    counts = pd.crosstab(table.label, table.patient)
    assert counts.shape == (len(CLASS_NAMES), 6)
    assert (counts.max(axis=1) - counts.min(axis=1)).max() <= 1
    assert (counts > 0).sum(axis=1).equals(counts.sum(axis=1).clip(upper=6))


def test_patients_of_rare_classes_differ(tmp_path: Path) -> None:
    settings = SyntheticConfig(cells=40, image_size=32, imbalance=1.0, patients=40)
    write_cells(tmp_path, settings)
    table = pd.read_csv(tmp_path / "manifest.csv", dtype=str)
    assert not table.duplicated(["label", "patient"]).any()


def test_same_settings_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_cells(tmp_path, SyntheticConfig(cells=120, image_size=64, imbalance=4.0, patients=6))
    assert digests(tmp_path) == digests(folder)


def test_another_seed_gives_other_cells(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_cells(tmp_path / str(seed), SyntheticConfig(cells=18, image_size=32, seed=seed))
    first, second = digests(tmp_path / "0"), digests(tmp_path / "1")
    assert first.keys() == second.keys()
    assert all(first[file] != second[file] for file in first if not file.startswith("masks/"))


def test_no_cell_is_drawn_twice(folder: Path) -> None:
    pictures = [value for file, value in digests(folder).items() if file.endswith(".png")]
    assert len(set(pictures)) == len(pictures)


def test_a_larger_set_begins_with_the_smaller(tmp_path: Path) -> None:
    for cells in (18, 27):
        write_cells(tmp_path / str(cells), SyntheticConfig(cells=cells, image_size=32, patients=3))
    small, large = digests(tmp_path / "18"), digests(tmp_path / "27")
    del small["manifest.csv"]
    assert small.items() <= large.items()
