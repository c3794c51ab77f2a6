"""Check a set of cells before a model is built on it: ``python -m wbc_keras.manifest check``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wbc_keras import runs
from wbc_keras.commands import load_tensorflow, make_parser, run_action

if TYPE_CHECKING:
    from wbc_keras.checks import Finding

_FILES = frozenset({"report.html", "findings.csv"})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("manifest", "Look for what is wrong with a set of cells.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="check")
    check = commands.add_parser(
        "check",
        help="read every picture and write what was found",
        description="Read every picture and the table, and write a page and a list of what is "
        "wrong: unreadable, blank or odd pictures, copies, classes and patients out of place. "
        "Findings are no failure: the exit code is 0.",
    )
    check.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="class folder, folder with manifest.csv, CSV, Munich folder, .npz or 'synthetic'",
    )
    check.add_argument(
        "--output", metavar="DIR", help="folder (default: artifacts/check-<name of the data>)"
    )
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    from wbc_keras.checks import PROBLEMS, count_findings

    result = check_data(arguments.data, output=arguments.output)
    print(f"{result.pictures:,} pictures checked, {len(result.findings):,} findings")
    for problem, count in count_findings(result.findings).items():
        print(f"  {PROBLEMS[problem].title:<26} {count:>7,}")
    for name in sorted(_FILES, reverse=True):
        print(result.folder / name)


@dataclass(frozen=True)
class Checked:
    """What a check found, in the report's order, and the folder it was written to."""

    pictures: int
    findings: tuple[Finding, ...]
    folder: Path

    def _repr_html_(self) -> str:
        """Return the page, thumbnails and all, as a notebook shows it."""
        from wbc_keras.check_report import PAGE
        from wbc_keras.pages import Page

        return Page(self.folder / PAGE)._repr_html_()


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
    from wbc_keras.check_report import write_report
    from wbc_keras.checks import check
    from wbc_keras.manifest import read_manifest, require_apart

    manifest = read_manifest(data)
    folder = Path(output) if output else Path("artifacts") / f"check-{manifest.name}"
    runs.require_replaceable(folder, _FILES)
    require_apart(manifest, data, [folder / name for name in _FILES])
    load_tensorflow()
    from wbc_keras.images import find_bad_images

    # Whether a picture can be decoded is for the decoder to say that training uses.
    root = manifest.root
    bad = find_bad_images(root / file for file in manifest.table["file"])
    damaged = {image.path.relative_to(root).as_posix(): image.reason for image in bad}
    findings = check(manifest, damaged=damaged)
    write_report(folder, manifest, findings)
    return Checked(len(manifest.table), tuple(findings), folder)


if __name__ == "__main__":
    raise SystemExit(main())
