"""Vocabularies against the data sets' own files, and the maps between them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from wbc_keras.labels import (
    CELL_TYPES,
    JHU,
    MUNICH,
    PBC_8,
    PBC_13,
    VOCABULARIES,
    Vocabulary,
    abnormal_classes,
    cell_type,
    is_abnormal,
    shared_names,
)
from wbc_keras.synthetic import CLASS_NAMES


def name_of(label: str) -> str:
    found = cell_type(label)
    assert found is not None
    return found.name


def test_types_are_named_once_and_have_known_parents() -> None:
    names = [found.name for found in CELL_TYPES]
    assert len(set(names)) == len(names)
    by_name = {found.name: found for found in CELL_TYPES}
    for found in CELL_TYPES:
        assert found.parent is None or by_name[found.parent].abnormal == found.abnormal
        assert name_of(found.name) == found.name


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda item: item.name)
def test_each_label_means_what_its_vocabulary_says(vocabulary: Vocabulary) -> None:
    assert {label: name_of(label) for label in vocabulary.labels} == dict(vocabulary.types)


def test_drawn_cells_are_known() -> None:
    assert all(cell_type(name) is not None for name in CLASS_NAMES)
    assert abnormal_classes(CLASS_NAMES) is not None


def test_myeloblast_and_myelocyte_are_not_swapped() -> None:
    assert name_of("MYO") == "myeloblast"
    assert name_of("MYB") == "myelocyte"


def test_munich_codes_agree_with_its_own_file(lmu_metadata: Path) -> None:
    lines = (lmu_metadata / "abbreviations.txt").read_text("utf-8").splitlines()
    own = dict(line.split(maxsplit=1) for line in lines if line[:3].isupper() and line[3] == " ")
    del own["UNC"]
    assert set(own) == set(MUNICH.labels)
    for code, words in own.items():
        first = words.split()[0].lower()
        assert name_of(code).startswith(first), code
    rows = (lmu_metadata / "annotations.dat").read_text("utf-8").splitlines()
    labels = {row.split()[1] for row in rows}
    assert labels == set(MUNICH.labels)


def test_pbc_and_jhu_labels_are_those_of_the_data(pbc: Path, aml_jhu: Path) -> None:
    assert column(pbc, "label") == set(PBC_8.labels)
    assert column(pbc, "fine_label") == set(PBC_13.labels)
    assert column(aml_jhu, "label") == set(JHU.labels)


def column(folder: Path, name: str) -> set[str]:
    with (folder / "manifest.csv").open(encoding="utf-8", newline="") as stream:
        return {row[name] for row in csv.DictReader(stream)}


@pytest.mark.parametrize(
    "label", ["Neutrophil Segmented", "neutrophil-segmented", " NEUTROPHIL__SEGMENTED ", "ngs"]
)
def test_spelling_does_not_matter(label: str) -> None:
    assert name_of(label) == "neutrophil_segmented"


def test_unknown_labels_mean_nothing() -> None:
    assert cell_type("class_0") is None
    assert is_abnormal("") is None


def test_abnormal_as_in_matek_2019() -> None:
    atypical = {"LYA", "EBO", "MOB", "MYO", "MYB", "MMZ", "PMO", "PMB"}
    assert abnormal_classes(MUNICH.labels) == [c for c in MUNICH.labels if c in atypical]
    assert abnormal_classes(PBC_8.labels) == ["erythroblast", "ig"]


def test_abnormal_classes_need_known_classes_of_both_kinds() -> None:
    assert abnormal_classes(["lymphocyte", "class_1", "blast"]) is None
    assert abnormal_classes(["lymphocyte", "monocyte", "platelet"]) is None
    assert abnormal_classes(["MYO", "MOB"]) is None
    assert abnormal_classes(["monocyte", "blast"]) == ["blast"]


def test_shared_names_prefer_the_equal_name() -> None:
    model = ["NGS", "neutrophil_segmented", "B", "b"]
    assert shared_names(model, ["neutrophil_segmented", "NGS", "b"]) == {
        "neutrophil_segmented": "neutrophil_segmented",
        "NGS": "NGS",
        "b": "b",
    }


def test_shared_names_of_unknown_labels_match_by_spelling() -> None:
    assert shared_names(["Class A", "class_b"], ["class_a", "CLASS-B", "class_c"]) == {
        "class_a": "Class A",
        "CLASS-B": "class_b",
    }


def test_finer_labels_answer_to_wider_classes() -> None:
    assert shared_names(PBC_8.labels, MUNICH.labels) == {
        "BAS": "basophil",
        "EBO": "erythroblast",
        "EOS": "eosinophil",
        "LYT": "lymphocyte",
        "MMZ": "ig",
        "MON": "monocyte",
        "MYB": "ig",
        "NGB": "neutrophil",
        "NGS": "neutrophil",
        "PMB": "ig",
        "PMO": "ig",
    }


def test_wider_labels_never_answer_to_finer_classes() -> None:
    assert set(shared_names(MUNICH.labels, PBC_8.labels)) == {
        "basophil",
        "eosinophil",
        "erythroblast",
        "lymphocyte",
        "monocyte",
    }
    assert shared_names(["neutrophil_band", "MYO"], ["neutrophil", "blast"]) == {}


def test_munich_and_johns_hopkins() -> None:
    mapping = shared_names(JHU.labels, MUNICH.labels)
    assert mapping["MYO"] == mapping["MOB"] == "blast"
    assert mapping["PMB"] == mapping["PMO"] == "promyelocyte"
    assert mapping["LYA"] == "lymphocyte_variant"
    assert set(mapping) == set(MUNICH.labels)
    back = shared_names(MUNICH.labels, JHU.labels)
    assert set(JHU.labels) - set(back) == {
        "blast",
        "giant_thrombocyte",
        "plasma_cell",
        "prolymphocyte",
        "promonocyte",
        "thrombocyte_aggregation",
    }


def test_the_nearest_wider_class_is_taken() -> None:
    assert shared_names(["ig", "promyelocyte"], ["PMB", "MYB"]) == {
        "PMB": "promyelocyte",
        "MYB": "ig",
    }


def test_a_type_that_two_classes_name_is_left_out() -> None:
    assert shared_names(["NGS", "segmented neutrophil"], ["neutrophil_segmented"]) == {}
