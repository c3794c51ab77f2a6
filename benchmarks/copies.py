"""Are copies found, and are different cells told apart?

Some cells of a set are changed as people change them (turned or mirrored, encoded anew, scaled,
moved, cropped, brightened, turned by an odd angle) and looked for among all cells of the set. From
"moved" on it is more than `wbc_keras.checking.duplicates` promises: the figures say how much it
takes.

    python benchmarks/copies.py --data ../shared/data/pbc
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np

from wbc_keras.checking.duplicates import find_copies, fingerprint, shrink
from wbc_keras.manifest import read_manifest
from wbc_keras.pictures.survey import survey_pictures

Change = Callable[[np.ndarray], np.ndarray]


def scale(image: np.ndarray, factor: float) -> np.ndarray:
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=method)


def shift(image: np.ndarray, share: float) -> np.ndarray:
    """Move the window over the picture: what leaves on one side is mirrored in on the other."""
    size = image.shape[1::-1]
    matrix = np.array([[1, 0, share * size[0]], [0, 1, -share * size[1]]])
    return cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REFLECT_101)


def crop(image: np.ndarray, share: float) -> np.ndarray:
    cut = round(image.shape[0] * share / 2)
    return image[cut:-cut, cut:-cut]


def turn(image: np.ndarray, degrees: float) -> np.ndarray:
    size = image.shape[1::-1]
    matrix = cv2.getRotationMatrix2D((size[0] / 2, size[1] / 2), degrees, 1)
    return cv2.warpAffine(image, matrix, size, borderMode=cv2.BORDER_REFLECT_101)


CHANGES: dict[str, tuple[Change, int]] = {
    "quality 85": (lambda image: image, 85),
    "quality 50": (lambda image: image, 50),
    "quality 30": (lambda image: image, 30),
    "1.5 times the size": (lambda image: scale(image, 1.5), 85),
    "0.7 times the size": (lambda image: scale(image, 0.7), 85),
    "half the size": (lambda image: scale(image, 0.5), 85),
    "a third of the size": (lambda image: scale(image, 1 / 3), 85),
    "moved by 3 % of the side": (lambda image: shift(image, 0.03), 85),
    "moved by 6 % of the side": (lambda image: shift(image, 0.06), 85),
    "cropped by 5 %": (lambda image: crop(image, 0.05), 85),
    "10 % brighter": (lambda image: cv2.convertScaleAbs(image, alpha=1.1), 85),
    "turned by 10 degrees": (lambda image: turn(image, 10), 85),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="labelled cells")
    parser.add_argument("--cells", type=int, default=500, help="how many are changed (500)")
    arguments = parser.parse_args()
    manifest = read_manifest(arguments.data)
    files = manifest.table["file"].tolist()
    start = time.perf_counter()
    survey = survey_pictures(manifest.root, files)
    read = time.perf_counter()
    sets = survey.find_copies().sets()
    found = time.perf_counter()
    print(f"{len(files)} pictures: read in {read - start:.1f} s, compared in {found - read:.1f} s")
    print(f"copies among them: {len(sets)} sets, {sum(map(len, sets))} pictures")
    chosen = np.random.default_rng(0).choice(len(files), arguments.cells, replace=False)
    images = [cv2.imread(str(manifest.root / files[row])) for row in chosen]
    print(f"{len(chosen)} of them changed, each turned or mirrored as well")
    print(f"{'change':<28}{'found':>8}{'false':>8}   distance of fingerprints, 99th centile")
    for name, (change, quality) in CHANGES.items():
        print_change(name, change, quality=quality, images=images, chosen=chosen, survey=survey)


def print_change(name, change, *, quality, images, chosen, survey) -> None:
    copies = [encode(change(turned(image, n % 8)), quality) for n, image in enumerate(images)]
    own = fingerprint(np.stack(copies))
    known = len(survey.files)
    load = survey.load_small()
    result = find_copies(
        np.concatenate([survey.fingerprints, own]),
        np.concatenate([survey.digests, np.arange(len(copies), dtype=np.uint64)]),
        rows=np.arange(known + len(copies)),
        load=lambda row: load(row) if row < known else copies[row - known],
    )
    alone = survey.find_copies().units
    mine = result.units[known:]
    hits = mine == alone[chosen]
    false = (mine < known) & ~hits
    moved = np.linalg.norm(own - survey.fingerprints[chosen], axis=1)
    median, most = np.percentile(moved, [50, 99])
    print(f"{name:<28}{hits.mean():>8.1%}{false.sum():>8}   {median:.1f}, {most:.1f}")


def turned(image: np.ndarray, number: int) -> np.ndarray:
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if number > 3 else image, number % 4))


def encode(image: np.ndarray, quality: int) -> np.ndarray:
    jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    small = shrink(jpeg, size=image.shape[1::-1], kind="JPEG")
    assert small is not None
    return small


if __name__ == "__main__":
    main()
