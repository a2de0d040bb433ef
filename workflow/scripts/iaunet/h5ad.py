"""Write the table of objects as AnnData, with the keys that squidpy and SpatialData look for."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import anndata
import numpy as np
import pandas as pd

REGION = "instances"
"""The element that the table is about, as SpatialData names it: the labels of the OME-Zarr."""
PLACED = ("_px", "_um")


def annotated(
    objects: pd.DataFrame,
    axes: Sequence[str],
    pixel_um: Sequence[float] | None,
    facts: Mapping[str, object],
) -> anndata.AnnData:
    """Return a table of objects as AnnData.

    ``X`` are the measurements, float64, NaN where there is none; ``obs`` holds what names and
    describes an object, ``obsm["spatial"]`` its centre: x, y(, z) in micrometres where the pixel
    size is known, else in pixels, and ``uns["spatialdata_attrs"]`` ties the rows to the labels.

    Parameters
    ----------
    objects : the table of measure.py
    axes : of the image, in the order of the array
    pixel_um : pixel size per axis, or None
    facts : what else is kept in ``uns["iaunet"]``
    """
    centres = [f"{axis}{unit}" for unit in PLACED for axis in axes]
    described = [
        name
        for name in objects
        if name in ("label", "confidence", "n_tiles")
        or name.startswith("bbox_")
        or not pd.api.types.is_numeric_dtype(objects[name])
        or pd.api.types.is_bool_dtype(objects[name])
    ]
    measured = [name for name in objects if name not in {*described, *centres}]
    observed = objects[described].astype({"label": np.int64})
    for name in observed:
        if not pd.api.types.is_numeric_dtype(observed[name]):
            observed[name] = _words(observed[name].tolist())
    observed["region"] = _words([REGION] * len(objects))
    observed.index = pd.Index([str(label) for label in objects["label"]], dtype=object)
    unit = "px" if pixel_um is None else "um"
    size = {} if pixel_um is None else {"pixel_um": np.array(pixel_um)}
    return anndata.AnnData(
        X=objects[measured].to_numpy(np.float64),
        obs=observed,
        var=pd.DataFrame(index=pd.Index(measured, dtype=object)),
        obsm={"spatial": objects[[f"{axis}_{unit}" for axis in reversed(axes)]].to_numpy(float)},
        uns={
            "iaunet": {**facts, **size, "axes": "".join(axes), "spatial_unit": unit},
            "spatialdata_attrs": {
                "region": REGION,
                "region_key": "region",
                "instance_key": "label",
            },
        },
    )


def _words(values: Sequence[str]) -> pd.Categorical:
    """Return texts as categories of plain objects: AnnData writes none of Arrow's strings."""
    known = pd.Index(sorted(set(values)), dtype=object)
    return pd.Categorical(pd.Series(values, dtype=object), categories=known)


def write(path: Path, table: anndata.AnnData) -> None:
    """Write AnnData as HDF5."""
    table.write_h5ad(path, compression="gzip")
