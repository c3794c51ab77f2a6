"""Many pictures in one file: tar shards in WebDataset's form, and Parquet with a column of bytes.

A tar shard holds NAME.jpg and, beside it, NAME.json with ``label`` or NAME.cls: files that follow
each other and agree up to the first dot are of one cell. A Parquet file has one column of encoded
pictures, also nested as Hugging Face's ``image``, and may have ``label`` and ``file`` or ``path``.
A file is named by its path, or by any address that fsspec knows (``s3://...``).
"""

from __future__ import annotations

import itertools
import json
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from wbc_keras import runs
from wbc_keras.errors import DataError
from wbc_keras.manifest import Manifest
from wbc_keras.manifest.table import is_picture

SUFFIXES = (".tar", ".parquet")

_MASK = ".mask.png"
_TOLD = (".json", ".cls")  # what tells the label of a cell
_BLOCK = 512  # bytes; a tar is made of these, and a block of zeros ends it
_BATCH = 64  # rows of a Parquet file held at once
_NAMES = ("file", "path")


@dataclass(frozen=True)
class ShardPicture:
    """One picture of a shard: its name there, its label ("" unknown) and its encoded bytes."""

    name: str
    label: str
    encoded: bytes


def is_shard(name: str) -> bool:
    """Tell by its suffix whether a file holds many pictures."""
    return name.lower().endswith(SUFFIXES)


def open_address(address: str) -> BinaryIO:
    """Open a file for reading, on this machine or wherever fsspec finds it.

    Raises:
        DataError: fsspec, or what it needs for this kind of address, is not installed.
    """
    if "://" not in address:
        return open(address, "rb")
    return require_fsspec().open(address, "rb").open()  # type: ignore[no-any-return]


def require_fsspec() -> Any:
    """Return fsspec, which reads addresses, or raise a DataError that says how it is installed."""
    try:
        import fsspec
    except ImportError:
        raise DataError("an address needs fsspec; pip install 'wbc_keras[scale]'") from None
    return fsspec


def read_shard(address: str) -> Iterator[ShardPicture]:
    """Yield the pictures of a shard in its order, in flat memory.

    Raises:
        DataError: it is no shard, is truncated or damaged, or holds no picture.
    """
    read = _read_parquet if address.lower().endswith(".parquet") else _read_tar
    packed = None
    for packed in read(address):
        yield packed
    if packed is None:
        raise DataError(f"{address}: holds no picture; leave it out")


# Tar


def _read_tar(address: str) -> Iterator[ShardPicture]:
    members = _iter_members(address, lambda name: _is_cell(name) or name.lower().endswith(_TOLD))
    for _, group in itertools.groupby(members, key=lambda member: _key_of(member[0])):
        files = list(group)
        label = _find_label(address, files)
        yield from (ShardPicture(name, label, data) for name, data in files if _is_cell(name))


def _iter_members(address: str, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield name and bytes of the files of a tar that are wanted."""
    count = 0
    try:
        with (
            open_address(address) as stream,
            tarfile.open(
                fileobj=stream, mode="r:", encoding="utf-8", errors="backslashreplace"
            ) as tar,
        ):
            while (member := tar.next()) is not None:
                name = member.name.removeprefix("./")
                if is_wanted(name):
                    yield name, _read_member(address, tar, member)
                count += 1
                # It would keep them all.
                tar.members.clear()  # type: ignore[attr-defined]
            _require_end(stream, int(tar.offset))
    except tarfile.TarError as error:
        raise DataError(
            f"{address}: is truncated, damaged or no tar ({error}, after {count} files); copy or "
            "pack it again"
        ) from None


def _require_end(stream: BinaryIO, start: int) -> None:
    """Raise ReadError unless a tar ends at byte ``start``: zeros follow, and nothing but zeros.

    Between two files, tarfile takes any damage for the end.
    """
    stream.seek(start)
    if stream.read(_BLOCK) != bytes(_BLOCK):
        raise tarfile.ReadError(f"no end mark at byte {start:,}")
    while rest := stream.read(2**16):
        if any(rest):
            raise tarfile.ReadError(f"more follows the end mark at byte {start:,}")


def _read_member(address: str, tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if not member.isreg():
        raise DataError(
            f"{address}: {member.name} is a link; pack the pictures themselves "
            "(tar --dereference --hard-dereference)"
        )
    file = tar.extractfile(member)
    assert file is not None  # as it is a regular one
    return file.read()


def _key_of(name: str) -> str:
    folder, base = posixpath.split(name)
    return posixpath.join(folder, base.partition(".")[0])


def _is_cell(name: str) -> bool:
    base = posixpath.basename(name)
    return is_picture(base) and not base.startswith(".") and not base.lower().endswith(_MASK)


def _find_label(address: str, files: Iterable[tuple[str, bytes]]) -> str:
    for name, data in files:
        try:
            if name.lower().endswith(".cls"):
                return data.decode().strip()
            if name.lower().endswith(".json"):
                label = json.loads(data).get("label")
                return "" if label is None else str(label)
        except (ValueError, AttributeError):
            raise DataError(f"{address}: {name}: cannot be read as a label; mend it") from None
    return ""


# Parquet


def _read_parquet(address: str) -> Iterator[ShardPicture]:
    with _open_parquet(address) as file:
        pictures, names = _find_columns(address, file)
        row = 0
        for batch in file.iter_batches(batch_size=_BATCH):
            table = _flatten(batch)
            labels = table["label"] if "label" in table.column_names else [None] * len(table)
            named = table[names] if names else [None] * len(table)
            for name, label, encoded in zip(named, labels, table[pictures], strict=True):
                yield ShardPicture(_name(name, row), _text(label), encoded.as_py() or b"")
                row += 1


@contextmanager
def _open_parquet(address: str) -> Iterator[Any]:
    require_pyarrow(address)
    from pyarrow import ArrowException, parquet

    with open_address(address) as stream:
        try:
            yield parquet.ParquetFile(stream)
        except (ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(
                f"{address}: is truncated, damaged or no Parquet ({reason}); copy it again"
            ) from None


def require_pyarrow(what: str | Path) -> None:
    """Raise DataError unless pyarrow, which reads and writes Parquet, is there."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise DataError(f"{what}: Parquet needs pyarrow; pip install 'wbc_keras[scale]'") from None


def _flatten(rows: Any) -> Any:
    """Return rows as a table whose nested columns have names of their own, ``image.bytes``."""
    import pyarrow

    table = pyarrow.table(rows) if not isinstance(rows, pyarrow.Table) else rows
    return table.flatten()


def _find_columns(address: str, file: Any) -> tuple[str, str]:
    """Return the column of pictures and that of their names, "" for none."""
    from pyarrow import types

    schema = _flatten(file.schema_arrow.empty_table()).schema
    kinds = (types.is_binary, types.is_large_binary)
    found = [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]
    if len(found) != 1:
        raise DataError(
            f"{address}: expected one column of encoded pictures. Received: "
            f"{', '.join(found) or 'none'} of {', '.join(schema.names)}"
        )
    nested = f"{found[0].rpartition('.')[0]}.path"
    return found[0], next((name for name in (*_NAMES, nested) if name in schema.names), "")


def _text(value: Any) -> str:
    known = None if value is None else value.as_py()
    return "" if known is None else str(known)


def _name(value: Any, row: int) -> str:
    return _text(value) or str(row)


# Packing


def pack_shards(manifest: Manifest, folder: Path, *, count: int) -> list[Path]:
    """Pack a source into tar shards, files as they are, in the manifest's order.

    Beside each picture lies NAME.json with what the manifest tells of it: ``file``, and where they
    are known ``label``, ``group`` and ``split``.

    Args:
        manifest: the pictures; n of them.
        folder: missing or empty; written whole or not at all.
        count: shards, 1 to n, of sizes as equal as can be.

    Raises:
        DataError: ``count`` is out of range, or a picture cannot be read.
        RunError: ``folder`` is not empty.
    """
    runs.require_empty(folder)
    total = len(manifest.table)
    if not 1 <= count <= total:
        raise DataError(f"--shards: expected 1 to {total}, the pictures. Received: {count}")
    edges = [total * number // count for number in range(count + 1)]
    names = [f"cells-{number:06}.tar" for number in range(count)]
    with runs.replacing_folder(folder) as temporary:
        for name, start, end in zip(names, edges[:-1], edges[1:], strict=True):
            _write_tar(temporary / name, manifest, slice(start, end))
    return [folder / name for name in names]


def _write_tar(path: Path, manifest: Manifest, rows: slice) -> None:
    taken: set[str] = set()
    table = manifest.table.iloc[rows]
    columns = [column for column in ("file", "label", "group", "split") if column in table]
    with tarfile.open(path, "w") as tar:
        for values in zip(*(table[column] for column in columns), strict=True):
            told = {name: value for name, value in zip(columns, values, strict=True) if value}
            stem, suffix = posixpath.splitext(told["file"])
            key = _free_key(stem, taken)
            _add(tar, f"{key}{suffix}", _read(manifest.root / told["file"]))
            _add(tar, f"{key}.json", json.dumps(told, ensure_ascii=False).encode())


def _free_key(stem: str, taken: set[str]) -> str:
    """Return a name without dots, which end a key, and that no other picture of a shard has."""
    folder, base = posixpath.split(stem)
    first = posixpath.join(folder, base.replace(".", "_"))
    candidates = itertools.chain([first], (f"{first}_{n}" for n in itertools.count(2)))
    key = next(one for one in candidates if one not in taken)
    taken.add(key)
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}), so nothing was packed; mend or remove it"
        ) from error


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    # Without times and owners: the same cells make the same shards.
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, BytesIO(data))
