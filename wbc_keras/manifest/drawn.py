"""Drawn cells, drawn once into the cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

from wbc_keras.cache import cache_dir, materialise
from wbc_keras.config import SyntheticConfig
from wbc_keras.manifest.csv_table import read_csv
from wbc_keras.manifest.table import MANIFEST, Manifest


def read_synthetic(settings: SyntheticConfig) -> Manifest:
    """Draw cells, or find them drawn."""
    # Here, not above: drawing needs OpenCV, reading a table does not.
    from wbc_keras import synthetic
    from wbc_keras.pictures import smear

    # The drawing code belongs to the key: other code draws other cells.
    source = b"".join(Path(str(module.__file__)).read_bytes() for module in (smear, synthetic))
    values = json.dumps(dataclasses.asdict(settings), sort_keys=True).encode()
    key = hashlib.sha256(source + values).hexdigest()
    folder = cache_dir() / "synthetic" / key[:16]
    materialise(folder, lambda target: synthetic.write_cells(target, settings))
    manifest = read_csv(folder / MANIFEST, label_column="label", labelled=True)
    return dataclasses.replace(manifest, name="synthetic")
