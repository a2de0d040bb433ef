r"""Enlarge or shrink the images and references of a table, to see what the size of objects does.

Example
-------
    python comparison/zoomed.py --table images.csv --zoom 4 --output zoomed-4
    snakemake --cores all --directory zoomed-4 --configfile zoomed-4/config.yaml
"""

import argparse
import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

from iaunet import images, labelfiles, scale, tables


def main(argv: Sequence[str] | None = None) -> None:
    """Write the images, the references, a table of them and a config."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, required=True, help="image, path, reference, group")
    parser.add_argument("--zoom", type=float, required=True, help="factor per axis of y and x")
    parser.add_argument("--output", type=Path, required=True, help="folder of a run to make")
    args = parser.parse_args(argv)
    args.output.mkdir(parents=True)
    rows = []
    for row in tables.read_images(args.table).to_dict("records"):
        paths = {key: args.output / f"{row['image']}-{key}.tif" for key in ("path", "reference")}
        opened = images.open_image(args.table.parent / row["path"])
        mask = labelfiles.open_labels(args.table.parent / row["reference"])
        to = scale.grid_shape(opened.shape, [*(1.0,) * (opened.ndim - 2), args.zoom, args.zoom])
        box, whole = (tuple(slice(0, n) for n in shape) for shape in (to, opened.shape))
        pixels = opened.read(whole).astype(np.float32)
        values = scale.resampled(pixels.__getitem__, opened.shape, to, box)
        labels = mask.read(whole)[np.ix_(*scale.nearest(opened.shape, to, box))]
        tifffile.imwrite(paths["path"], np.rint(values).astype(opened.dtype))
        tifffile.imwrite(paths["reference"], labels.astype(np.uint32), compression="zlib")
        rows.append({"image": row["image"], **{k: p.name for k, p in paths.items()}})
    with (args.output / "images.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "path", "reference"])
        writer.writeheader()
        writer.writerows(rows)
    (args.output / "config.yaml").write_text("images: images.csv\n")


if __name__ == "__main__":
    main()
