"""A check of a set of cells, from the source to a page and a list; `checks` says what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow
from wbc_keras.reporting.pages import Page

if TYPE_CHECKING:
    from wbc_keras.checking.checks import Finding

FILES = frozenset({"report.html", "findings.csv"})


@dataclass(frozen=True)
class Checked:
    """What a check found, in the report's order, and the folder it was written to."""

    pictures: int
    findings: tuple[Finding, ...]
    folder: Path

    def _repr_html_(self) -> str:
        """Return the page, thumbnails and all, as a notebook shows it."""
        return Page(self.folder / "report.html")._repr_html_()


def check_data(data: str | Path, *, output: str | Path | None = None) -> Checked:
    """Check a set of labelled cells, and write a page and a list of what was found.

    Args:
        data: what ``--data`` takes.
        output: the folder to write, ``artifacts/check-<name>`` by default; an earlier check there
            is replaced whole.

    Returns:
        the findings, and the folder with ``report.html`` and ``findings.csv``
        (``file,problem,detail,related``).

    Raises:
        WbcError: the source cannot be read as a table, or the folder holds something else.
    """
    from wbc_keras.checking.checks import check
    from wbc_keras.checking.report import write_report
    from wbc_keras.manifest import read_manifest, require_apart

    manifest = read_manifest(data)
    folder = Path(output) if output else Path("artifacts") / f"check-{manifest.name}"
    runs.require_replaceable(folder, FILES)
    require_apart(manifest, data, [folder / name for name in FILES])
    load_tensorflow()
    from wbc_keras.pictures.images import find_bad_images

    # Whether a picture can be decoded is for the decoder to say that training uses.
    root = manifest.root
    bad = find_bad_images(root / file for file in manifest.table["file"])
    damaged = {image.path.relative_to(root).as_posix(): image.reason for image in bad}
    findings = check(manifest, damaged=damaged)
    write_report(folder, manifest, findings)
    return Checked(len(manifest.table), tuple(findings), folder)
