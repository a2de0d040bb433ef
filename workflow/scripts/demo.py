"""Draw the demo images and their true labels.

A real image with the truth of the package `stardist`, a large mosaic of it, a drawn volume and
an image without any object. Files that are already there stay as they are.

Example
-------
    python demo.py --output resources/demo
"""

import argparse
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from scipy import sparse
from scipy.sparse import csgraph

from iaunet import cli, synthetic
from iaunet.errors import InputError

log = logging.getLogger("demo")

VOLUME_SHAPE = (48, 160, 160)
VOLUME_PIXEL_UM = (0.5, 0.25, 0.25)
VOLUME_DIAMETER_PX = 24
EMPTY_SHAPE = (512, 640)
MOSAIC_TILES = (6, 6)

Pair = tuple[np.ndarray, np.ndarray]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to draw into")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the images that are not there yet."""
    args = parse_args(argv)
    recorder = cli.Recorder("demo", args)
    written = []
    for name, draw, write in (
        ("nuclei", real_nuclei, write_plane),
        ("mosaic", mosaic_of_nuclei, write_plane),
        ("volume", drawn_volume, write_volume),
        ("empty", no_nuclei, write_plane),
    ):
        paths = [args.output / f"{name}.tif", args.output / f"{name}_mask.tif"]
        if all(path.is_file() for path in paths):
            continue
        image, labels = draw()
        for path, array in zip(paths, (image, labels), strict=True):
            with cli.write_whole(path) as partial:
                write(partial, array)
        n_objects = np.count_nonzero(np.bincount(labels.ravel())[1:])
        log.info("%s: %s %s, %d objects", paths[0], image.shape, image.dtype, n_objects)
        written.append(name)
    log.info("%s: %d images drawn, %d were there", args.output, len(written), 4 - len(written))
    recorder.write(written=written)


def real_nuclei() -> Pair:
    """Return the fluorescence image of the 2018 Data Science Bowl that `stardist` contains."""
    # Found, not imported: the package would load tensorflow.
    found = importlib.util.find_spec("stardist")
    folders = [] if found is None else found.submodule_search_locations or []
    for folder in folders:
        image, mask = (
            Path(folder) / "data" / "images" / name for name in ("img2d.tif", "mask2d.tif")
        )
        if image.is_file() and mask.is_file():
            return tifffile.imread(image), tifffile.imread(mask)
    raise InputError(
        "the demo image: package 'stardist' is not installed with its data; "
        "needs it, run 'make demo' or 'pip install stardist'"
    )


def mosaic_of_nuclei() -> Pair:
    """Return a large image of mirrored copies of the real one: every seam is seamless."""
    image, labels = real_nuclei()
    return mirrored(image, MOSAIC_TILES), mirrored_labels(labels, MOSAIC_TILES)


def drawn_volume() -> Pair:
    """Return a drawn volume of touching nuclei, sections twice as thick as pixels are wide."""
    return synthetic.draw_nuclei(
        VOLUME_SHAPE,
        np.random.default_rng(7),
        diameter_px=VOLUME_DIAMETER_PX,
        spacing=tuple(um / VOLUME_PIXEL_UM[-1] for um in VOLUME_PIXEL_UM),
        coverage=0.25,
        clustered=0.6,
        photons=30,
    )


def no_nuclei() -> Pair:
    """Return an image of uneven light and noise, and labels that are all background."""
    image = synthetic.draw_background(EMPTY_SHAPE, np.random.default_rng(7))
    return image, np.zeros(EMPTY_SHAPE, dtype=np.uint16)


def mirrored(plane: np.ndarray, tiles: Sequence[int]) -> np.ndarray:
    """Return rows and columns of copies of a plane; neighbours are mirror images.

    Examples
    --------
    >>> mirrored(np.array([[1, 2]]), (1, 3))
    array([[1, 2, 2, 1, 1, 2]])
    """
    rows = [
        [plane[:: 1 - 2 * (row % 2), :: 1 - 2 * (column % 2)] for column in range(tiles[1])]
        for row in range(tiles[0])
    ]
    return np.block(rows)


def mirrored_labels(labels: np.ndarray, tiles: Sequence[int]) -> np.ndarray:
    """Return the labels of a `mirrored` image, 1 to n.

    An object that the border of the plane cuts is completed by its mirror image. One that only
    touches the border, with less than half of its width, stays itself: two nuclei side by side.

    Returns
    -------
    uint32 array
    """
    _, dense = np.unique(labels, return_inverse=True)
    dense = dense.reshape(labels.shape) + (0 if (labels == 0).any() else 1)
    count = int(dense.max())
    joined: list[tuple[int, int]] = []
    index = np.arange(tiles[0] * tiles[1]).reshape(tiles)
    for axis in range(2):
        first, last = (cut_by_border(dense, axis, edge) for edge in (0, -1))
        neighbours = zip(
            index.take(range(tiles[axis] - 1), axis).ravel(),
            index.take(range(1, tiles[axis]), axis).ravel(),
            strict=True,
        )
        for one, other in neighbours:
            # Even copies show the plane as it is, so their far border is its last line.
            place = np.unravel_index(one, tiles)[axis]
            for label in last if place % 2 == 0 else first:
                joined.append((one * (count + 1) + label, other * (count + 1) + label))
    size = index.size * (count + 1)
    pairs = np.array(joined, dtype=np.int64).reshape(-1, 2)
    graph = sparse.coo_matrix((np.ones(len(pairs)), pairs.T), shape=(size, size))
    _, names = csgraph.connected_components(graph, directed=False)
    numbers = np.zeros((index.size, count + 1), dtype=np.uint32)
    _, ranks = np.unique(names.reshape(numbers.shape)[:, 1:], return_inverse=True)
    numbers[:, 1:] = ranks.reshape(index.size, count) + 1
    copies = mirrored(dense, tiles)
    for copy in index.ravel():
        row, column = np.unravel_index(copy, tiles)
        box = tuple(
            slice(place * length, (place + 1) * length)
            for place, length in zip((row, column), labels.shape, strict=True)
        )
        copies[box] = numbers[copy][copies[box]]
    return copies.astype(np.uint32)


def cut_by_border(labels: np.ndarray, axis: int, edge: int) -> list[int]:
    """Return the labels whose contact with a border line is at least half as long as they are."""
    line = np.bincount(labels.take(edge, axis).ravel(), minlength=labels.max() + 1)
    found = []
    for label in np.flatnonzero(line[1:]) + 1:
        along = np.flatnonzero((labels == label).any(axis=axis))
        if 2 * line[label] >= along[-1] - along[0] + 1:
            found.append(int(label))
    return found


def write_plane(path: Path, plane: np.ndarray) -> None:
    """Write a plane as tiled TIFF; BigTIFF, as images of any size would need."""
    tifffile.imwrite(
        path, smallest(plane), tile=(256, 256), compression="zlib", bigtiff=True, metadata=None
    )


def write_volume(path: Path, volume: np.ndarray) -> None:
    """Write a volume as ImageJ hyperstack with its pixel size."""
    z_um, y_um, x_um = VOLUME_PIXEL_UM
    tifffile.imwrite(
        path,
        volume.astype(np.uint16),
        imagej=True,
        resolution=(1 / x_um, 1 / y_um),
        metadata={"axes": "ZYX", "spacing": z_um, "unit": "um"},
    )


def smallest(plane: np.ndarray) -> np.ndarray:
    """Return the plane with the smallest unsigned type that holds its values."""
    return plane.astype(np.min_scalar_type(int(plane.max(initial=0))))


if __name__ == "__main__":
    cli.run(main)
