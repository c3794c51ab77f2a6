"""How work is spread: what each host gets, and what a worker that fails or dies leaves."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from wbc_keras.errors import DataError, RunError
from wbc_keras.prediction.pieces import ShardPiece
from wbc_keras.prediction.spread import Plan, plan_workers, spread

PIECES = {number: ShardPiece(f"{number}.tar", f"{number}.tar") for number in range(4)}


@pytest.mark.parametrize(
    ("nodes", "plan"),
    [
        ([{"CPU": 2.0}], Plan(1, 1, 0)),
        ([{"CPU": 1.0}], Plan(1, 1, 0)),
        ([{"CPU": 16.0}], Plan(1, 15, 0)),
        ([{"CPU": 16.0}] * 3, Plan(3, 15, 0)),
        ([{"CPU": 4.0}, {"CPU": 16.0}], Plan(2, 3, 0)),
        ([{}, {"CPU": 0.0}, {"CPU": 8.0}], Plan(1, 7, 0)),
        ([{"CPU": 16.0, "GPU": 1.0}] * 2, Plan(2, 15, 1)),
        ([{"CPU": 16.0, "GPU": 4.0}], Plan(4, 3, 1)),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}], Plan(2, 7, 0)),
    ],
)
def test_every_worker_has_its_place_and_a_cpu_is_left(nodes, plan):
    assert plan_workers(nodes) == plan
    cpus = sum(node.get("CPU", 0) for node in nodes)
    assert cpus == 1 or plan.workers * plan.cpus < cpus


def test_a_cluster_without_cpus():
    with pytest.raises(RunError, match="no host of the cluster offers a CPU"):
        plan_workers([{"GPU": 1.0}])


def make_worker():
    def work(piece):
        if piece.name == "1.tar":
            raise DataError("1.tar: is truncated")
        if piece.name == "2.tar":
            raise OSError(28, os.strerror(28), "/tmp/x")
        return piece.name.encode()

    return work


def test_a_fault_stops_no_other_piece():
    outcomes = {one.number: one for one in spread("local", make_worker, PIECES)}
    assert [outcomes[number].result for number in range(4)] == [b"0.tar", b"", b"", b"3.tar"]
    assert outcomes[1].fault == "1.tar: is truncated"
    # Which machine's disk is full is what one wants to know.
    assert outcomes[2].fault.startswith(f"{os.uname().nodename}: ")
    assert "No space left on device: '/tmp/x'" in outcomes[2].fault


def test_nothing_to_do_starts_nothing():
    assert list(spread("local", None, {})) == list(spread("ray", None, {})) == []


# In a process of their own: Ray starts others, and warns of much.
RAY = """
import os
from wbc_keras.errors import DataError, RunError
from wbc_keras.prediction.pieces import ShardPiece
from wbc_keras.prediction.spread import spread

KIND = {kind!r}

def make():
    if KIND == "no model":
        raise RunError("model: no such run folder")
    def work(piece):
        if piece.name == "1":
            os.kill(os.getpid(), 9) if KIND == "deadly" else 1 / 0
        if piece.name == "2":
            raise DataError("2: is truncated")
        return piece.name.encode() + bytes(3)
    return work

try:
    for one in spread("ray", make, {{n: ShardPiece(str(n), str(n)) for n in range(4)}}):
        print(one.number, one.result, one.fault)
except RunError as error:
    print("error:", error)
except RuntimeError as error:
    print("bug:", repr(error))
"""


def run_on_ray(kind, **environment):
    pytest.importorskip("ray")
    done = subprocess.run(
        [sys.executable, "-c", RAY.format(kind=kind)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    # Ray tells of each worker that dies, also of those that it ends itself.
    return sorted(line for line in done.stdout.splitlines() if "(raylet)" not in line)


@pytest.mark.slow
def test_on_ray_a_worker_without_its_model_is_one_line():
    assert run_on_ray("no model") == ["error: model: no such run folder"]


@pytest.mark.slow
def test_on_ray_a_piece_with_a_fault_or_that_kills_every_worker_stops_no_other():
    assert run_on_ray("deadly") == [
        r"0 b'0\x00\x00\x00' ",
        "1 b'' 1: workers died over it again and again",
        "2 b'' 2: is truncated",
        r"3 b'3\x00\x00\x00' ",
    ]


@pytest.mark.slow
def test_on_ray_a_fault_of_the_program_keeps_its_traceback():
    (line,) = [one for one in run_on_ray("bug") if one.startswith("bug:")]
    assert "ZeroDivisionError" in line


def test_an_address_that_nobody_answers():
    (line,) = run_on_ray("bug", RAY_ADDRESS="127.0.0.1:1")
    assert line.startswith("error: RAY_ADDRESS=127.0.0.1:1: no cluster answers")
