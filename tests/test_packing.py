"""Packed cells: trained from without their pictures, and split as the pictures are."""

from __future__ import annotations

import json
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest

from wbc_keras.config import load_config
from wbc_keras.errors import DataError
from wbc_keras.manifest import read_manifest
from wbc_keras.prepare import main
from wbc_keras.training.data_plan import plan_data

SETTINGS = ["data.image_size=[32, 32]", "split.validation=0.2"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, drawn_cells):
    """Drawn cells, six of them again, turned, and one that is no picture."""
    folder = tmp_path_factory.mktemp("pictures") / "cells"
    shutil.copytree(drawn_cells, folder)
    for number in range(6):
        turned = np.rot90(cv2.imread(str(folder / "monocyte" / f"{number:02d}.png")))
        cv2.imwrite(str(folder / "monocyte" / f"turned_{number}.png"), turned)
    (folder / "monocyte" / "bad.png").write_bytes(b"no picture")
    return folder


def arguments(data, output, *more):
    settings = [*SETTINGS, "data.bad_images=skip", *more]
    options = [part for setting in settings for part in ("--set", setting)]
    return ["--config", "configs/demo.yaml", "--data", str(data), "--output", str(output), *options]


@pytest.fixture(scope="module")
def packed(tmp_path_factory, pictures):
    folder = tmp_path_factory.mktemp("packed") / "pack"
    assert main(arguments(pictures, folder)) == 0
    return folder


@pytest.fixture
def copy(packed, tmp_path):
    return shutil.copytree(packed, tmp_path / "copy")


def plan_of(data, *more):
    overrides = [*SETTINGS, f"data.source={data}", "data.bad_images=skip", *more]
    return plan_data(load_config("configs/demo.yaml", overrides=overrides))


@pytest.mark.parametrize(
    "more", [(), ("data.exclude_labels=[eosinophil]",), ("split.fold=2 of 4",)]
)
def test_it_gives_the_cells_labels_and_splits_of_the_pictures(pictures, packed, more):
    from_pictures, from_pack = plan_of(pictures, *more), plan_of(packed, *more)
    pd.testing.assert_frame_equal(from_pack.table(), from_pictures.table())
    assert from_pack.class_names == from_pictures.class_names
    assert [str(bad) for bad in from_pack.bad] == [str(bad) for bad in from_pictures.bad]
    for split in ("train", "validation"):
        one, other = from_pictures.load(split), from_pack.load(split)
        np.testing.assert_array_equal(other.labels, one.labels)
        np.testing.assert_array_equal(np.asarray(other.cells.images), np.asarray(one.cells.images))
    assert from_pack.fingerprint() == from_pictures.fingerprint()


def test_copies_are_known(packed):
    table = pd.read_csv(packed / "cells.csv", keep_default_na=False)
    copies = table[table["copy_of"] != ""]
    assert len(copies) == 6
    assert all(
        "turned_" in first or "turned_" in file
        for file, first in zip(copies["file"], copies["copy_of"], strict=True)
    )
    plan = plan_of(packed)
    splits = dict(zip(plan.manifest.table["file"], plan.assignment, strict=True))
    assert all(splits[row.file] == splits[row.copy_of] for row in copies.itertuples())


def test_pictures_need_not_be_there(pictures, packed, copy):
    about = json.loads((copy / "about.json").read_text())
    (copy / "about.json").write_text(json.dumps(about | {"source": "/nowhere"}))
    assert plan_of(copy).fingerprint() == plan_of(packed).fingerprint()


def test_an_older_pack_is_replaced_and_nothing_else(pictures, copy, capsys):
    assert main(arguments(pictures, copy, "data.image_size=[40, 40]")) == 0
    with pytest.raises(DataError, match=r"cropped with another data\.image_size"):
        plan_of(copy)
    (copy / "notes.txt").write_text("mine")
    assert main(arguments(pictures, copy)) == 2
    assert "holds notes.txt" in capsys.readouterr().err


def test_packs_are_not_packed_again(copy, tmp_path, capsys):
    assert main(arguments(copy, tmp_path / "again")) == 2
    assert "is packed already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("setting", "named"),
    [("roi.margin=0.3", "another roi "), ("data.image_size=[40, 40]", "another data.image_size ")],
)
def test_other_cropping_is_refused(packed, setting, named):
    with pytest.raises(DataError, match=named):
        plan_of(packed, setting)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", ["images.bin", "boxes.npy", "found.npy"])
def test_damage_is_named(copy, name):
    flip(copy / name)
    with pytest.raises(DataError, match=rf"is damaged \({name}\); pack the cells anew"):
        plan_of(copy)


@pytest.mark.parametrize(
    ("name", "text"),
    [("about.json", "{"), ("cells.csv", "file,label,group,split\na.png,x,,\nb.png,y,,\n")],
)
def test_damaged_tables_are_named(copy, name, text):
    (copy / name).write_text(text)
    with pytest.raises(DataError, match=r"damaged.*pack the cells anew"):
        read_manifest(copy)


def test_a_changed_label_is_seen(copy):
    path = copy / "cells.csv"
    path.write_text(path.read_text().replace(",monocyte,", ",lymphocyte,", 1))
    with pytest.raises(DataError, match=r"is damaged \(cells\.csv\)"):
        plan_of(copy)


def test_a_folder_that_cannot_be_written_is_told(pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(arguments(pictures, tmp_path / "file" / "pack")) == 2
    assert "cannot be written" in capsys.readouterr().err
