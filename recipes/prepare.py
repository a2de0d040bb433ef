r"""Write the training table of a shipped model, and the cut volumes that it names.

Example
-------
    python recipes/prepare.py --model mito-em --data DATA --output training/data

DATA holds one folder per set, each with images/, masks/ and manifest.csv; README.md beside this
file says where the sets come from.
"""

import argparse
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tifffile
from scipy import ndimage
from skimage.measure import label
from skimage.segmentation import find_boundaries

FRAGMENT_VOXELS = 1000
"""Pieces of a volume that is all cells, below this, are errors of its labels."""

Row = dict[str, str]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(TABLES), required=True, help="which table")
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--output", type=Path, required=True, help="folder of the table")
    args = parser.parse_args(argv)
    write(args.model, args.data, args.output)


def write(model: str, data: Path, output: Path) -> Path:
    """Write the table of a model; return where it is."""
    output.mkdir(parents=True, exist_ok=True)
    rows = list(TABLES[model](data.resolve(), output.resolve()))
    table = output / f"{model}.csv"
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return table


def manifest(folder: Path) -> Iterator[tuple[Row, Path, Path]]:
    """Yield the rows of a set with the paths of image and mask."""
    with (folder / "manifest.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            (image,) = (folder / "images").glob(f"{row['id']}.*")
            (mask,) = (folder / "masks").glob(f"{row['id']}.*")
            yield row, image, mask


def nuclei_2d(data: Path, output: Path) -> Iterator[Row]:
    """Yield all images; tiles of one field of view are one group."""
    for row, image, mask in manifest(data / "nuclei2d_dsb2018"):
        group = row["mosaic_group"]
        yield {"image": row["id"], "path": image, "reference": mask, "group": group}


def nuclei_3d(data: Path, output: Path) -> Iterator[Row]:
    """Yield two volumes, each cut in a part to fit and a part to validate with."""
    for name, axis, at in (("gonuclear", 1, 66), ("qcanet", 2, 61)):
        ((_, image, mask),) = manifest(data / f"nuclei3d_{name}")
        yield from cut(name, tifffile.imread(image), tifffile.imread(mask), axis, at, output)


def cells_3d_membrane(data: Path, output: Path) -> Iterator[Row]:
    """Yield the ovule, cut in two; pieces that are errors of its labels join their neighbour."""
    ((_, image, mask),) = manifest(data / "cells3d_ovule")
    labels = joined_fragments(tifffile.imread(mask))
    for row in cut("ovule", tifffile.imread(image), labels, 2, 130, output):
        yield row | {"weight": "12"}


def mito_em(data: Path, output: Path) -> Iterator[Row]:
    """Yield all sections; the one that is left out is chosen by the column split."""
    for k, (row, image, mask) in enumerate(manifest(data / "em2d_hela_mito")):
        yield {
            "image": row["id"],
            "path": image,
            "reference": mask,
            "roi": image.parents[1] / "roi" / image.name,
            "split": "validation" if k == 3 else "train",
        }


def neurites_em(data: Path, output: Path) -> Iterator[Row]:
    """Yield the volume, cut in two; where two neurites touch is the membrane, background.

    What is in several pieces then, is several objects: nothing in the volume says otherwise.
    """
    ((_, image, mask),) = manifest(data / "em3d_fib25_neurites")
    labels = joined_fragments(tifffile.imread(mask)).astype(np.int32)
    membrane = find_boundaries(labels, connectivity=1, mode="thick")
    at = 170
    labels = 2 * labels + (np.arange(labels.shape[2]) >= at)  # differ on the two sides of the cut
    labels[membrane] = 0
    labels = label(labels)
    labels[(np.bincount(labels.ravel()) < FRAGMENT_VOXELS // 4)[labels]] = 0
    yield from cut("neurites", tifffile.imread(image), labels.astype(np.uint16), 2, at, output)


def joined_fragments(labels: np.ndarray) -> np.ndarray:
    """Return labels in which every small connected piece has the label of a large one beside it."""
    small = np.zeros(labels.shape, dtype=bool)
    for number in np.unique(labels):
        parts, _ = ndimage.label(labels == number)
        sizes = np.bincount(parts.ravel())
        sizes[0] = FRAGMENT_VOXELS
        small |= (sizes < FRAGMENT_VOXELS)[parts]
    nearest = ndimage.distance_transform_edt(
        small | (labels == 0), return_distances=False, return_indices=True
    )
    joined = labels[tuple(nearest)]
    joined[labels == 0] = 0
    return joined


def cut(
    name: str, image: np.ndarray, labels: np.ndarray, axis: int, at: int, output: Path
) -> Iterator[Row]:
    """Write a volume in two parts, before and after `at`."""
    parts = {"train": slice(None, at), "validation": slice(at, None)}
    for split, side in parts.items():
        where = (slice(None),) * axis + (side,)
        paths = [output / f"{name}-{split}{suffix}.tif" for suffix in ("", "-mask")]
        for path, array in zip(paths, (image, labels), strict=True):
            tifffile.imwrite(path, array[where], compression="zlib")
        yield {
            "image": f"{name}-{split}",
            "path": paths[0].name,
            "reference": paths[1].name,
            "split": split,
        }


TABLES = {
    "nuclei-2d": nuclei_2d,
    "nuclei-3d": nuclei_3d,
    "cells-3d-membrane": cells_3d_membrane,
    "mito-em": mito_em,
    "neurites-em": neurites_em,
}

if __name__ == "__main__":
    main()
