"""Any source of cells becomes one table: ``file,label,group,split``.

Sources: a class folder, a folder with manifest.csv, a CSV, the Munich folder with annotations.dat
(Matek et al. 2019), a MedMNIST .npz, drawn cells; for prediction also a flat folder or single
files. Rows of a CSV are counted as a spreadsheet counts them: the header is row 1.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import logging
import os
import posixpath
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from wbc_keras.config import SyntheticConfig
from wbc_keras.errors import DataError

Arrays = Mapping[str, npt.NDArray[Any]]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp")
COLUMNS = ("file", "label", "group", "split")
BLOODMNIST_CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "ig",
    "lymphocyte",
    "monocyte",
    "neutrophil",
    "platelet",
)

_MANIFEST = "manifest.csv"
_MUNICH = "annotations.dat"
_MASK_SUFFIX = ".mask.png"
_SPLITS = {
    "": "",
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}
_MEDMNIST_SPLITS = {"train": "train", "val": "validation", "test": "test"}
# Not a zip, cut short, damaged, pickled; a single array is no context manager (AttributeError on
# Python 3.10, TypeError since).
_UNREADABLE_NPZ = (
    AttributeError,
    EOFError,
    OSError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)
# What archive programs leave beside the pictures.
_IGNORED_FOLDERS = ("__MACOSX",)
_ACCEPTED = (
    "a folder with one sub-folder of pictures for each class, a folder with manifest.csv, a .csv "
    "file, the Munich folder with annotations.dat, a MedMNIST .npz file, or `synthetic`"
)


@dataclass(frozen=True, eq=False)
class Manifest:
    """The cells of one source.

    Attributes:
        root: folder that `file` is relative to.
        table: one row for each cell; text columns file (with forward slashes), label ("" unknown),
            group ("" none) and split ("" none, else train, validation or test).
        name: a short name for results: the folder's, the file's stem, or "synthetic".
    """

    root: Path
    table: pd.DataFrame
    name: str

    def paths(self) -> list[Path]:
        """Return the pictures' paths, in the table's order."""
        return [self.root / file for file in self.table["file"]]

    def class_names(self) -> list[str]:
        """Return the labels present, sorted, without the unknown."""
        return sorted(set(self.table["label"]) - {""})

    def select(self, mask: npt.ArrayLike) -> Manifest:
        """Return the rows where ``mask``, bool (n,), is true, numbered anew from 0."""
        rows = self.table[np.asarray(mask, dtype=bool)].reset_index(drop=True)
        return dataclasses.replace(self, table=rows)


def cache_dir() -> Path:
    """Return where drawn and unpacked cells are kept: WBC_KERAS_CACHE or ~/.cache/wbc_keras."""
    return Path(os.environ.get("WBC_KERAS_CACHE") or Path.home() / ".cache" / "wbc_keras")


def read_manifest(
    source: str | Path | Sequence[str | Path],
    *,
    label_column: str = "label",
    synthetic: SyntheticConfig | None = None,
    labelled: bool = True,
) -> Manifest:
    """Read any source of cells; files are looked for, pictures are not decoded.

    Args:
        source: what ``--data`` takes; a sequence is a list of single files.
        label_column: the CSV column that holds the label.
        synthetic: how ``synthetic`` cells are drawn; the defaults if None.
        labelled: whether every cell needs a label, and the source two classes. If not, a flat
            folder and single files are taken as well, and a CSV may lack the label.

    Raises:
        DataError: the source or some of its rows cannot be used.
    """
    manifest = _read_source(
        source,
        label_column=label_column,
        synthetic=synthetic or SyntheticConfig(),
        labelled=labelled,
    )
    if labelled:
        _require_two_classes(manifest)
    return manifest


def require_apart(
    manifest: Manifest, data: str | Path | Sequence[str | Path], outputs: Iterable[str | Path]
) -> None:
    """Raise DataError if one of ``outputs`` would be written over the data it is made from."""
    sources = [data] if isinstance(data, (str, Path)) else list(data)
    lists = [manifest.root / _MANIFEST, manifest.root / _MUNICH]
    kept = {Path(path).resolve() for path in (*sources, *lists, *manifest.paths())}
    for path in map(Path, outputs):
        if path.resolve() in kept:
            raise DataError(f"{path}: would be written over the data; choose another place")


def _read_source(
    source: str | Path | Sequence[str | Path],
    *,
    label_column: str,
    synthetic: SyntheticConfig,
    labelled: bool,
) -> Manifest:
    if not isinstance(source, (str, Path)):
        if len(source) != 1:
            return _read_files([Path(path) for path in source], labelled=labelled)
        source = source[0]
    if str(source) == "synthetic":
        return _read_synthetic(synthetic)
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, label_column=label_column, labelled=labelled)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder; give {_accepted(labelled)}")
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return _read_csv(path, label_column=label_column, labelled=labelled)
    if suffix == ".npz":
        return _read_npz(path)
    return _read_files([path], labelled=labelled)


def _accepted(labelled: bool) -> str:
    return _ACCEPTED if labelled else f"{_ACCEPTED}, a folder of pictures, or picture files"


def _require_two_classes(manifest: Manifest) -> None:
    names = manifest.class_names()
    if len(names) < 2:
        raise DataError(
            f"{manifest.root}: holds one class only, and a classifier needs two or more; add "
            "pictures of another class, or give the folder whose sub-folders are the classes. "
            f"Received: {', '.join(names) or 'no labels'}"
        )


def _read_folder(folder: Path, *, label_column: str, labelled: bool) -> Manifest:
    if (folder / _MANIFEST).is_file():
        return _read_csv(folder / _MANIFEST, label_column=label_column, labelled=labelled)
    if (folder / _MUNICH).is_file():
        return _read_munich(folder)
    return _read_class_folder(folder, labelled=labelled)


def _make_manifest(root: Path, rows: Mapping[str, Sequence[str]], *, name: str = "") -> Manifest:
    count = len(rows["file"])
    table = pd.DataFrame({column: rows.get(column, [""] * count) for column in COLUMNS}, dtype=str)
    return Manifest(root, table, name or root.resolve().name or "data")


# --- folders and files ---


def _read_class_folder(folder: Path, *, labelled: bool) -> Manifest:
    files = sorted(_find_pictures(folder))
    labels = [file.split("/")[0] if "/" in file else "" for file in files]
    if not files:
        raise DataError(
            f"{folder}: holds no picture ({' '.join(IMAGE_SUFFIXES)}); give {_accepted(labelled)}"
        )
    if labelled:
        _check_class_folders(folder, labels)
        loose = labels.count("")
        if loose:
            logger.warning("%s: %d pictures outside the class folders are left out", folder, loose)
        files = [file for file, label in zip(files, labels, strict=True) if label]
        labels = [label for label in labels if label]
    return _make_manifest(folder, {"file": files, "label": labels})


def _check_class_folders(folder: Path, labels: Sequence[str]) -> None:
    if not any(labels):
        raise DataError(
            f"{folder}: its {len(labels)} pictures have no labels; sort them into one sub-folder "
            f"for each class, or add a {_MANIFEST} with the columns file and label"
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
            f"{'s' if len(empty) > 1 else ''} {_list_some(empty)}; add pictures or remove it"
        )


def _find_pictures(folder: Path) -> Iterator[str]:
    """Yield the pictures under ``folder``, relative to it; hidden files and masks are left out."""
    seen = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        # A link may lead back up.
        folders[:] = [] if real in seen else [name for name in folders if not _is_ignored(name)]
        names = [] if real in seen else names
        seen.add(real)
        relative = Path(parent).relative_to(folder)
        yield from ((relative / name).as_posix() for name in _pictures_among(names))


def _pictures_among(names: Iterable[str]) -> list[str]:
    pictures = [name for name in names if _is_picture(name) and not name.startswith(".")]
    stems = {posixpath.splitext(name)[0] for name in pictures}
    return [name for name in pictures if not _is_mask(name, stems)]


def _is_mask(name: str, stems: set[str]) -> bool:
    """Tell whether ``name`` is NAME.mask.png beside a picture NAME."""
    return name.lower().endswith(_MASK_SUFFIX) and name[: -len(_MASK_SUFFIX)] in stems


def _is_picture(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def _is_ignored(folder_name: str) -> bool:
    return folder_name.startswith(".") or folder_name in _IGNORED_FOLDERS


def _read_files(files: Sequence[Path], *, labelled: bool) -> Manifest:
    """Take single picture files, wherever they lie; each only once."""
    faults = [str(file) for file in files if not file.is_file() or not _is_picture(file.name)]
    if faults or not files:
        raise DataError(
            f"not picture files ({' '.join(IMAGE_SUFFIXES)}): {_list_some(faults) or 'none given'}"
            f"; give {_accepted(labelled)}"
        )
    if labelled:
        raise DataError(f"{files[0]}: a single picture has no label; give {_ACCEPTED}")
    absolute = [os.path.abspath(file) for file in dict.fromkeys(files)]
    root = Path(os.path.commonpath([os.path.dirname(file) for file in absolute]))
    return _make_manifest(root, {"file": [Path(f).relative_to(root).as_posix() for f in absolute]})


# --- CSV ---


def _read_csv(path: Path, *, label_column: str, labelled: bool) -> Manifest:
    header, numbered = _parse_csv(path)
    if not labelled and label_column not in header:
        label_column = ""
    needed = [column for column in ("file", label_column) if column]
    _require_columns(path, header, needed)
    numbers = [number for number, _ in numbered]
    columns = {
        column: [row[index].strip() for _, row in numbered] for index, column in enumerate(header)
    }
    rows = {
        "file": [_normalise(file) for file in columns["file"]],
        "label": columns.get(label_column, [""] * len(numbers)),
        "group": _choose_group(columns),
        "split": [_SPLITS.get(value.lower(), "?") for value in columns.get("split", [])],
    }
    if not rows["split"]:
        del rows["split"]
    _check_rows(path, numbers, rows, columns, labelled=labelled)
    _check_files(path, numbers, rows["file"])
    name = "" if path.name == _MANIFEST else path.stem
    return _make_manifest(path.parent, rows, name=name)


def _parse_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header and the rows, each with its number in the file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            lines = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV file ({error}); save it as CSV, UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if len(lines) < 2:
        what = "has no rows under its header" if lines else "is empty"
        raise DataError(f"{path}: {what}; add one row for each picture: file,label")
    header = [cell.strip() for cell in lines[0][1]]
    uneven = [str(number) for number, row in lines[1:] if len(row) != len(header)]
    if uneven:
        raise DataError(
            f"{path}: {len(uneven)} rows do not have the header's {len(header)} fields: "
            f"row {_list_some(uneven)}; quote a value that holds a comma"
        )
    return header, lines[1:]


def _require_columns(path: Path, header: Sequence[str], needed: Sequence[str]) -> None:
    missing = [column for column in needed if column not in header]
    if missing:
        hint = "; separate columns by commas" if ";" in header[0] or "\t" in header[0] else ""
        raise DataError(
            f"{path}: no column {' or '.join(missing)}; the columns file and label are needed "
            f"(another label column: data.label_column){hint}. Received: {', '.join(header)}"
        )
    twice = sorted({column for column in header if column and header.count(column) > 1})
    if twice:
        raise DataError(f"{path}: column {', '.join(twice)} stands twice; keep one")


def _choose_group(columns: Mapping[str, Sequence[str]]) -> Sequence[str]:
    """Return the `group` column, or `patient` where there is no filled `group`."""
    for column in ("group", "patient"):
        if any(columns.get(column, ())):
            return columns[column]
    return [""] * len(columns["file"])


def _check_rows(
    path: Path,
    numbers: Sequence[int],
    rows: Mapping[str, Sequence[str]],
    columns: Mapping[str, Sequence[str]],
    *,
    labelled: bool,
) -> None:
    def refuse(faulty: Iterable[bool], what: str, values: Sequence[str] | None = None) -> None:
        _refuse_rows(path, numbers, faulty=faulty, what=what, values=values)

    files, groups = rows["file"], rows["group"]
    refuse((not file for file in files), "the file is empty; name one or remove the row")
    refuse(
        (not _stays_inside(file) for file in files),
        "the file leaves the data folder; give paths inside it, relative to the CSV",
        files,
    )
    refuse(
        (not _is_picture(file) for file in files),
        f"the file is not a picture ({' '.join(IMAGE_SUFFIXES)})",
        files,
    )
    refuse(_repeated(files), "the file stands in an earlier row; keep one of them", files)
    if labelled:
        refuse((not label for label in rows["label"]), "the label is empty; fill it")
    if any(groups):
        refuse(
            (not group for group in groups),
            "the patient or group is empty while other rows have one; fill it or drop the column",
        )
    refuse(
        (split == "?" for split in rows.get("split", ())),
        "the split is none of train, validation, test",
        columns.get("split"),
    )


def _refuse_rows(
    path: Path,
    numbers: Sequence[int],
    *,
    faulty: Iterable[bool],
    what: str,
    values: Sequence[str] | None = None,
) -> None:
    """Raise a DataError that counts the faulty rows and names the first few."""
    found = [index for index, is_faulty in enumerate(faulty) if is_faulty]
    if found:
        some = [f"{numbers[i]}" + (f" ({values[i]})" if values is not None else "") for i in found]
        count = f" ({len(found)} rows)" if len(found) > 1 else ""
        raise DataError(f"{path}: row {_list_some(some)}{count}: {what}")


def _repeated(files: Sequence[str]) -> Iterator[bool]:
    seen: set[str] = set()
    for file in files:
        yield file in seen
        seen.add(file)


def _check_files(path: Path, numbers: Sequence[int], files: Sequence[str]) -> None:
    """Raise unless every file exists and, links followed, lies under the CSV's folder."""
    root = path.parent
    _refuse_rows(
        path,
        numbers,
        faulty=(not (root / file).is_file() for file in files),
        what=f"no such file; paths are relative to {root}",
        values=files,
    )
    is_inside = _link_checker(root)
    _refuse_rows(
        path,
        numbers,
        faulty=(not is_inside(file) for file in files),
        what="the file is a link that leaves the data folder; copy the picture into it",
        values=files,
    )


def _link_checker(root: Path) -> Callable[[str], bool]:
    """Return a function that tells whether a file under ``root`` truly lies there."""
    real_root = os.path.realpath(root)
    parents: dict[str, bool] = {}

    def is_under(path: str) -> bool:
        return os.path.commonpath([real_root, os.path.realpath(path)]) == real_root

    def is_inside(file: str) -> bool:
        path = os.path.join(root, file)
        parent = os.path.dirname(path)
        # Each folder once: a table may have 100,000 rows.
        if parent not in parents:
            parents[parent] = is_under(parent)
        return parents[parent] and (not os.path.islink(path) or is_under(path))

    return is_inside


def _normalise(file: str) -> str:
    """Return a path as written on any system with forward slashes and without detours."""
    return posixpath.normpath(file.replace("\\", "/")) if file else ""


def _stays_inside(file: str) -> bool:
    is_absolute = file.startswith("/") or bool(PureWindowsPath(file).drive) or "\0" in file
    return not is_absolute and file != ".." and not file.startswith("../")


def _list_some(items: Sequence[str], limit: int = 5) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


# --- the Munich set ---


def _read_munich(folder: Path) -> Manifest:
    """Read annotations.dat: ``BAS/BAS_0001.tiff BAS nan nan``; the first label counts."""
    path = folder / _MUNICH
    numbers, named, labels = _parse_annotations(path)
    files = _match_pictures(folder, named)
    missing = [named[index] for index, file in enumerate(files) if file is None]
    if missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(named)} rows have no picture in {folder}: "
            f"{_list_some(missing)}; unpack the code folders (BAS, EBO, ...) beside {_MUNICH}"
        )
    found = [file for file in files if file is not None]
    _refuse_rows(
        path,
        numbers,
        faulty=_repeated(found),
        what="the file stands in an earlier row; keep one of them",
        values=found,
    )
    return _make_manifest(folder, {"file": found, "label": labels})


def _parse_annotations(path: Path) -> tuple[list[int], list[str], list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise DataError(f"{path}: is empty; take the file from the Munich set's own archive")
    _refuse_rows(
        path,
        [number for number, _ in rows],
        faulty=(len(row) < 2 or row[1].lower() == "nan" for _, row in rows),
        what="expected `BAS/BAS_0001.tiff BAS nan nan`: a file and its label",
        values=[" ".join(row) for _, row in rows],
    )
    files = [_normalise(row[0]) for _, row in rows]
    return [number for number, _ in rows], files, [row[1] for _, row in rows]


def _match_pictures(folder: Path, named: Sequence[str]) -> list[str | None]:
    """Return for each named file the picture of that name, or of that stem in another format.

    The code folders may lie in a folder of their own, so code folder and stem are what counts.
    """
    present = sorted(_find_pictures(folder))
    by_name, by_stem = set(present), {_code_and_stem(file): file for file in present}
    return [file if file in by_name else by_stem.get(_code_and_stem(file)) for file in named]


def _code_and_stem(file: str) -> str:
    return posixpath.splitext("/".join(file.split("/")[-2:]))[0]


# --- MedMNIST and drawn cells: written once into the cache ---


def _read_npz(path: Path) -> Manifest:
    folder = cache_dir() / "npz" / f"{path.stem}-{_hash_file(path)[:16]}"
    if not folder.is_dir():
        arrays = _load_npz(path)
        _materialise(folder, lambda target: _write_npz(target, arrays, path=path))
    manifest = _read_csv(folder / _MANIFEST, label_column="label", labelled=True)
    return dataclasses.replace(manifest, name=path.stem)


def _read_synthetic(settings: SyntheticConfig) -> Manifest:
    # Here, not above: drawing needs OpenCV, reading a table does not.
    from wbc_keras import synthetic

    # The drawing code belongs to the key: other code draws other cells.
    source = Path(synthetic.__file__).read_bytes()
    values = json.dumps(dataclasses.asdict(settings), sort_keys=True).encode()
    key = hashlib.sha256(source + values).hexdigest()
    folder = cache_dir() / "synthetic" / key[:16]
    if not folder.is_dir():
        _materialise(folder, lambda target: synthetic.write_cells(target, settings))
    manifest = _read_csv(folder / _MANIFEST, label_column="label", labelled=True)
    return dataclasses.replace(manifest, name="synthetic")


def _materialise(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a temporary folder that then becomes ``folder``: whole or not at all."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    except OSError as error:
        raise DataError(
            f"{folder.parent}: cannot be written ({error.strerror}); set the environment variable "
            "WBC_KERAS_CACHE to a folder of yours"
        ) from error
    try:
        write(temporary)
        os.replace(temporary, folder)
    except OSError:
        # Another process may have finished the same folder first; its content is equal.
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _load_npz(path: Path) -> Arrays:
    keys = [f"{split}_{part}" for split in _MEDMNIST_SPLITS for part in ("images", "labels")]
    try:
        # Opened here: NumPy leaves a file that it cannot read open.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            missing = [key for key in keys if key not in archive.files]
            received = ", ".join(archive.files)
            arrays = {} if missing else {key: archive[key] for key in keys}
    except _UNREADABLE_NPZ as error:
        raise DataError(f"{path}: is not a readable .npz file ({error})") from error
    if missing:
        raise DataError(
            f"{path}: is not in MedMNIST's form, it lacks {', '.join(missing)}. "
            f"Received: {received}"
        )
    for split in _MEDMNIST_SPLITS:
        _check_arrays(path, split, arrays)
    return arrays


def _check_arrays(path: Path, split: str, arrays: Arrays) -> None:
    images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
    is_picture = images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)
    if images.dtype != np.uint8 or not is_picture:
        raise DataError(
            f"{path}: {split}_images: expected uint8 (n, height, width, 3) or (n, height, width). "
            f"Received: {images.dtype} {images.shape}"
        )
    is_whole = np.issubdtype(labels.dtype, np.integer)
    if not is_whole or labels.shape not in ((len(images),), (len(images), 1)) or (labels < 0).any():
        raise DataError(
            f"{path}: {split}_labels: expected one class number, 0 or more, for each of the "
            f"{len(images)} pictures. Received: {labels.dtype} {labels.shape}"
        )


def _write_npz(folder: Path, arrays: Arrays, *, path: Path) -> None:
    """Write every picture as PNG into its class folder, and manifest.csv."""
    labels = {split: arrays[f"{split}_labels"].astype(int).ravel() for split in _MEDMNIST_SPLITS}
    names = _name_classes(path, np.concatenate(list(labels.values())))
    lines = ["file,label,split\n"]
    for split, split_name in _MEDMNIST_SPLITS.items():
        for index, image in enumerate(arrays[f"{split}_images"]):
            label = names[labels[split][index]]
            file = f"{label}/{split}_{index:06d}.png"
            _write_png(folder / file, image)
            lines.append(f"{file},{label},{split_name}\n")
    (folder / _MANIFEST).write_text("".join(lines), encoding="utf-8")


def _name_classes(path: Path, labels: npt.NDArray[np.int_]) -> tuple[str, ...]:
    count = int(labels.max(initial=-1)) + 1
    if count == len(BLOODMNIST_CLASSES) and "bloodmnist" in path.name.lower():
        return BLOODMNIST_CLASSES
    return tuple(f"class_{number}" for number in range(count))


def _write_png(path: Path, image: npt.NDArray[np.uint8]) -> None:
    import cv2

    path.parent.mkdir(exist_ok=True)
    bgr = image[..., ::-1] if image.ndim == 3 else image
    _, png = cv2.imencode(".png", np.ascontiguousarray(bgr))
    path.write_bytes(png.tobytes())
