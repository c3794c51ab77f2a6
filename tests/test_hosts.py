"""Where a process finds the others: Keras's variables, SLURM's, a Kubernetes Job's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from wbc_keras.errors import ConfigError, DataError
from wbc_keras.training.hosts import Hosts, Place, find_place

KERAS = {
    "KERAS_DISTRIBUTION_JOB_ADDRESSES": "10.0.0.1:1234",
    "KERAS_DISTRIBUTION_NUM_PROCESSES": "4",
    "KERAS_DISTRIBUTION_PROCESS_ID": "2",
}
SLURM = {
    "SLURM_JOB_ID": "70001",
    "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_STEP_NODELIST": "gpu[03-04,07]-ib,login",
    "SLURM_PROCID": "1",
}


def without(variables, *names):
    return {name: value for name, value in variables.items() if name not in names}


def test_a_process_is_alone_unless_told():
    assert find_place({}) is None
    assert find_place({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None  # not started by srun
    assert find_place(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    assert find_place({"JOB_COMPLETION_INDEX": "3"}) is None  # a Job of independent parts
    assert find_place(KERAS | {"KERAS_DISTRIBUTION_NUM_PROCESSES": "1"}) is None


def test_keras_variables():
    assert find_place(KERAS) == Place("10.0.0.1:1234", 4, 2)
    assert find_place(KERAS | SLURM) == Place("10.0.0.1:1234", 4, 2)
    addresses = {"KERAS_DISTRIBUTION_JOB_ADDRESSES": "a:1,b:2,c:3", "SLURM_PROCID": "1"}
    assert find_place(addresses) == Place("a:1", 3, 1)


def test_slurm_job_steps():
    # 70001 = 17 * 4096 + 369
    assert find_place(SLURM) == Place("gpu03-ib:61809", 3, 1)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("node[2,5]", "node2"),
        ("node[008-011]", "node008"),
        ("a-b[1-2].site.org,c", "a-b1.site.org"),
    ],
)
def test_the_first_node_of_a_list(nodes, first):
    place = find_place(SLURM | {"SLURM_STEP_NODELIST": nodes})
    assert place is not None
    assert place.address.rpartition(":")[0] == first


def test_kubernetes_job_with_an_index():
    job = without(KERAS, "KERAS_DISTRIBUTION_PROCESS_ID") | {"JOB_COMPLETION_INDEX": "3"}
    assert find_place(job) == Place("10.0.0.1:1234", 4, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"KERAS_DISTRIBUTION_PROCESS_ID": "4"}, "expected 0 to 3. Received: 4"),
        ({"KERAS_DISTRIBUTION_PROCESS_ID": "-1"}, "expected a whole number. Received: -1"),
        ({"KERAS_DISTRIBUTION_PROCESS_ID": "two"}, "expected a whole number. Received: two"),
        ({"KERAS_DISTRIBUTION_NUM_PROCESSES": "all"}, "NUM_PROCESSES: expected a whole number"),
        ({"KERAS_DISTRIBUTION_JOB_ADDRESSES": "10.0.0.1"}, "expected host:port"),
        ({"KERAS_DISTRIBUTION_JOB_ADDRESSES": ""}, "expected host:port"),
    ],
)
def test_senseless_variables_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        find_place(KERAS | changes)


def test_a_missing_index_is_named():
    with pytest.raises(ConfigError, match=r"PROCESS_ID: expected a whole number\. Received: None"):
        find_place(without(KERAS, "KERAS_DISTRIBUTION_PROCESS_ID"))


@pytest.mark.parametrize(("size", "count"), [(12, 3), (12, 4), (8, 1)])
def test_shares_are_the_whole(size, count):
    parts = [range(size)[Hosts(index, count).share(size)] for index in range(count)]
    assert [number for part in parts for number in part] == list(range(size))
    assert len({len(part) for part in parts}) == 1


def test_alone_a_mistake_stays_as_it_is():
    def fail():
        raise DataError("no such folder")

    for call in (Hosts().everywhere, Hosts().on_first):
        with pytest.raises(DataError, match=r"^no such folder$"):
            call(fail)
    assert Hosts().everywhere(lambda: None) is None
    assert Hosts().on_first(lambda: True)
    assert not Hosts().on_first(lambda: False)
    assert not Hosts().on_first(lambda: None)
    Hosts().require_equal(config=1)
    assert Hosts().send(b"state") == b"state"


ANNOUNCED = """
import time
from wbc_keras.training.hosts import announced

try:
    with announced():
        print("ready", flush=True)
        time.sleep(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals to a group")
@pytest.mark.parametrize(
    ("number", "told"),
    [(signal.SIGINT, "interrupted\n"), (signal.SIGKILL, "error: process 2 was killed, or ended")],
)
def test_an_end_is_told_once(root, number, told):
    process = subprocess.Popen(
        [sys.executable, "-c", ANNOUNCED],
        env=os.environ | KERAS | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    # Ctrl-C reaches the whole group, what watches the process too; the system kills one.
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    # Read to the end: until the watcher has ended, too.
    said, _ = process.communicate(timeout=30)
    assert said.startswith(told)
    assert said.count("\n") == 1
