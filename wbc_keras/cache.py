"""Where derived cells are kept, and how a folder there comes to be: whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from wbc_keras.errors import DataError


def cache_dir() -> Path:
    """Return where drawn and unpacked cells are kept: WBC_KERAS_CACHE or ~/.cache/wbc_keras."""
    return Path(os.environ.get("WBC_KERAS_CACHE") or Path.home() / ".cache" / "wbc_keras")


def materialise(folder: Path, write: Callable[[Path], None]) -> None:
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


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
