"""Check a set of cells before a model is built on it: ``python -m wbc_keras.manifest check``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from wbc_keras.checking.data_check import FILES, check_data
from wbc_keras.commands import make_parser, run_action


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
    from wbc_keras.checking.checks import PROBLEMS, count_findings

    result = check_data(arguments.data, output=arguments.output)
    print(f"{result.pictures:,} pictures checked, {len(result.findings):,} findings")
    for problem, count in count_findings(result.findings).items():
        print(f"  {PROBLEMS[problem].title:<26} {count:>7,}")
    for name in sorted(FILES, reverse=True):
        print(result.folder / name)


if __name__ == "__main__":
    raise SystemExit(main())
