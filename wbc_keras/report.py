"""Write a run's report and model card: ``python -m wbc_keras.report --run RUN_DIR``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from wbc_keras import runs
from wbc_keras.commands import make_parser, run_action

PAGE, CARD, TABLES = "report.html", "model_card.md", "tables"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser(
        "report", "Write a run's report and model card from what lies in its folder."
    )
    parser.add_argument("--run", required=True, help="run folder")
    parser.add_argument("--data", help="where the run's cells are now, if they were moved")
    parser.add_argument(
        "--no-pictures",
        action="store_true",
        help="show no cell and no file name, so that the report may leave the house",
    )
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    for path in report(arguments.run, data=arguments.data, pictures=not arguments.no_pictures):
        print(path)


def report(
    run: str | Path, *, data: str | Path | None = None, pictures: bool = True
) -> tuple[Path, Path, Path]:
    """Write ``report.html``, ``model_card.md`` and ``tables/`` into a run folder, over older ones.

    It can be made at any time, also again, from whatever the run holds by then: parts that are
    missing are left out and said so.

    Args:
        run: the run folder.
        data: where the run's cells are now, if they were moved.
        pictures: whether cells, and the names of their files, may be shown.

    Returns:
        the three paths.

    Raises:
        WbcError: no run folder, a damaged file in it, or ``data`` that cannot be read.
    """
    from wbc_keras.reporting.checklists import make_checklist
    from wbc_keras.reporting.gallery import show_mistakes
    from wbc_keras.reporting.model_card import render_card
    from wbc_keras.reporting.record import read_record
    from wbc_keras.reporting.report_page import render_page
    from wbc_keras.reporting.report_tables import NAMES, make_tables

    record = read_record(run)
    folder = record.run.folder
    runs.require_writable(folder / PAGE)
    tables = {**make_tables(record), "checklists": make_checklist(record)}
    files = {
        f"{name}{suffix}": text
        for name, table in tables.items()
        for suffix, text in ((".csv", table.to_csv()), (".tex", table.to_latex()))
    }
    known = {f"{name}{suffix}" for name in NAMES for suffix in (".csv", ".tex")}
    runs.require_replaceable(folder / TABLES, frozenset(known))
    shown = show_mistakes(record, data=data) if pictures else None
    page = render_page(record, tables, shown)
    card = render_card(record, tables)
    with runs.replacing_folder(folder / TABLES) as temporary:
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")
    runs.write_text(folder / PAGE, page)
    runs.write_text(folder / CARD, card)
    return folder / PAGE, folder / CARD, folder / TABLES


if __name__ == "__main__":
    raise SystemExit(main())
