"""JAX alone: a Python whose site has no TensorFlow, and processes of it that train together."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_TENSORFLOW = ("tensorflow", "tf_keras", "tf2onnx", "tensorboard", "ai_edge_litert", "__editable__")
# Little work for the compiler: the networks are small and run for a few steps.
_FLAGS = "--xla_backend_optimization_level=1"


def make_site(folder: Path) -> Path:
    """Fill ``folder`` with links to all that is installed here but TensorFlow and what needs it."""
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(_TENSORFLOW) and path.suffix != ".pth":
            (folder / path.name).symlink_to(path)
    return folder


def environment(site: Path, *, devices: int = 1, **more: str) -> dict[str, str]:
    """Return the environment of a process that has that site, and nothing else, to import from."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("KERAS_")}
    flags = f"{_FLAGS} --xla_force_host_platform_device_count={devices}"
    paths = os.pathsep.join([str(site), str(ROOT)])
    return kept | {
        "PYTHONPATH": paths,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def start(
    environ: dict[str, str], script: Sequence[str], arguments: Sequence[str], log: Path
) -> subprocess.Popen[bytes]:
    """Start a Python without its own site (-S); ``script`` is a file or ``-m module``."""
    with log.open("wb") as stream:
        return subprocess.Popen(
            [sys.executable, "-S", *script, *arguments],
            env=environ,
            cwd=ROOT,
            stdout=stream,
            stderr=subprocess.STDOUT,
        )


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def places(count: int) -> list[dict[str, str]]:
    """Return the variables of ``count`` processes on this machine."""
    address = f"127.0.0.1:{free_port()}"
    return [
        {
            "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
            "KERAS_DISTRIBUTION_NUM_PROCESSES": str(count),
            "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
        }
        for index in range(count)
    ]
