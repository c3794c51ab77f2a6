"""Find the cells: ``python -m wbc_keras.roi --data PATH --output CSV``.

The work itself is in `localize`; this module reads the pictures and writes what was found.
"""

from __future__ import annotations

import argparse
import csv
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wbc_keras.commands import load_tensorflow, make_parser, run_action
from wbc_keras.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from wbc_keras.config import RoiConfig
    from wbc_keras.manifest import Manifest

COLUMNS = ("file", "y0", "x0", "y1", "x1", "found")

_BATCH = 64
_PREVIEW_CELLS = 48
_PREVIEW_COLUMNS = 8
_TILE = 160  # pixels
_CAPTION = 18  # pixels
_PREVIEW_SUFFIXES = (".png", ".jpg", ".jpeg")
# Okabe and Ito's palette, safe for the colour-blind.
_BOX, _FALLBACK, _OUTLINE = (0, 114, 178), (213, 94, 0), (240, 228, 66)


@dataclass(frozen=True)
class Located:
    """One picture and what was found in it.

    Attributes:
        file: as in the manifest.
        size: height and width of the picture, pixels.
        box: float32 ``(4,)``, y0, x0, y1, x1 in shares of the picture.
        found: False if the box is the central square because no nucleus was seen.
        mask: float32 ``(96, 96)``, over 0.5 on the nucleus.
        thumbnail: float32 ``(96, 96, 3)``, RGB, 0-255.
    """

    file: str
    size: tuple[int, int]
    box: np.ndarray
    found: bool
    mask: np.ndarray
    thumbnail: np.ndarray


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when done, 2 for the user's mistake."""
    parser = make_parser("roi", "Find the cell in each picture and write its box.")
    parser.add_argument(
        "--data", required=True, nargs="+", help="folder, manifest or picture files"
    )
    parser.add_argument("--output", required=True, help="the table to write, a .csv")
    parser.add_argument(
        "--masks", help="folder for the nuclei, a PNG for each picture (255, else 0)"
    )
    parser.add_argument("--preview", help="picture to draw some cells on, a .png or .jpg")
    return run_action(_action, parser.parse_args(argv))


def _action(arguments: argparse.Namespace) -> None:
    table = write_boxes(
        arguments.data,
        output=arguments.output,
        masks=arguments.masks,
        preview=arguments.preview,
    )
    found = int(table["found"].sum())
    print(f"{len(table)} cells, {found} found ({found / len(table):.1%})", end="")
    print(", the others boxed at the centre" if found < len(table) else "")
    for path in (arguments.output, arguments.masks, arguments.preview):
        if path is not None:
            print(path)


def write_boxes(
    data: str | Path | Sequence[str | Path],
    *,
    output: str | Path,
    masks: str | Path | None = None,
    preview: str | Path | None = None,
    roi: RoiConfig | None = None,
) -> pd.DataFrame:
    """Find the cell in each picture and return the table that is written to ``output``.

    Args:
        data: any source, labelled or not; also a flat folder or single files.
        output: CSV file, replaced whole.
        masks: folder for the nuclei; each mask has its picture's size and its picture's path
            within the data, ending in .png.
        preview: PNG or JPEG file for a sheet of up to 48 cells with box and nucleus.
        roi: how cells are found; the defaults if None.

    Returns:
        One row for each picture: file, y0, x0, y1, x1 in shares of the picture, found (bool).

    Raises:
        DataError: pictures cannot be read (all are named, nothing is written), or an output would
            replace what it should not.
    """
    import pandas as pd

    from wbc_keras.config import RoiConfig
    from wbc_keras.manifest import read_manifest

    manifest = read_manifest(data, labelled=False)
    _check_outputs(manifest, data, output=output, masks=masks, preview=preview)
    # TensorFlow is loaded only when the request itself is sound.
    load_tensorflow()
    from wbc_keras.pictures.images import require_readable

    require_readable(manifest.paths())
    located = _locate_all(manifest, roi or RoiConfig())
    if masks is not None:
        located = _write_masks(located, Path(masks))
    shown = _spread_evenly(len(manifest.table), _PREVIEW_CELLS) if preview is not None else ()
    rows, tiles = [], []
    for index, (cell, label) in enumerate(zip(located, manifest.table["label"], strict=True)):
        rows.append((cell.file, *(float(edge) for edge in cell.box), cell.found))
        if index in shown:
            tiles.append(_draw_tile(cell, caption=label or cell.file))
    _write_table(Path(output), rows)
    if preview is not None:
        _write_sheet(Path(preview), tiles)
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _locate_all(manifest: Manifest, roi: RoiConfig) -> Iterator[Located]:
    """Yield the cells in the manifest's order, holding one batch of thumbnails at a time."""
    import numpy as np
    import tensorflow as tf

    from wbc_keras.pictures.localize import locate

    find = tf.function(locate, reduce_retracing=True)
    files = list(manifest.table["file"])
    # One a core: each holds a whole picture, however large.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(files), _BATCH):
            names = files[start : start + _BATCH]
            read = list(pool.map(_read_small, (manifest.root / name for name in names)))
            sizes, small = [size for size, _ in read], [thumbnail for _, thumbnail in read]
            found = find(
                np.stack(small), np.array(sizes, np.int32), mode=roi.mode, margin=roi.margin
            )
            parts = (found.boxes.numpy(), found.found.numpy().tolist(), found.masks.numpy())
            yield from map(Located, names, sizes, *parts, small)


def _read_small(path: Path) -> tuple[tuple[int, int], np.ndarray]:
    from wbc_keras.pictures.images import read_image
    from wbc_keras.pictures.localize import make_thumbnail

    image = read_image(path)
    return image.shape[:2], make_thumbnail(image).numpy()


# Outputs


def _check_outputs(
    manifest: Manifest,
    data: str | Path | Sequence[str | Path],
    *,
    output: str | Path,
    masks: str | Path | None,
    preview: str | Path | None,
) -> None:
    from wbc_keras.manifest import require_apart
    from wbc_keras.runs import require_writable

    if Path(output).is_dir():
        raise DataError(f"{output}: is a folder; --output names the table, e.g. roi.csv")
    if preview is not None and Path(preview).suffix.lower() not in _PREVIEW_SUFFIXES:
        raise DataError(f"{preview}: --preview names a .png or .jpg file")
    if masks is not None and Path(masks).exists() and not Path(masks).is_dir():
        raise DataError(f"{masks}: is a file; --masks names a folder")
    if preview is not None and Path(preview).resolve() == Path(output).resolve():
        raise DataError(f"{preview}: --preview and --output name the same file")
    written = [Path(path) for path in (output, preview) if path is not None]
    if masks is not None:
        written += _mask_paths(manifest, Path(masks))
    for path in (output, preview, masks):
        if path is not None:
            require_writable(Path(path))
    require_apart(manifest, data, written)


def _mask_paths(manifest: Manifest, folder: Path) -> list[Path]:
    paths = [_mask_path(folder, file) for file in manifest.table["file"]]
    twice = [path for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise DataError(
            f"{twice[0]}: would be the mask of more than one picture; "
            "give pictures that differ only in their suffix different names"
        )
    return paths


def _mask_path(folder: Path, file: str) -> Path:
    return folder / Path(file).with_suffix(".png")


def _write_masks(located: Iterator[Located], folder: Path) -> Iterator[Located]:
    import numpy as np

    for cell in located:
        nucleus = _enlarge(cell.mask, cell.size) > 0.5
        _write_picture(_mask_path(folder, cell.file), np.where(nucleus, 255, 0).astype(np.uint8))
        yield cell


def _enlarge(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import cv2

    return cv2.resize(mask, size[::-1], interpolation=cv2.INTER_LINEAR)


def _write_picture(path: Path, image: np.ndarray) -> None:
    """Write grey or RGB, whole or not at all; `cv2.imwrite` would fail on some names in silence."""
    import cv2

    from wbc_keras.runs import replacing

    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(path.suffix, image)
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _write_table(path: Path, rows: Sequence[tuple[Any, ...]]) -> None:
    from wbc_keras.runs import replacing

    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(COLUMNS)
        for file, *box, found in rows:
            writer.writerow([file, *(f"{edge:.6f}" for edge in box), str(found).lower()])


# Preview


def _spread_evenly(count: int, most: int) -> set[int]:
    """Return up to ``most`` of the numbers below ``count``, so that every class has a chance."""
    return {index * count // min(count, most) for index in range(min(count, most))}


def _draw_tile(cell: Located, *, caption: str) -> np.ndarray:
    """Return a caption over the picture with its nucleus outlined and its box drawn."""
    import cv2
    import numpy as np

    height, width = cell.size
    size = (max(1, _TILE * height // max(cell.size)), max(1, _TILE * width // max(cell.size)))
    picture = cv2.resize(cell.thumbnail, size[::-1], interpolation=cv2.INTER_CUBIC)
    picture = np.clip(picture, 0, 255).astype(np.uint8)
    nucleus = (_enlarge(cell.mask, size) > 0.5).astype(np.uint8)
    outlines, _ = cv2.findContours(nucleus, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, outlines, -1, _OUTLINE, 1)
    top, left, bottom, right = (int(edge) for edge in np.round(cell.box * (size * 2)))
    color = _BOX if cell.found else _FALLBACK
    cv2.rectangle(picture, (left, top), (right - 1, bottom - 1), color, 2)
    tile = np.full((_TILE + _CAPTION, _TILE, 3), 255, np.uint8)
    tile[_CAPTION : _CAPTION + size[0], : size[1]] = picture
    cv2.putText(tile, caption[-24:], (2, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1)
    return tile


def _write_sheet(path: Path, tiles: Sequence[np.ndarray]) -> None:
    import numpy as np

    blank = np.full_like(tiles[0], 255)
    columns = min(len(tiles), _PREVIEW_COLUMNS)
    padded = [*tiles, *[blank] * (-len(tiles) % columns)]
    rows = [np.hstack(padded[at : at + columns]) for at in range(0, len(padded), columns)]
    _write_picture(path, np.vstack(rows))


if __name__ == "__main__":
    raise SystemExit(main())
