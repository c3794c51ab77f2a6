"""What every command shares: how a mistake ends, and options that several commands take."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable

from wbc_keras.errors import WbcError


def make_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Return a parser that names itself as the user typed it: ``python -m wbc_keras.<module>``."""
    return argparse.ArgumentParser(prog=f"python -m wbc_keras.{module}", description=description)


def run_action(action: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Call ``action(arguments)`` and return the exit code: 0 done, 2 the user's mistake.

    A mistake is told in one line on stderr.
    Any other exception is a bug of ours and is left to Python: traceback, exit code 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    # TensorFlow's start-up chatter would bury the banner; a user's own setting wins.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        action(arguments)
    except WbcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
