"""What is wrong with a set of cells before a model is built on it.

The checks look at the table (classes, patients, splits) and at what `survey` saw of each picture.
They tell and do not mend; `screen` is the short form that training begins with.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.checking.duplicates import TURNS, Copies, compare
from wbc_keras.errors import DataError
from wbc_keras.labels import cell_type
from wbc_keras.manifest import Manifest
from wbc_keras.manifest.packed import read_units
from wbc_keras.pictures.survey import Loader, Survey, survey_once, survey_pictures

# Pixels of the shorter side under which a cell cannot be told; MedMNIST's smallest have 28.
_TINY = 16
# A side this many times the usual one, or a fraction of it, is odd, unless sizes differ anyway.
_ODD = 2.0
_USUAL_SPREAD = 5.0
# Mean distance of the channels, grey levels, under which a picture has no colour.
_GREY = 3.0
_SPLITS_TO_REACH = 3
# What numbers the groups of one code: NGS_12, BAS0.
_NUMBERING = "0123456789_-. "
_PATIENT = re.compile(r"(?:^|[/_\-. ])((?:patient|subject|donor|case|slide|smear)[_\- ]?\d+)", re.I)


@dataclass(frozen=True)
class Problem:
    """A kind of finding: its title in the report, what it means, and whether it is a grave one."""

    title: str
    meaning: str
    grave: bool = False


PROBLEMS: Mapping[str, Problem] = {
    "unreadable": Problem(
        "Unreadable",
        "No picture that is read here. Training stops at it, or leaves it out with "
        "data.bad_images=skip.",
        grave=True,
    ),
    "damaged": Problem(
        "Damaged or cut off",
        "The file begins as a picture, but its data are incomplete or wrong. Copy it again.",
        grave=True,
    ),
    "huge": Problem(
        "Huge",
        "The header declares more pixels than are read: a whole slide, or a decompression bomb. "
        "It was not decoded.",
        grave=True,
    ),
    "copy_across_classes": Problem(
        "Copies across classes",
        "One picture under two labels. One label is wrong, or the experts disagree: decide.",
        grave=True,
    ),
    "copy_across_splits": Problem(
        "Copies across splits",
        "One picture in two given splits: the model is tested on what it was trained on.",
        grave=True,
    ),
    "group_is_class": Problem(
        "Groups that are classes",
        "The patient or group column holds class codes. Training refuses it.",
        grave=True,
    ),
    "group_across_splits": Problem(
        "Patients across splits",
        "A patient's cells are in two given splits, which flatters the figures.",
        grave=True,
    ),
    "copy": Problem(
        "Copies",
        "The same picture again: the same bytes, encoded anew, turned, mirrored, or the same cell "
        "photographed twice. Training keeps them in one split.",
    ),
    "tiny": Problem("Tiny", f"Fewer than {_TINY} pixels on a side: no cell can be told on it."),
    "blank": Problem("Blank", "Nearly one colour all over: there is no cell to be seen."),
    "grey": Problem(
        "Grey among colour", "No colour, though most of the set has: the stain is lost."
    ),
    "odd_size": Problem(
        "Odd size", "Far from the set's usual size: another magnification, a field, a cut-out."
    ),
    "unusual_form": Problem(
        "Unusual form", "Read, but not all of it: several frames or pages, or more than 8 bits."
    ),
    "small_class": Problem(
        "Small classes", "Too few for the splits: some will hold no cell of the class."
    ),
    "patient_in_names": Problem(
        "Patients in file names",
        "File names tell patients, but no column does, so one patient's cells come into several "
        "splits. Add a patient column.",
    ),
}


@dataclass(frozen=True)
class Finding:
    """One thing found: a key of `PROBLEMS`, the file ("" for the set), details, another file."""

    problem: str
    file: str
    detail: str
    related: str = ""


@dataclass(frozen=True)
class Screening:
    """What training needs to know of its pictures.

    Attributes:
        units: intp (n,), equal for copies of one picture, as `splits.make_splits` takes them; None
            if copies are not looked for.
        notes: sentences for the banner.
    """

    units: npt.NDArray[np.intp] | None
    notes: tuple[str, ...]


def screen(manifest: Manifest, *, near_duplicates: str = "keep_together") -> Screening:
    """Check as training begins; pictures are looked at small, and once for all runs of a source.

    Args:
        manifest: labelled cells whose pictures can be read, or that are packed: their copies
            were looked for when they were.
        near_duplicates: `ignore` leaves the pictures alone and looks at the table only.

    Raises:
        DataError: the groups are class codes, or the cache cannot be written.
    """
    codes = describe_class_codes(manifest.table)
    if codes:
        raise DataError(f"{manifest.root}: {codes}")
    if near_duplicates == "ignore":
        return Screening(None, ())
    if manifest.packed:
        copies = Copies(read_units(manifest.table))
        return Screening(copies.units, tuple(_sum_up([*check_table(manifest.table, copies)])))
    survey, copies = survey_once(manifest.root, manifest.table["file"].tolist())
    findings = [
        *check_table(manifest.table, copies),
        *check_pictures(manifest.table, survey, copies),
    ]
    return Screening(copies.units, tuple(_sum_up(findings)))


def check(manifest: Manifest, *, damaged: Mapping[str, str]) -> list[Finding]:
    """Check a set of cells in full.

    Args:
        manifest: labelled cells.
        damaged: reason by file, for the pictures that TensorFlow or OpenCV cannot decode.

    Returns:
        The findings, in the order of `PROBLEMS`, then of the files.
    """
    table = manifest.table
    survey = survey_pictures(manifest.root, table["file"].tolist()).with_damaged(damaged)
    copies = survey.find_copies()
    findings = [*check_table(table, copies), *check_pictures(table, survey, copies)]
    order = {problem: rank for rank, problem in enumerate(PROBLEMS)}
    return sorted(findings, key=lambda finding: (order[finding.problem], finding.file))


def count_findings(findings: Sequence[Finding]) -> dict[str, int]:
    """Return how many there are of each problem found, in the order of `PROBLEMS`."""
    counts = Counter(finding.problem for finding in findings)
    return {problem: counts[problem] for problem in PROBLEMS if counts[problem]}


def _sum_up(findings: Sequence[Finding]) -> Iterator[str]:
    """Yield the notes of training; what the splits or the reading of pictures tell is left out."""
    told = ("copy", "copy_across_splits", "small_class", "group_across_splits")
    rest = [finding for finding in findings if finding.problem not in told]
    for finding in rest:
        if not finding.file:
            yield finding.detail
    counts = count_findings([finding for finding in rest if finding.file])
    if counts:
        listed = ", ".join(
            f"{PROBLEMS[problem].title.lower()} {n}" for problem, n in counts.items()
        )
        yield f"pictures to look at ({listed}): python -m wbc_keras.manifest check shows them"


# --- the table ---


def check_table(table: pd.DataFrame, copies: Copies) -> Iterator[Finding]:
    """Yield what is wrong with classes, patients and given splits."""
    if codes := describe_class_codes(table):
        yield Finding("group_is_class", "", codes)
    yield from _check_torn_groups(table)
    yield from _check_small_classes(table, copies)
    yield from _check_names(table)


def describe_class_codes(table: pd.DataFrame) -> str:
    """Return why the groups are classes and not patients, or "".

    They are if each class has one group and each group one class; or if, numbers left out (NGS_12
    is NGS), none holds two classes, there are hardly more than classes, and each either means a
    cell type or leads its files' names: BAS of BAS_0001.tiff. Numbered patients whose names lead
    their files' names stay patients: AML_1 of AML_1_0001.tiff.
    """
    named = table[(table["group"] != "") & (table["label"] != "")]
    if named.empty:
        return ""
    labels = named.groupby("group")["label"].agg(["nunique", "first"])
    classes = labels["first"].nunique()
    if len(labels) < 2 or (labels["nunique"] > 1).any():
        return ""
    if len(labels) > classes and not _are_codes(named, classes):
        return ""
    group, label = labels.index[0], labels["first"].iloc[0]
    return (
        f"group: the {len(labels)} groups stand for the {classes} classes ({group} for {label}), "
        "so they are class codes and not patients; give real patients or drop the patient and "
        "group columns"
    )


def _are_codes(named: pd.DataFrame, classes: int) -> bool:
    codes = named["group"].str.strip(_NUMBERING)
    held = named.groupby(codes)["label"].nunique()
    if not 2 <= len(held) <= 2 * classes or (held > 1).any() or "" in held:
        return False
    names = named["file"].str.rpartition("/")[2]
    is_numbered = codes != named["group"]
    leads = [
        name.startswith(code) and not (numbered and name.startswith(group))
        for name, code, group, numbered in zip(
            names, codes, named["group"], is_numbered, strict=True
        )
    ]
    means = codes.map({code: cell_type(code) is not None for code in held.index})
    return bool((np.array(leads) | means.to_numpy(bool)).all())


def _check_torn_groups(table: pd.DataFrame) -> Iterator[Finding]:
    named = table[(table["group"] != "") & (table["split"] != "")]
    for group, splits in named.groupby("group")["split"]:
        counts = splits.value_counts()
        if len(counts) > 1:
            places = ", ".join(f"{split} {count}" for split, count in counts.items())
            yield Finding("group_across_splits", "", f"{group}: {places}", str(group))


def _check_small_classes(table: pd.DataFrame, copies: Copies) -> Iterator[Finding]:
    named = table[table["label"] != ""]
    has_groups = bool((table["group"] != "").any())
    counted = named["group"] if has_groups else pd.Series(copies.units, table.index)[named.index]
    what = "groups" if has_groups else "pictures"
    sizes = counted.groupby(named["label"]).nunique()
    for label, size in sizes[sizes < _SPLITS_TO_REACH].items():
        cells = int((named["label"] == label).sum())
        yield Finding("small_class", "", f"{label}: cells {cells}, {what} {size}", str(label))
    given = named[named["split"] != ""]
    found = pd.crosstab(given["label"], given["split"])
    found = found[sizes.reindex(found.index) >= _SPLITS_TO_REACH]
    for label, row in found[(found == 0).any(axis=1)].iterrows():
        empty = ", ".join(row.index[row == 0])
        yield Finding("small_class", "", f"{label}: no cell in {empty}", str(label))


def _check_names(table: pd.DataFrame) -> Iterator[Finding]:
    """Tell patients in file names only where nearly all names hold one, and several share it."""
    if (table["group"] != "").any():
        return
    found = table["file"].str.extract(_PATIENT, expand=False).dropna()
    patients = found.str.lower().nunique()
    if len(found) >= 0.9 * len(table) and 2 <= patients <= len(found) / 2:
        detail = f"file names hold {patients} patients ({found.iloc[0]}), but no column does"
        yield Finding("patient_in_names", "", detail)


# --- the pictures ---


def check_pictures(table: pd.DataFrame, survey: Survey, copies: Copies) -> Iterator[Finding]:
    """Yield what is wrong with single pictures, and the copies."""
    files = survey.files
    for row, fault in survey.faults.items():
        yield Finding(fault.problem, files[row], fault.reason)
    for row, form in survey.forms.items():
        yield Finding("unusual_form", files[row], form)
    yield from _check_sizes(survey)
    for row in np.flatnonzero(survey.is_blank()).tolist():
        detail = f"standard deviation {survey.contrasts[row]:.1f} grey levels"
        yield Finding("blank", files[row], detail)
    for row in np.flatnonzero(_is_grey_among_colour(survey)).tolist():
        yield Finding("grey", files[row], "the three channels are equal or nearly so")
    yield from _check_copies(table, survey, copies)


def _check_sizes(survey: Survey) -> Iterator[Finding]:
    seen = np.flatnonzero(survey.is_seen())
    if not len(seen):
        return
    sizes = survey.sizes[seen]
    is_tiny = sizes.min(axis=1) < _TINY
    for row in seen[is_tiny].tolist():
        yield Finding("tiny", survey.files[row], f"{_name_size(survey.sizes[row])} pixels")
    logs = np.log(np.maximum(sizes, 1))
    usual = np.median(logs, axis=0)
    spread = np.median(np.abs(logs - usual), axis=0)
    odd = (np.abs(logs - usual) > np.maximum(np.log(_ODD), _USUAL_SPREAD * spread)).any(axis=1)
    usual_size = _name_size(np.rint(np.exp(usual)).astype(int))
    for row in seen[odd & ~is_tiny].tolist():
        detail = f"{_name_size(survey.sizes[row])} pixels, usual {usual_size}"
        yield Finding("odd_size", survey.files[row], detail)


def _name_size(size: npt.NDArray[np.integer]) -> str:
    return "x".join(map(str, size))


def _is_grey_among_colour(survey: Survey) -> npt.NDArray[np.bool_]:
    told = survey.is_seen() & ~survey.is_blank()
    grey = told & (survey.colours < _GREY)
    return grey if 2 * grey.sum() < told.sum() else np.zeros_like(grey)


def _check_copies(table: pd.DataFrame, survey: Survey, copies: Copies) -> Iterator[Finding]:
    """Yield each copy with the first of its set; the set decides how grave it is."""
    load = survey.load_small()
    columns = {name: table[name].to_numpy(dtype=object) for name in ("label", "group", "split")}
    for rows in copies.sets():
        first = rows[0]
        problem = _grade(columns["label"][rows], columns["split"][rows])
        for row in rows[1:]:
            details = [_describe_copy(survey, load, row=row, first=first)]
            details += [
                f"{name} {columns[name][row] or 'none'} and {columns[name][first] or 'none'}"
                for name in columns
                if columns[name][row] != columns[name][first]
            ]
            yield Finding(problem, survey.files[row], "; ".join(details), survey.files[first])


def _grade(labels: Iterable[str], splits: Iterable[str]) -> str:
    if len(set(labels)) > 1:
        return "copy_across_classes"
    return "copy_across_splits" if len(set(splits)) > 1 else "copy"


def _describe_copy(survey: Survey, load: Loader, *, row: int, first: int) -> str:
    if survey.digests[row] == survey.digests[first]:
        return "same bytes"
    one, other = load(first), load(row)
    if one is None or other is None:
        return "same picture"
    return f"same picture {TURNS[compare(one, other)[1]]}"
