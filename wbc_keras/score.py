"""Score an archive: ``python -m wbc_keras.score --model MODEL --data PATHS --output DIR``."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.prediction.spread import ENGINES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("score", "Classify an archive of any size into a folder of Parquet files.")
    parser.add_argument("--model", required=True, help="run folder, SavedModel or a model's name")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="tar shards, Parquet files, folders of them, or any source; also as fsspec addresses",
    )
    parser.add_argument("--output", required=True, help="folder of Parquet files to write")
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="local",
        help="where the work is done: in this process, or on a Ray cluster (default: local)",
    )
    parser.add_argument("--resume", action="store_true", help="go on after a kill")
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    load_tensorflow()
    from wbc_keras.prediction.scoring import score_archive

    started = time.monotonic()
    tally = score_archive(
        arguments.model,
        arguments.data,
        output=arguments.output,
        engine=arguments.engine,
        resume=arguments.resume,
    )
    print(f"{tally}  {arguments.output}  {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    raise SystemExit(main())
