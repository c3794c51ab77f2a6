"""The Munich set as it is unpacked, its real annotations with pictures made in its form."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from wbc_keras.config import load_config
from wbc_keras.errors import DataError, RunError
from wbc_keras.manifest import Manifest, read_manifest
from wbc_keras.manifest.munich import read_annotations
from wbc_keras.pictures.images import find_bad_images, read_bytes, read_image
from wbc_keras.splits import make_splits, read_splits, write_splits
from wbc_keras.synthetic import draw_cell
from wbc_keras.train import _require_same_splits, _write_plan
from wbc_keras.training.data_plan import plan_data

COLUMNS = ["file", "label", "group", "split", "reannotation_1", "reannotation_2"]
COUNTS = {
    "NGS": 8484, "LYT": 3937, "MYO": 3268, "MON": 1789, "EOS": 424, "NGB": 109, "BAS": 79,
    "EBO": 78, "PMO": 70, "MYB": 42, "MOB": 26, "PMB": 18, "KSC": 15, "MMZ": 15, "LYA": 11,
}  # fmt: skip


def rows(manifest: Manifest) -> list[tuple[str, ...]]:
    assert list(manifest.table.columns) == COLUMNS
    return [tuple(row) for row in manifest.table.itertuples(index=False)]


def make_files(folder: Path, names: Iterable[str]) -> Path:
    """Make files that are looked for, not decoded."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"picture")
    return folder


def refuse(folder: Path, match: str) -> str:
    with pytest.raises(DataError, match=match) as caught:
        read_manifest(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def draw(label: str) -> np.ndarray:
    """Draw a cell as the Munich set holds it: uint8 (400, 400, 4)."""
    rgb = draw_cell(label, size=100, rng=np.random.default_rng(0)).image
    return np.dstack([np.kron(rgb, np.ones((4, 4, 1), np.uint8)), np.full((400, 400), 255)])


@pytest.fixture(scope="module")
def munich(lmu_metadata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole set: its own annotations, and for each code one picture, linked for every row."""
    folder = tmp_path_factory.mktemp("munich") / "AML-Cytomorphology_LMU"
    folder.mkdir()
    for name in ("annotations.dat", "abbreviations.txt"):
        shutil.copy(lmu_metadata / name, folder)
    first: dict[str, Path] = {}
    for line in (folder / "annotations.dat").read_text().splitlines():
        file, label = line.split()[:2]
        path = folder / file
        if label in first:
            # Links: 18,365 pictures of 640 kB would fill a disk.
            os.link(first[label], path)
            continue
        path.parent.mkdir()
        cell = "monocyte" if label in ("MON", "MOB", "MYO") else "neutrophil_segmented"
        Image.fromarray(draw(cell).astype(np.uint8)).save(path)
        first[label] = path
    return folder


@pytest.fixture(scope="module")
def whole(munich: Path) -> Manifest:
    return read_manifest(munich)


# --- the whole set ---


def test_class_counts_are_those_of_the_set(whole: Manifest) -> None:
    assert Counter(whole.table["label"]) == COUNTS
    assert whole.name == "AML-Cytomorphology_LMU"
    assert list(whole.table.columns) == COLUMNS
    assert all(path.is_file() for path in whole.paths())


def test_reannotations_are_those_of_the_file(whole: Manifest, lmu_metadata: Path) -> None:
    own = pd.read_csv(
        lmu_metadata / "annotations.dat",
        sep=" ",
        header=None,
        names=["file", "label", "reannotation_1", "reannotation_2"],
        keep_default_na=False,
    ).replace("nan", "")
    pd.testing.assert_frame_equal(whole.table[own.columns.tolist()], own, check_dtype=False)
    twice = whole.table[whole.table["reannotation_1"] != ""]
    assert len(twice) == (whole.table["reannotation_2"] != "").sum() == 1905
    assert (twice["label"] == twice["reannotation_1"]).mean() == pytest.approx(0.849, abs=5e-4)


def test_pictures_of_the_set_are_read_without_their_fourth_channel(whole: Manifest) -> None:
    some = whole.select(~whole.table["label"].duplicated()).paths()
    assert len(some) == 15
    assert find_bad_images(some) == []
    image = read_image(next(path for path in some if path.parent.name == "MON"))
    np.testing.assert_array_equal(image, draw("monocyte")[..., :3])
    assert read_bytes(some[0]).startswith(b"\x89PNG")


def test_five_folds_test_every_cell_once_and_keep_rare_classes_in_each(whole: Manifest) -> None:
    """The protocol of Matek et al. 2019: stratified five folds."""
    tested = Counter()
    for fold in range(1, 6):
        splits = make_splits(whole.table, validation=0.1, test=0.2, folds=5, fold=fold)
        held = whole.table[splits.assignment == "test"]
        tested.update(held["file"])
        counts = held["label"].value_counts()
        for label, count in COUNTS.items():
            assert count // 5 <= counts[label] <= -(-count // 5)
    assert set(tested) == set(whole.table["file"])
    assert set(tested.values()) == {1}


def test_splits_file_keeps_its_four_columns(whole: Manifest, tmp_path: Path) -> None:
    splits = make_splits(whole.table, validation=0.1, test=0.2)
    write_splits(tmp_path / "splits.csv", whole.table, splits.assignment.tolist())
    assert list(read_splits(tmp_path / "splits.csv").columns) == COLUMNS[:4]


# --- what stands beside the rows ---


def test_a_run_can_be_resumed_on_a_source_with_columns_of_its_own(tmp_path: Path) -> None:
    data = tmp_path / "lmu"
    names = [f"{code}/{code}_{n:04d}" for code in ("MON", "NGS") for n in range(10)]
    for name in names:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw("monocyte")[::8, ::8].astype(np.uint8)).save(data / f"{name}.tiff")
    lines = "".join(f"{name}.tiff {name[:3]} MON nan\n" for name in names)
    (data / "annotations.dat").write_text(lines)
    # The pictures are one and the same.
    settings = [f"data.source={data}", "data.near_duplicates=ignore"]
    config = load_config(overrides=settings)
    _write_plan(config, plan_data(config), tmp_path)
    _require_same_splits(tmp_path, plan_data(config))
    (data / "annotations.dat").write_text(lines.replace("MON_0003.tiff MON", "MON_0003.tiff NGS"))
    with pytest.raises(RunError, match="the data has changed"):
        _require_same_splits(tmp_path, plan_data(config))


def test_selecting_keeps_the_reannotations(whole: Manifest) -> None:
    both = whole.select(whole.table["reannotation_1"] != "")
    assert list(both.table.columns) == COLUMNS
    assert len(both.table) == 1905


def test_pictures_in_other_formats_and_empty_reannotations(tmp_path: Path) -> None:
    folder = make_files(tmp_path / "lmu", ["BAS/BAS_0001.tiff", "NGS/NGS_0001.jpg", "MON/1.png"])
    lines = "BAS/BAS_0001.tiff BAS NGS nan\nNGS/NGS_0001.tiff NGS\nMON/1.tiff MON NaN UNC\n"
    (folder / "annotations.dat").write_text(lines)
    manifest = read_manifest(folder)
    assert rows(manifest) == [
        ("BAS/BAS_0001.tiff", "BAS", "", "", "NGS", ""),
        ("NGS/NGS_0001.jpg", "NGS", "", "", "", ""),
        ("MON/1.png", "MON", "", "", "", "UNC"),
    ]
    assert manifest.name == "lmu"


def test_code_folders_may_lie_deeper(tmp_path: Path) -> None:
    make_files(tmp_path / "pictures", ["BAS/BAS_0001.tif", "NGS/NGS_0001.TIFF"])
    (tmp_path / "annotations.dat").write_text("BAS/BAS_0001.tiff BAS\nNGS/NGS_0001.tiff NGS\n")
    files = [row[0] for row in rows(read_manifest(tmp_path))]
    assert files == ["pictures/BAS/BAS_0001.tif", "pictures/NGS/NGS_0001.TIFF"]


def test_pictures_without_a_row_are_left_out_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_files(tmp_path, ["BAS/1.tiff", "NGS/1.tiff"])
    (tmp_path / "annotations.dat").write_text("BAS/1.tiff BAS\nNGS/1.tiff NGS\n")
    with caplog.at_level(logging.WARNING):
        assert len(read_manifest(tmp_path).table) == 2
        assert caplog.text == ""
        make_files(tmp_path, [f"KSC/{number}.tiff" for number in range(7)])
        make_files(tmp_path, ["BAS/1.png"])  # a copy of a picture that has a row
        assert len(read_manifest(tmp_path).table) == 2
    assert (
        "annotations.dat: 8 pictures have no row and no label, so left out: BAS/1.png, KSC/0"
        in caplog.text
    )
    assert "KSC/3.tiff and 3 more" in caplog.text


def test_rows_without_a_picture_are_named(lmu_metadata: Path) -> None:
    message = refuse(lmu_metadata, "18365 of 18365 rows have no picture")
    assert "BAS/BAS_0001.tiff" in message


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ("", "is empty"),
        ("BAS/1.tiff BAS nan nan\nBAS/2.tiff\n", r"row 2 \(BAS/2\.tiff\): expected"),
        ("BAS/1.tiff nan nan nan\n", r"row 1 .*: expected"),
        ("BAS/my 1.tiff BAS nan nan\n", r"row 1 .*: expected"),
        ("BAS/1.tiff BAS\n\nBAS/1.tiff BAS\n", "row 3 .* stands in an earlier row"),
        ("BAS/1.tiff BAS\nBAS/2.tiff BAS\n", "1 of 2 rows have no picture in .*: BAS/2.tiff"),
    ],
)
def test_faulty_annotations(tmp_path: Path, lines: str, match: str) -> None:
    make_files(tmp_path, ["BAS/1.tiff"])
    (tmp_path / "annotations.dat").write_text(lines)
    refuse(tmp_path, match)


def test_annotations_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file; give the Munich set"):
        read_annotations(tmp_path / "annotations.dat")


def test_layout_without_annotations_is_a_class_folder(lmu_smoke: Path) -> None:
    manifest = read_manifest(lmu_smoke)
    assert (len(manifest.table), len(manifest.class_names())) == (100, 10)
