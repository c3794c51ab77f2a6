"""An archive in pieces, which are scored one by one wherever there is room.

A piece is a shard, see `shards`, or some thousand rows of any other source. What it gives is one
part of the result, so that nothing of a piece is there, or all of it once.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import platform
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from wbc_keras.errors import DataError
from wbc_keras.manifest import read_manifest
from wbc_keras.manifest.table import (
    MANIFEST,
    is_picture,
    list_some,
    normalise,
    repeated,
    stays_inside,
)
from wbc_keras.pictures.shards import is_shard, open_address, read_shard, require_fsspec

ROWS = 4096  # of a source that is no shard; what a kill loses at most

# Errors that say nothing of other files.
_OF_ONE_FILE = {
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
}

_Listed = tuple[str, str]  # a file's path or address, and its stamp


@dataclass(frozen=True)
class Sample:
    """One picture: its name in the result, its label ("" unknown), and what reads its bytes.

    ``read`` raises OSError for a file that cannot be read, and DataError where none can be.
    """

    name: str
    label: str
    read: Callable[[], bytes]


@dataclass(frozen=True)
class ShardPiece:
    """A shard; ``name`` stands before the names of its pictures.

    ``stamp`` is its size and time when it was listed: what tells it from what it is later.
    """

    address: str
    name: str
    stamp: str = field(default="", repr=False)

    def __str__(self) -> str:
        """Return what people call it."""
        return self.address

    def read_samples(self) -> Iterator[Sample]:
        """Yield the pictures, each as it is read."""
        for packed in read_shard(self.address):
            read = partial(bytes, packed.encoded)
            yield Sample(f"{self.name}/{packed.name}", packed.label, read)


@dataclass(frozen=True)
class RowsPiece:
    """Rows of a manifest; ``root`` is a folder or an address."""

    root: str
    files: tuple[str, ...]
    labels: tuple[str, ...]
    stamp = ""  # files may change under their names: so many are not looked at one by one

    def __str__(self) -> str:
        """Return what people call it."""
        return f"{posixpath.join(self.root, self.files[0])} and {len(self.files) - 1} more"

    def read_samples(self) -> Iterator[Sample]:
        """Yield the pictures, which are yet to be read."""
        for file, label in zip(self.files, self.labels, strict=True):
            yield Sample(file, label, partial(_read, self.root, file))


Piece = ShardPiece | RowsPiece


def find_pieces(data: Sequence[str]) -> list[Piece]:
    """Return the pieces of what ``--data`` names, the same for the same data.

    Args:
        data: shards or folders of shards; or any one source of `read_manifest`, or pictures. Each
            may be an address that fsspec knows: a shard or a pattern of shards, a folder of shards
            or of pictures, or a CSV with the columns file and perhaps label.

    Raises:
        DataError: nothing is found, shards are mixed with other sources, or a name is there twice.
    """
    for one, is_twice in zip(data, repeated(data), strict=True):
        if is_twice:
            raise DataError(f"{one}: is named twice; name it once")
    shards = {one: _find_shards(one) for one in data}
    others = [one for one, found in shards.items() if not found]
    if not others:
        return _name_shards([shard for found in shards.values() for shard in found])
    if len(others) < len(shards):
        raise DataError(
            f"{list_some(others)}: is no shard and cannot be scored together with shards; score it "
            "by itself"
        )
    if any("://" in one for one in others):
        if len(others) > 1:
            raise DataError(f"{others[1]}: one address at a time, but for shards; give the folder")
        return _split(*_read_remote(others[0]))
    manifest = read_manifest(data, labelled=False)
    root = str(manifest.root.absolute())
    return _split(root, list(manifest.table["file"]), list(manifest.table["label"]))


def _name_shards(listed: list[_Listed]) -> list[Piece]:
    """Return the shards' pieces, named by what tells them apart of their addresses."""
    addresses = [address for address, _ in listed]
    for address, is_twice in zip(addresses, repeated(addresses), strict=True):
        if is_twice:
            raise DataError(f"{address}: is named twice; name each shard once")
    start = len(_common_folder(addresses))
    return [ShardPiece(one, one[start:].lstrip("/"), stamp) for one, stamp in sorted(listed)]


def _common_folder(addresses: Sequence[str]) -> str:
    """Return the folder that all lie in; `posixpath.commonpath` would take ``://`` apart."""
    folders = [address.split("/")[:-1] for address in addresses]
    same = itertools.takewhile(lambda names: len(set(names)) == 1, zip(*folders, strict=False))
    return "/".join(names[0] for names in same)


def _split(root: str, files: Sequence[str], labels: Sequence[str]) -> list[Piece]:
    slices = [slice(start, start + ROWS) for start in range(0, len(files), ROWS)]
    return [RowsPiece(root, tuple(files[rows]), tuple(labels[rows])) for rows in slices]


def _find_shards(one: str) -> list[_Listed]:
    """Return the shards that a path or an address names; none where it names something else."""
    entries = _list_remote(one) if "://" in one else _list_local(Path(one))
    found = [entry for entry in entries if is_shard(entry[0])]
    if found and any(is_picture(address) for address, _ in entries):
        raise DataError(
            f"{one}: holds both shards and pictures; give the shards by name, or move them apart"
        )
    return found


def _list_local(path: Path) -> list[_Listed]:
    """Return the files that lie in a folder itself, hidden ones left out, or the file at a path."""
    entries = path.iterdir() if path.is_dir() else [path]
    files = (entry for entry in entries if not entry.name.startswith(".") and entry.is_file())
    return [(Path(os.path.abspath(file)).as_posix(), _stamp_local(file)) for file in files]


def _stamp_local(path: Path) -> str:
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


# Addresses


def _list_remote(address: str) -> list[_Listed]:
    """Return the files that an address names, one, some or a folder of them."""
    try:
        fs, path = require_fsspec().core.url_to_fs(address)
        list_files = fs.glob if "*" in path else fs.find
        found: dict[str, dict[str, Any]] = list_files(path, detail=True)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{address}: cannot be read ({reason})") from error
    if not found:
        raise DataError(f"{address}: no such file, or an empty folder")
    return [(fs.unstrip_protocol(one), _stamp_remote(about)) for one, about in found.items()]


def _stamp_remote(about: dict[str, Any]) -> str:
    """Return what a file system tells of a file that changes with it; each has its own names."""
    names = ("size", "ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")
    return " ".join(str(about[name]) for name in names if about.get(name) is not None)


def _read_remote(address: str) -> tuple[str, list[str], list[str]]:
    """Return root, files and labels of a CSV or of a folder of pictures at an address."""
    found = [one for one, _ in _list_remote(address)]
    lists = [one for one in found if one.endswith(f"/{MANIFEST}")] or [
        one for one in found if len(found) == 1 and one.endswith(".csv")
    ]
    if lists:
        return _read_remote_csv(lists[0])
    pictures = sorted(filter(is_picture, found))
    if not pictures:
        raise DataError(f"{address}: holds no picture, no shard and no {MANIFEST}")
    is_folder = "*" not in address and len(found) > 1
    root = _as_listed(address) if is_folder else _common_folder(pictures)
    files = [one[len(root) :].lstrip("/") for one in pictures]
    return root, files, [file.split("/")[0] if "/" in file else "" for file in files]


def _as_listed(address: str) -> str:
    """Return a folder's address as those of its files begin."""
    fs, path = require_fsspec().core.url_to_fs(address)
    return str(fs.unstrip_protocol(path)).rstrip("/")


def _read_remote_csv(address: str) -> tuple[str, list[str], list[str]]:
    import pandas as pd

    try:
        with open_address(address) as stream:
            table = pd.read_csv(stream, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{address}: cannot be read as a CSV ({reason})") from error
    if "file" not in table:
        raise DataError(f"{address}: has no column file. Received: {', '.join(table.columns)}")
    if table.empty:
        raise DataError(f"{address}: lists no picture")
    files = [normalise(file) for file in table["file"]]
    for file, is_twice in zip(files, repeated(files), strict=True):
        if is_twice or not (file and stays_inside(file)):
            raise DataError(
                f"{address}: {file or 'an empty name'}: stands in an earlier row, or leads out of "
                "the folder; keep each file inside it once"
            )
    labels = list(table["label"]) if "label" in table else [""] * len(files)
    return posixpath.dirname(address), files, labels


def _read(root: str, file: str) -> bytes:
    """Return a file's bytes.

    Raises:
        OSError: this file is not there, or is not to be read.
        DataError: others may not be either: a mount is lost, or whoever answers has gone.
    """
    address = posixpath.join(root, file)
    try:
        with open_address(address) as stream:
            return stream.read()
    except OSError as error:
        alone = isinstance(error, FileNotFoundError) or error.errno in _OF_ONE_FILE
        if alone and _answers(root):
            raise
        raise DataError(
            f"{platform.node()}: {address}: cannot be read ({error.strerror or error}); where that "
            "is this file's own fault and not the disk's, take it away"
        ) from error


def _answers(root: str) -> bool:
    """Tell whether a folder is there and holds something, as a lost mount's does not."""
    try:
        if "://" in root:
            fs, path = require_fsspec().core.url_to_fs(root)
            return bool(fs.exists(path))
        with os.scandir(root) as entries:
            return next(entries, None) is not None
    except OSError:
        return False


def hash_names(names: Sequence[str]) -> str:
    """Return what tells these names, in this order, from others.

    Raises:
        DataError: a name stands among them twice.
    """
    for name, is_twice in zip(names, repeated(names), strict=True):
        if is_twice:
            raise DataError(f"{name}: stands twice in its shard; give each picture its own name")
    return hashlib.sha256("\0".join(names).encode()).hexdigest()
