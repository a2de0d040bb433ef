"""Write objects as a set of regions of interest for ImageJ's ROI Manager."""

import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import roifile

from iaunet.rings import Polygon

MOVE, LINE, CLOSE = 0, 1, 4
"""Commands of a path of ImageJ's composite regions."""
EPOCH = (1980, 1, 1, 0, 0, 0)


def region(name: str, polygons: Sequence[Polygon], section: int | None = None) -> bytes:
    """Return the outlines of an object in one section as the bytes of a ``.roi`` file.

    One ring is a traced region with whole coordinates; holes and several pieces make a composite
    region.

    Parameters
    ----------
    section : counted from 0; None: the image has one
    """
    rings = [ring for polygon in polygons for ring in polygon]
    if len(rings) == 1:
        roi = roifile.ImagejRoi.frompoints(rings[0], name=name, position=section)
        roi.roitype = roifile.ROI_TYPE.TRACED
        return roi.tobytes()
    corners = np.concatenate(rings)
    (left, top), (right, bottom) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
    path = np.concatenate([_path(ring) for ring in rings])
    return roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.RECT,
        name=name,
        left=left,
        top=top,
        right=right,
        bottom=bottom,
        position=0 if section is None else section + 1,
        shape_roi_size=len(path),
        multi_coordinates=path,
    ).tobytes()


def write(path: Path, regions: Iterable[tuple[str, bytes]]) -> None:
    """Write names and regions as a zip archive, one in memory at a time.

    The same regions give the same bytes: the archive has no time in it.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in regions:
            archive.writestr(zipfile.ZipInfo(f"{name}.roi", EPOCH), content, zipfile.ZIP_DEFLATED)


def _path(ring: np.ndarray) -> np.ndarray:
    lines = np.column_stack([np.full(len(ring), LINE), ring]).astype(np.float32)
    lines[0, 0] = MOVE
    return np.append(lines.ravel(), np.float32(CLOSE))
