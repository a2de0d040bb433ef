"""Small run folders: a table, images and a model without weights, for checks and dry runs."""

import csv
import json
import struct
from pathlib import Path

import numpy as np
import tifffile

REPOSITORY = Path(__file__).resolve().parents[1]


def write_header_model(path, ndim=2, **changes):
    """Write a model file that has metadata and no weights."""
    meta = {
        "format": "iaunet-model",
        "version": 1,
        "name": path.stem,
        "ndim": ndim,
        "in_channels": 1,
        "net": {},
        "stride": [4] * ndim,
        "id_stride": [4] * ndim,
        "radius": [24] * ndim,
        "block": [64] * ndim,
        "normalize": {"percentiles": [1, 99.8]},
        "max_offset": [16] * ndim,
        "max_sigma": [16] * ndim,
        "clustering": {},
        "weights_sha256": "",
        **changes,
    }
    header = json.dumps({"__metadata__": {"iaunet": json.dumps(meta)}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def write_table(path, rows):
    """Write dicts as CSV."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_image(path, shape=(50, 70), **options):
    """Write a TIFF of noise."""
    rng = np.random.default_rng(0)
    tifffile.imwrite(path, rng.integers(0, 1000, shape).astype(np.uint16), **options)
    return path
