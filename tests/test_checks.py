"""Each check finds what it is for, in tables and among drawn cells, and stays silent otherwise."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from wbc_keras.checking.checks import (
    PROBLEMS,
    Finding,
    check,
    check_table,
    count_findings,
    describe_class_codes,
    screen,
)
from wbc_keras.checking.duplicates import Copies
from wbc_keras.config import SyntheticConfig
from wbc_keras.errors import DataError
from wbc_keras.manifest import Manifest, read_manifest
from wbc_keras.synthetic import draw_cell

LABELS = ("lymphocyte", "monocyte", "eosinophil")


def make_table(rows: list[tuple[str, str, str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["file", "label", "group", "split"], dtype=str)


def found_in(table: pd.DataFrame, units: list[int] | None = None) -> list[tuple[str, str]]:
    copies = Copies(np.array(units if units is not None else range(len(table))))
    return [(item.problem, item.detail) for item in check_table(table, copies)]


# --- class codes taken for patients ---


def test_one_group_a_class_is_a_class_code() -> None:
    rows = [(f"{c}/{c}_{n:04d}.tiff", c, c, "") for c in ("BAS", "EBO", "MON") for n in range(4)]
    reason = describe_class_codes(make_table(rows))
    assert reason.startswith("group: the 3 groups stand for the 3 classes (BAS for BAS), so they")
    assert "drop the patient and group columns" in reason


def test_finer_codes_that_lead_the_file_names(pbc: Path) -> None:
    table = read_manifest(pbc).table
    codes = table["file"].str.extract(r"/([A-Z]+)_", expand=False)
    assert codes.nunique() == 13
    assert "13 groups stand for the 8 classes" in describe_class_codes(table.assign(group=codes))


def test_finer_cell_types_are_no_patients(pbc: Path) -> None:
    table = read_manifest(pbc).table
    fine = read_manifest(pbc, label_column="fine_label").table["label"]
    assert "groups stand for the 8 classes" in describe_class_codes(table.assign(group=fine))


@pytest.mark.parametrize(
    "groups",
    [
        ["BAS0", "BAS1", "BAS2", "MON0", "MON1", "MON2"],
        ["NGS_12", "NGS_13", "NGS", "EBO_1", "EBO_2", "EBO_10"],
        ["1-basophil", "2-basophil", "2-basophil", "1-monocyte", "2-monocyte", "3-monocyte"],
        # No cell types, but they lead the names of the files.
        ["ABA1", "ABA1", "ABA2", "AMO1", "AMO2", "AMO2"],
    ],
)
def test_numbered_class_codes(groups: list[str]) -> None:
    labels = ["first"] * 3 + ["second"] * 3
    codes = ["ABA"] * 3 + ["AMO"] * 3
    rows = [(f"x/{codes[n]}_{n}.png", labels[n], group, "") for n, group in enumerate(groups)]
    count = len(set(groups))
    reason = describe_class_codes(make_table(rows))
    assert reason.startswith(f"group: the {count} groups stand for the 2 classes")


@pytest.mark.parametrize(
    "groups",
    [
        ["P001", "P002", "P003", "P004", "P005", "P006"],
        ["AML12", "AML13", "AML14", "NBM1", "NBM2", "NBM3"],
        # A patient of a clinic called MON, another of BAS; and numbers alone.
        ["MON1", "BAS1", "MON2", "MON3", "BAS2", "MON4"],
        ["001", "002", "003", "004", "005", "006"],
        # One patient holds both classes.
        ["BAS0", "BAS1", "MON0", "MON0", "MON1", "MON2"],
    ],
)
def test_numbered_patients_are_no_class_codes(groups: list[str]) -> None:
    labels = ["basophil"] * 3 + ["monocyte"] * 3
    for file in ("{n}.png", "{group}_{n}.png"):
        rows = [
            (file.format(n=n, group=group), labels[n], group, "") for n, group in enumerate(groups)
        ]
        assert describe_class_codes(make_table(rows)) == ""


@pytest.mark.parametrize(
    "groups",
    [
        # Patients of one diagnosis each, numbered or by initials; the same patient twice.
        ["AML_1", "AML_2", "AML_3", "CML_1", "CML_2", "CML_3"],
        ["AB", "CD", "EF", "GH", "IJ", "KL"],
        ["p1", "p2", "p1", "p2", "p1", "p2"],
        ["", "", "", "", "", ""],
        ["a", "b", "c", "d", "e", "f"],
    ],
)
def test_patients_are_no_class_codes(groups: list[str]) -> None:
    labels = ["AML"] * 3 + ["CML"] * 3
    rows = [(f"{n}.png", labels[n], group, "") for n, group in enumerate(groups)]
    assert describe_class_codes(make_table(rows)) == ""


def test_real_patients_are_no_class_codes(aml_jhu: Path) -> None:
    assert describe_class_codes(read_manifest(aml_jhu).table) == ""


# --- splits, small classes, names ---


def test_patient_in_two_splits() -> None:
    rows = [("1", "x", "p1", "train"), ("2", "y", "p1", "test"), ("3", "x", "p1", "train")]
    rows += [(f"{n}", "xy"[n % 2], f"p{n}", "train") for n in range(4, 10)]
    found = found_in(make_table(rows))
    assert ("group_across_splits", "p1: train 2, test 1") in found
    assert not [item for item in found if item[0] == "group_across_splits" and "p1" not in item[1]]


def test_small_classes_count_patients_or_different_pictures() -> None:
    rows = [(f"{n}", "big", "", "") for n in range(9)] + [
        (f"s{n}", "few", "", "") for n in range(3)
    ]
    assert found_in(make_table(rows)) == []
    tied = [*range(9), 9, 9, 11]
    assert found_in(make_table(rows), tied) == [("small_class", "few: cells 3, pictures 2")]
    grouped = make_table([(f, label, f"p{n % 2}", "") for n, (f, label, _, _) in enumerate(rows)])
    assert ("small_class", "big: cells 9, groups 2") in found_in(grouped)


def test_class_that_a_given_split_lacks() -> None:
    rows = [(f"{n}", "ab"[n % 2], "", "train") for n in range(8)]
    rows += [(f"t{n}", "a", "", "test") for n in range(4)]
    assert found_in(make_table(rows)) == [("small_class", "b: no cell in test")]
    # A column that is filled in part, and a class without a split.
    rows += [(f"c{n}", "c", "", "") for n in range(5)]
    assert found_in(make_table(rows)) == [("small_class", "b: no cell in test")]


def test_patients_in_file_names(aml_jhu: Path) -> None:
    table = read_manifest(aml_jhu).table
    assert not [item for item in found_in(table) if item[0] == "patient_in_names"]
    told = dict(found_in(table.assign(group="")))["patient_in_names"]
    assert told.startswith("file names hold 82 patients (Patient_")


def test_no_patients_are_seen_where_there_are_none(pbc: Path, lmu_smoke: Path) -> None:
    for folder in (pbc, lmu_smoke):
        assert "patient_in_names" not in dict(found_in(read_manifest(folder).table))
    one_each = make_table([(f"case_{n}.png", "ab"[n % 2], "", "") for n in range(20)])
    assert found_in(one_each) == []


# --- pictures ---


@pytest.fixture(scope="module")
def images() -> dict[str, np.ndarray]:
    """Ten drawn cells of three classes, BGR, by file name."""
    rng = np.random.default_rng(0)
    return {
        f"{label}/{n}.png": draw_cell(label, size=96, rng=rng).image[..., ::-1]
        for label in LABELS
        for n in range(10)
    }


@pytest.fixture
def cells(tmp_path: Path, images: dict[str, np.ndarray]) -> Path:
    for name, image in images.items():
        save(tmp_path / "cells" / name, image)
    return tmp_path / "cells"


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.ascontiguousarray(image))[1].tobytes())


def found_among(folder: Path, **damaged: str) -> dict[str, list[Finding]]:
    findings = check(read_manifest(folder), damaged=damaged)
    assert [item.problem for item in findings] == sorted(
        (item.problem for item in findings), key=list(PROBLEMS).index
    )
    by_problem: dict[str, list[Finding]] = {}
    for finding in findings:
        by_problem.setdefault(finding.problem, []).append(finding)
    return by_problem


def test_good_cells_have_no_findings(cells: Path) -> None:
    assert found_among(cells) == {}
    assert screen(read_manifest(cells)).notes == ()


def test_drawn_cells_have_no_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WBC_KERAS_CACHE", str(tmp_path))
    settings = SyntheticConfig(cells=150, image_size=64, patients=9)
    assert check(read_manifest("synthetic", synthetic=settings), damaged={}) == []


def test_single_pictures(cells: Path, images: dict[str, np.ndarray]) -> None:
    one = images["monocyte/1.png"]
    folder = cells / "monocyte"
    save(folder / "tiny.png", one[:9, :9])
    save(folder / "blank.png", np.full((96, 96, 3), (220, 200, 210), np.uint8))
    save(folder / "grey.png", cv2.cvtColor(np.ascontiguousarray(one), cv2.COLOR_BGR2GRAY))
    save(folder / "field.png", np.tile(one, (4, 5, 1)))
    (folder / "text.png").write_bytes(b"no picture")
    found = found_among(cells, **{"monocyte/7.png": "cut off"})
    told = {problem: [(i.file, i.detail) for i in items] for problem, items in found.items()}
    assert told == {
        "unreadable": [("monocyte/text.png", "is not a JPEG, PNG, TIFF or BMP picture")],
        "damaged": [("monocyte/7.png", "cut off")],
        "tiny": [("monocyte/tiny.png", "9x9 pixels")],
        "blank": [("monocyte/blank.png", "standard deviation 0.0 grey levels")],
        "grey": [("monocyte/grey.png", "the three channels are equal or nearly so")],
        "odd_size": [("monocyte/field.png", "480x384 pixels, usual 96x96")],
    }


def test_a_grey_set_is_no_fault(cells: Path, images: dict[str, np.ndarray]) -> None:
    for name, image in images.items():
        save(cells / name, cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_BGR2GRAY))
    assert found_among(cells) == {}


def test_sizes_that_differ_anyway_are_not_odd(cells: Path, images: dict[str, np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    for name, image in images.items():
        side = int(60 * np.exp(rng.uniform(0, 1.2)))
        save(cells / name, cv2.resize(np.ascontiguousarray(image), (side, side)))
    assert "odd_size" not in found_among(cells)


def test_copies_are_graded(cells: Path, images: dict[str, np.ndarray]) -> None:
    save(cells / "monocyte" / "again.png", images["monocyte/2.png"])
    save(cells / "monocyte" / "turned.jpg", np.rot90(images["monocyte/3.png"]))
    save(cells / "monocyte" / "x.jpg", images["lymphocyte/4.png"][:, ::-1])
    found = found_among(cells)
    told = {problem: [(i.file, i.related, i.detail) for i in found[problem]] for problem in found}
    assert told["copy"] == [
        ("monocyte/again.png", "monocyte/2.png", "same bytes"),
        ("monocyte/turned.jpg", "monocyte/3.png", "same picture turned by 270 degrees"),
    ]
    assert told["copy_across_classes"] == [
        (
            "monocyte/x.jpg",
            "lymphocyte/4.png",
            "same picture mirrored; label monocyte and lymphocyte",
        )
    ]
    assert count_findings([item for items in found.values() for item in items]) == {
        "copy_across_classes": 1,
        "copy": 2,
    }


def test_copies_across_given_splits_and_patients(
    cells: Path, images: dict[str, np.ndarray]
) -> None:
    save(cells / "monocyte" / "again.jpg", images["monocyte/2.png"])
    rows = [f"{name},{name.split('/')[0]},p{n},train" for n, name in enumerate(images)]
    rows += ["monocyte/again.jpg,monocyte,p99,test"]
    (cells / "manifest.csv").write_text("\n".join(["file,label,patient,split", *rows]))
    finding = found_among(cells)["copy_across_splits"][0]
    assert finding.related == "monocyte/2.png"
    assert finding.detail == (
        "same picture encoded anew or moved; group p99 and p12; split test and train"
    )


# --- the short form ---


def test_screening_ties_copies_and_tells_the_rest(
    cells: Path, images: dict[str, np.ndarray], caplog: pytest.LogCaptureFixture
) -> None:
    save(cells / "eosinophil" / "turned.jpg", np.rot90(images["monocyte/3.png"]))
    save(cells / "monocyte" / "blank.png", np.full((96, 96, 3), 210, np.uint8))
    manifest = read_manifest(cells)
    with caplog.at_level(logging.INFO):
        screening = screen(manifest)
    assert "looking for copies among 32 pictures" in caplog.text
    files = manifest.table["file"].tolist()
    assert screening.units is not None
    tied = screening.units[[files.index(n) for n in ("eosinophil/turned.jpg", "monocyte/3.png")]]
    assert len(set(tied.tolist())) == 1
    assert len(set(screening.units.tolist())) == 31
    assert screening.notes == (
        "pictures to look at (copies across classes 1, blank 1): python -m wbc_keras.manifest "
        "check shows them",
    )


def test_screening_may_leave_pictures_alone(cells: Path) -> None:
    manifest = read_manifest(cells)
    for path in manifest.paths():
        path.unlink()
    assert screen(manifest, near_duplicates="ignore").units is None


def test_class_codes_are_refused_as_groups(cells: Path) -> None:
    manifest = read_manifest(cells)
    coded = manifest.table.assign(group=manifest.table["label"].str[:3].str.upper())
    with pytest.raises(DataError, match="the 3 groups stand for the 3 classes") as caught:
        screen(Manifest(manifest.root, coded, "cells"), near_duplicates="ignore")
    assert "\n" not in str(caught.value)
