"""Many small files against tar shards: seconds to list and read them, room, and what latency does.

    python benchmarks/shards.py --data ../shared/data/pbc

The same pictures as loose files and as shards of --each, read as `score` reads them, by a thread
for every core, nothing decoded. "Disk": the files' pages are dropped from memory beforehand
(folders' entries are not, so loose files are flattered). "Far": each opening of a file takes
--latency seconds more, as that of an object store or a busy network share does.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem
from score import copy_pictures

from wbc_keras.commands import load_tensorflow
from wbc_keras.manifest import read_manifest
from wbc_keras.pictures.shards import pack_shards
from wbc_keras.prediction.pieces import Piece, find_pieces


class FarFileSystem(LocalFileSystem):
    """Local files, as ``far://path``, that take a while to open."""

    protocol = "far"
    latency = 0.0

    def _open(self, *arguments, **options):
        time.sleep(self.latency)
        return super()._open(*arguments, **options)

    def unstrip_protocol(self, name):
        return f"far://{self._strip_protocol(name)}"

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(path.removeprefix("far://"))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of JPEGs")
    parser.add_argument("--pictures", type=int, default=10_000, metavar="N", help="default: 10000")
    parser.add_argument("--each", type=int, default=1000, help="pictures a shard (default: 1000)")
    parser.add_argument("--latency", type=float, default=0.02, metavar="S", help="default: 0.02")
    arguments = parser.parse_args(argv)
    FarFileSystem.latency = arguments.latency
    load_tensorflow()
    fsspec.register_implementation("far", FarFileSystem)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_pictures(Path(arguments.data), folder / "loose", count=arguments.pictures)
        started = time.perf_counter()
        shards = max(1, arguments.pictures // arguments.each)
        pack_shards(read_manifest(folder / "loose", labelled=False), folder / "tar", count=shards)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {sys.platform}")
        print(f"packing {arguments.pictures} pictures: {time.perf_counter() - started:.1f} s")
        print(
            "          files  MB of data  MB on disk  list s  disk s  memory s   far s  far list s"
        )
        for kind in ("loose", "tar"):
            print_row(kind, folder / kind)


def print_row(kind: str, folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    sizes = [path.stat() for path in files]
    drop_pages(files)
    listed, pieces = measure(lambda: find_pieces([str(folder)]))
    cold, _ = measure(lambda: read_all(pieces))
    warm, _ = measure(lambda: read_all(pieces))
    far_listed, far_pieces = measure(lambda: find_pieces([f"far://{folder}"]))
    far, _ = measure(lambda: read_all(far_pieces))
    data = sum(size.st_size for size in sizes) / 1e6
    disk = sum(size.st_blocks for size in sizes) * 512 / 1e6
    print(
        f"{kind:8} {len(files):6}  {data:10.1f}  {disk:10.1f}  {listed:6.2f}  {cold:6.2f}  "
        f"{warm:8.2f}  {far:6.2f}  {far_listed:10.2f}",
        flush=True,
    )


def measure(work):
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def read_all(pieces: Sequence[Piece]) -> int:
    """Return how many bytes all pictures have."""
    from wbc_keras.pictures.cells import map_ahead

    total = 0
    for piece in pieces:
        total += sum(map_ahead(lambda sample: len(sample.read()), piece.read_samples()))
    return total


def drop_pages(files: Sequence[Path]) -> None:
    """Have the system forget the contents of files that it keeps in memory."""
    os.sync()
    for path in files:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
