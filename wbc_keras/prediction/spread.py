"""How work is spread: piece by piece in this process, or over the hosts of a Ray cluster.

Either way each piece gets an outcome. Where a worker dies over it another one tries, and after some
deaths it is given up. The outcomes come back to this process, which alone writes.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import socket
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from wbc_keras.errors import RunError, WbcError
from wbc_keras.prediction.pieces import Piece

ENGINES = ("local", "ray")

Work = Callable[[Piece], bytes]
Make = Callable[[], Work]  # called once by each worker, to load a model for one

_RETRIES = 3  # of a piece that its worker died over: it may be the piece that kills
_STORE = 200 * 2**20  # bytes of shared memory for pieces and parts on their way; Ray spills others


@dataclass(frozen=True)
class Outcome:
    """What became of a piece: a result, or a fault in one line."""

    number: int
    result: bytes
    fault: str = ""


def spread(engine: str, make: Make, pieces: Mapping[int, Piece]) -> Generator[Outcome, None, None]:
    """Yield an outcome for every piece, in any order.

    Args:
        engine: one of `ENGINES`.
        make: gives a worker's function, and can be pickled. What the function raises of WbcError
            and OSError is a piece's fault and stops no other piece.
        pieces: by number.

    Raises:
        WbcError: what ``make`` raises, or Ray cannot be had, or its cluster is lost.
    """
    if pieces:
        yield from (_spread_over_ray if engine == "ray" else _work_here)(make, pieces)


def _work_here(make: Make, pieces: Mapping[int, Piece]) -> Iterator[Outcome]:
    work = make()
    for number, piece in pieces.items():
        yield _attempt(work, number, piece)


def _attempt(work: Work, number: int, piece: Piece) -> Outcome:
    try:
        return Outcome(number, work(piece))
    except (WbcError, OSError) as error:
        return Outcome(number, b"", _describe(error))


def _describe(error: Exception) -> str:
    if isinstance(error, WbcError):
        return str(error)
    # The machine's state, a full disk or a lost mount: which machine matters.
    return f"{platform.node()}: {error}"


# Ray


@dataclass(frozen=True)
class Plan:
    """How many workers a cluster gets, and what each reserves there."""

    workers: int
    cpus: int
    gpus: int


def plan_workers(nodes: Sequence[Mapping[str, float]]) -> Plan:
    """Return one worker for each host, or for each GPU where all hosts have some.

    A worker uses all cores of its host, as `predict` does, but reserves one logical CPU less than
    the smallest host has: Ray's own tasks are never without one. Two workers on a host with two
    logical CPUs leave none, and Ray Data waits for ever (ray issue 44687).

    Args:
        nodes: what each host offers, as Ray tells it: ``CPU`` and, if it has some, ``GPU``.

    Raises:
        RunError: no host offers a CPU.
    """
    able = [node for node in nodes if node.get("CPU", 0) >= 1]
    if not able:
        raise RunError("Ray: no host of the cluster offers a CPU; start one with --num-cpus")
    gpus = [int(node.get("GPU", 0)) for node in able]
    workers = [max(count, 1) if min(gpus) else 1 for count in gpus]
    shares = [(int(node["CPU"]) - 1) // count for node, count in zip(able, workers, strict=True)]
    return Plan(sum(workers), max(1, min(shares)), 1 if min(gpus) else 0)


class _Worker:
    """What Ray keeps alive on a host; a batch is one piece."""

    def __init__(self, make: Make) -> None:
        self._fault = self._bug = ""
        self._work: Work | None = None
        try:
            self._work = make()
        except (WbcError, OSError) as error:
            self._fault = _describe(error)
        except Exception:
            self._bug = traceback.format_exc()

    def __call__(self, batch: Any) -> Any:
        number, piece = batch["number"][0].as_py(), pickle.loads(batch["piece"][0].as_py())
        outcome, bug = Outcome(number, b"", self._fault), self._bug
        if self._work is not None:
            try:
                outcome = _attempt(self._work, number, piece)
            except Exception:  # Ray would try it again and again
                bug = traceback.format_exc()
        return _make_row(**vars(outcome), is_fatal=self._work is None, bug=bug)


def _make_row(**values: Any) -> Any:
    import pyarrow

    return pyarrow.table({name: [value] for name, value in values.items()})


def _spread_over_ray(make: Make, pieces: Mapping[int, Piece]) -> Iterator[Outcome]:
    with _connect() as ray:
        plan = plan_workers([node["Resources"] for node in ray.nodes() if node["Alive"]])
        # A block for each: what a worker is given, and does again if it dies, is one piece.
        rows = [
            _make_row(number=number, piece=pickle.dumps(piece)) for number, piece in pieces.items()
        ]
        outcomes = ray.data.from_arrow(rows).map_batches(
            _Worker,
            fn_constructor_args=(make,),
            batch_size=1,
            batch_format="pyarrow",
            # One piece at a time: a worker that dies over it takes no other with it.
            compute=ray.data.ActorPoolStrategy(size=plan.workers, max_tasks_in_flight_per_actor=1),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
            max_task_retries=_RETRIES,  # by Ray's default without an end
        )
        given_up = dict(pieces)
        try:
            for row in outcomes.iter_rows():
                if row["bug"]:
                    raise RuntimeError(f"a worker failed:\n{row['bug']}")
                if row["is_fatal"]:
                    raise RunError(row["fault"])
                del given_up[row["number"]]
                yield Outcome(row["number"], row["result"], row["fault"])
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise RunError(
                f"Ray: the cluster is lost ({reason}); --resume goes on with what is done"
            ) from error
        for number, piece in given_up.items():
            yield Outcome(number, b"", f"{piece}: workers died over it again and again")


def _require_answer(address: str) -> None:
    """Raise OSError unless somebody answers at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _connect() -> Iterator[Any]:
    """Yield Ray, connected to the cluster that RAY_ADDRESS names, or else to one of this host's."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
        import ray.data
    except ImportError:
        raise RunError("--engine ray: needs Ray; pip install 'wbc_keras[scale]'") from None
    if ray.is_initialized():
        yield ray
        return
    address = os.environ.get("RAY_ADDRESS")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            _require_answer(address)
            ray.init(**quiet)
        else:
            cpus = max(2, os.cpu_count() or 1)
            own: dict[str, Any] = {"num_cpus": cpus, "object_store_memory": _STORE}
            ray.init("local", include_dashboard=False, **own, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        where = f"RAY_ADDRESS={address}" if address else "Ray"
        raise RunError(f"{where}: no cluster answers ({reason})") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.max_errored_blocks = -1  # a piece that is given up stops no other
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield ray
    finally:
        ray.shutdown()
