"""A folder of numbered versions of one model, as TensorFlow Serving polls it.

    saved_model/1/  saved_model/2/  saved_model/models.config

``models.config`` names the version that is served; the server reads it again every few seconds.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from wbc_keras import runs
from wbc_keras.errors import RunError

CONFIG_FILE = "models.config"
MODEL_NAME = "wbc"

# A ModelServerConfig; the folder is where `serving/compose.yaml` puts it for the server.
_CONFIG = """\
model_config_list {{
  config {{
    name: "{name}"
    base_path: "/models/{name}"
    model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: {version} }} }}
  }}
}}
"""
_ASIDE = ".export."


def list_versions(folder: Path) -> list[int]:
    """Return the versions in a model folder, rising; none where there is no folder yet.

    Raises:
        RunError: it is a file, or holds something else than versions of a model.
    """
    if not folder.exists():
        return []
    if not folder.is_dir():
        raise RunError(f"{folder}: is a file; --output names a folder")
    # What begins with a dot is a lock, an export that was killed, or the system's own.
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    others = sorted(name for name in names - {CONFIG_FILE} if not name.isdecimal())
    if others:
        raise RunError(
            f"{folder}: is not a model folder, it holds {', '.join(others[:3])}; "
            "give an empty folder, or one with numbered versions only"
        )
    return sorted(int(name) for name in names - {CONFIG_FILE})


def add_version(folder: Path, write: Callable[[Path], None]) -> Path:
    """Add the next version to a model folder and have it served.

    It is written aside and renamed when it is whole: a server that polls never sees half of one,
    and a version that is there is never written over. Exports into one folder wait for each other.

    Args:
        folder: made if it is not there.
        write: fills the folder that it is given.

    Returns:
        the version's folder.

    Raises:
        RunError: it is not a model folder, or cannot be written.
    """
    list_versions(folder)
    runs.require_writable(folder / "1")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        for left in folder.glob(f"{_ASIDE}*"):
            shutil.rmtree(left, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(dir=folder, prefix=_ASIDE))
        try:
            write(temporary)
            runs.make_readable(temporary)
            version = folder / str(max(list_versions(folder), default=0) + 1)
            # Not `replace`: should someone else have put one there, it stays.
            temporary.rename(version)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        serve_version(folder, int(version.name))
    return version


def serve_version(folder: Path, version: int) -> Path:
    """Write ``models.config``, which names the version to serve, and return its path.

    Raises:
        RunError: there is no such version.
    """
    there = list_versions(folder)
    if version not in there:
        known = ", ".join(map(str, there)) or "none"
        raise RunError(f"{folder}: holds no version {version} to serve; there are: {known}")
    runs.write_text(folder / CONFIG_FILE, _CONFIG.format(name=MODEL_NAME, version=version))
    return folder / CONFIG_FILE
