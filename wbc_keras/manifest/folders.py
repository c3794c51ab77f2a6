"""Class folders, flat folders and single files."""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from wbc_keras.errors import DataError
from wbc_keras.manifest.table import (
    ACCEPTED,
    IMAGE_SUFFIXES,
    LEAVES,
    MANIFEST,
    Manifest,
    accepted,
    is_picture,
    link_checker,
    list_some,
    make_manifest,
    require_utf8,
)

logger = logging.getLogger(__name__)

_MASK_SUFFIX = ".mask.png"
# What archive programs leave beside the pictures.
_IGNORED_FOLDERS = ("__MACOSX",)


def read_class_folder(folder: Path, *, labelled: bool) -> Manifest:
    """Read a folder with a sub-folder for each class, or if not ``labelled`` any folder."""
    files = sorted(find_pictures(folder))
    labels = [file.split("/")[0] if "/" in file else "" for file in files]
    if not files:
        raise DataError(
            f"{folder}: holds no picture ({' '.join(IMAGE_SUFFIXES)}); give {accepted(labelled)}"
        )
    if labelled:
        _check_class_folders(folder, labels)
        loose = labels.count("")
        if loose:
            logger.warning("%s: %d pictures outside the class folders are left out", folder, loose)
        files = [file for file, label in zip(files, labels, strict=True) if label]
        labels = [label for label in labels if label]
    return make_manifest(folder, {"file": files, "label": labels})


def _check_class_folders(folder: Path, labels: Sequence[str]) -> None:
    if not any(labels):
        raise DataError(
            f"{folder}: its {len(labels)} pictures have no labels; sort them into one sub-folder "
            f"for each class, or add a {MANIFEST} with the columns file and label"
        )
    present = set(labels)
    empty = sorted(
        entry.name
        for entry in os.scandir(folder)
        if entry.is_dir() and not _is_ignored(entry.name) and entry.name not in present
    )
    if empty:
        raise DataError(
            f"{folder}: no picture ({' '.join(IMAGE_SUFFIXES)}) in the class folder"
            f"{'s' if len(empty) > 1 else ''} {list_some(empty)}; add pictures or remove it"
        )


def find_pictures(folder: Path) -> list[str]:
    """Return the pictures under ``folder``, relative to it; hidden files and masks are left out.

    Links are followed inside the folder, as in a CSV; `read_files` alone takes any.

    Raises:
        DataError: a link leaves the folder, or a name is not UTF-8.
    """
    leaving: list[str] = []
    found = list(_walk(folder, leaving))
    require_utf8([*found, *leaving])
    if leaving:
        raise DataError(f"{folder}: {list_some(sorted(leaving))}: {LEAVES}")
    return found


def _walk(folder: Path, leaving: list[str]) -> Iterator[str]:
    """Yield the pictures; links that leave are added to ``leaving`` and not followed."""
    seen, is_inside = set(), link_checker(folder)

    def stays(relative: str) -> bool:
        if is_inside(relative):
            return True
        leaving.append(relative)
        return False

    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        relative = (
            "" if parent == str(folder) else f"{Path(parent).relative_to(folder).as_posix()}/"
        )
        # A link may lead back up.
        folders[:] = [] if real in seen else [name for name in folders if not _is_ignored(name)]
        folders[:] = [name for name in folders if stays(relative + name)]
        names = [] if real in seen else _pictures_among(names)
        seen.add(real)
        yield from (relative + name for name in names if stays(relative + name))


def _pictures_among(names: Iterable[str]) -> list[str]:
    pictures = [name for name in names if is_picture(name) and not name.startswith(".")]
    stems = {posixpath.splitext(name)[0] for name in pictures}
    return [name for name in pictures if not _is_mask(name, stems)]


def _is_mask(name: str, stems: set[str]) -> bool:
    """Tell whether ``name`` is NAME.mask.png beside a picture NAME."""
    return name.lower().endswith(_MASK_SUFFIX) and name[: -len(_MASK_SUFFIX)] in stems


def _is_ignored(folder_name: str) -> bool:
    return folder_name.startswith(".") or folder_name in _IGNORED_FOLDERS


def read_files(files: Sequence[Path], *, labelled: bool) -> Manifest:
    """Take single picture files, wherever they lie; each only once."""
    faults = [str(file) for file in files if not file.is_file() or not is_picture(file.name)]
    if faults or not files:
        raise DataError(
            f"not picture files ({' '.join(IMAGE_SUFFIXES)}): {list_some(faults) or 'none given'}"
            f"; give {accepted(labelled)}"
        )
    if labelled:
        raise DataError(f"{files[0]}: a single picture has no label; give {ACCEPTED}")
    require_utf8(map(str, files))
    absolute = [os.path.abspath(file) for file in dict.fromkeys(files)]
    root = Path(os.path.commonpath([os.path.dirname(file) for file in absolute]))
    return make_manifest(root, {"file": [Path(f).relative_to(root).as_posix() for f in absolute]})
