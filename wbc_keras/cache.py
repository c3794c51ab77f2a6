"""Where derived cells are kept, and how a folder there comes to be: once, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import filelock

from wbc_keras.errors import DataError

logger = logging.getLogger(__name__)


def cache_dir() -> Path:
    """Return where derived cells are kept: WBC_KERAS_CACHE or ~/.cache/wbc_keras."""
    return Path(os.environ.get("WBC_KERAS_CACHE") or Path.home() / ".cache" / "wbc_keras")


def materialise(
    folder: Path, write: Callable[[Path], None], *, is_whole: Callable[[Path], bool] = Path.is_dir
) -> None:
    """Let ``write`` fill a folder of the cache, unless it is there and whole.

    It is filled beside its place and moved there when it is whole; what a killed run left is
    removed. A second process that wants the same folder waits for the first. The folder's time is
    that of its last use.

    Raises:
        DataError: the cache cannot be written, or its disk is full.
    """
    if is_whole(folder):
        # A cache that others own may be read all the same.
        with contextlib.suppress(OSError):
            os.utime(folder)
        return
    unfinished = _unfinished(folder)
    try:
        with _lock(folder):
            if is_whole(folder):
                return
            _clear_killed(folder.parent)
            for left in (unfinished, folder):
                shutil.rmtree(left, ignore_errors=True)
            unfinished.mkdir(parents=True)
            try:
                write(unfinished)
                os.replace(unfinished, folder)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise DataError(
            f"{folder.parent}: cannot be written ({error.strerror or error}); make room there, "
            "or set the environment variable WBC_KERAS_CACHE to a folder of yours"
        ) from error


@dataclass(frozen=True)
class Entry:
    """A folder of the cache: how many bytes it takes, and when it was last used (`time.time`)."""

    folder: Path
    size: int
    used: float


def list_entries() -> list[Entry]:
    """Return what the cache holds, the longest unused first."""
    entries = []
    for folder in cache_dir().glob("*/[!.]*"):
        # Another process may be removing it.
        with contextlib.suppress(OSError):
            if folder.is_dir():
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                entries.append(Entry(folder, size, folder.stat().st_mtime))
    return sorted(entries, key=lambda entry: entry.used)


def remove_unused(days: float) -> list[Entry]:
    """Remove what was not used for so many days, and return it; what is being made is left.

    Raises:
        OSError: a folder cannot be removed.
    """
    removed = []
    for entry in list_entries():
        if entry.used > time.time() - days * 86_400:
            continue
        with contextlib.suppress(filelock.Timeout), _lock(entry.folder, wait=False):
            # Moved first: what is removed in part must not be taken for whole.
            os.replace(entry.folder, _unfinished(entry.folder))
            shutil.rmtree(_unfinished(entry.folder))
            removed.append(entry)
    return removed


def hash_files(
    root: Path, files: Iterable[str], *, code: Iterable[ModuleType], settings: object
) -> str:
    """Hash what decides something derived from files: their state now, the code, the settings.

    Args:
        root: folder that ``files`` are relative to.
        files: the files; their size and time of change count, not their bytes.
        code: the modules that derive it.
        settings: anything that JSON can hold.
    """
    digest = hashlib.sha256()
    for module in code:
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(json.dumps(settings).encode())
    digest.update(os.fsencode(root.resolve()))
    for file in files:
        digest.update(_describe_file(root, file))
    return digest.hexdigest()


def _describe_file(root: Path, file: str) -> bytes:
    try:
        status = os.stat(os.path.join(root, file))
    except OSError:
        return os.fsencode(f"{file}\0gone\n")
    return os.fsencode(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n")


def _unfinished(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.new")


def _clear_killed(parent: Path) -> None:
    """Remove the unfinished folders in ``parent`` that nobody is at work on."""
    for left in parent.glob(".*.new"):
        lock = filelock.FileLock(_lock_path(parent / left.name[1 : -len(".new")]))
        with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=0):
            shutil.rmtree(left, ignore_errors=True)


def _lock_path(folder: Path) -> Path:
    return cache_dir() / "locks" / f"{folder.parent.name}-{folder.name}.lock"


@contextlib.contextmanager
def _lock(folder: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock of ``folder``; the system frees it when its holder dies.

    Raises:
        filelock.Timeout: another holds it, and this does not wait.
    """
    path = _lock_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not wait:
            raise
        logger.info("%s: another run is making it, waiting", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
