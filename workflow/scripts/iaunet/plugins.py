"""Read what the installed plug-ins of bioio read, of formats that nothing else here knows."""

import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from iaunet.errors import InputError
from iaunet.grid import Box
from iaunet.scenes import Scene, letters, to_um

KINDS = {
    ".dv": ("DeltaVision", "bioio-dv"),
    ".r3d": ("DeltaVision", "bioio-dv"),
    ".sldy": ("SlideBook", "bioio-sldy"),
    ".vsi": ("Olympus VSI", "bioio-bioformats"),
    ".h5": ("HDF5", ""),
    ".hdf5": ("HDF5", ""),
}
CONVERT = (
    "convert it to OME-TIFF or OME-Zarr, for instance with bioformats2raw or Fiji, or install the "
    "plug-in of bioio that reads it"
)


def kind_of(path: Path) -> str:
    """Return the name of the format, by the name of the file."""
    return KINDS.get(path.suffix.lower(), (f"'{path.suffix}'", ""))[0]


def refusal(path: Path) -> str:
    """Return why no plug-in reads a file, and what to do, as the end of a sentence."""
    kind, package = KINDS.get(path.suffix.lower(), ("", ""))
    if not kind:
        return f"neither TIFF, PNG, OME-Zarr nor a format of docs/formats.md; {CONVERT}"
    if not package:
        return f"{kind} is not read; {CONVERT}"
    if importlib.util.find_spec(package.replace("-", "_")):
        return f"damaged or unsupported {kind}; copy or export the file again"
    line = f"python -m pip install --constraint requirements.txt bioio {package}"
    if package == "bioio-dv":
        line = (
            "make formats in the repository, or python -m pip install --requirement "
            "requirements-formats.txt"
        )
    return f"{kind} needs the package {package}; type {line}; or {CONVERT}"


def scenes(path: Path) -> tuple[str, list[Scene]] | None:
    """Return the name of the plug-in and the scenes of a file; None when no plug-in knows it.

    Pixels are read as the plug-in divides them, chunk by chunk, in this thread.
    """
    try:
        from bioio import BioImage
        from bioio_base.exceptions import UnsupportedFileFormatError
    except ImportError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that we do not use
        try:
            reader = BioImage(path).reader  # BioImage itself needs names of all channels
        except UnsupportedFileFormatError:
            return None
        found = [_scene(path, reader, k, str(name)) for k, name in enumerate(reader.scenes)]
    return f"by {type(reader).__module__.partition('.')[0].replace('_', '-')}", found


def _scene(path: Path, reader: object, index: int, name: str) -> Scene:
    reader.set_scene(index)
    array = reader.xarray_dask_data
    if array.sizes.get("M", 1) > 1:
        try:
            array = reader.mosaic_xarray_dask_data
        except NotImplementedError as error:
            raise InputError(
                f"{path}: scene '{name}' is a mosaic of {array.sizes['M']} tiles that its reader "
                "does not put together; merge them with the microscope's program and export that"
            ) from error
    names = [str(one) for one in reader.channel_names or []]
    properties, sizes = reader.dimension_properties, reader.physical_pixel_sizes
    pixel_um = {}
    for axis in "ZYX":
        unit = getattr(getattr(properties, axis, None), "unit", None)
        um = to_um(getattr(sizes, axis), "um" if unit is None else f"{unit}")
        if um:
            pixel_um[axis.lower()] = um
    return Scene(
        name=name,
        axes=letters(array.dims),
        shape=tuple(array.shape),
        dtype=np.dtype(array.dtype),
        read=_reader(array.data),
        channels=names if len(set(names)) == len(names) else [],
        pixel_um=pixel_um,
        full_rows=True,
    )


def _reader(array: object) -> Callable[[Box], np.ndarray]:
    return lambda box: np.asarray(array[box].compute(scheduler="synchronous"))
