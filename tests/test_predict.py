"""Predictions from a run folder or a SavedModel: the same table, for any source."""

from __future__ import annotations

import shutil
import struct
import zlib

import cv2
import numpy as np
import pytest

from wbc_keras.predict import main, predict
from wbc_keras.prediction.predictions import BOX_COLUMNS, class_columns, read_predictions
from wbc_keras.prediction.predictor import Predictor


@pytest.fixture(scope="module")
def flat(drawn_cells, tmp_path_factory):
    """A folder of pictures without classes: sizes, formats and a mask among them."""
    folder = tmp_path_factory.mktemp("flat")
    image = cv2.imread(str(drawn_cells / "monocyte" / "03.png"))
    for name in ("cell.png", "cell.tiff", "cell.bmp", "cell.mask.png"):
        cv2.imwrite(str(folder / name), image)
    cv2.imwrite(str(folder / "small.jpg"), cv2.resize(image, (40, 40)))
    cv2.imwrite(str(folder / "wide.jpg"), cv2.resize(image, (300, 150)))
    return folder


@pytest.fixture(scope="module")
def tables(trained_run, saved_model, drawn_cells, flat, tmp_path_factory):
    """The tables of class folders and of the flat folder, by each kind of model."""
    folder = tmp_path_factory.mktemp("tables")
    written = {}
    for kind, model in (("run", trained_run), ("saved_model", saved_model)):
        for source, data in (("cells", drawn_cells), ("flat", flat)):
            # In a folder that is not there yet.
            path = folder / kind / f"{source}.csv"
            arguments = ["--model", str(model), "--data", str(data), "--output", str(path)]
            assert main(arguments) == 0
            written[kind, source] = path
    return written


@pytest.mark.parametrize("source", ["cells", "flat"])
def test_run_folder_and_saved_model_write_the_same_table(tables, source):
    one, other = (read_predictions(tables[kind, source]) for kind in ("run", "saved_model"))
    assert list(one.columns) == list(other.columns)
    assert one.iloc[:, :3].equals(other.iloc[:, :3])
    numbers = ["confidence", *class_columns(one), *BOX_COLUMNS]
    np.testing.assert_allclose(one[numbers], other[numbers], atol=1e-4)
    assert one["accepted"].equals(other["accepted"])


def test_probabilities_are_those_of_evaluation(tables, evaluation):
    evaluated = read_predictions(evaluation / "predictions.csv").set_index("file")
    predicted = read_predictions(tables["run", "cells"]).set_index("file").loc[evaluated.index]
    assert (predicted["label"] == evaluated["label"]).all()
    columns = [*class_columns(evaluated.reset_index()), *BOX_COLUMNS]
    np.testing.assert_allclose(predicted[columns], evaluated[columns], atol=1e-4)


def test_every_cell_has_its_row(tables, drawn_cells):
    table = read_predictions(tables["run", "cells"])
    files = sorted(path.relative_to(drawn_cells).as_posix() for path in drawn_cells.rglob("*.png"))
    assert sorted(table["file"]) == files
    assert (table["label"] == table["file"].str.split("/").str[0]).all()
    classes = class_columns(table)
    chances = table[classes].to_numpy()
    assert table["predicted"].tolist() == [classes[i] for i in chances.argmax(axis=1)]
    np.testing.assert_array_equal(table["confidence"], chances.max(axis=1))


def test_flat_folder_has_no_labels_and_its_masks_are_left_out(tables):
    table = read_predictions(tables["run", "flat"])
    assert table["file"].tolist() == ["cell.bmp", "cell.png", "cell.tiff", "small.jpg", "wide.jpg"]
    assert set(table["label"]) == {""}


def test_same_picture_in_another_format_gets_the_same_answer(tables):
    table = read_predictions(tables["run", "flat"]).set_index("file")
    for name in ("cell.tiff", "cell.bmp"):
        assert table.loc[name].tolist() == table.loc["cell.png"].tolist()


def test_single_files_in_the_order_given(saved_model, flat, tables):
    files = [flat / "wide.jpg", flat / "cell.tiff"]
    table = predict(saved_model, files)
    assert table["file"].tolist() == ["wide.jpg", "cell.tiff"]
    whole = read_predictions(tables["saved_model", "flat"]).set_index("file").loc[table["file"]]
    columns = [*class_columns(table), *BOX_COLUMNS]
    np.testing.assert_allclose(table[columns], whole[columns], atol=1e-5)


def test_model_folder_means_its_highest_version(saved_model, tmp_path, flat):
    for version in ("9", "10"):
        shutil.copytree(saved_model, tmp_path / version)
    names = '{"classes": ["k", "l", "m", "n"]}'
    (tmp_path / "10" / "assets.extra" / "classes.json").write_text(names)
    predictor = Predictor.load(tmp_path)
    assert predictor.class_names == ("k", "l", "m", "n")
    chances = predictor.predict([(flat / "cell.png").read_bytes()]).probabilities
    assert chances.shape == (1, 4)
    assert chances.sum() == pytest.approx(1, abs=1e-6)


# Bad input


@pytest.fixture
def refuse(tmp_path, capsys):
    def call(*words, model, data, output=None):
        output = output or tmp_path / "new" / "predictions.csv"
        before = sorted(tmp_path.rglob("*"))
        arguments = ["--model", str(model), "--output", str(output), "--data"]
        arguments += [str(path) for path in data]
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        for word in words:
            assert word in error
        assert sorted(tmp_path.rglob("*")) == before

    return call


def test_missing_pictures(refuse, saved_model, tmp_path, flat):
    refuse("nowhere", "no such file", model=saved_model, data=[tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    refuse("empty", "holds no picture", model=saved_model, data=[tmp_path / "empty"])
    files = [flat / "cell.png", tmp_path / "nowhere.jpg"]
    refuse("nowhere.jpg", model=saved_model, data=files)


def test_bad_pictures_are_rows_that_say_so(saved_model, trained_run, flat, tmp_path):
    data = shutil.copytree(flat, tmp_path / "pictures")
    (data / "cell.tiff").write_bytes((data / "cell.tiff").read_bytes()[:500])
    (data / "small.jpg").write_bytes(b"")
    # Its header is sound: only decoding shows it.
    (data / "wide.jpg").write_bytes((data / "wide.jpg").read_bytes()[:1000])
    cv2.imwrite(str(data / "pixel.png"), np.zeros((1, 1, 3), np.uint8))
    bad = {"cell.tiff": "TIFF", "small.jpg": "empty", "wide.jpg": "JPEG", "pixel.png": "1x1"}
    for model in (saved_model, trained_run):
        output = tmp_path / "table.csv"
        arguments = ["--model", str(model), "--data", str(data), "--output", str(output)]
        assert main(arguments) == 0
        table = read_predictions(output).set_index("file")
        assert table.index.tolist() == sorted([*bad, "cell.bmp", "cell.png"])
        for file, row in table.iterrows():
            assert (row["error"] == "") == (file not in bad)
            assert bad.get(file, "") in row["error"]
        faulty = table.loc[list(bad)]
        assert set(faulty["predicted"]) == {""}
        assert not faulty["accepted"].any()
        assert faulty[["confidence", *BOX_COLUMNS]].isna().all(axis=None)
        good = predict(model, [data / "cell.bmp", data / "cell.png"]).set_index("file")
        columns = ["confidence", *BOX_COLUMNS]
        np.testing.assert_allclose(
            table.loc[good.index, columns].astype(float), good[columns], atol=1e-5
        )


def test_picture_that_would_fill_the_memory_is_not_decoded(saved_model, tmp_path):
    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99)))
    predictions = Predictor.load(saved_model).predict([bomb], names=["bomb.png"])
    assert "50000x50000" in predictions.errors[0]


def test_without_an_output_the_table_is_written_where_one_stands(
    saved_model, flat, tables, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main(["--model", str(saved_model), "--data", str(flat)]) == 0
    written = (tmp_path / "predictions.csv").read_text()
    assert written == tables["saved_model", "flat"].read_text()


def test_output_that_is_a_folder(refuse, saved_model, flat, tmp_path):
    (tmp_path / "folder").mkdir()
    refuse("is a folder", "--output", model=saved_model, data=[flat], output=tmp_path / "folder")
    refuse(".csv or a .parquet", model=saved_model, data=[flat], output=tmp_path / "table.xlsx")


def test_path_that_is_no_model(refuse, flat, tmp_path, drawn_cells):
    refuse("nowhere", "no such run folder or SavedModel", model=tmp_path / "nowhere", data=[flat])
    refuse("cell.png", "no such run folder", model=flat / "cell.png", data=[flat])
    refuse("neither a run folder", "train or export", model=drawn_cells, data=[flat])


def test_run_folder_without_a_model(refuse, flat, run_copy):
    (run_copy / "model.keras").unlink()
    refuse("model.keras", "train or export", model=run_copy, data=[flat])


@pytest.mark.parametrize("damaged", ["saved_model.pb", "variables/variables.index"])
def test_damaged_saved_model(refuse, saved_model, flat, tmp_path, damaged):
    model = shutil.copytree(saved_model, tmp_path / "model")
    path = model / damaged
    path.write_bytes(path.read_bytes()[:100])
    refuse("cannot be loaded as a SavedModel", "export", model=model, data=[flat])


def test_saved_model_without_class_names(refuse, saved_model, flat, tmp_path):
    model = shutil.copytree(saved_model, tmp_path / "model")
    (model / "assets.extra" / "classes.json").unlink()
    refuse("classes.json", "export the run again", model=model, data=[flat])


def test_engine_for_a_saved_model(saved_model, flat, tmp_path, capsys):
    arguments = ["--model", str(saved_model), "--data", str(flat), "--engine", "openvino"]
    assert main([*arguments, "--output", str(tmp_path / "table.csv")]) == 2
    assert "give the run folder" in capsys.readouterr().err
