"""Read Imaris 5.5 (IMS), which is HDF5, chunk by chunk."""

import math
from pathlib import Path

import numpy as np

from iaunet.errors import InputError
from iaunet.grid import Box
from iaunet.scenes import Scene, framed, to_um
from iaunet.unpacking import LARGEST_CHUNK

UNIT = "um"


def scenes(path: Path) -> list[Scene]:
    """Return the image of a file, at full resolution.

    Source: "Imaris 5.5 file format description", Bitplane. Arrays are padded to whole chunks;
    their true size stands beside them.
    """
    import h5py

    file = h5py.File(path, "r", locking=False)  # cluster file systems often cannot lock
    level = _inside(file, "DataSet", "ResolutionLevel 0")
    n_frames = _count(level, "TimePoint")
    first = _inside(level, "TimePoint 0")
    n_channels = _count(first, "Channel")
    channel = _inside(first, "Channel 0")
    data = _array(channel)
    shape = tuple(
        int(_text(channel, f"ImageSize{axis}") or n)
        for axis, n in zip("ZYX", data.shape, strict=True)
    )
    if any(n > stored for n, stored in zip(shape, data.shape, strict=True)):
        raise InputError(f"{path}: damaged Imaris: {shape} pixels in an array of {data.shape}")
    n_bytes = math.prod(data.chunks or (1,)) * data.dtype.itemsize
    if n_bytes > LARGEST_CHUNK:
        raise InputError(
            f"{path}: chunks of {data.chunks} have {n_bytes:,} bytes; at most {LARGEST_CHUNK:,} "
            "are read, save the file again with Imaris"
        )

    def frame(position: tuple[int, ...], sides: Box) -> np.ndarray:
        names = (f"TimePoint {position[0]}", f"Channel {position[1]}")
        found = _array(_inside(level, *names))
        if found.shape != data.shape or found.dtype != data.dtype:
            raise ValueError(f"{'/'.join(names)} has the shape {found.shape}")
        return found[sides]

    about = file.get("DataSetInfo")
    names = [_text(about, "Name", f"Channel {k}") for k in range(n_channels)]
    return [
        Scene(
            name=path.stem,
            axes="tczyx",
            shape=(n_frames, n_channels, *shape),
            dtype=data.dtype,
            read=framed(2, data.dtype, frame),
            channels=names if all(names) and len(set(names)) == len(names) else [],
            pixel_um=_pixel_um(about, shape),
        )
    ]


def _inside(group: object, *names: str) -> object:
    """Return a member; one that is a link, perhaps to another file, is refused."""
    import h5py

    for name in names:
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise ValueError(f"no {name}")
        group = group[name]
    return group


def _array(channel: object) -> object:
    data = _inside(channel, "Data")
    if data.ndim != 3 or data.external or data.is_virtual:
        raise ValueError("Data is no array of three axes in this file")
    return data


def _count(group: object, kind: str) -> int:
    return sum(name.startswith(f"{kind} ") for name in group)


def _text(group: object, attribute: str, *names: str) -> str:
    """Return an attribute, which is stored letter by letter; empty when there is none."""
    if group is None or any(name not in group for name in names):
        return ""
    found = _inside(group, *names).attrs.get(attribute)
    return (
        "" if found is None else np.asarray(found).tobytes().decode(errors="replace").strip("\0 ")
    )


def _pixel_um(about: object, shape: tuple[int, ...]) -> dict[str, float]:
    unit = _text(about, "Unit", "Image") or UNIT
    found = {}
    for number, (axis, n) in enumerate(zip("xyz", shape[::-1], strict=True)):
        ends = [_text(about, f"Ext{end}{number}", "Image") for end in ("Min", "Max")]
        if all(ends) and (um := to_um((float(ends[1]) - float(ends[0])) / n, unit)):
            found[axis] = um
    return found
