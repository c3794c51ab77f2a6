"""Vocabularies against the data sets' own files, and the maps between them."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import pytest

from wbc_keras.labels import (
    CELL_TYPES,
    JHU,
    MUNICH,
    MUNICH_GROUPINGS,
    PBC_8,
    PBC_13,
    VOCABULARIES,
    Vocabulary,
    abnormal_classes,
    blast_classes,
    cell_type,
    counted_classes,
    is_abnormal,
    share_names,
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


# --- what two vocabularies share ---


def test_blasts_are_those_of_any_line() -> None:
    assert blast_classes(MUNICH.labels) == ["MOB", "MYO"]
    assert blast_classes(JHU.labels) == ["blast"]
    assert blast_classes(PBC_8.labels) is None
    assert blast_classes(["MYO", "MOB"]) is None
    assert blast_classes(["MYO", "LYT", "class_1"]) is None


def test_a_differential_leaves_out_platelets_and_smudge_cells() -> None:
    left_out = {"giant_thrombocyte", "smudge_cell", "thrombocyte_aggregation"}
    assert set(JHU.labels) - set(counted_classes(JHU.labels)) == left_out
    assert counted_classes(["platelet", "class_1", "KSC", "EBO"]) == ["class_1", "EBO"]


def answers(model: Iterable[str], data: Iterable[str]) -> dict[str, str]:
    return dict(share_names(model, data).labels)


def test_the_equal_name_comes_first() -> None:
    model = ["NGS", "neutrophil_segmented", "B", "b"]
    assert answers(model, ["neutrophil_segmented", "NGS", "b"]) == {
        "neutrophil_segmented": "neutrophil_segmented",
        "NGS": "NGS",
        "b": "b",
    }


def test_unknown_labels_match_by_spelling() -> None:
    assert answers(["Class A", "class_b"], ["class_a", "CLASS-B", "class_c"]) == {
        "class_a": "Class A",
        "CLASS-B": "class_b",
    }


def test_finer_labels_answer_to_wider_classes() -> None:
    shared = share_names(PBC_8.labels, MUNICH.labels)
    assert shared.labels == {
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
    assert shared.classes == {name: name for name in PBC_8.labels}
    assert shared.merged == {}


def test_wider_labels_draw_finer_classes_together() -> None:
    shared = share_names(MUNICH.labels, PBC_8.labels)
    assert shared.labels == {
        "basophil": "BAS",
        "eosinophil": "EOS",
        "erythroblast": "EBO",
        "ig": "immature_granulocyte",
        "lymphocyte": "LYT",
        "monocyte": "MON",
        "neutrophil": "neutrophil",
    }
    assert shared.merged == {
        "immature_granulocyte": ["MMZ", "MYB", "PMB", "PMO"],
        "neutrophil": ["NGB", "NGS"],
    }
    # What the data do not have stays a possible, wrong answer.
    assert {name: shared.classes[name] for name in ("MYO", "LYA", "KSC", "MON")} == {
        "MYO": "MYO",
        "LYA": "LYA",
        "KSC": "KSC",
        "MON": "MON",
    }


def test_munich_and_johns_hopkins() -> None:
    mapping = answers(JHU.labels, MUNICH.labels)
    assert mapping["MYO"] == mapping["MOB"] == "blast"
    assert mapping["PMB"] == mapping["PMO"] == "promyelocyte"
    assert mapping["LYA"] == "lymphocyte_variant"
    assert set(mapping) == set(MUNICH.labels)
    back = share_names(MUNICH.labels, JHU.labels)
    assert back.merged == {"blast": ["MOB", "MYO"], "PMO": ["PMB", "PMO"]}
    assert set(JHU.labels) - set(back.labels) == {
        "giant_thrombocyte",
        "plasma_cell",
        "prolymphocyte",
        "promonocyte",
        "thrombocyte_aggregation",
    }


def test_johns_hopkins_model_of_17_classes() -> None:
    classes = [label for label in JHU.labels if label != "prolymphocyte"]
    shared = share_names(classes, JHU.labels)
    assert shared.labels == shared.classes == {name: name for name in classes}


def test_data_with_wide_and_fine_labels_are_brought_to_the_wide_one() -> None:
    """PBC's fine labels hold 34 neutrophils that nobody called band or segmented."""
    shared = share_names(MUNICH.labels, ["neutrophil", "neutrophil_band", "neutrophil_segmented"])
    assert set(shared.labels.values()) == {"neutrophil"}
    assert shared.merged == {"neutrophil": ["NGB", "NGS"]}
    # A label that the model has no finer class for does not stand in the way of finer ones.
    assert answers(["neutrophil", "band neutrophil"], ["NGB", "NGS"]) == {
        "NGB": "band neutrophil",
        "NGS": "neutrophil",
    }


def test_one_scheme_is_taken_at_its_word() -> None:
    fine = ["neutrophil", "neutrophil_band", "neutrophil_segmented"]
    assert answers(PBC_13.labels, PBC_13.labels) == {name: name for name in PBC_13.labels}
    other_words = ["Neutrophil", "NGB", "NGS", "MON"]
    assert answers(other_words, fine) == dict(zip(fine, other_words[:3], strict=True))
    # Not by chance of spelling: PBC's own 8 labels are among its 13.
    assert share_names(PBC_13.labels, PBC_8.labels).merged == {
        "ig": ["ig", "metamyelocyte", "myelocyte", "promyelocyte"],
        "neutrophil": ["neutrophil", "neutrophil_band", "neutrophil_segmented"],
    }


def test_the_widest_label_wins_over_wide_ones_within_it() -> None:
    shared = share_names(["PMB", "PMO", "MYB"], ["ig", "promyelocyte"])
    assert shared.merged == {"immature_granulocyte": ["PMB", "PMO", "MYB"]}
    assert set(shared.labels.values()) == {"immature_granulocyte"}


def test_the_nearest_wider_class_is_taken() -> None:
    assert answers(["ig", "promyelocyte"], ["PMB", "MYB"]) == {"PMB": "promyelocyte", "MYB": "ig"}


def test_a_type_that_two_classes_name_is_left_out() -> None:
    assert answers(["NGS", "segmented neutrophil"], ["neutrophil_segmented"]) == {}


PAIRS = [(model, data) for model in VOCABULARIES for data in VOCABULARIES]


@pytest.mark.parametrize(("model", "data"), PAIRS, ids=lambda one: one.name.replace(" ", "_"))
def test_any_two_vocabularies(model: Vocabulary, data: Vocabulary) -> None:
    shared = share_names(model.labels, data.labels)
    # Each class has one place, each label at most one, and that is among the classes' places.
    assert list(shared.classes) == list(model.labels)
    assert set(shared.labels) <= set(data.labels)
    assert set(shared.labels.values()) <= set(shared.classes.values())
    assert {name for names in shared.merged.values() for name in names} | {
        name for name in model.labels if shared.classes[name] == name
    } == set(model.labels)
    for label in data.labels:
        related = [name for name in model.labels if is_within(name, label)]
        wider = [name for name in model.labels if is_within(label, name)]
        assert (label in shared.labels) == bool(related or wider)
        if label not in shared.labels:
            continue
        place = shared.labels[label]
        # No right answer counts as wrong (in one scheme, "neutrophil" is none of the finer ones).
        if model is not data:
            assert {shared.classes[name] for name in related} <= {place}
        found = cell_type(place)
        assert found is not None
        for name in [label, *(name for name in model.labels if shared.classes[name] == place)]:
            own = cell_type(name)
            assert own is not None
            assert own.abnormal == found.abnormal
            assert len({own.lineage, found.lineage} - {"unspecified"}) <= 1


def is_within(label: str, wider: str) -> bool:
    by_name = {found.name: found for found in CELL_TYPES}
    found, aim = cell_type(label), cell_type(wider)
    while found is not None and found is not aim:
        found = by_name[found.parent] if found.parent else None
    return found is not None


def test_groupings_are_of_the_munich_set() -> None:
    assert set(MUNICH_GROUPINGS["blast"]) == {"MYO", "MOB"}
    for members in MUNICH_GROUPINGS.values():
        assert len(set(members)) == len(members)
        assert set(members) <= set(abnormal_classes(MUNICH.labels) or ())


# --- the page ---


def test_page_says_what_the_code_does(root: Path) -> None:
    page = (root / "docs" / "labels.md").read_text("utf-8")
    for table in (type_table(), pair_table()):
        assert table in page, f"put this into docs/labels.md:\n{table}"


def type_table() -> str:
    titles = ["cell type", "a kind of", "abnormal", *(one.name for one in VOCABULARIES)]
    rows = []
    for found in CELL_TYPES:
        own = [
            " ".join(f"`{label}`" for label, name in one.types.items() if name == found.name)
            for one in VOCABULARIES
        ]
        kind = found.parent or ""
        rows.append([found.name, kind, "yes" if found.abnormal else "", *own])
    return markdown(titles, rows)


def pair_table() -> str:
    rows = []
    for model, data in PAIRS:
        if model is data:
            continue
        shared = share_names(model.labels, data.labels)
        merged = [
            f"{name}: {' '.join(f'`{one}`' for one in names)}"
            for name, names in shared.merged.items()
        ]
        left_out = " ".join(f"`{label}`" for label in data.labels if label not in shared.labels)
        count = str(len(set(shared.labels.values())))
        rows.append([model.name, data.name, count, "; ".join(merged), left_out])
    titles = ["model of", "cells of", "shared", "classes merged", "labels left out"]
    return markdown(titles, rows)


def markdown(titles: list[str], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
