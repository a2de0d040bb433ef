"""A finished run of one drawn image: the files that the last steps read, without a network."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from skimage.measure import regionprops_table

from iaunet import grid, metrics, omezarr, tables
from iaunet.identity import AGREED


def write(
    folder: Path,
    image: np.ndarray,
    labels: np.ndarray,
    *,
    name: str = "a",
    core: tuple[int, ...],
    pixel_um: tuple[float, ...] | None = None,
    channel: str = "DAPI",
    true: np.ndarray | None = None,
    more: dict | None = None,
) -> dict[str, Path]:
    """Write store, tables and JSON files of one image; return the options of report.py."""
    home = folder / "results" / name
    home.mkdir(parents=True)
    axes = "zyx"[-image.ndim :]
    store = home / f"{name}.ome.zarr"
    group = omezarr.create_image(
        store, image.shape, tuple(axes), image.dtype, pixel_um, name, {"channel": channel}
    )
    group["0"][...] = image
    omezarr.write_pyramid(store)
    omezarr.add_labels(store, "instances", np.uint32)[...] = labels
    omezarr.write_label_pyramid(store)
    size = "area_px" if image.ndim == 2 else "volume_px"
    objects, seams = measured(name, image, labels, core)
    tables.write_parquet(objects, home / "objects.parquet")
    tables.write_csv(seams, home / "seams.csv")
    limits = [float(value) for value in np.percentile(image, (1, 99.8))]
    n_tiles = grid.n_tiles(image.shape, core)
    texts = {
        "metrics.json": {
            "n_objects": len(objects),
            "n_tiles": n_tiles,
            "n_batches": 1,
            "shape": list(image.shape),
            "pixel_um": pixel_um,
            "foreground_fraction": float((labels > 0).mean()),
            f"median_{size}": float(objects[size].median()) if len(objects) else None,
            "n_crossing_seams": len(seams),
            "seam_conflicts": int((seams["verdict"] == "conflict").sum()),
            "seconds": 12.5,
            "mpx_per_s": 1.8,
            "warnings": [],
            **({} if true is None else metrics.accuracy(metrics.overlap(true, labels))),
            **(more or {}),
        },
        "provenance.json": {
            "image": name,
            "steps": [
                {"step": "tile", "seconds": 1.5, "peak_memory_mb": 210.0, "host": "node1"},
                {"step": "infer", "seconds": 9.1, "peak_memory_mb": 900.5, "host": "node1"},
                {"step": "infer", "seconds": 8.1, "peak_memory_mb": 905.5, "host": "node2"},
            ],
        },
        "tiles.json": {
            "version": "0",
            "image": name,
            "shape": list(image.shape),
            "axes": list(axes),
            "dtype": str(image.dtype),
            "channel": channel,
            "pixel_um": pixel_um,
            "limits": limits,
            "constant": bool(image.min() == image.max()),
            "core": list(core),
            "halo": [8] * image.ndim,
            "n_batches": 1,
            "n_tiles": n_tiles,
            "model": {"name": "drawn", "sha256": "0" * 64},
            "source": {
                "path": f"{name}.tif",
                "bytes": image.nbytes,
                "sha256": "1" * 64,
                "format": "TIFF",
                "scene": None,
                "frame": None,
            },
            "warnings": [],
            "percentiles": [1, 99.8],
        },
    }
    for file, text in texts.items():
        (home / file).write_text(json.dumps(text), encoding="utf-8")
    return {
        "--store": store,
        "--objects": home / "objects.parquet",
        "--metrics": home / "metrics.json",
        "--provenance": home / "provenance.json",
        "--seams": home / "seams.csv",
        "--tiles": home / "tiles.json",
        "--output": home / "report.html",
    }


def measured(
    name: str, image: np.ndarray, labels: np.ndarray, core: tuple[int, ...]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a table of objects and one of seams; the confidence is invented."""
    axes, size = "zyx"[-image.ndim :], "area_px" if image.ndim == 2 else "volume_px"
    found = regionprops_table(labels, properties=("label", "area", "centroid", "bbox"))
    frame = pd.DataFrame({"image": name, "label": found["label"]})
    for axis, letter in enumerate(axes):
        frame[f"{letter}_px"] = found[f"centroid-{axis}"]
        frame[f"bbox_{letter}_min"] = found[f"bbox-{axis}"]
        frame[f"bbox_{letter}_max"] = found[f"bbox-{axis + image.ndim}"]
    frame[size] = found["area"].astype(np.int64)
    frame["confidence"] = 0.4 + 0.6 * np.random.default_rng(1).beta(5, 1, len(frame))
    total = np.bincount(labels.ravel(), image.ravel().astype(float))
    ids = frame["label"].to_numpy(int)
    frame["mean_intensity_DAPI"] = total[ids] / frame[size] if len(ids) else np.zeros(0)
    frame["touches_border"] = False
    tiles_of: dict[int, list[int]] = {}
    for tile in grid.tiles(labels.shape, core):
        for label in np.unique(labels[tile.core]):
            tiles_of.setdefault(int(label), []).append(tile.index)
    tiles_of.pop(0, None)
    rows = [
        (name, label, label, len(seen), " ".join(map(str, seen)), 1, 0, 0, 1.0, "", np.nan, AGREED)
        for label, seen in sorted(tiles_of.items())
        if len(seen) > 1
    ]
    columns = ["image", "label", "gid", "n_tiles", "tiles", "n_batches", size]
    columns += ["min_voxels_in_a_core", "agreement", "evidence", "probability", "verdict"]
    return frame, pd.DataFrame(rows, columns=columns)
