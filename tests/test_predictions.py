from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from wbc_keras.errors import DataError
from wbc_keras.prediction.predictions import (
    class_columns,
    prediction_table,
    read_predictions,
    write_predictions,
)

NAMES = ["NA", "basophil, old", 'the "kidney"', "7"]


def make_table(n=200, seed=0):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(len(NAMES), 0.1), n)
    files = [f"a/{i:03d}.png" for i in range(n)]
    labels = ["NA", "7", "", "nan", "null"] * (n // 5)
    boxes = rng.random((n, 4))
    return prediction_table(files, labels, probabilities, NAMES, boxes), probabilities, boxes


def test_table_has_the_contracts_columns_and_the_largest_class():
    table, probabilities, boxes = make_table()
    roi = ["roi_y0", "roi_x0", "roi_y1", "roi_x1"]
    assert list(table.columns) == ["file", "label", "predicted", "confidence", *NAMES, *roi]
    assert class_columns(table) == NAMES
    assert table["predicted"].tolist() == [NAMES[i] for i in probabilities.argmax(axis=1)]
    np.testing.assert_allclose(table["confidence"], probabilities.max(axis=1), rtol=1e-6)
    np.testing.assert_array_equal(table[roi], boxes.astype(np.float32))


def test_novelty_is_the_last_column_and_reads_back(tmp_path):
    table, probabilities, boxes = make_table()
    novelty, accepted = np.linspace(0, 1, 200), np.arange(200) % 2 == 0
    files, labels = list(table["file"]), list(table["label"])
    table = prediction_table(
        files, labels, probabilities, NAMES, boxes, accepted=accepted, novelty=novelty
    )
    assert list(table.columns)[-2:] == ["accepted", "novelty"]
    assert class_columns(table) == NAMES
    write_predictions(tmp_path / "p.csv", table)
    pd.testing.assert_frame_equal(read_predictions(tmp_path / "p.csv"), table)


def test_written_table_reads_back_equal(tmp_path):
    table, _, _ = make_table()
    path = tmp_path / "deep" / "predictions.csv"
    write_predictions(path, table)
    again = read_predictions(path)
    pd.testing.assert_frame_equal(again, table)
    assert set(again["label"]) == {"NA", "7", "", "nan", "null"}
    assert [item.name for item in path.parent.iterdir()] == ["predictions.csv"]


def test_digits_keep_argmax_and_sums_for_any_reader(tmp_path):
    # Two classes apart by the last bit of float32: fewer digits would make them equal.
    low = np.float32(0.49999997)
    close = np.array([[low, np.nextafter(low, np.float32(1))], [0.1, 0.9]], dtype=np.float32)
    table = prediction_table(["x", "y"], ["", ""], close, ["a", "b"], np.zeros((2, 4)))
    write_predictions(tmp_path / "p.csv", table)
    plain = pd.read_csv(tmp_path / "p.csv")
    assert plain.loc[0, "b"] > plain.loc[0, "a"]
    assert plain["predicted"].tolist() == ["b", "b"]
    np.testing.assert_allclose(plain[["a", "b"]].sum(axis=1), 1, atol=1e-6)


def test_predicted_follows_the_numbers_that_are_written():
    # Different in float64, equal in float32: the first class is then the largest for every reader.
    tied = np.array([[0.25, 0.25 + 1e-12, 0.5 - 1e-12 - 0.25, 0.25]])
    table = prediction_table(["x"], [""], tied, NAMES, np.zeros((1, 4)))
    assert table.loc[0, "predicted"] == NAMES[0]


@pytest.mark.parametrize("name", ["label", "file", "confidence", "roi_x1", "accepted", ""])
def test_a_class_named_as_another_column_is_refused(name):
    with pytest.raises(DataError, match="rename the class"):
        prediction_table(["x"], [""], [[0.5, 0.5]], ["a", name], np.zeros((1, 4)))


def test_a_class_named_twice_is_refused():
    with pytest.raises(DataError, match="different class names"):
        prediction_table(["x"], [""], [[0.5, 0.5]], ["a", "a"], np.zeros((1, 4)))


@pytest.mark.parametrize(
    ("labels", "probabilities", "boxes"),
    [
        (["", ""], [[0.5, 0.5]], np.zeros((1, 4))),
        ([""], [[0.5, 0.3, 0.2]], np.zeros((1, 4))),
        ([""], [[0.5, 0.5]], np.zeros((1, 3))),
        ([""], [[0.5, 0.5]], np.zeros((2, 4))),
    ],
)
def test_lengths_that_disagree_are_refused(labels, probabilities, boxes):
    with pytest.raises(DataError, match="Received: 1 files"):
        prediction_table(["x"], labels, probabilities, ["a", "b"], boxes)


def test_a_missing_or_foreign_or_broken_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"missing\.csv: no such"):
        read_predictions(tmp_path / "missing.csv")
    (tmp_path / "other.csv").write_text("file,label\na,b\n")
    with pytest.raises(DataError, match=r"other\.csv: is not a predictions table"):
        read_predictions(tmp_path / "other.csv")
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=r"empty\.csv: cannot be read"):
        read_predictions(tmp_path / "empty.csv")
    table, _, _ = make_table(5)
    text = io.StringIO()
    table.astype({"7": str}).assign(**{"7": "much"}).to_csv(text, index=False)
    (tmp_path / "broken.csv").write_text(text.getvalue())
    with pytest.raises(DataError, match=r"broken\.csv: .*not a number"):
        read_predictions(tmp_path / "broken.csv")


def test_accepted_stands_last_as_true_or_false_and_reads_back(tmp_path):
    shares = [[0.5, 0.5], [0.1, 0.9]]
    accepted = np.array([False, True])
    boxes = np.zeros((2, 4))
    table = prediction_table(["x", "y"], ["", ""], shares, ["a", "b"], boxes, accepted=accepted)
    assert list(table.columns)[-5:] == ["roi_y0", "roi_x0", "roi_y1", "roi_x1", "accepted"]
    assert class_columns(table) == ["a", "b"]
    path = tmp_path / "p.csv"
    write_predictions(path, table)
    assert [line.rsplit(",")[-1] for line in path.read_text().split()] == [
        "accepted",
        "false",
        "true",
    ]
    pd.testing.assert_frame_equal(read_predictions(path), table)
    path.write_text(path.read_text().replace("true", "yes"))
    with pytest.raises(DataError, match=r"p\.csv: accepted is neither true nor false"):
        read_predictions(path)


def test_a_table_without_probabilities_is_refused(tmp_path):
    path = tmp_path / "bare.csv"
    path.write_text("file,label,predicted,confidence,roi_y0,roi_x0,roi_y1,roi_x1\n")
    with pytest.raises(DataError, match=r"bare\.csv: holds no probabilities"):
        read_predictions(path)
