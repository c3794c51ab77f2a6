"""Find and crop the cells beforehand: ``python -m wbc_keras.prepare --config FILE --data PATH``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from wbc_keras.commands import add_settings, load_tensorflow, make_parser, run_action
from wbc_keras.config import Config, load_config
from wbc_keras.errors import DataError

if TYPE_CHECKING:
    from wbc_keras.manifest import Manifest
    from wbc_keras.prepared import Prepared


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser(
        "prepare",
        "Find and crop the cells of a source beforehand, once for all runs that need them.",
    )
    add_settings(parser)
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    config = load_config(arguments.config, overrides=arguments.set).with_source(arguments.data)
    manifest, prepared = prepare_cells(config)
    from wbc_keras.images import describe_bad

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
    from wbc_keras.prepared import prepare

    return manifest, prepare(manifest, roi=config.roi, image_size=settings.image_size)


if __name__ == "__main__":
    raise SystemExit(main())
