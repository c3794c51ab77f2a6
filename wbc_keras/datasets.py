"""Public sets of cells: ``python -m wbc_keras.datasets list | info NAME | get NAME --to DIR``.

``agreement PATH`` tells how far the experts agree on the Munich set.
"""

from __future__ import annotations

import argparse
import shlex
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from wbc_keras.commands import make_parser, run_action
from wbc_keras.errors import DataError
from wbc_keras.sets.catalogue import CATALOGUE, PublicSet, find
from wbc_keras.sets.download import fetch, is_archive, unpack, unpacked_folder

_WIDTH = 96
_LABEL = 10


class ByHand(DataError):
    """A set that a person must fetch: there is no plain download, or no checksum to hold it to."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("datasets", "Public sets of blood cells: what they are, how to get them.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add(commands, "list", _list, "name every set")
    info = _add(commands, "info", _info, "what a set is, its licence, citation and address")
    info.add_argument("name", help="a set of the list, in any case")
    getting = _add(commands, "get", _get, "fetch a set, or print how to get it by hand (exit 2)")
    getting.add_argument("name", help="a set of the list, in any case")
    getting.add_argument("--to", required=True, metavar="DIR", help="where to, made if missing")
    agreement = _add(
        commands, "agreement", _agreement, "how far the experts agree on the Munich set's cells"
    )
    agreement.add_argument("path", help="the Munich folder, or its annotations.dat")
    arguments = parser.parse_args(argv)
    return run_action(arguments.action, arguments)


def _add(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    action: Callable[[argparse.Namespace], None],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary.capitalize()}.")
    parser.set_defaults(action=action)
    return parser


def get(public: str | PublicSet, folder: str | Path) -> Path:
    """Fetch a set into ``folder`` and return what ``--data`` takes: a file, or an unpacked folder.

    What is there already is not fetched again: a file with the published checksum, a folder that an
    archive was unpacked to. An archive that a person must fetch is unpacked once it is in
    ``folder``.

    Raises:
        ByHand: a person must fetch it first; its `PublicSet.steps` say how.
        DataError: there is no such set, or it could not be downloaded or unpacked.
    """
    public = find(public) if isinstance(public, str) else public
    folder = Path(folder)
    name = public.download.file if public.download else public.archive
    if name is None:
        raise _by_hand(public)
    path = folder / name
    if is_archive(path) and unpacked_folder(path).is_dir():
        return unpacked_folder(path)
    if public.download:
        fetch(public.download, folder)
    elif not path.is_file():
        raise _by_hand(public)
    return unpack(path) if is_archive(path) else path


def _agreement(arguments: argparse.Namespace) -> None:
    # Here, not above: --help has no use for pandas.
    from wbc_keras.statistics.agreement import expert_agreement, format_agreement

    print(format_agreement(expert_agreement(arguments.path)))


def _by_hand(public: PublicSet) -> ByHand:
    return ByHand(
        f"{public.name}: nothing was downloaded, a person must fetch it from {public.page}; the "
        "steps are above and in datasets info"
    )


def _list(arguments: argparse.Namespace) -> None:
    rows = [("name", "pictures", "classes", "licence", "get")]
    rows += [
        (
            entry.name,
            f"{entry.pictures:,}",
            str(len(entry.classes) or "-"),
            _marked(entry, "licence", entry.licence),
            "download" if entry.download else "by hand",
        )
        for entry in CATALOGUE
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())


def _info(arguments: argparse.Namespace) -> None:
    print(describe(find(arguments.name)))


def describe(public: PublicSet) -> str:
    """Return what ``datasets info`` prints; what was not verified is marked so."""
    return "\n".join([public.name, *_lay_out(_facts(public)), *_lay_out(_steps(public, "DIR"))])


def _facts(public: PublicSet) -> Iterator[tuple[str, str]]:
    classes = ", ".join(f"{name} {count:,}" for name, count in public.classes.items())
    yield "what", public.what
    yield "pictures", _marked(public, "pictures", f"{public.pictures:,}")
    yield "form", _marked(public, "form", public.form)
    yield "classes", _marked(public, "classes", classes or "none by cell")
    yield "size", _marked(public, "size", public.size)
    yield "licence", _marked(public, "licence", public.licence)
    yield "cite", public.citation
    yield "doi", f"https://doi.org/{public.doi}"
    yield "page", _marked(public, "page", public.page)
    if public.download:
        yield "address", public.download.url
        yield "checksum", public.download.checksum
    yield "source", public.source


def _steps(public: PublicSet, folder: str) -> Iterator[tuple[str, str]]:
    if public.download:
        yield "get", f"python -m wbc_keras.datasets get {public.name} --to {folder}"
    for number, step in enumerate(public.steps, 1):
        yield "get" if number == 1 else "", f"{number}. {step}".replace("DIR", folder)


def _lay_out(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for label, text in rows:
        yield from textwrap.wrap(
            text,
            _WIDTH,
            initial_indent=f"  {label:<{_LABEL}}",
            subsequent_indent=" " * (2 + _LABEL),
            break_long_words=False,
            break_on_hyphens=False,
        )


def _marked(public: PublicSet, fact: str, text: str) -> str:
    return f"{text} (not verified)" if fact in public.unverified else text


def _get(arguments: argparse.Namespace) -> None:
    public = find(arguments.name)
    try:
        path = get(public, arguments.to)
    except ByHand:
        page = _marked(public, "page", public.page)
        print("\n".join(_lay_out([("page", page), *_steps(public, shlex.quote(arguments.to))])))
        raise
    print(f"pass on: --data {shlex.quote(str(path))}")


if __name__ == "__main__":
    raise SystemExit(main())
