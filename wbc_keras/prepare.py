"""Find and crop the cells beforehand: ``python -m wbc_keras.prepare --config FILE --data PATH``.

``--output FOLDER`` packs them too, for training where neither pictures nor TensorFlow are.
``--list`` shows what is kept in the cache, ``--remove-unused DAYS`` removes what no run has used.
``--data PATH --shards N --output FOLDER`` packs pictures as they are into tar shards, for `score`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from wbc_keras.cache import Entry, cache_dir, list_entries, remove_unused
from wbc_keras.commands import add_settings, load_tensorflow, make_parser, run_action
from wbc_keras.config import Config, load_config
from wbc_keras.errors import DataError

if TYPE_CHECKING:
    from wbc_keras.manifest import Manifest
    from wbc_keras.pictures.prepared import Prepared


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser(
        "prepare",
        "Find and crop the cells of a source beforehand, once for all runs that need them.",
    )
    add_settings(parser, required=False)
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        help="where to pack the cropped cells and their table, a --data for training without the "
        "pictures, and without TensorFlow; with --shards the pictures as they are",
    )
    kept = parser.add_mutually_exclusive_group()
    kept.add_argument(
        "--list", action="store_true", help="show what is kept: size, last use, source"
    )
    kept.add_argument(
        "--remove-unused",
        type=_days,
        metavar="DAYS",
        help="remove what no run has used for so many days (0: all); it is made anew if needed",
    )
    kept.add_argument(
        "--shards", type=int, metavar="N", help="pack the pictures of --data into N tar shards"
    )
    arguments = parser.parse_args(argv)
    action: Callable[[argparse.Namespace], None] = _prepare
    if arguments.shards is not None:
        if not arguments.data or not arguments.output or arguments.config or arguments.set:
            parser.error("--shards takes --data and --output, and no --config and no --set")
        action = _pack_shards
    elif arguments.list or arguments.remove_unused is not None:
        if arguments.config or arguments.data or arguments.set or arguments.output:
            parser.error(
                "--list and --remove-unused stand alone, without --config, --data, --set, --output"
            )
        action = _list if arguments.list else _remove_unused
    elif not arguments.config:
        parser.error("the following arguments are required: --config")
    return run_action(action, arguments)


def _days(text: str) -> float:
    with contextlib.suppress(ValueError):
        if (days := float(text)) >= 0:
            return days
    raise argparse.ArgumentTypeError(f"expected a number of days, 0 or more. Received: {text}")


def _list(arguments: argparse.Namespace) -> None:
    _print_entries(list_entries(), "in")


def _remove_unused(arguments: argparse.Namespace) -> None:
    _print_entries(remove_unused(arguments.remove_unused), "removed from")


def _print_entries(entries: Sequence[Entry], where: str) -> None:
    for entry in entries:
        name = f"{entry.folder.parent.name}/{entry.folder.name}"
        used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
        size = f"{entry.size / 1e6:,.1f} MB"
        print(f"{size:>12}  used {used}  {name}  {_source_of(entry.folder)}".rstrip())
    print(f"{sum(entry.size for entry in entries) / 1e6:,.1f} MB {where} {cache_dir()}")


def _source_of(folder: Path) -> str:
    """Return what something was made from, where it says so."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads((folder / "about.json").read_text(encoding="utf-8"))["source"])
    return ""


def _pack_shards(arguments: argparse.Namespace) -> None:
    from wbc_keras.manifest import read_manifest
    from wbc_keras.pictures.shards import pack_shards

    manifest = read_manifest(arguments.data, labelled=False)
    paths = pack_shards(manifest, Path(arguments.output), count=arguments.shards)
    size = sum(path.stat().st_size for path in paths)
    print(f"pictures {len(manifest.table)}  shards {len(paths)}  {size / 1e6:,.1f} MB")
    print(arguments.output)


def _prepare(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, overrides=arguments.set).with_source(arguments.data)
    manifest, prepared = prepare_cells(config)
    from wbc_keras.pictures.images import describe_bad

    found = int(prepared.found.sum())
    print(f"cells {len(prepared.found)}  found {found}  bad pictures {len(prepared.bad)}")
    print(prepared.folder)
    wanted = manifest.without_labels(config.data.exclude_labels).table["file"]
    bad = prepared.bad_among(wanted)
    if bad and config.data.bad_images == "error":
        raise DataError(
            f"{describe_bad(bad.values())}; training will not start with them: mend or remove "
            "them, or leave them out with --set data.bad_images=skip"
        )
    if arguments.output:
        _pack(config, manifest, prepared, Path(arguments.output))


def _pack(config: Config, manifest: Manifest, prepared: Prepared, folder: Path) -> None:
    from wbc_keras.pictures.packing import pack_cells

    if manifest.packed:
        raise DataError(f"{manifest.packed}: is packed already; copy the folder")
    pack_cells(manifest, prepared, folder, roi=config.roi, image_size=config.data.image_size)
    print(f"packed {folder}; it is a --data for training")


def prepare_cells(config: Config) -> tuple[Manifest, Prepared]:
    """Return the source that ``config`` names and its cropped cells, which are made if need be.

    Raises:
        DataError: what is wrong with the source, or with the place where the cells are kept.
    """
    from wbc_keras.manifest import read_manifest

    settings = config.data
    assert settings.source is not None  # `Config.with_source` has seen to it
    manifest = read_manifest(
        settings.source, label_column=settings.label_column, synthetic=settings.synthetic
    )
    load_tensorflow()
    from wbc_keras.pictures.prepared import prepare

    return manifest, prepare(manifest, roi=config.roi, image_size=settings.image_size)


if __name__ == "__main__":
    raise SystemExit(main())
