"""Read the files of microscopes frame by frame, with the readers of `requirements-formats.txt`.

Nothing is read but the frames, of CZI the windows, that a box needs. The tiles of a CZI mosaic
are put together by its reader, those of a LIF here, by the positions of the stage.
"""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from iaunet import imaris, mosaics, olympus, plugins
from iaunet.errors import InputError
from iaunet.grid import Box, box_shape
from iaunet.scenes import LARGEST_RATIO, LARGEST_UNCHECKED, Scene, framed, letters, to_um

KINDS = {
    ".czi": "Zeiss CZI",
    ".lif": "Leica LIF",
    ".nd2": "Nikon ND2",
    ".oib": "Olympus OIB",
    ".oif": "Olympus OIF",
    ".ims": "Imaris",
}
MAGIC = {b"ZISRAWFILE": ".czi", b"\xda\xce\xbe\x0a": ".nd2"}
CZI_DTYPES = {
    "Gray8": "u1",
    "Gray16": "u2",
    "Gray32Float": "f4",
    "Bgr24": "u1",
    "Bgr48": "u2",
    "Bgr96Float": "f4",
}
Frame = Callable[[tuple[int, ...], Box], np.ndarray]


def kind_of(path: Path, start: bytes) -> str | None:
    """Return the suffix of the format of a file, by its first bytes or its name; None: others."""
    for magic, suffix in MAGIC.items():
        if start.startswith(magic):
            return suffix
    return path.suffix.lower() if path.suffix.lower() in KINDS else None


def scenes(path: Path, suffix: str) -> tuple[str, list[Scene]]:
    """Return the name of the format and the scenes of a file; opens no pixels.

    Raises
    ------
    InputError
        The reader is not installed, or the file is damaged.
    """
    kind = KINDS[suffix]
    try:
        with _told(path, kind):
            found = READERS[suffix](path)
    except ImportError as error:
        raise InputError(
            f"{path}: {kind} needs the package {error.name}; type make formats in the repository, "
            "or python -m pip install --requirement requirements-formats.txt"
        ) from error
    if suffix != ".oif":  # whose pixels are in other files
        _check_size(path, found)
    return kind, _guarded(path, kind, found)


def others(path: Path) -> tuple[str, list[Scene]]:
    """Return the same of a file that only a plug-in of bioio may know.

    Raises
    ------
    InputError
        None does, or the file is damaged.
    """
    kind = plugins.kind_of(path)
    try:
        with _told(path, kind):
            found = plugins.scenes(path)
    except ImportError as error:
        raise InputError(
            f"{path}: a plug-in of bioio does not start ({error}); install what it needs, or "
            "remove it"
        ) from error
    if found is None:
        raise InputError(f"{path}: {plugins.refusal(path)}")
    name, all_scenes = found
    return f"{kind} {name}", _guarded(path, kind, all_scenes)


def _check_size(path: Path, found: list[Scene]) -> None:
    size = path.stat().st_size
    for scene in found:
        declared = math.prod(scene.shape) * scene.dtype.itemsize
        if declared > LARGEST_UNCHECKED and declared > LARGEST_RATIO * size:
            raise InputError(
                f"{path}: declares {declared:,} bytes of pixels but has {size:,} bytes; the file "
                "is truncated or damaged"
            )


def _guarded(path: Path, kind: str, found: list[Scene]) -> list[Scene]:
    """Return scenes whose damage is told while they are read."""
    if not found:
        raise InputError(f"{path}: {kind} without any image")
    for scene in found:
        scene.read = _checked(path, kind, scene.read)
    return found


@contextlib.contextmanager
def _told(path: Path, kind: str) -> Iterator[None]:
    """Turn what a reader raises at damaged bytes, which may be anything, into an `InputError`."""
    try:
        yield
    except (InputError, ImportError, MemoryError):
        raise
    except Exception as error:
        raise InputError(
            f"{path}: damaged or unsupported {kind} ({type(error).__name__}: {error}); copy or "
            "export the file again"
        ) from error


def _checked(path: Path, kind: str, read: Callable[[Box], np.ndarray]) -> Callable:
    def checked(box: Box) -> np.ndarray:
        with _told(path, kind):
            return read(box)

    return checked


def _czi(path: Path) -> list[Scene]:
    from pylibCZIrw import czi

    reader = czi.CziReader(str(path))
    xml = ElementTree.fromstring(reader.raw_metadata)
    box = reader.total_bounding_box_no_pyramid
    types = {str(name) for name in reader.pixel_types.values()}
    if len(types) != 1 or not types <= set(CZI_DTYPES):
        raise InputError(
            f"{path}: its channels are {', '.join(sorted(types))}; need one type of 8, 16 or 32 "
            "bits for all, export the channels one by one"
        )
    many = [axis for axis, (low, high) in box.items() if axis not in "TCZYX" and high - low > 1]
    if many:
        raise InputError(
            f"{path}: has several {', '.join(many)} (views, phases, rotations, illuminations); "
            "export one of each"
        )
    whole = (None, (box["X"][0], box["Y"][0], *(box[a][1] - box[a][0] for a in "XY")))
    places = [
        (index, (one.x, one.y, one.w, one.h))
        for index, one in sorted(reader.scenes_bounding_rectangle_no_pyramid.items())
    ]
    return [
        _czi_scene(reader, xml, box, types.copy().pop(), index, place)
        for index, place in places or [whole]
    ]


def _czi_scene(
    reader: object,
    xml: ElementTree.Element,
    box: dict[str, tuple[int, int]],
    pixels: str,
    index: int | None,
    place: tuple[int, int, int, int],
) -> Scene:
    """Return a scene; its mosaic is one plane, of which windows are read."""
    x, y, width, height = place
    ranges = [box.get(axis, (0, 1)) for axis in "TCZ"]
    coloured = pixels.startswith("Bgr")

    def frame(position: tuple[int, ...], sides: Box) -> np.ndarray:
        plane = {
            axis: low + at
            for axis, (low, _), at in zip("TCZ", ranges, position, strict=True)
            if axis in box
        }
        rows, columns = sides[:2]
        size = (columns.stop - columns.start, rows.stop - rows.start)
        window = (x + columns.start, y + rows.start, *size)
        values = reader.read(roi=window, plane=plane, scene=index)
        # Stored blue first; elsewhere red is.
        return values[:, :, ::-1][:, :, sides[2]] if coloured else values[:, :, 0]

    dimensions = "./Metadata/Information/Image/Dimensions"
    named = xml.findall(f"{dimensions}/S/Scenes/Scene[@Index='{index}']")
    channels = [one.get("Name") or "" for one in xml.findall(f"{dimensions}/Channels/Channel")]
    dtype = np.dtype(CZI_DTYPES[pixels])
    sizes = {
        axis: to_um(
            xml.findtext(f"./Metadata/Scaling/Items/Distance[@Id='{axis.upper()}']/Value"), "m"
        )
        for axis in "zyx"
    }
    return Scene(
        name=(named[0].get("Name") if len(named) == 1 else None) or str(index or 0),
        axes="tczyx" + ("s" if coloured else ""),
        shape=(*(high - low for low, high in ranges), height, width, *((3,) if coloured else ())),
        dtype=dtype,
        read=framed(3, dtype, frame),
        channels=channels if all(channels) else [],
        pixel_um={axis: um for axis, um in sizes.items() if um},
    )


def _lif(path: Path) -> list[Scene]:
    import liffile

    return [_lif_scene(path, image) for image in liffile.LifFile(path).images]


def _lif_scene(path: Path, image: object) -> Scene:
    dims, shape = tuple(image.dims), tuple(image.shape)
    n_outer = image.ndim - len(image.frames.frame_sizes)
    # Coordinates along an axis, in metres.
    steps = {
        dim.lower(): abs(float(values[-1] - values[0])) / (len(values) - 1)
        for dim, values in image.coords.items()
        if dim in ("Z", "Y", "X") and len(values) > 1
    }
    channels = [
        one.get("LUTName") or "" for one in image.xml_element.findall(".//ChannelDescription")
    ]
    distinct = all(channels) and len(set(channels)) == len(channels)

    def frame(position: tuple[int, ...], sides: Box) -> np.ndarray:
        return image.frames(**dict(zip(dims, position, strict=False))).asarray()[sides]

    if image.sizes.get("M", 1) > 1:
        plane, frame = _lif_mosaic(path, image, n_outer, steps)
        shape = (*shape[:n_outer], *plane.shape, *shape[n_outer + 2 :])
        at = dims.index("M")
        dims, shape, n_outer = _without(dims, at), _without(shape, at), n_outer - 1
    return Scene(
        name=image.path,
        axes=letters(dims),
        shape=shape,
        dtype=np.dtype(image.dtype),
        read=framed(n_outer, np.dtype(image.dtype), frame),
        channels=channels if distinct else [],
        pixel_um={axis: um for axis, step in steps.items() if (um := to_um(step, "m"))},
        full_rows=True,
    )


def _without(values: tuple, at: int) -> tuple:
    return (*values[:at], *values[at + 1 :])


def _lif_mosaic(
    path: Path, image: object, n_outer: int, steps: dict[str, float]
) -> tuple[mosaics.Mosaic, Frame]:
    """Return the plane of a scan of tiles and its reader: of all outer axes but M, and of boxes.

    Where LAS X itself moves no tile by what it shows, this is what it merges.
    """
    scan, n_tiles = image.tilescan, image.sizes["M"]
    outer = [dim for dim in image.dims[:n_outer] if dim != "M"]
    try:
        if image.dims[n_outer : n_outer + 2] != ("Y", "X"):
            raise ValueError("its sections are not of y and x")
        if scan is None or len(scan) != n_tiles:
            raise ValueError(f"the file has {len(scan or [])} positions")
        plane = mosaics.by_stage(
            np.stack([scan["pos_y"], scan["pos_x"]], axis=1),
            [steps.get("y", np.nan), steps.get("x", np.nan)],
            tuple(image.shape[n_outer : n_outer + 2]),
            flipped=(scan.flip_y, scan.flip_x),
            swapped=scan.swap_xy,
        )
    except ValueError as error:
        raise InputError(
            f"{path}: image '{image.path}' is a mosaic of {n_tiles} tiles whose places are not "
            f"known: {error}; merge them in LAS X and choose the merged scene, or give the tiles' "
            "own segmentations to reconcile.py"
        ) from error

    def frame(position: tuple[int, ...], sides: Box) -> np.ndarray:
        there = dict(zip(outer, position, strict=True))
        out = np.empty(box_shape(sides), image.dtype)
        plane.fill(
            out,
            sides[:2],
            lambda tile: image.frames(M=tile, **there).asarray()[(..., *sides[2:])],
        )
        return out

    return plane, frame


def _nd2(path: Path) -> list[Scene]:
    import nd2

    file = nd2.ND2File(path)
    try:
        return _nd2_scenes(file)
    except Exception:
        file.close()  # else nd2 complains
        raise


def _nd2_scenes(file: object) -> list[Scene]:
    sizes = dict(file.sizes)
    positions = sizes.pop("P", 1)
    outer = [dim for dim in sizes if dim not in ("C", "Y", "X", "S")]
    inner = [dim for dim in sizes if dim not in outer]
    loops = file.loop_indices
    number = {
        (one.get("P", 0), *(one.get(dim, 0) for dim in outer)): k for k, one in enumerate(loops)
    }
    shape = tuple(sizes[dim] for dim in (*outer, *inner))
    channels = [str(one.channel.name) for one in file.metadata.channels or []]
    voxel = file.voxel_size()

    def stored(index: int) -> np.ndarray:
        return np.asarray(file.read_frame(index))

    weakref.finalize(stored, file.close)  # with the last scene

    def reader(scene: int) -> Callable[[Box], np.ndarray]:
        def frame(position: tuple[int, ...], sides: Box) -> np.ndarray:
            values = stored(number.get((scene, *position), 0))
            return values.reshape(shape[len(outer) :])[sides]

        return framed(len(outer), np.dtype(file.dtype), frame)

    return [
        Scene(
            name=str(scene),
            axes=letters([*outer, *inner]),
            shape=shape,
            dtype=np.dtype(file.dtype),
            read=reader(scene),
            channels=channels,
            pixel_um={a: um for a in "zyx" if (um := to_um(getattr(voxel, a), "um"))},
            full_rows=True,
        )
        for scene in range(positions)
    ]


READERS = {
    ".czi": _czi,
    ".lif": _lif,
    ".nd2": _nd2,
    ".oib": olympus.scenes,
    ".oif": olympus.scenes,
    ".ims": imaris.scenes,
}
