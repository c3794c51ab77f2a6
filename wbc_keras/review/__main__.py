"""Look at cells with a model, and correct it: ``python -m wbc_keras.review --model MODEL``."""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.errors import WbcError

_OUTPUT = Path("artifacts") / "reviews"
_PORTS = range(7860, 7960)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when it is ended, 2 for the user's mistake."""
    parser = make_parser("review", "Look at cells with a model in the browser, and correct it.")
    parser.add_argument("--model", required=True, help="run folder, SavedModel or model's name")
    parser.add_argument("--data", help="any source of cells; more can be dropped on the page")
    parser.add_argument(
        "--output", help="folder of reviews.csv (default: artifacts/reviews/<name of the data>)"
    )
    parser.add_argument("--port", type=int, help="of the page (default: the first free from 7860)")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen at (default: this machine alone)"
    )
    parser.add_argument(
        "--share", action="store_true", help="also make a public link, by Gradio's server"
    )
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    if not importlib.util.find_spec("gradio"):
        raise WbcError("the review desk needs Gradio; pip install 'wbc_keras[review]'")
    port = _find_port(arguments.host, arguments.port)
    load_tensorflow()
    # Uploaded pictures go with the program; what was corrected is kept beside reviews.csv.
    with tempfile.TemporaryDirectory(prefix="wbc_review_") as uploads:
        # Gradio reads both when it is imported.
        os.environ |= {"GRADIO_TEMP_DIR": uploads, "GRADIO_ANALYTICS_ENABLED": "False"}
        _serve(arguments, port)


def _serve(arguments: argparse.Namespace, port: int) -> None:
    from wbc_keras.review.desk import Desk
    from wbc_keras.review.page import appearance, build_page
    from wbc_keras.review.smears import open_data

    source = open_data(arguments.data) if arguments.data else None
    print(f"model        {arguments.model}, being loaded", flush=True)
    desk = Desk.load(arguments.model, _choose_output(arguments))
    loaded = time.perf_counter()
    # Gradio looks whether it is reachable, and httpx tells of each request.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # A stopped program too removes what was uploaded.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        key = desk.open_data(source) if source is not None else ""
        page = build_page(desk, name=Path(arguments.model).name)
        _, address, public = page.launch(
            server_name=arguments.host,
            server_port=port,
            share=arguments.share,
            quiet=True,
            prevent_thread_lock=True,
            **appearance(),
        )
        print(f"corrections  {desk.corrections.path}")
        print(f"review desk  {public or address}  ready in {time.perf_counter() - loaded:.1f} s")
        print("Research use only, not for diagnosis. End with Ctrl-C.", flush=True)
        if key:
            desk.smear(key).start()
        threading.Event().wait()
    except KeyboardInterrupt:
        print()
    finally:
        desk.close()


def _choose_output(arguments: argparse.Namespace) -> Path:
    if arguments.output:
        return Path(arguments.output)
    name = Path(arguments.data).resolve().stem if arguments.data else "uploads"
    return _OUTPUT / name


def _find_port(host: str, wanted: int | None) -> int:
    """Return the port to listen at, before anything that takes time.

    Raises:
        WbcError: it is in use, or there is no such host.
    """
    if wanted is not None and not 0 < wanted < 1 << 16:
        raise WbcError(f"--port {wanted}: expected 1 to 65535")
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise WbcError(f"--host {host}: is no address of this machine") from error
    for port in [wanted] if wanted is not None else _PORTS:
        try:
            with socket.create_server((host, port)):
                return port
        except OSError as error:
            reason = os.strerror(error.errno or 0)
    raise WbcError(f"--host {host} --port {port}: cannot be listened at ({reason}); choose another")


if __name__ == "__main__":
    raise SystemExit(main())
