"""Where derived cells are kept, and how a folder there comes to be: once, whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

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
    removed. A second process that wants the same folder waits for the first.

    Raises:
        DataError: the cache cannot be written, or its disk is full.
    """
    if is_whole(folder):
        return
    unfinished = folder.with_name(f".{folder.name}.new")
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


def _clear_killed(parent: Path) -> None:
    """Remove the unfinished folders in ``parent`` that nobody is at work on."""
    for left in parent.glob(".*.new"):
        lock = filelock.FileLock(_lock_path(parent / left.name[1 : -len(".new")]))
        with contextlib.suppress(filelock.Timeout), lock.acquire(timeout=0):
            shutil.rmtree(left, ignore_errors=True)


def _lock_path(folder: Path) -> Path:
    return cache_dir() / "locks" / f"{folder.parent.name}-{folder.name}.lock"


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``; the system frees it when its holder dies."""
    path = _lock_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
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
