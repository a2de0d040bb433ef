r"""Number the objects of an image: tables of all batches -> gid and number of each object.

Only for images so large that several jobs write their labels, see paint.py; else stitch.py does
both. Numbers are ranks in the order of the seed voxels, 0 is for fragments that are left out.

Example
-------
    python number.py --tiles tiles.json --labels labels/0.zarr labels/1.zarr \\
        --tables labels/0.parquet labels/1.parquet \\
        --sightings labels/0.sightings.parquet labels/1.sightings.parquet \\
        --contacts labels/0.contacts.parquet labels/1.contacts.parquet --output numbers.parquet
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iaunet import cli, numbering, tables, tiling


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    numbering.add_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="Parquet table to create")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table of numbers."""
    args = parse_args(argv)
    recorder = cli.Recorder("number", args)
    tiles = tiling.read(args.tiles, ("axes", "core", "batches"))
    found = numbering.read_tables(args, tiles)
    gid = np.unique(found.sightings.gid)
    number = numbering.numbers(gid, found.joined)
    with cli.write_whole(args.output) as partial:
        tables.write_parquet({"gid": gid, "number": number}, partial)
    recorder.write(n_objects=int(number.max(initial=0)))


if __name__ == "__main__":
    cli.run(main)
