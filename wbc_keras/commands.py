"""What every command shares: how a mistake ends, and options that several commands take."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from wbc_keras.errors import ConfigError, WbcError


def make_parser(module: str, description: str) -> argparse.ArgumentParser:
    """Return a parser that names itself as the user typed it: ``python -m wbc_keras.<module>``."""
    return argparse.ArgumentParser(prog=f"python -m wbc_keras.{module}", description=description)


def add_settings(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Add the options that settings and pictures come from: --config, --data and --set."""
    parser.add_argument("--config", required=required, help="YAML file of settings")
    parser.add_argument(
        "--data",
        help="class folder, folder with manifest.csv, CSV, Munich folder, .npz or 'synthetic'",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting of wbc_keras/config.py, e.g. train.epochs=5 (repeatable)",
    )


def run_action(action: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Call ``action(arguments)`` and return the exit code: 0 done, 2 the user's mistake.

    A mistake is told in one line on stderr.
    Any other exception is a bug of ours and is left to Python: traceback, exit code 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        action(arguments)
        sys.stdout.flush()
    except WbcError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output, `head` for one, has seen enough: the rest goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as a shell reports SIGPIPE
    except OSError as error:
        # A full disk, a folder without permission: the machine's state, not a bug.
        if error.filename is None and error.errno is None:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror}; choose another place or mend it", file=sys.stderr)
        return 2
    return 0


def load_backend() -> None:
    """Import Keras on the backend that is asked for: TensorFlow, or where it is not there, JAX.

    Raises:
        ConfigError: neither is installed, or the backend asked for is another one.
    """
    asked = os.environ.get("KERAS_BACKEND")
    if asked is None and importlib.util.find_spec("tensorflow") is None:
        asked = os.environ["KERAS_BACKEND"] = "jax"
    if asked in (None, "tensorflow"):
        load_tensorflow()
        return
    if asked != "jax" or importlib.util.find_spec("jax") is None:
        raise ConfigError(
            f"KERAS_BACKEND: training runs on tensorflow and on jax, and jax must be installed "
            f"(pip install jax). Received: {asked}"
        )


def load_tensorflow() -> None:
    """Import TensorFlow and Keras without their start-up chatter on stderr.

    It comes from C++ before any log level holds, and would bury the banner or the one line that
    tells a mistake. A user who has set TF_CPP_MIN_LOG_LEVEL wants to see it.
    """
    if "tensorflow" in sys.modules or "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    with silent_stderr():
        import keras  # noqa: F401
        import tensorflow as tf

        # Looks for a GPU, and says so when there is none.
        tf.config.list_physical_devices()
    # Its advice on retracing is for who writes models: here each run's network is another one.
    tf.get_logger().setLevel("ERROR")


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Keep what C and C++ libraries write on stderr out of sight, unless the block fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as hidden:
        os.dup2(hidden.fileno(), 2)
        try:
            yield
        except BaseException:
            hidden.seek(0)
            os.write(kept, hidden.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
