"""What a run folder holds, and how its files are written: whole or not at all.

- ``config.yaml environment.json classes.json splits.csv history.csv model.keras decision.json``
  ``novelty.npz``
- ``evaluation/<split or data name>/ explanations/ saved_model/<version>/``
- ``report.html model_card.md tables/``
"""

from __future__ import annotations

import json
import logging
import os
import platform
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from wbc_keras import __version__
from wbc_keras.config import Config, load_config
from wbc_keras.errors import RunError

logger = logging.getLogger(__name__)


def _find_shipped(package: Path) -> Path:
    """Return the folder of the models that come with the project: a checkout's, or the package's.

    Where links are not kept, as on Windows, the one in the package leads nowhere in a checkout.
    """
    checkout = package.parent / "artifacts" / "models"
    return checkout if checkout.is_dir() else package / "models"


# Run folders, each known by its folder's name.
SHIPPED = _find_shipped(Path(__file__).resolve().parent)

MERGED_FILE = "merged.json"  # of a model that averages others

_PACKAGES = (
    "tensorflow",
    "jax",
    "keras",
    "numpy",
    "opencv-python-headless",
    "scikit-learn",
    "pandas",
)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block ends well.

    A reader sees the old file or the new one, never half of one, also after a kill. The name keeps
    the suffix of ``path``, by which Keras and OpenCV choose a format.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(
        dir=path.parent, prefix=f".{path.name}.", suffix="".join(path.suffixes[-2:])
    )
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp files are private; a result is as readable as any file of the user.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``folder`` that takes its place when the block ends well.

    An older ``folder`` is moved aside first and removed last, so that no reader sees a mixture;
    after a kill in between, the next call brings it back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_killed(folder)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    older = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        make_readable(temporary)
        if folder.exists():
            os.replace(folder, older)
        try:
            os.replace(temporary, folder)
        except OSError:
            if older.exists():
                os.replace(older, folder)
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(older, ignore_errors=True)


def make_readable(folder: Path) -> None:
    """Give a temporary folder, which is private, the rights of any folder of the user."""
    folder.chmod(0o777 & ~_umask())


def _clear_killed(folder: Path) -> None:
    """Bring back or remove what a killed `replacing_folder` left beside ``folder``."""
    for left in sorted(folder.parent.glob(f".{folder.name}.????????*")):
        if left.name.endswith(".old") and not folder.exists():
            os.replace(left, folder)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove the temporary files of `replacing` that a kill left in ``folder`` for these names."""
    for name in names:
        for path in folder.glob(f".{name}.????????{''.join(Path(name).suffixes[-2:])}"):
            path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole or not at all; NaN is refused, a missing figure is None."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def describe_environment() -> dict[str, Any]:
    """Return versions and machine, as kept in environment.json."""
    versions: dict[str, str | None] = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    # Run from a checkout, the package is not installed.
    versions["wbc_keras"] = __version__
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor_count": os.cpu_count(),
        "packages": versions,
    }


def require_empty(folder: Path) -> None:
    """Raise RunError unless ``folder`` is missing or an empty folder, in a place to write to."""
    require_writable(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(
            f"{folder}: the output folder is not empty and is never overwritten; "
            "choose another --output, or --resume to go on with it"
        )


def require_writable(path: Path) -> None:
    """Raise RunError, before any work, if a file or folder cannot be made at ``path``."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise RunError(f"{path}: cannot be written, as {existing} is no folder that can be written")


def require_replaceable(folder: Path, files: frozenset[str]) -> None:
    """Raise RunError if replacing ``folder`` would lose anything but the ``files`` named."""
    require_writable(folder)
    if folder.is_dir():
        others = sorted({path.name for path in folder.iterdir()} - files)
        if not others:
            return
        raise RunError(
            f"{folder}: would be replaced whole, but holds {', '.join(others[:3])}; "
            "choose another --output"
        )
    require_empty(folder)


@dataclass(frozen=True)
class Run:
    """A run folder that holds a trained model."""

    folder: Path
    config: Config
    class_names: tuple[str, ...]

    @property
    def model_path(self) -> Path:
        """The best model by validation macro F1."""
        return self.folder / "model.keras"

    @property
    def averaged(self) -> str:
        """What it is the mean of, in words; "" for a run that was trained.

        Raises:
            RunError: the file that says so is damaged.
        """
        path = self.folder / MERGED_FILE
        if not path.exists():
            return ""
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            names = [f"{one['name']} ({one['network']})" for one in record["members"]]
            shares = [one.get("share", 1 / len(names)) for one in record["members"]]
            if max(shares) - min(shares) > 1e-6:
                names = [f"{share:.3g} {name}" for share, name in zip(shares, names, strict=True)]
            return f"mean of the {record.get('mean_of', 'logits')} of {' and '.join(names)}"
        except (ValueError, KeyError, TypeError, AttributeError):
            raise RunError(f"{path}: is damaged; restore it, or average the runs again") from None

    @property
    def splits_path(self) -> Path:
        """The table ``file,label,group,split`` of the run."""
        return self.folder / "splits.csv"


def find_folder(name: str | Path) -> Path:
    """Return the folder that ``name`` means: a path, or else the model shipped under this name."""
    path = Path(name).expanduser()
    shipped = SHIPPED / path
    is_name = len(path.parts) == 1 and not path.exists() and shipped.is_dir()
    return shipped if is_name else path


def shipped_models() -> list[str]:
    """Return the names of the models that come with the project."""
    return sorted(path.parent.name for path in SHIPPED.glob("*/model.keras"))


def say_shipped() -> str:
    """Return the end of a sentence that asks for a model: which names would do."""
    names = shipped_models()
    return f" or the name of a shipped model: {', '.join(names)}" if names else ""


def open_run(folder: str | Path, *, needs_model: bool = True) -> Run:
    """Read a run folder.

    Args:
        folder: what train wrote, or the name of a shipped model.
        needs_model: whether its model must still be there.

    Raises:
        RunError: it is not a run folder, or training has not written a model yet.
    """
    folder = find_folder(folder)
    if not folder.is_dir():
        raise RunError(
            f"{folder}: no such run folder; give the folder that train wrote (--run){say_shipped()}"
        )
    for name in ("config.yaml", "classes.json", *(["model.keras"] if needs_model else [])):
        if not (folder / name).is_file():
            raise RunError(
                f"{folder}: holds no {name}, so it is not a finished run; give a folder that "
                "train wrote, or train first: python -m wbc_keras.train --config FILE"
            )
    if (folder / "training_state.npz").exists():
        logger.warning("%s: is still in training; this is its best epoch so far", folder)
    return Run(folder, load_config(folder / "config.yaml"), _read_class_names(folder))


def _read_class_names(folder: Path) -> tuple[str, ...]:
    path = folder / "classes.json"
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["classes"]
    except (OSError, ValueError, KeyError, TypeError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise RunError(
            f"{path}: holds no list of class names, so it is not a finished run; train it again"
        )
    return tuple(names)
