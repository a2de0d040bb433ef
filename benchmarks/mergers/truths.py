"""Untiled truths: real label volumes, drawn nuclei, and tissue whose cells fill everything."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from iaunet import labelfiles, synthetic

REAL = {
    "gonuclear 1137": "gonuclear_1137_mini_labels.tif",
    "gonuclear 1139": "gonuclear_1139_mini_labels.tif",
    "gonuclear 1170": "gonuclear_1170_mini_labels.tif",
    "plant cells": "pytorch3dunet_sample_cells.tif",
    "connectomics": "connectomics512_pinky40_cc3d.tif",
}
FOLDER = "labels_only"


def read(data: Path, name: str) -> np.ndarray:
    """Return a real label volume, every connected piece of a label an object of its own."""
    return pieces(labelfiles.read(labelfiles.open_labels(data / FOLDER / REAL[name])))


def pieces(labels: np.ndarray) -> np.ndarray:
    """Return labels, uint32, whose objects are the pieces of labels that faces of voxels connect.

    Examples
    --------
    >>> pieces(np.array([[4, 4, 0, 4], [7, 7, 0, 0]])).tolist()
    [[1, 1, 0, 2], [3, 3, 0, 0]]
    """
    found = np.zeros(labels.shape, dtype=np.uint32)
    ids, place = np.unique(labels, return_inverse=True)
    if not len(ids) or ids[-1] == 0:
        return found
    dense = place.reshape(labels.shape) + int(ids[0] > 0)
    n_objects = 0
    for number, box in enumerate(ndimage.find_objects(dense), start=1):
        parts, count = ndimage.label(dense[box] == number)
        inside = parts > 0
        found[box][inside] = parts[inside] + n_objects
        n_objects += count
    return found


def nuclei(
    shape: Sequence[int], rng: np.random.Generator, diameter_px: float, dense: bool
) -> np.ndarray:
    """Return drawn nuclei: many that touch, or few."""
    coverage, clustered = (0.5, 0.8) if dense else (0.12, 0.3)
    return synthetic.draw_nuclei(
        shape, rng, diameter_px=diameter_px, coverage=coverage, clustered=clustered
    )[1]


def tissue(
    shape: Sequence[int], rng: np.random.Generator, cell_px: float, large_px: float = 0
) -> np.ndarray:
    """Return cells that fill the image: every voxel has the label of the nearest of some points.

    Parameters
    ----------
    cell_px : how far apart the points are, on a lattice that is shaken
    large_px : 0, or the radius within which cells around some places are one object
    """
    sides = [np.arange(cell_px / 2, length + cell_px / 2, cell_px) for length in shape]
    points = np.stack(np.meshgrid(*sides, indexing="ij"), axis=-1).reshape(-1, len(shape))
    points = points + rng.uniform(-0.35, 0.35, points.shape) * cell_px
    owner = np.arange(1, len(points) + 1)
    if large_px:
        centres = rng.permutation(len(points))[: max(2, len(points) // 60)]
        for centre in centres.tolist():
            near = np.linalg.norm(points - points[centre], axis=1) < large_px
            owner[near] = owner[centre]
    voxels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    nearest = cKDTree(points).query(voxels.reshape(-1, len(shape)))[1]
    return pieces(owner[nearest].reshape(tuple(shape)))


def balls(side_px: int, n_objects: int, rng: np.random.Generator) -> np.ndarray:
    """Return a cube with about so many balls, one in each cell of a lattice, that may touch."""
    along = round(n_objects ** (1 / 3))
    cell = side_px / along
    labels = np.zeros((side_px,) * 3, dtype=np.uint32)
    for number, corner in enumerate(np.ndindex(along, along, along), start=1):
        radius = cell * rng.uniform(0.3, 0.55)
        centre = (np.array(corner) + 0.5 + rng.uniform(-0.1, 0.1, 3)) * cell
        low = np.maximum(0, np.floor(centre - radius)).astype(int)
        high = np.minimum(side_px, np.ceil(centre + radius) + 1).astype(int)
        z, y, x = (
            (np.arange(a, b) - middle) ** 2 for a, b, middle in zip(low, high, centre, strict=True)
        )
        inside = z[:, None, None] + y[:, None] + x < radius**2
        labels[tuple(slice(a, b) for a, b in zip(low, high, strict=True))][inside] = number
    return labels
