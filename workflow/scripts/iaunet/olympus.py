"""Read Olympus OIF and OIB (FluoView), section by section."""

from pathlib import Path

import numpy as np

from iaunet.errors import InputError
from iaunet.grid import Box
from iaunet.scenes import Scene, framed, letters, to_um


def scenes(path: Path) -> list[Scene]:
    """Return the image of a file; an OIF has its sections in the folder ``{path}.files``."""
    import oiffile

    file = oiffile.OifFile(path)
    if not file.series:
        folder = "" if file.is_oib else f" and {path.name}.files"
        raise InputError(f"{path}: has no sections; copy {path.name}{folder} again")
    sections = file.series[0]
    if len(sections) != np.prod(sections.shape):
        wanted = " x ".join(map(str, sections.shape))
        raise InputError(
            f"{path}: {len(sections)} sections of {wanted} are there; "
            "copy the file, of an OIF also its folder, again"
        )
    number = dict(zip(map(tuple, sections.indices), sections, strict=True))
    first = file.asarray(sections[0])
    dims = f"{sections.axes}YX"

    def frame(position: tuple[int, ...], sides: Box) -> np.ndarray:
        values = file.asarray(number[position])
        if values.shape != first.shape:
            raise ValueError(f"section {number[position]} has the shape {values.shape}")
        return values[sides]

    return [
        Scene(
            name=path.stem,
            axes=letters(dims),
            shape=(*sections.shape, *first.shape),
            dtype=first.dtype,
            read=framed(len(sections.shape), first.dtype, frame),
            pixel_um=_pixel_um(file.mainfile),
            full_rows=True,
        )
    ]


def _pixel_um(settings: dict) -> dict[str, float]:
    image = settings.get("Reference Image Parameter", {})
    found = {
        axis: to_um(image.get(f"{side}ConvertValue"), image.get(f"{side}Unit"))
        for axis, side in (("y", "Height"), ("x", "Width"))
    }
    for name, axis in settings.items():
        if name.startswith("Axis ") and axis.get("AxisCode") == "Z":
            found["z"] = to_um(axis.get("Interval"), axis.get("PixUnit"))
    return {axis: um for axis, um in found.items() if um}
