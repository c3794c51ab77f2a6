"""Several processes, usually one a host, that train one network: how they meet and agree.

They are found in the environment, see `find_place`, and meet by JAX's coordination service at the
first one's address. The first alone writes; what one of them finds wrong is told by all.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import inspect
import json
import math
import os
import re
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from wbc_keras.errors import ConfigError, RunError, WbcError

T = TypeVar("T")

_KERAS = "KERAS_DISTRIBUTION_"
_HEARTBEAT = 20  # seconds without a sign after which a process is taken for dead
_PARTING = 6 * 3600  # seconds for what the first still does when the training is over
_LOST = re.compile("[Gg]loo|NCCL|nccl|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|[Cc]oordination")
_LOST_CODE = 75  # EX_TEMPFAIL of sysexits.h: no mistake of the user, to be tried again
_GO_ON = "see what it said, and go on with --resume on all of them"
_TRIES = 1.0  # seconds from one try to reach the first process to the next


class SharedError(RunError):
    """A mistake that all processes know of, so that none waits for another."""


@dataclass(frozen=True)
class Place:
    """Where the processes meet, ``host:port`` of the first; how many they are; which this is."""

    address: str
    count: int
    index: int


def find_place(environ: Mapping[str, str]) -> Place | None:
    """Return the place of this process among several, or None if it is alone.

    Keras's own variables count first: ``KERAS_DISTRIBUTION_JOB_ADDRESSES`` (the first process's
    address, or all, with commas), ``..._NUM_PROCESSES`` and ``..._PROCESS_ID``, for which SLURM's
    ``SLURM_PROCID`` or the ``JOB_COMPLETION_INDEX`` of a Kubernetes Job stand in. Without them the
    tasks of a SLURM job step are the processes.

    Raises:
        ConfigError: variables are missing or make no sense.
    """
    addresses = environ.get(f"{_KERAS}JOB_ADDRESSES", "").split(",")
    count = environ.get(f"{_KERAS}NUM_PROCESSES") or (len(addresses) if addresses[1:] else None)
    if count is not None:
        names = (f"{_KERAS}PROCESS_ID", "SLURM_PROCID", "JOB_COMPLETION_INDEX")
        index = next((environ[name] for name in names if name in environ), None)
        return _make_place(addresses[0], count, index)
    if int(environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        # A port of the job's own, out of the way of those that systems lend.
        port = 61440 + int(environ["SLURM_JOB_ID"]) % 4096
        address = f"{_first_node(environ['SLURM_STEP_NODELIST'])}:{port}"
        return _make_place(address, environ["SLURM_STEP_NUM_TASKS"], environ["SLURM_PROCID"])
    return None


def _make_place(address: str, count: str | int, index: str | None) -> Place | None:
    numbers = {f"{_KERAS}NUM_PROCESSES": count, f"{_KERAS}PROCESS_ID": index}
    for name, value in numbers.items():
        if value is None or not str(value).isdigit():
            raise ConfigError(f"{name}: expected a whole number. Received: {value}")
    place = Place(address, int(count), int(str(index)))
    if place.count <= 1:
        return None
    if place.index >= place.count:
        raise ConfigError(
            f"{_KERAS}PROCESS_ID: expected 0 to {place.count - 1}. Received: {place.index}"
        )
    if not re.fullmatch(r".+:\d+", address):
        raise ConfigError(
            f"{_KERAS}JOB_ADDRESSES: expected host:port of the first process. Received: {address!r}"
        )
    return place


def _first_node(nodes: str) -> str:
    """Return the first of SLURM's short list: ``gpu[03-04,07],login`` begins with gpu03."""
    match = re.match(r"([^\[,]*)(?:\[(\w+)[^\]]*\])?([^,\[]*)", nodes)
    assert match is not None  # it matches the empty string too
    return "".join(part or "" for part in match.groups())


@dataclass(frozen=True)
class Hosts:
    """The processes of a training; this is number ``index`` of ``count``, from 0."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def share(self, size: int) -> slice:
        """Return which of ``size`` things are this process's."""
        return slice(self.index * size // self.count, (self.index + 1) * size // self.count)

    def everywhere(self, action: Callable[[], T]) -> T:
        """Call ``action`` on every process and return what it gives here.

        Raises:
            SharedError: on all, if it raises a WbcError or an OSError on one; alone, as it raises.
        """
        if self.count == 1:
            return action()
        result, fault = _try(action)
        self._raise(self._gather(fault))
        assert result is not None
        return result[0]

    def on_first(self, action: Callable[[], bool | None]) -> bool:
        """Call ``action`` on the first process and return on all what it gives there.

        Raises:
            SharedError: on all, if it raises a WbcError or an OSError; alone, as it raises.
        """
        if self.count == 1:
            return bool(action())
        result, fault = _try(action) if self.is_first else (None, "")
        said = json.dumps([fault, bool(result and result[0])])
        fault, value = json.loads(self._gather(said)[0])
        self._raise([fault])
        return bool(value)

    def send(self, data: bytes) -> bytes:
        """Return on all the first process's ``data``."""
        if self.count == 1:
            return data
        from jax.experimental import multihost_utils

        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
        sent = np.frombuffer(data, np.uint8) if self.is_first else np.zeros(size, np.uint8)
        return bytes(np.asarray(multihost_utils.broadcast_one_to_all(sent)).tobytes())

    def require_equal(self, **facts: object) -> None:
        """Compare facts among the processes, by their hashes.

        Raises:
            SharedError: if one of them has others than the first.
        """
        mine = {k: hashlib.sha256(repr(v).encode()).hexdigest() for k, v in facts.items()}
        theirs = [json.loads(said) for said in self._gather(json.dumps(mine))]
        others = {
            name: [str(place) for place, had in enumerate(theirs) if had[name] != theirs[0][name]]
            for name in mine
        }
        differing = [
            f"{name} (process {', '.join(places)})" for name, places in others.items() if places
        ]
        if differing:
            raise SharedError(
                f"the processes disagree with the first on {' and '.join(differing)}; give all of "
                "them the same config, the same cells and the same versions"
            )

    def _raise(self, said: list[str]) -> None:
        faults = {place: words for place, words in enumerate(said) if words}
        if len(faults) == self.count and len(set(said)) == 1:
            raise SharedError(said[0])
        by_words = {words: place for place, words in reversed(faults.items())}
        if faults:
            raise SharedError("; ".join(f"process {p}: {words}" for words, p in by_words.items()))

    def _gather(self, text: str) -> list[str]:
        """Return the texts of all processes."""
        if self.count == 1:
            return [text]
        from jax.experimental import multihost_utils

        data = np.frombuffer(text.encode(), np.uint8)
        sizes = np.ravel(multihost_utils.process_allgather(np.int32(len(data))))
        padded = np.zeros(max(1, int(sizes.max())), np.uint8)
        padded[: len(data)] = data
        rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(self.count, -1)
        return [row[:size].tobytes().decode() for row, size in zip(rows, sizes, strict=True)]


ALONE = Hosts()


def _try(action: Callable[[], T]) -> tuple[tuple[T] | None, str]:
    """Return what ``action`` gives, or None and what the user is told of its fault."""
    try:
        return (action(),), ""
    except WbcError as error:
        return None, str(error)
    except OSError as error:
        if error.strerror is None:
            raise  # a bug, and not the machine's state
        where = f"{error.filename}: " if error.filename else ""
        return None, f"{where}{error.strerror}; choose another place or mend it"


@contextlib.contextmanager
def join(place: Place, *, timeout: float) -> Iterator[Hosts]:
    """Meet the other processes, and part from them at the end.

    Args:
        place: of `find_place`.
        timeout: seconds to wait for the first, and then as long again for all.

    Raises:
        SharedError: they have not equally many devices, without which JAX gathers nothing.
        RunError: not all came in time, or one has ended before its time. Nothing more can be done
            with JAX then: the process must end.
    """
    import jax

    if place.index:
        _reach(place, timeout)
    timeouts: dict[str, Any] = {
        "initialization_timeout": math.ceil(timeout),
        "heartbeat_timeout_seconds": _HEARTBEAT,
        "shutdown_timeout_seconds": _PARTING,
    }
    known = inspect.signature(jax.distributed.initialize).parameters  # before 0.7 not all of them
    try:
        # Keras's own `initialize` does no more, but has no say in how long is waited, and under
        # SLURM leaves a process one GPU.
        jax.distributed.initialize(
            place.address,
            place.count,
            place.index,
            cluster_detection_method="deactivate",
            **{name: value for name, value in timeouts.items() if name in known},
        )
    except RuntimeError as error:
        atexit.register(_end_at_once, _LOST_CODE)
        raise RunError(
            f"{place.address}: {place.count} processes could not meet there within {timeout:g} s "
            f"({_first_line(error)}); start them together, with the same address and count"
        ) from error
    try:
        _require_equal_devices(place)
        yield Hosts(place.index, place.count)
        # The first has more to do at the end, and the others wait for it.
        jax.distributed.shutdown()
    except SharedError:
        raise
    except BaseException as error:
        # JAX has no class of its own for it, and tells what XLA says by either of two.
        by_jax = isinstance(error, (jax.errors.JaxRuntimeError, ValueError))
        if not (by_jax and _LOST.search(str(error))):
            atexit.register(_end_at_once, 2 if isinstance(error, (WbcError, OSError)) else 1)
            raise
        atexit.register(_end_at_once, _LOST_CODE)
        raise RunError(
            f"another of the {place.count} processes has ended ({_first_line(error)}); {_GO_ON}"
        ) from error


@contextlib.contextmanager
def announced() -> Iterator[None]:
    """Let a small process of its own tell the end of this one, should it have no time to.

    JAX aborts a process that has lost the first one, or on a GPU any, from a thread of its own. It
    must be called before JAX is loaded, whose threads are not to be forked.
    """
    try:
        place = find_place(os.environ)
    except ConfigError:
        place = None  # told by who asks next
    if place is None or not hasattr(os, "fork"):
        yield
        return
    reading, writing = os.pipe()
    # Ctrl-C reaches both; until the new one ignores it, it would go on as a second copy of this.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    if os.fork() == 0:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            os.close(writing)
            _tell_end(reading, place)
        finally:
            os._exit(0)
    os.close(reading)
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        yield
    finally:
        with contextlib.suppress(BrokenPipeError):  # somebody has ended the watcher
            os.write(writing, b".")
        os.close(writing)


def _tell_end(reading: int, place: Place) -> None:
    """Wait until the pipe gives a byte, or is closed without: then tell that the process ended."""
    if os.read(reading, 1):
        return
    line = (
        f"error: process {place.index} was killed, or ended by JAX because another of the "
        f"{place.count} processes has ended, or did not come in time (train.hosts_timeout); "
        f"{_GO_ON}\n"
    )
    os.write(2, line.encode())


def _reach(place: Place, timeout: float) -> None:
    """Wait until somebody listens at the first process's address."""
    host, _, port = place.address.rpartition(":")
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                atexit.register(_end_at_once, _LOST_CODE)
                raise RunError(
                    f"{place.address}: nobody answers there since {timeout:g} s ({error}); check "
                    f"that process 0 runs, and {_KERAS}JOB_ADDRESSES"
                ) from error
        time.sleep(_TRIES)


def _require_equal_devices(place: Place) -> None:
    import jax

    counts = Counter(device.process_index for device in jax.devices())
    numbers = [counts[index] for index in range(place.count)]
    if len(set(numbers)) > 1:
        raise SharedError(
            f"the {place.count} processes have {', '.join(map(str, numbers))} devices, and each "
            "must have as many as the first; hide the rest (CUDA_VISIBLE_DEVICES)"
        )


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200]


def _end_at_once(code: int) -> None:
    """End the process without JAX's farewell, which would wait for the others, and they for it."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
