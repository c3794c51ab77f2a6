"""Fetch a published file, checked by its checksum, and unpack archives that stay in their folder.

`pooch` receives, tries again and checks. Added here: a broken connection is gone on with from where
it ended, and an archive made elsewhere cannot write where it should not.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Any

from wbc_keras.errors import DataError
from wbc_keras.progress import can_redraw
from wbc_keras.runs import replacing_folder

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
RETRIES = 2

_ARRIVED = "arrived"
_CHUNK = 1 << 16
_TIMEOUT = 30  # seconds without a byte
# Of the answers that blame the client (no such file, no right to it) those that pass with time.
_PASSING = (408, 416, 429)

# Pictures shrink to a half or a third; what unpacks to far more is made to fill a disk.
_MAX_RATIO = 100
_ALWAYS_TAKEN = 10_000_000  # bytes, so that a short repetitive text may shrink as it likes
_IGNORED_FOLDER = "__MACOSX"
# And OSError where it has no number: gzip's and bz2's.
_DAMAGED = (
    EOFError,
    LZMAError,
    NotImplementedError,  # a kind of compression that Python does not know
    RuntimeError,  # a password
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Download:
    """A file at a public address.

    Attributes:
        url: where it is.
        file: the name it is kept by.
        checksum: algorithm and digest as published: "md5:7053d0...".
    """

    url: str
    file: str
    checksum: str


def fetch(download: Download, folder: Path, *, retries: int = RETRIES) -> Path:
    """Fetch a file into ``folder``, made if missing, and return its path.

    A file that is there with the right checksum is not fetched again. Otherwise it appears when it
    is whole and checked, never before. A broken connection is tried again, ``retries`` times; what
    arrived is kept in ``.<file>.part``, and the next try or the next call goes on from there. What
    came altered is deleted.

    Raises:
        DataError: it is not to be had, or is not the published file.
    """
    import requests

    target = folder / download.file
    arriving = folder.absolute() / f".{download.file}.part"
    try:
        if _is_published(target, download.checksum):
            return target
        arriving.mkdir(parents=True, exist_ok=True)
        _receive(download, arriving, retries=retries)
        os.replace(arriving / download.file, target)
    except requests.RequestException as error:
        received = _size(arriving / _ARRIVED)
        rest = f": it goes on after the {received:,} bytes that arrived" if received else ""
        raise DataError(
            f"{download.url}: not downloaded: {_reason(error)}; run the command again{rest}"
        ) from error
    except OSError as error:
        raise DataError(
            f"{target}: not downloaded: {error.strerror or error}; mend it or choose another "
            "folder, and run the command again"
        ) from error
    finally:
        if not _size(arriving / _ARRIVED):
            shutil.rmtree(arriving, ignore_errors=True)
    return target


def _is_published(path: Path, checksum: str) -> bool:
    import pooch

    algorithm, _, digest = checksum.partition(":")
    return path.is_file() and bool(pooch.file_hash(str(path), alg=algorithm) == digest)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _receive(download: Download, arriving: Path, *, retries: int) -> None:
    """Let pooch fetch the file into the folder ``arriving``, where it stands once it is checked."""
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")
    fetcher = pooch.create(
        path=arriving,
        base_url="",
        registry={download.file: download.checksum},
        urls={download.file: download.url},
        retry_if_failed=retries,
    )
    try:
        fetcher.fetch(download.file, downloader=_go_on)
    except requests.RequestException:
        raise
    except ValueError as error:  # pooch's word for a wrong checksum
        raise DataError(
            f"{download.url}: what arrives is not the published file, whose checksum is "
            f"{download.checksum}; it was deleted. Try again later, or see the data set's own page"
        ) from error


def _go_on(url: str, output_file: str, _fetcher: object) -> None:
    """Download for pooch: go on after what earlier tries brought, and hand over the whole."""
    from pooch import HTTPDownloader
    from tqdm import tqdm

    arrived = Path(output_file).with_name(_ARRIVED)
    with ExitStack() as open_until_end:
        stream = open_until_end.enter_context(arrived.open("ab"))
        # No bar where nobody watches. pooch sets the total, and takes a bar of 0 bytes for none.
        hidden = not can_redraw(sys.stderr)
        bar = tqdm(total=1, unit="B", unit_scale=True, disable=hidden)
        open_until_end.enter_context(bar)
        # Compressed on the way, the bytes would not be those that a range counts.
        headers = {"Accept-Encoding": "identity"}
        if received := stream.tell():
            headers["Range"] = f"bytes={received}-"

        def begin(response: Any, **_: object) -> None:
            _begin(open_until_end.enter_context(response), stream)

        download = HTTPDownloader(
            progressbar=bar,
            chunk_size=_CHUNK,
            timeout=_TIMEOUT,
            headers=headers,
            hooks={"response": begin},
        )
        download(url, stream, None)
    os.replace(arrived, output_file)


def _begin(response: Any, stream: IO[bytes]) -> None:
    """Meet the server's answer: end at once where no try will help, start over where it does."""
    status = response.status_code
    if 400 <= status < 500 and status not in _PASSING:
        raise DataError(
            f"{response.url}: not downloaded: the server answers {status} {response.reason}; the "
            "address may have changed, see the data set's own page"
        )
    # 200: the whole file is sent, not the rest of it. 416: there is no rest.
    if status in (200, 416):
        stream.truncate(0)


def _reason(error: Exception) -> str:
    import requests
    from requests import exceptions

    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    reasons = (
        (exceptions.Timeout, f"the server is silent for {_TIMEOUT} seconds"),
        (exceptions.SSLError, "the server's certificate cannot be verified"),
        (exceptions.ProxyError, "the proxy of this network cannot be reached"),
        (exceptions.ChunkedEncodingError, "the connection ended before the whole file had come"),
        (exceptions.ConnectionError, "the server cannot be reached or has gone silent"),
    )
    return next((text for kind, text in reasons if isinstance(error, kind)), type(error).__name__)


def unpacked_folder(archive: Path) -> Path:
    """Return the folder that an archive is unpacked to: beside it, by its name less the suffix."""
    suffix = max(filter(archive.name.lower().endswith, ARCHIVE_SUFFIXES), key=len)
    return archive.with_name(archive.name[: -len(suffix)])


def is_archive(path: Path) -> bool:
    """Tell by its name whether a file is an archive to unpack."""
    return path.name.lower().endswith(ARCHIVE_SUFFIXES)


def unpack(archive: Path) -> Path:
    """Unpack a zip or a tar to its `unpacked_folder`, whole or not at all, and return that.

    A single folder at the archive's top is left out. A folder that is there already is what an
    earlier call unpacked, and is left alone.

    Raises:
        DataError: the archive is damaged, holds links, devices or paths that lead out of the
            folder, or unpacks to absurdly more than it is or than the disk has room for. Nothing
            is written then.
    """
    folder = unpacked_folder(archive)
    if folder.is_dir():
        return folder
    try:
        with _opened(archive) as members:
            entries = _checked(archive, members)
            _require_room(archive, sum(entry.size for entry in entries))
            with replacing_folder(folder) as temporary:
                _write(entries, temporary)
    except (OSError, *_DAMAGED) as error:
        if getattr(error, "errno", None) is not None:
            raise DataError(f"{folder}: not unpacked: {error}; make room or mend it") from error
        reason = str(error).partition(":")[0] or type(error).__name__
        raise DataError(
            f"{archive}: not unpacked, it is damaged or no archive ({reason}); fetch it anew"
        ) from error
    return folder


@dataclass(frozen=True)
class _Entry:
    """A file or folder of an archive: where it goes to, its size, and its content if a file."""

    name: str
    size: int
    kind: str
    open: Callable[[], IO[bytes] | None]

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath(self.name)


@contextmanager
def _opened(archive: Path) -> Iterator[Iterator[_Entry]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield (_zip_entry(zipped, info) for info in zipped.infolist())
    else:
        with tarfile.open(archive) as tarred:
            yield _tar_entries(tarred)


def _zip_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Entry:
    form = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was made without Unix's modes
    is_plain = form in (0, stat.S_IFREG, stat.S_IFDIR)
    kind = ("folder" if info.is_dir() else "file") if is_plain else "link or device"
    return _Entry(info.filename, info.file_size, kind, partial(archive.open, info))


def _tar_entries(archive: tarfile.TarFile) -> Iterator[_Entry]:
    for info in archive:
        kind = "file" if info.isfile() else "folder" if info.isdir() else "link or device"
        yield _Entry(info.name, info.size, kind, partial(archive.extractfile, info))
    # What compressed it put the checksum at the very end, after the last file.
    while archive.fileobj and archive.fileobj.read(_CHUNK):
        pass


def _checked(archive: Path, entries: Iterator[_Entry]) -> list[_Entry]:
    """Return the entries, all of them inside the folder; nothing is written before this is done."""
    limit = max(_ALWAYS_TAKEN, _MAX_RATIO * archive.stat().st_size)
    kept, total = [], 0
    for entry in entries:
        if fault := _fault(entry):
            raise DataError(f"{archive}: not unpacked, it is not safe: {entry.name!r} {fault}")
        total += entry.size
        # Here and not after the loop: to list a compressed tar is to unpack it.
        if total > limit:
            raise DataError(
                f"{archive}: not unpacked, it is not safe: its files are declared to be over "
                f"{limit:,} bytes, {_MAX_RATIO} times the archive's own size"
            )
        if entry.path.parts and entry.path.parts[0] != _IGNORED_FOLDER:
            kept.append(entry)
    return kept


def _fault(entry: _Entry) -> str | None:
    if entry.kind == "link or device":
        return "is a link or a device"
    # A backslash and a drive's colon are separators on Windows.
    parts = entry.name.replace("\\", "/").split("/")
    if entry.name.startswith(("/", "\\")) or ":" in parts[0] or ".." in parts:
        return "leads out of the folder"
    # Nothing ends in a file system's name, and less than nothing would make room for a bomb.
    if "\0" in entry.name or entry.size < 0:
        return "has an impossible name or size"
    return None


def _require_room(archive: Path, size: int) -> None:
    free = shutil.disk_usage(archive.absolute().parent).free
    if size > free:
        raise DataError(
            f"{archive}: not unpacked: needs {size:,} bytes, and the disk has {free:,} left; make "
            "room or move it to another disk"
        )


def _write(entries: Sequence[_Entry], folder: Path) -> None:
    from tqdm import tqdm

    top = _single_top(entries)
    hidden = not can_redraw(sys.stderr)
    for entry in tqdm(entries, desc="unpack", unit=" files", disable=hidden):
        target = folder / (entry.path.relative_to(top) if top else entry.path)
        if entry.kind == "folder":
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        content = entry.open()
        assert content is not None  # tarfile's answer for what is no file
        with content, target.open("wb") as written:
            shutil.copyfileobj(content, written)


def _single_top(entries: Sequence[_Entry]) -> str | None:
    """Return the folder that everything in the archive lies in, if there is one."""
    tops = {entry.path.parts[0] for entry in entries}
    loose = any(len(entry.path.parts) == 1 and entry.kind == "file" for entry in entries)
    return tops.pop() if len(tops) == 1 and not loose else None
