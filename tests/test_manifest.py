"""Every source becomes the same table, and every fault names its row and the remedy."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from wbc_keras.cache import cache_dir
from wbc_keras.config import SyntheticConfig
from wbc_keras.errors import DataError
from wbc_keras.manifest import BLOODMNIST_CLASSES, Manifest, read_manifest

SMALL = SyntheticConfig(cells=24, image_size=48, patients=4, seed=3)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WBC_KERAS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_files(tmp_path / "cells", ["a/1.jpg", "a/2.PNG", "b/3.tiff", "b/deep/er/4.bmp"])


def make_files(folder: Path, names: Iterable[str]) -> Path:
    """Make files; a manifest only looks for pictures, it does not decode them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"picture")
    return folder


def write_csv(folder: Path, text: str, name: str = "manifest.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def rows(manifest: Manifest) -> list[tuple[str, ...]]:
    assert list(manifest.table.columns) == ["file", "label", "group", "split"]
    assert list(manifest.table.index) == list(range(len(manifest.table)))
    return [tuple(row) for row in manifest.table.itertuples(index=False)]


def refuse(source: object, match: str, **options: object) -> str:
    with pytest.raises(DataError, match=match) as caught:
        read_manifest(source, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- class folders ---


def test_class_folder(folder: Path) -> None:
    manifest = read_manifest(str(folder))
    assert rows(manifest) == [
        ("a/1.jpg", "a", "", ""),
        ("a/2.PNG", "a", "", ""),
        ("b/3.tiff", "b", "", ""),
        ("b/deep/er/4.bmp", "b", "", ""),
    ]
    assert manifest.name == "cells"
    assert manifest.class_names() == ["a", "b"]
    assert manifest.paths()[3] == folder / "b" / "deep" / "er" / "4.bmp"
    assert all(path.is_file() for path in manifest.paths())


def test_select_keeps_the_rest(folder: Path) -> None:
    manifest = read_manifest(folder).select([False, True, False, True])
    assert [row[0] for row in rows(manifest)] == ["a/2.PNG", "b/deep/er/4.bmp"]
    assert (manifest.root, manifest.name) == (folder, "cells")


def test_hidden_and_other_files_are_left_out(folder: Path) -> None:
    names = [".git/x.jpg", "a/.hidden.jpg", "a/notes.txt", "b/.cache/y.png", "__MACOSX/a/z.jpg"]
    make_files(folder, [*names, "readme.md"])
    assert len(read_manifest(folder).table) == 4


def test_masks_beside_pictures_are_left_out(folder: Path) -> None:
    make_files(folder, ["a/1.mask.png", "a/alone.mask.png"])
    files = [row[0] for row in rows(read_manifest(folder))]
    assert "a/1.mask.png" not in files
    assert "a/alone.mask.png" in files


def test_loose_pictures_are_counted(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    make_files(folder, ["sheet.png"])
    with caplog.at_level(logging.WARNING):
        assert len(read_manifest(folder).table) == 4
    assert "1 pictures outside the class folders are left out" in caplog.text


def test_links_inside_are_followed_and_circles_end(folder: Path, tmp_path: Path) -> None:
    make_files(folder, [".store/5.jpg"])
    (folder / "c").symlink_to(folder / ".store")
    (folder / "a" / "up").symlink_to(folder)
    assert Counter(row[1] for row in rows(read_manifest(folder))) == {"a": 2, "b": 2, "c": 1}
    linked = tmp_path / "linked"
    linked.symlink_to(folder)
    assert len(read_manifest(linked).table) == 5


def test_class_folder_without_pictures(folder: Path) -> None:
    make_files(folder, ["empty/readme.txt"])
    refuse(folder, r"no picture .* in the class folder empty; add pictures or remove it")


def test_empty_folder(tmp_path: Path) -> None:
    refuse(tmp_path, "holds no picture .* give a folder with one sub-folder")


def test_one_class(tmp_path: Path) -> None:
    refuse(make_files(tmp_path, ["a/1.jpg", "a/2.jpg"]), "one class only.* Received: a")


def test_flat_folder_needs_labels(tmp_path: Path) -> None:
    flat = make_files(tmp_path, ["1.jpg", "2.jpg"])
    refuse(flat, r"sort them into one sub-folder for each class, or add a manifest\.csv")


@pytest.mark.parametrize("labelled", [True, False])
def test_missing_source_names_what_is_accepted(tmp_path: Path, labelled: bool) -> None:
    message = refuse(tmp_path / "nowhere", "no such file or folder", labelled=labelled)
    for accepted in ("manifest.csv", ".csv", "annotations.dat", ".npz", "synthetic"):
        assert accepted in message
    assert ("picture files" in message) is not labelled


# --- sources without labels ---


def test_flat_folder_without_labels(tmp_path: Path) -> None:
    flat = make_files(tmp_path / "new", ["1.jpg", "1.mask.png", "2.tif", "notes.txt"])
    manifest = read_manifest(flat, labelled=False)
    assert rows(manifest) == [("1.jpg", "", "", ""), ("2.tif", "", "", "")]
    assert manifest.class_names() == []


def test_real_flat_folder_with_masks(roi_jtsc: Path) -> None:
    files = [row[0] for row in rows(read_manifest(roi_jtsc, labelled=False))]
    assert files == [f"{number:03d}.jpg" for number in range(1, 301)]


def test_class_folder_keeps_labels_when_none_are_needed(folder: Path) -> None:
    make_files(folder, ["loose.png"])
    labels = [row[1] for row in rows(read_manifest(folder, labelled=False))]
    assert labels == ["a", "a", "b", "b", ""]


def test_single_files(folder: Path) -> None:
    one = read_manifest(folder / "a" / "1.jpg", labelled=False)
    assert rows(one) == [("1.jpg", "", "", "")]
    files = [folder / "b" / "3.tiff", folder / "a" / "1.jpg", folder / "b" / "3.tiff"]
    several = read_manifest(files, labelled=False)
    assert rows(several) == [("b/3.tiff", "", "", ""), ("a/1.jpg", "", "", "")]
    assert several.paths()[1].samefile(folder / "a" / "1.jpg")


def test_a_list_of_one_is_that_one(folder: Path) -> None:
    assert rows(read_manifest([folder])) == rows(read_manifest(folder))


def test_single_files_that_are_none(folder: Path) -> None:
    make_files(folder, ["notes.txt"])
    files = [folder / "a" / "1.jpg", folder / "notes.txt", folder / "gone.png"]
    message = refuse(files, "not picture files", labelled=False)
    assert "notes.txt" in message
    assert "gone.png" in message
    refuse([], "none given", labelled=False)
    refuse(folder / "a" / "1.jpg", "a single picture has no label")


def test_manifest_without_labels(folder: Path) -> None:
    write_csv(folder, "file\na/1.jpg\nb/3.tiff\n")
    assert rows(read_manifest(folder, labelled=False))[0] == ("a/1.jpg", "", "", "")
    refuse(folder, "no column label")
    write_csv(folder, "file,label\na/1.jpg,x\nb/3.tiff,\n")
    assert [row[1] for row in rows(read_manifest(folder, labelled=False))] == ["x", ""]


# --- CSV ---


def test_manifest_in_a_folder_and_as_a_file(folder: Path) -> None:
    path = write_csv(folder, "file,label,patient,split\na/1.jpg,x,p1,Train\nb/3.tiff,y,p2,val\n")
    expected = [("a/1.jpg", "x", "p1", "train"), ("b/3.tiff", "y", "p2", "validation")]
    for source in (folder, path):
        manifest = read_manifest(source)
        assert rows(manifest) == expected
        assert manifest.name == "cells"
    other = write_csv(folder, path.read_text(), "second reading.csv")
    assert read_manifest(other).name == "second reading"


def test_values_are_text_as_written(folder: Path) -> None:
    write_csv(
        folder, '\ufefffile,label,group,diagnosis\r\na/1.jpg, 01 ,NA,\r\n"b/3.tiff",NA,7,z\r\n'
    )
    assert rows(read_manifest(folder)) == [("a/1.jpg", "01", "NA", ""), ("b/3.tiff", "NA", "7", "")]


def test_reannotations_are_kept_where_there_are_any(folder: Path) -> None:
    head = "file,label,reannotation_1,reannotation_2\n"
    path = write_csv(folder, f"{head}a/1.jpg,MON,MON,UNC\nb/3.tiff,LYT,nan,\n")
    table = read_manifest(path).table
    assert list(table["reannotation_1"]) == ["MON", ""]
    assert list(table["reannotation_2"]) == ["UNC", ""]
    path = write_csv(folder, f"{head}a/1.jpg,MON,,\nb/3.tiff,LYT,,\n")
    assert list(read_manifest(path).table) == ["file", "label", "group", "split"]


def test_other_label_column(folder: Path) -> None:
    write_csv(folder, "label,fine,file\nx,x1,a/1.jpg\nx,x2,a/2.PNG\n")
    assert read_manifest(folder, label_column="fine").class_names() == ["x1", "x2"]
    refuse(folder, "no column finer; .* Received: label, fine, file", label_column="finer")


def test_group_wins_over_patient(folder: Path) -> None:
    text = "file,label,patient,group\na/1.jpg,x,p1,{}\nb/3.tiff,y,p2,{}\n"
    write_csv(folder, text.format("g1", "g2"))
    assert [row[2] for row in rows(read_manifest(folder))] == ["g1", "g2"]
    write_csv(folder, text.format("", ""))
    assert [row[2] for row in rows(read_manifest(folder))] == ["p1", "p2"]
    write_csv(folder, text.format("g1", ""))
    refuse(folder, r"row 3: the patient or group is empty while other rows have one")


@pytest.mark.parametrize("split", ["validation", "valid", "val", "VALIDATION", " val "])
def test_split_names(folder: Path, split: str) -> None:
    write_csv(folder, f"file,label,split\na/1.jpg,x,test\nb/3.tiff,y,{split}\n")
    assert [row[3] for row in rows(read_manifest(folder))] == ["test", "validation"]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "is empty"),
        ("file,label\n", "has no rows"),
        ("\n\n", "is empty"),
        ("name,class\na,b\n", "no column file or label; .* Received: name, class"),
        ("file;label\na;b\n", "separate columns by commas"),
        ("file,label,label\na,b,c\n", "column label stands twice"),
        ("file,label\na/1.jpg,x,y\n", "1 rows do not have the header's 2 fields: row 2"),
        ('file,label\n"a/1.jpg,x\n', "is not a CSV file"),
        ("file,label\na/1.jpg,x\n,y\n", "row 3: the file is empty"),
        ("file,label\na/1.jpg,x\n\nb/3.tiff,\n", "row 4: the label is empty"),
        ("file,label\na/1.jpg,x\nb/3.tiff,y\n./a//1.jpg,x\n", "row 4 .* stands in an earlier row"),
        ("file,label\na/9.jpg,x\nb/3.tiff,y\na/8.jpg,x\n", r"row 2 \(a/9\.jpg\), 4 .*\(2 rows\)"),
        ("file,label\na/1.jpg,x\nreadme.md,y\n", "row 3 .* is not a picture"),
        ("file,label,split\na/1.jpg,x,train\nb/3.tiff,y,dev\n", r"row 3 \(dev\): the split"),
        ("file,label\na/1.jpg,x\nb/3.tiff,x\n", "one class only"),
    ],
)
def test_faulty_csv(folder: Path, text: str, match: str) -> None:
    path = write_csv(folder, text)
    assert str(path if "one class" not in match else folder) in refuse(folder, match)


@pytest.mark.parametrize(
    "file",
    ["../secret.jpg", "a/../../secret.jpg", "/etc/secret.jpg", "..\\secret.jpg", "C:\\x.jpg"],
)
def test_paths_that_leave_the_folder_are_refused(folder: Path, file: str) -> None:
    make_files(folder.parent, ["secret.jpg"])
    write_csv(folder, f"file,label\na/1.jpg,x\n{file},y\n")
    refuse(folder, r"row 3 .* leaves the data folder; give paths inside it")


def test_links_that_leave_the_folder_are_refused(folder: Path) -> None:
    outside = make_files(folder.parent / "outside", ["secret.jpg"])
    (folder / "a" / "link.jpg").symlink_to(outside / "secret.jpg")
    (folder / "linked").symlink_to(outside)
    for file in ("a/link.jpg", "linked/secret.jpg"):
        write_csv(folder, f"file,label\na/1.jpg,x\n{file},y\n")
        refuse(folder, rf"row 3 \({file}\): the file is a link that leaves the data folder")


def test_links_inside_the_folder_and_to_it_are_fine(folder: Path) -> None:
    (folder / "a" / "link.jpg").symlink_to(folder / "b" / "3.tiff")
    write_csv(folder, "file,label\na/1.jpg,x\na/link.jpg,y\n")
    linked = folder.parent / "linked"
    linked.symlink_to(folder)
    assert len(read_manifest(linked).table) == 2


def test_csv_that_is_not_utf8(folder: Path) -> None:
    path = folder / "manifest.csv"
    path.write_bytes("file,label\na/1.jpg,Lymphozyt groß\n".encode("latin-1"))
    refuse(folder, "is not UTF-8 text .* save it as UTF-8")


def test_real_manifest(aml_jhu: Path) -> None:
    manifest = read_manifest(aml_jhu)
    assert (len(manifest.table), manifest.table["group"].nunique()) == (12097, 82)
    counts = manifest.table["label"].value_counts()
    assert (counts["lymphocyte"], counts["prolymphocyte"]) == (2802, 1)
    assert manifest.name == "aml_jhu"


# --- MedMNIST ---


def make_arrays(*, grey: bool = False, classes: int = 8) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 10), ("val", 8), ("test", 9)):
        shape = (count, 28, 28) if grey else (count, 28, 28, 3)
        arrays[f"{split}_images"] = rng.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count)[:, None] % classes).astype(np.uint8)
    return arrays


def save(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("grey", [False, True])
def test_npz(tmp_path: Path, grey: bool) -> None:
    arrays = make_arrays(grey=grey)
    manifest = read_manifest(save(tmp_path / "bloodmnist_28.npz", arrays))
    table = manifest.table
    assert manifest.name == "bloodmnist_28"
    assert Counter(table["split"]) == {"train": 10, "validation": 8, "test": 9}
    assert manifest.root.is_relative_to(tmp_path / "cache")
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        part = manifest.select(table["split"] == name)
        labels = [BLOODMNIST_CLASSES[int(n)] for n in arrays[f"{split}_labels"].ravel()]
        found = sorted(zip(part.table["label"], map(picture_hash, part.paths()), strict=True))
        expected = sorted(
            (label, pixels(image))
            for label, image in zip(labels, arrays[f"{split}_images"], strict=True)
        )
        assert found == expected


def picture_hash(path: Path) -> bytes:
    return pixels(cv2.imread(str(path), cv2.IMREAD_COLOR)[..., ::-1])


def pixels(image: np.ndarray) -> bytes:
    return (image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=-1)).tobytes()


def test_npz_is_unpacked_once_for_each_content(tmp_path: Path) -> None:
    arrays = make_arrays()
    first = read_manifest(save(tmp_path / "cells.npz", arrays))
    assert first.class_names() == [f"class_{n}" for n in range(8)]
    stamp = first.paths()[0].stat().st_mtime_ns
    again = read_manifest(tmp_path / "cells.npz")
    assert again.root == first.root
    assert again.paths()[0].stat().st_mtime_ns == stamp
    arrays["train_images"][0] = 0
    assert read_manifest(save(tmp_path / "cells.npz", arrays)).root != first.root
    assert not [path for path in first.root.parent.iterdir() if path.name.startswith(".")]


def test_bloodmnist_names_need_eight_labels(tmp_path: Path) -> None:
    manifest = read_manifest(save(tmp_path / "bloodmnist.npz", make_arrays(classes=7)))
    assert manifest.class_names() == [f"class_{n}" for n in range(7)]


def test_faulty_npz(tmp_path: Path) -> None:
    path = tmp_path / "cells.npz"
    path.write_bytes(b"not a zip")
    refuse(path, "is not a readable .npz file")
    arrays = make_arrays()
    whole = save(path, arrays).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refuse(path, "is not a readable .npz file")
    with path.open("wb") as stream:
        np.save(stream, np.zeros(3))
    refuse(path, "is not a readable .npz file")
    refuse(save(path, {"x": np.zeros(3)}), "lacks train_images, .* Received: x")
    refuse(
        save(path, {**arrays, "val_images": np.zeros((8, 28, 28))}), "val_images: expected uint8"
    )
    refuse(
        save(path, {**arrays, "test_labels": np.zeros((9, 14), int)}), "test_labels: expected one"
    )
    refuse(
        save(path, {**arrays, "test_labels": np.zeros((8, 1), int)}), "test_labels: expected one"
    )
    refuse(
        save(path, {**arrays, "train_labels": np.full((10, 1), -1)}), "train_labels: expected one"
    )
    pickled = {**arrays, "train_labels": np.array([{}] * 10, dtype=object)}
    refuse(save(path, pickled), "is not a readable .npz file")


# --- drawn cells ---


def test_synthetic_is_drawn_once_for_each_setting() -> None:
    manifest = read_manifest("synthetic", synthetic=SMALL)
    assert (manifest.name, len(manifest.table)) == ("synthetic", 24)
    assert len(manifest.class_names()) >= 8
    assert 1 < manifest.table["group"].nunique() <= 4
    assert all(path.is_file() for path in manifest.paths())
    stamp = manifest.paths()[0].stat().st_mtime_ns
    again = read_manifest("synthetic", synthetic=SMALL)
    assert rows(again) == rows(manifest)
    assert again.paths()[0].stat().st_mtime_ns == stamp
    other = SyntheticConfig(cells=24, image_size=48, patients=4, seed=4)
    assert read_manifest("synthetic", synthetic=other).root != manifest.root


def test_a_broken_drawing_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(folder: Path, settings: SyntheticConfig) -> None:
        (folder / "half.png").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("wbc_keras.synthetic.write_cells", fail)
    with pytest.raises(KeyboardInterrupt):
        read_manifest("synthetic", synthetic=SMALL)
    assert list((cache_dir() / "synthetic").iterdir()) == []


def test_cache_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("WBC_KERAS_CACHE", str(blocked))
    refuse("synthetic", re.escape("set the environment variable WBC_KERAS_CACHE"), synthetic=SMALL)


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WBC_KERAS_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("WBC_KERAS_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "wbc_keras"
