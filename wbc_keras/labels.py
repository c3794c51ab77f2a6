"""Cell vocabularies: what a label means, and how one data set's labels answer to another's.

Normal or abnormal follows Matek et al. 2019 (Nature Machine Intelligence 1:538), whose atypical
cells are those that a normal peripheral blood differential does not hold: blasts, promyelocytes,
myelocytes, metamyelocytes, atypical lymphocytes and erythroblasts. By the same rule immature
granulocytes, prolymphocytes, promonocytes and plasma cells are abnormal here. Platelets, their
giant forms and clumps, and smudge cells say nothing about the white cells: they count as normal.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CellType:
    """A kind of cell.

    Attributes:
        name: English name, in the data's spelling: "neutrophil_band".
        lineage: granulocytic, monocytic, lymphoid, erythroid, megakaryocytic, unspecified (blasts
            of any line) or artefact.
        abnormal: whether a normal peripheral differential does not hold it; None if not known.
        parent: name of the wider type it belongs to, or None.
    """

    name: str
    lineage: str
    abnormal: bool | None
    parent: str | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The labels of one data set: `types` maps a label to the name of its `CellType`."""

    name: str
    source: str
    types: Mapping[str, str]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the table's order."""
        return tuple(self.types)


CELL_TYPES: tuple[CellType, ...] = (
    CellType("basophil", "granulocytic", False),
    CellType("eosinophil", "granulocytic", False),
    CellType("neutrophil", "granulocytic", False),
    CellType("neutrophil_band", "granulocytic", False, "neutrophil"),
    CellType("neutrophil_segmented", "granulocytic", False, "neutrophil"),
    CellType("immature_granulocyte", "granulocytic", True),
    CellType("metamyelocyte", "granulocytic", True, "immature_granulocyte"),
    CellType("myelocyte", "granulocytic", True, "immature_granulocyte"),
    CellType("promyelocyte", "granulocytic", True, "immature_granulocyte"),
    CellType("promyelocyte_bilobed", "granulocytic", True, "promyelocyte"),
    CellType("blast", "unspecified", True),
    CellType("myeloblast", "granulocytic", True, "blast"),
    CellType("monoblast", "monocytic", True, "blast"),
    CellType("lymphoblast", "lymphoid", True, "blast"),
    CellType("monocyte", "monocytic", False),
    CellType("promonocyte", "monocytic", True),
    CellType("lymphocyte", "lymphoid", False),
    # No parent: a model's "lymphocyte" is the typical one, and normal.
    CellType("lymphocyte_atypical", "lymphoid", True),
    CellType("prolymphocyte", "lymphoid", True),
    CellType("plasma_cell", "lymphoid", True),
    CellType("erythroblast", "erythroid", True),
    CellType("platelet", "megakaryocytic", False),
    CellType("platelet_giant", "megakaryocytic", False, "platelet"),
    CellType("platelet_clump", "megakaryocytic", False),
    CellType("smudge_cell", "artefact", False),
)

MUNICH = Vocabulary(
    "Munich",
    "Matek et al. 2019, AML-Cytomorphology_LMU, DOI 10.7937/tcia.2019.36f5o9ld",
    {
        "BAS": "basophil",
        "EBO": "erythroblast",
        "EOS": "eosinophil",
        "KSC": "smudge_cell",
        "LYA": "lymphocyte_atypical",
        "LYT": "lymphocyte",
        "MMZ": "metamyelocyte",
        "MOB": "monoblast",
        "MON": "monocyte",
        # Published code often swaps these two.
        "MYB": "myelocyte",
        "MYO": "myeloblast",
        "NGB": "neutrophil_band",
        "NGS": "neutrophil_segmented",
        "PMB": "promyelocyte_bilobed",
        "PMO": "promyelocyte",
    },
)
PBC_8 = Vocabulary(
    "PBC, 8 classes",
    "Acevedo et al. 2020, DOI 10.1016/j.dib.2020.105474; BloodMNIST",
    {
        "basophil": "basophil",
        "eosinophil": "eosinophil",
        "erythroblast": "erythroblast",
        "ig": "immature_granulocyte",
        "lymphocyte": "lymphocyte",
        "monocyte": "monocyte",
        "neutrophil": "neutrophil",
        "platelet": "platelet",
    },
)
PBC_13 = Vocabulary(
    "PBC, 13 classes",
    PBC_8.source,
    {
        **PBC_8.types,
        "metamyelocyte": "metamyelocyte",
        "myelocyte": "myelocyte",
        "promyelocyte": "promyelocyte",
        "neutrophil_band": "neutrophil_band",
        "neutrophil_segmented": "neutrophil_segmented",
    },
)
# Usually trained on 17: of `prolymphocyte` there is one single cell.
JHU = Vocabulary(
    "Johns Hopkins",
    "Sidhom et al. 2021, DeepAPL, npj Precision Oncology 5:38",
    {
        "basophil": "basophil",
        "blast": "blast",
        "eosinophil": "eosinophil",
        "erythroblast": "erythroblast",
        "giant_thrombocyte": "platelet_giant",
        "lymphocyte": "lymphocyte",
        "lymphocyte_variant": "lymphocyte_atypical",
        "metamyelocyte": "metamyelocyte",
        "monocyte": "monocyte",
        "myelocyte": "myelocyte",
        "neutrophil_band": "neutrophil_band",
        "neutrophil_segmented": "neutrophil_segmented",
        "plasma_cell": "plasma_cell",
        "prolymphocyte": "prolymphocyte",
        "promonocyte": "promonocyte",
        "promyelocyte": "promyelocyte",
        "smudge_cell": "smudge_cell",
        "thrombocyte_aggregation": "platelet_clump",
    },
)
FIVE_PART = Vocabulary(
    "five-part differential",
    "the white cells of normal blood, as an automated count tells them apart",
    {
        "basophil": "basophil",
        "eosinophil": "eosinophil",
        "lymphocyte": "lymphocyte",
        "monocyte": "monocyte",
        "neutrophil": "neutrophil",
    },
)
VOCABULARIES: tuple[Vocabulary, ...] = (MUNICH, PBC_8, PBC_13, JHU, FIVE_PART)

# The two questions of Matek et al. 2019, in the Munich set's codes. PMB is in neither, though by
# the rule above it is abnormal.
MUNICH_GROUPINGS: Mapping[str, tuple[str, ...]] = {
    "blast": ("MOB", "MYO"),
    "atypical": ("EBO", "LYA", "MMZ", "MOB", "MYB", "MYO", "PMO"),
}

# Other spellings of the same cells.
_SYNONYMS = {
    "immature_granulocytes": "immature_granulocyte",
    "band_neutrophil": "neutrophil_band",
    "segmented_neutrophil": "neutrophil_segmented",
    "bilobed_promyelocyte": "promyelocyte_bilobed",
    "atypical_lymphocyte": "lymphocyte_atypical",
    "reactive_lymphocyte": "lymphocyte_atypical",
    "variant_lymphocyte": "lymphocyte_atypical",
    "typical_lymphocyte": "lymphocyte",
    "normoblast": "erythroblast",
    "nucleated_red_cell": "erythroblast",
    "thrombocyte": "platelet",
    "giant_platelet": "platelet_giant",
    "smudge": "smudge_cell",
}


def cell_type(label: str) -> CellType | None:
    """Return what ``label`` means, or None if no vocabulary holds it.

    Upper and lower case are alike, and so are spaces, hyphens and underscores.
    """
    return _TYPES_BY_KEY.get(_key(label))


def is_abnormal(label: str) -> bool | None:
    """Return whether ``label`` is a cell that normal blood does not hold; None if not known."""
    found = cell_type(label)
    return None if found is None else found.abnormal


def abnormal_classes(class_names: Sequence[str]) -> list[str] | None:
    """Return the abnormal ones of ``class_names``, in their order.

    None if a class is unknown, or if there are not both kinds: then normal and abnormal cannot be
    told apart by these classes.
    """
    kinds = [is_abnormal(name) for name in class_names]
    if None in kinds or len(set(kinds)) < 2:
        return None
    return [name for name, abnormal in zip(class_names, kinds, strict=True) if abnormal]


def blast_classes(class_names: Sequence[str]) -> list[str] | None:
    """Return the blasts of any line among ``class_names``, in their order.

    None if a class is unknown, or if none or all are blasts: then there is nothing to tell apart.
    """
    found = [cell_type(name) for name in class_names]
    kinds = [None if one is None else "blast" in _widening(one) for one in found]
    if None in kinds or len(set(kinds)) < 2:
        return None
    return [name for name, blast in zip(class_names, kinds, strict=True) if blast]


def counted_classes(class_names: Sequence[str]) -> list[str]:
    """Return the classes that a differential count counts: all but platelets and smudge cells.

    Erythroblasts are counted, so that shares are of all nucleated cells, and so is a class that is
    not known.
    """
    found = {name: cell_type(name) for name in class_names}
    left_out = ("megakaryocytic", "artefact")
    return [name for name, one in found.items() if one is None or one.lineage not in left_out]


@dataclass(frozen=True)
class SharedNames:
    """Where a model's classes and the labels of some data meet.

    Attributes:
        labels: data label -> shared name; a label without a counterpart is not in it.
        classes: model class -> shared name, every class; its own name where nothing is merged.
    """

    labels: Mapping[str, str]
    classes: Mapping[str, str]

    @property
    def merged(self) -> dict[str, list[str]]:
        """The shared names that are not simply a class's own, with the model's classes in each."""
        members: dict[str, list[str]] = {}
        for name, shared in self.classes.items():
            members.setdefault(shared, []).append(name)
        return {shared: names for shared, names in members.items() if names != [shared]}


def share_names(model_classes: Iterable[str], data_labels: Iterable[str]) -> SharedNames:
    """Bring a model's classes and the labels of some data to the finest names that they share.

    - A label that is wider than some of the classes draws them together: on data that say only
      "neutrophil", a model's band and segmented neutrophils become "neutrophil". All of the data's
      labels within it go there too, so every cell has one right answer. The name is that of the
      model's class of this type, if there is one.
    - Otherwise a label answers to the class of the same name, or else of the same type, or else of
      the nearest wider type: data "neutrophil_band" to a model's "neutrophil". Never to a type that
      two of the classes name.
    - Where both sides know the very same types within the wider one, they are of one scheme, and
      nothing is drawn together: "neutrophil" then means one that is neither band nor segmented.
    """
    classes, labels = list(model_classes), list(data_labels)
    by_type = _unique((found.name, name) for name in classes if (found := cell_type(name)))
    by_key = _unique((_key(name), name) for name in classes)
    wide = _wide_types(classes, labels)

    def gather(name: str) -> str | None:
        above = [kind for kind in _widening(cell_type(name)) if kind in wide]
        return by_type.get(above[-1], above[-1]) if above else None

    answers = {name: gather(name) or _answer(name, classes, by_key, by_type) for name in labels}
    return SharedNames(
        {label: answer for label, answer in answers.items() if answer is not None},
        {name: gather(name) or name for name in classes},
    )


def _wide_types(classes: Iterable[str], labels: Iterable[str]) -> set[str]:
    """Return the types of labels that are wider than a class, but for those of one scheme."""
    ours, theirs = (
        {found.name: set(_widening(found)) for name in names if (found := cell_type(name))}
        for names in (classes, labels)
    )
    wide = set()
    for kind in theirs:
        mine, others = ({name for name in side if kind in side[name]} for side in (ours, theirs))
        if mine - {kind} and mine != others:
            wide.add(kind)
    return wide


def _answer(
    label: str, classes: Sequence[str], by_key: Mapping[str, str], by_type: Mapping[str, str]
) -> str | None:
    if label in classes:
        return label
    if _key(label) in by_key:
        return by_key[_key(label)]
    candidates = (by_type[name] for name in _widening(cell_type(label)) if name in by_type)
    return next(candidates, None)


def _widening(found: CellType | None) -> Iterator[str]:
    """Yield the name of a type, of its parent, and so on."""
    while found is not None:
        yield found.name
        found = _TYPES_BY_KEY[found.parent] if found.parent else None


def _unique(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return key -> value for the keys that stand in one pair only."""
    values: dict[str, list[str]] = {}
    for key, value in pairs:
        values.setdefault(key, []).append(value)
    return {key: found[0] for key, found in values.items() if len(found) == 1}


def _key(label: str) -> str:
    return re.sub(r"[\s_-]+", "_", label.strip().lower())


def _index_types() -> dict[str, CellType]:
    by_name = {found.name: found for found in CELL_TYPES}
    index = dict(by_name)
    for names in (*(vocabulary.types for vocabulary in VOCABULARIES), _SYNONYMS):
        index.update({_key(label): by_name[name] for label, name in names.items()})
    return index


_TYPES_BY_KEY = _index_types()
