"""Are altered JPEGs told, and whole ones let pass?

Some JPEGs of a set are altered in their entropy-coded data or their frame header, as a bad disk or
a broken transfer alters them, and read as `manifest check` and `prepare` read them.

    python benchmarks/altered.py --data ../shared/data/pbc
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from wbc_keras.manifest import read_manifest
from wbc_keras.pictures.images import find_bad_images

Alteration = Callable[[bytearray, np.random.Generator], bytes]


def find_data(jpeg: bytes) -> int:
    """Return where the entropy-coded data of the first scan begin."""
    scan = jpeg.index(b"\xff\xda")
    return scan + 2 + int.from_bytes(jpeg[scan + 2 : scan + 4], "big")


def change_bytes(count: int) -> Alteration:
    def change(jpeg: bytearray, rng: np.random.Generator) -> bytes:
        for place in rng.integers(find_data(jpeg), len(jpeg) - 2, count).tolist():
            jpeg[place] ^= int(rng.integers(1, 256))
        return bytes(jpeg)

    return change


def overwrite(count: int, *, zeros: bool) -> Alteration:
    def change(jpeg: bytearray, rng: np.random.Generator) -> bytes:
        place = int(rng.integers(find_data(jpeg), len(jpeg) - 2 - count))
        jpeg[place : place + count] = bytes(count) if zeros else rng.bytes(count)
        return bytes(jpeg)

    return change


def cut(jpeg: bytearray, rng: np.random.Generator) -> bytes:
    return bytes(jpeg[: int(rng.integers(find_data(jpeg), len(jpeg) - 2))]) + b"\xff\xd9"


def set_rows(factor: float) -> Alteration:
    def change(jpeg: bytearray, rng: np.random.Generator) -> bytes:
        frame = min(place for mark in (b"\xff\xc0", b"\xff\xc2") if (place := jpeg.find(mark)) > 0)
        rows = int.from_bytes(jpeg[frame + 5 : frame + 7], "big")
        jpeg[frame + 5 : frame + 7] = round(factor * rows).to_bytes(2, "big")
        return bytes(jpeg)

    return change


ALTERATIONS: dict[str, Alteration] = {
    "cut in its middle, end marker appended": cut,
    "header says a tenth more rows": set_rows(1.1),
    "header says twice the rows": set_rows(2),
    "header says a quarter fewer rows": set_rows(0.75),
    "512 bytes in a row lost (zeros)": overwrite(512, zeros=True),
    "64 bytes in a row lost (zeros)": overwrite(64, zeros=True),
    "64 bytes in a row overwritten": overwrite(64, zeros=False),
    "16 bytes changed here and there": change_bytes(16),
    "4 bytes changed here and there": change_bytes(4),
    "1 byte changed": change_bytes(1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="cells, JPEGs among them")
    parser.add_argument("--cells", type=int, default=300, help="how many are altered (300)")
    arguments = parser.parse_args()
    paths = list(read_manifest(arguments.data).paths())
    start = time.perf_counter()
    bad = find_bad_images(paths, workers=os.cpu_count() or 1)
    speed = len(paths) / (time.perf_counter() - start)
    print(f"{len(paths)} pictures as they are: {len(bad)} refused, {speed:.0f} a second")
    rng = np.random.default_rng(0)
    jpegs = [path for path in paths if path.suffix.lower() in (".jpg", ".jpeg")]
    originals = [jpegs[row] for row in rng.choice(len(jpegs), arguments.cells, replace=False)]
    print(f"{len(originals)} of them altered, {'told':>27}")
    with tempfile.TemporaryDirectory() as folder:
        for name, alter in ALTERATIONS.items():
            altered = [Path(folder, f"{n}.jpg") for n in range(len(originals))]
            for path, original in zip(altered, originals, strict=True):
                path.write_bytes(alter(bytearray(original.read_bytes()), rng))
            print(f"{name:<40}{len(find_bad_images(altered)) / len(altered):>8.1%}")


if __name__ == "__main__":
    main()
