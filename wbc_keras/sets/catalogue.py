"""The public sets of blood cells that this program knows: what they are and how to get them.

A fact stands here because it was read in a source that is named; what was not is listed in the
set's `unverified`, for the user to look up on its page.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from wbc_keras.errors import DataError
from wbc_keras.sets.download import Download


@dataclass(frozen=True)
class PublicSet:
    """A public set of cells.

    Attributes:
        name: as its makers write it; `find` takes it in any case.
        what: one sentence.
        pictures: how many there are.
        form: their size and format, and what else is worth knowing of them.
        classes: class to number of pictures; empty if pictures have no class.
        size: on disk, in words; says who tells it, or that it is computed or an estimate.
        licence: in words.
        citation: what a publication that uses it cites.
        doi: the set's or its paper's.
        page: where a person looks.
        source: where the address and the facts were read.
        unverified: names of the fields that were read in no source of the set's own.
        download: a file that `datasets get` fetches, if there is a checksum to hold it against.
        archive: else the file that a person fetches from the page, if `datasets get` unpacks it.
        steps: how a person gets it, where there is no `download`.
        aliases: other names.
    """

    name: str
    what: str
    pictures: int
    form: str
    classes: Mapping[str, int]
    size: str
    licence: str
    citation: str
    doi: str
    page: str
    source: str
    unverified: tuple[str, ...] = ()
    download: Download | None = None
    archive: str | None = None
    steps: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()


_ACEVEDO = (
    "Acevedo et al. 2020, A dataset of microscopic peripheral blood cell images for development "
    "of automatic recognition systems, Data in Brief 30:105474"
)
_PBC_CLASSES = {
    "basophil": 1218,
    "eosinophil": 3117,
    "erythroblast": 1551,
    "ig": 2895,
    "lymphocyte": 1214,
    "monocyte": 1420,
    "neutrophil": 3329,
    "platelet": 2348,
}
# Side in pixels to the file at Zenodo and its MD5 sum, as MedMNIST's info.py has them.
_BLOODMNIST = {
    28: ("bloodmnist.npz", "7053d0359d879ad8a5505303e11de1dc"),
    64: ("bloodmnist_64.npz", "2b94928a2ae4916078ca51e05b6b800b"),
    128: ("bloodmnist_128.npz", "adace1e0ed228fccda1f39692059dd4c"),
    224: ("bloodmnist_224.npz", "b718ff6835fcbdb22ba9eacccd7b2601"),
}


def _bloodmnist(side: int) -> PublicSet:
    file, digest = _BLOODMNIST[side]
    count = sum(_PBC_CLASSES.values())
    return PublicSet(
        name=f"BloodMNIST_{side}",
        aliases=("BloodMNIST",) if side == 28 else (),
        what="PBC, cropped at the centre and resized by MedMNIST, with splits",
        pictures=count,
        form=f"{side}x{side} colour, one .npz; train 11,959, validation 1,712, test 3,421; by "
        "picture, as there are no patient identifiers",
        classes=_PBC_CLASSES,
        size=f"{count * side * side * 3 / 1e6:,.0f} MB of pixels, less in the compressed file",
        licence="CC BY 4.0",
        citation="Yang et al. 2023, MedMNIST v2 - A large-scale lightweight benchmark for 2D and "
        f"3D biomedical image classification, Scientific Data 10:41; and {_ACEVEDO}",
        doi="10.1038/s41597-022-01721-8",
        page="https://zenodo.org/records/10519652",
        source="address, MD5 sum, splits and licence read in MedMNIST's info.py; the download "
        "itself was not tried by this project",
        download=Download(
            url=f"https://zenodo.org/records/10519652/files/{file}?download=1",
            file=file,
            checksum=f"md5:{digest}",
        ),
    )


_PBC = PublicSet(
    name="PBC",
    aliases=("PBC_dataset_normal_DIB", "Acevedo"),
    what="Normal cells of healthy people, Hospital Clinic of Barcelona, CellaVision DM96",
    pictures=17_092,
    form="JPEG, most 360x363; no patient identifiers; ig are immature granulocytes",
    classes=_PBC_CLASSES,
    size="an estimate: 300 to 500 MB, at 0.13 to 0.2 bytes for each pixel of a JPEG; no source of "
    "the set's own was found, a script of others says 2.5 GB",
    licence="CC BY 4.0",
    citation=_ACEVEDO,
    doi="10.17632/snkd93bnjr.1",
    page="https://data.mendeley.com/datasets/snkd93bnjr/1",
    source="count, size and format of the pictures read in the paper (PMC7182702); page, class "
    "counts and licence as public code that counted the unpacked archive has them",
    unverified=("page", "classes", "size", "licence"),
    archive="PBC_dataset_normal_DIB.zip",
    steps=(
        "Open the page and download PBC_dataset_normal_DIB.zip into DIR.",
        "Run python -m wbc_keras.datasets get PBC --to DIR: it unpacks the archive. No checksum is "
        "published that it could be held against.",
        "Pass on --data DIR/PBC_dataset_normal_DIB",
    ),
)

_MUNICH = PublicSet(
    name="AML-Cytomorphology_LMU",
    aliases=("LMU", "Munich", "Matek"),
    what="Cells of 100 patients with acute myeloid leukaemia and 100 without, Munich",
    pictures=18_365,
    form="TIFF 400x400, four channels; no patient identifiers; 1,905 cells labelled twice again",
    classes={
        "NGS": 8484,
        "LYT": 3937,
        "MYO": 3268,
        "MON": 1789,
        "EOS": 424,
        "NGB": 109,
        "BAS": 79,
        "EBO": 78,
        "PMO": 70,
        "MYB": 42,
        "MOB": 26,
        "PMB": 18,
        "KSC": 15,
        "MMZ": 15,
        "LYA": 11,
    },
    size="about 11 GB to download",
    licence="CC BY 3.0",
    citation="Matek et al. 2019, Human-level recognition of blast cells in acute myeloid leukaemia "
    "with convolutional neural networks, Nature Machine Intelligence 1:538; and the data set, The "
    "Cancer Imaging Archive",
    doi="10.7937/tcia.2019.36f5o9ld",
    page="https://www.cancerimagingarchive.net/collection/aml-cytomorphology_lmu/",
    source="counts read in the set's own annotations.dat; the rest as public code and lists of "
    "data sets have it",
    unverified=("page", "size", "licence"),
    steps=(
        "Open the page and download the pictures; it asks for the browser plug-in IBM Aspera "
        "Connect.",
        "Unpack them: AML-Cytomorphology_LMU/ with a folder for each code (BAS, EBO, ...).",
        "Download the annotations from the same page and put annotations.dat beside those folders.",
        "Pass on --data DIR/AML-Cytomorphology_LMU",
    ),
)

_MLL = PublicSet(
    name="AML-Cytomorphology_MLL",
    aliases=("AML-Cytomorphology_MLL_Helmholtz", "MLL", "Hehr"),
    what="Cells of 129 patients with acute myeloid leukaemia and 60 without, Munich Leukemia "
    "Laboratory; labelled by patient, not by cell",
    pictures=81_214,
    form="TIFF 144x144, 189 patients; a folder for each: control, PML_RARA, NPM1, CBFB_MYH11, "
    "RUNX1_RUNX1T1",
    classes={},
    size="about 13 GB to download",
    licence="CC BY",
    citation="Hehr, Sadafi, Matek, Lienemann, Pohlkamp, Haferlach, Spiekermann and Marr 2023, A "
    "morphological dataset of white blood cells from patients with four different genetic AML "
    "entities and non-malignant controls, The Cancer Imaging Archive",
    doi="10.7937/6ppe-4020",
    page="https://www.cancerimagingarchive.net/collection/aml-cytomorphology_mll_helmholtz/",
    source="all as public code and lists of data sets have it",
    unverified=("pictures", "form", "size", "licence", "page"),
    steps=(
        "Open the page and download the pictures; it asks for the browser plug-in IBM Aspera "
        "Connect.",
        "Write a CSV with the columns file, label and patient, so that no patient is in two "
        "splits; the folders name the patient's diagnosis, which is no cell type.",
        "Pass on --data CSV",
    ),
)

_RAABIN = PublicSet(
    name="Raabin-WBC",
    aliases=("Raabin",),
    what="Normal cells from Iran, two microscopes and two cameras; here the cropped cells "
    "labelled by two experts, Train and TestA",
    pictures=14_514,
    form="about 40,000 cells and spots in all, 1,145 with masks of nucleus and cytoplasm",
    classes={
        "neutrophil": 8891,
        "lymphocyte": 3461,
        "eosinophil": 1066,
        "monocyte": 795,
        "basophil": 301,
    },
    size="Train.rar about 279 MB, TestA.rar 115 MB, TestB.zip 104 MB, as a download script of "
    "others notes them; the whole collection, WBCData.rar, 56 GB, as others measured",
    licence="none named; said to be free to use",
    citation="Kouzehkanan et al. 2022, A large dataset of white blood cells containing cell "
    "locations and types, along with segmented nuclei and cytoplasm, Scientific Reports 12:1123",
    doi="10.1038/s41598-021-04426-x",
    page="https://raabindata.com/free-data/",
    source="totals read in the paper's abstract; page, files, sizes, class counts and licence as "
    "public code and lists of data sets have them",
    unverified=("page", "pictures", "classes", "size", "licence"),
    steps=(
        "Open the page and find the double-labelled cropped cells: Train.rar, TestA.rar and "
        "TestB.zip.",
        "Unpack them with a program that reads .rar (unrar, 7-Zip).",
        "Pass on --data DIR/Train, and DIR/TestA to evaluate",
    ),
)

_ZHENG = PublicSet(
    name="segmentation_WBC",
    aliases=("Zheng", "JTSC"),
    what="Cells with masks of nucleus and cytoplasm: 300 of Jiangxi Tecom (Dataset 1) and 100 of "
    "the CellaVision blog (Dataset 2)",
    pictures=400,
    form="BMP 120x120 and 300x300, masks as PNG: 255 nucleus, 128 cytoplasm, 0 background; masks "
    "drawn by experts, some class labels added by the authors and checked by no expert",
    classes={
        "neutrophil": 209,
        "lymphocyte": 90,
        "monocyte": 63,
        "eosinophil": 34,
        "basophil": 4,
    },
    size="40 MB of pixels, computed: 300 times 120x120 and 100 times 300x300 at 24 bits; masks "
    "hardly add to it",
    licence="GPL-3.0 for the repository",
    citation="Zheng, Wang, Wang and Liu 2018, Fast and robust segmentation of white blood cell "
    "images by self-supervised learning, Micron 107:55; acknowledge Jiangxi Tecom Science "
    "Corporation (Dataset 1) and the CellaVision blog (Dataset 2)",
    doi="10.1016/j.micron.2018.01.010",
    page="https://github.com/zxaoyou/segmentation_WBC",
    source="pictures, masks, warning and acknowledgements read in the repository's README, class "
    "counts in its label files; licence as lists of data sets have it: in its files none was found",
    unverified=("licence",),
    steps=(
        "git clone https://github.com/zxaoyou/segmentation_WBC.git",
        "Copy the .bmp of Dataset 1 into a folder of their own: the masks lie beside them, by the "
        "same name.",
        "Pass that folder on: python -m wbc_keras.roi --data FOLDER --output roi.csv",
    ),
)

CATALOGUE: tuple[PublicSet, ...] = (
    *(_bloodmnist(side) for side in _BLOODMNIST),
    _PBC,
    _MUNICH,
    _MLL,
    _RAABIN,
    _ZHENG,
)


def find(name: str) -> PublicSet:
    """Return a set by its name or an alias, whatever the case, dashes and underscores.

    Raises:
        DataError: there is no such set; close matches are named.
    """
    by_key = {_key(known): entry for entry in CATALOGUE for known in (entry.name, *entry.aliases)}
    if (key := _key(name)) in by_key:
        return by_key[key]
    close = difflib.get_close_matches(key, by_key)
    names = list(dict.fromkeys(by_key[match].name for match in close))
    hint = f"did you mean {' or '.join(names)}? " if names else ""
    raise DataError(
        f"no data set is called {name!r}; {hint}python -m wbc_keras.datasets list names them all"
    )


def _key(name: str) -> str:
    return "".join(character for character in name.lower() if character.isalnum())
