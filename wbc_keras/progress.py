"""How far a long work has come: a bar where one can be drawn over, else a line now and then.

A file or a pipe would keep every step of a bar.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TextIO

from wbc_keras.commands import silent_stderr

_SECONDS = 30.0  # from one line to the next


def can_redraw(stream: TextIO) -> bool:
    """Tell whether what stands on ``stream`` can be drawn over: on a terminal, in a notebook."""
    return stream.isatty() or _is_notebook(stream)


def keras_verbosity() -> int:
    """Return Keras's ``verbose``, which prints on stdout: 1 a bar, 2 a line for each epoch."""
    return 1 if can_redraw(sys.stdout) else 2


@contextmanager
def show_progress(total: int, unit: str, *, done: int = 0) -> Iterator[Callable[[int], object]]:
    """Show rate and time left on stderr, where C libraries' own lines are hidden meanwhile.

    A notebook shows it among what is printed: there, stderr looks like an error.

    Args:
        total: how many there are.
        unit: what they are, e.g. "cells".
        done: how many were done before.

    Yields:
        what is told how many more are done.
    """
    from tqdm import tqdm

    with ExitStack() as stack:
        shown: TextIO = sys.stdout
        if not _is_notebook(shown):
            shown = stack.enter_context(os.fdopen(os.dup(2), "w"))
        if can_redraw(shown):
            bar = tqdm(total=total, initial=done, unit=f" {unit}", file=shown, smoothing=0.05)
            tell = stack.enter_context(bar).update
        else:
            tell = _print_lines(total, unit, done=done, stream=shown)
        with silent_stderr():
            yield tell


def _is_notebook(stream: TextIO) -> bool:
    # Jupyter's and Colab's kernel alike; it is no dependency, so the class is known by its name.
    return type(stream).__module__.startswith("ipykernel.")


def _print_lines(total: int, unit: str, *, done: int, stream: TextIO) -> Callable[[int], None]:
    from tqdm import tqdm

    before, begun = done, time.monotonic()
    printed = begun

    def tell(more: int) -> None:
        nonlocal done, printed
        done += more
        if (now := time.monotonic()) - printed >= _SECONDS:
            about = {"ncols": 0, "unit": f" {unit}", "initial": before}
            line = tqdm.format_meter(done, total, now - begun, **about)
            print(line.strip(), file=stream, flush=True)
            printed = now

    return tell
