"""Write a TIFF as OME-Zarr with a pyramid, by ome-zarr or ngff-zarr; print the seconds, JSON.

Chunks are as large as those of tile.py.

Example
-------
    python benchmarks/speed/writers.py ome-zarr image.tif image.zarr
"""

import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import tifffile

CHUNKS = {2: (512, 512), 3: (16, 128, 128)}


def ome_zarr(values: np.ndarray, path: str) -> None:
    """Write with ome-zarr."""
    import zarr
    from ome_zarr.writer import write_image

    group = zarr.open_group(path, mode="w")
    axes = "zyx"[-values.ndim :]
    write_image(values, group, axes=axes, storage_options={"chunks": CHUNKS[values.ndim]})


def ngff_zarr(values: np.ndarray, path: str) -> None:
    """Write with ngff-zarr."""
    import ngff_zarr as ngff

    dims = list("zyx"[-values.ndim :])
    chunks = dict(zip(dims, CHUNKS[values.ndim], strict=True))
    image = ngff.to_ngff_image(values, dims=dims)
    ngff.to_ngff_zarr(path, ngff.to_multiscales(image, chunks=chunks))


def main() -> None:
    """Read, write, and print."""
    who, source, path = sys.argv[1:]
    shutil.rmtree(path, ignore_errors=True)
    write = {"ome-zarr": ome_zarr, "ngff-zarr": ngff_zarr}[who]
    clock, cpu = time.perf_counter(), time.process_time()
    write(tifffile.imread(source), path)
    found = {"seconds": time.process_time() - cpu, "wall": time.perf_counter() - clock}
    n_bytes = sum(file.stat().st_size for file in Path(path).rglob("*") if file.is_file())
    print(json.dumps(found | {"bytes": n_bytes}))  # noqa: T201


if __name__ == "__main__":
    main()
