from __future__ import annotations

import dataclasses
import re
from collections import Counter

import pytest

from wbc_keras.errors import DataError
from wbc_keras.labels import MUNICH, PBC_8
from wbc_keras.sets.catalogue import CATALOGUE, PublicSet, find

# As the issue and MedMNIST's info.py have them, written down a second time.
MD5 = {
    28: "7053d0359d879ad8a5505303e11de1dc",
    64: "2b94928a2ae4916078ca51e05b6b800b",
    128: "adace1e0ed228fccda1f39692059dd4c",
    224: "b718ff6835fcbdb22ba9eacccd7b2601",
}


@pytest.mark.parametrize("side", MD5)
def test_bloodmnist_is_where_medmnist_publishes_it(side):
    public = find(f"bloodmnist_{side}")
    stem = "bloodmnist" if side == 28 else f"bloodmnist_{side}"
    assert public.download is not None
    assert public.download.url.startswith(
        f"https://zenodo.org/records/10519652/files/{stem}.npz?download="
    )
    assert public.download.file == f"{stem}.npz"
    assert public.download.checksum == f"md5:{MD5[side]}"
    assert public.pictures == 11_959 + 1_712 + 3_421
    assert "page" not in public.unverified


def test_the_issues_sets_are_there():
    names = {public.name for public in CATALOGUE}
    assert names >= {"PBC", "AML-Cytomorphology_LMU", "AML-Cytomorphology_MLL"}
    assert names >= {"Raabin-WBC", "segmentation_WBC", *(f"BloodMNIST_{side}" for side in MD5)}


@pytest.mark.parametrize(
    ("typed", "name"),
    [
        ("bloodmnist", "BloodMNIST_28"),
        ("BLOODMNIST-224", "BloodMNIST_224"),
        ("pbc", "PBC"),
        ("aml-cytomorphology_lmu", "AML-Cytomorphology_LMU"),
        ("munich", "AML-Cytomorphology_LMU"),
        ("AML-Cytomorphology_MLL_Helmholtz", "AML-Cytomorphology_MLL"),
        ("raabin", "Raabin-WBC"),
        ("Segmentation WBC", "segmentation_WBC"),
    ],
)
def test_names_are_found_in_any_case_and_by_alias(typed, name):
    assert find(typed).name == name


def test_no_name_means_two_sets():
    names = [name for public in CATALOGUE for name in (public.name, *public.aliases)]
    keys = Counter(re.sub(r"\W|_", "", name).lower() for name in names)
    assert max(keys.values()) == 1


def test_unknown_name_is_one_line_with_the_close_ones():
    with pytest.raises(DataError, match=r"'blodmnist_64'; did you mean BloodMNIST_64.* list names"):
        find("blodmnist_64")
    with pytest.raises(DataError, match=r"'pictures\\n'; python -m wbc_keras.datasets list names"):
        find("pictures\n")


@pytest.mark.parametrize("public", CATALOGUE, ids=lambda public: public.name)
def test_entry_is_whole(public):
    for text in (public.what, public.form, public.size, public.licence, public.citation):
        assert text
    # A size is told by the set's makers, computed, or marked.
    assert re.search(r"\d [MG]B", public.size)
    assert "size" in public.unverified or "of pixels" in public.size
    assert re.fullmatch(r"10\.\d{4,}/\S+", public.doi)
    assert public.page.startswith("https://")
    assert (public.download is None) == bool(public.steps)
    assert set(public.unverified) <= {field.name for field in dataclasses.fields(PublicSet)}
    # No address without a published checksum: what came altered could not be told.
    assert public.download is None or re.fullmatch(r"md5:[0-9a-f]{32}", public.download.checksum)


@pytest.mark.parametrize("public", CATALOGUE, ids=lambda public: public.name)
def test_classes_add_up(public):
    assert not public.classes or sum(public.classes.values()) == public.pictures


def test_labels_are_those_of_the_vocabularies():
    assert set(find("munich").classes) == set(MUNICH.labels)
    assert set(find("pbc").classes) == set(PBC_8.labels)


def test_munich_counts_are_the_annotations_own(lmu_metadata):
    lines = (lmu_metadata / "annotations.dat").read_text().splitlines()
    assert Counter(line.split()[1] for line in lines) == find("munich").classes
