r"""Write the final labels of one part of an image, which is a run of whole shards.

Example
-------
    python paint.py --tiles tiles.json --labels labels/0.zarr labels/1.zarr \
        --numbers numbers.parquet --part 0 --parts 3 \
        --output painted/0.zarr --counts painted/0.parquet
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from iaunet import cli, fixedpoint, numbering, omezarr, outputs, relabelling, tables, tiling
from iaunet.errors import OptionError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--tiles", type=Path, required=True, help="tiles.json of tile.py")
    parser.add_argument(
        "--labels", type=Path, nargs="+", required=True, help="label stores of cluster.py, in order"
    )
    parser.add_argument("--numbers", type=Path, required=True, help="table of number.py")
    parser.add_argument("--part", type=int, required=True, help="part to write, from 0")
    parser.add_argument("--parts", type=int, required=True, help="number of parts")
    parser.add_argument("--output", type=Path, required=True, help="Zarr store to create")
    parser.add_argument(
        "--counts", type=Path, required=True, help="Parquet to create: voxels of each object"
    )
    args = parser.parse_args(argv)
    if not 0 <= args.part < args.parts:
        raise OptionError(f"--part: found {args.part}; needs a number below --parts {args.parts}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Write the shards and the counts of one part."""
    args = parse_args(argv)
    recorder = cli.Recorder("paint", args)
    tiles = tiling.read(args.tiles, ("core", "batches"))
    reader = outputs.Reader(args.labels, tiles)
    gid, number = numbering.read(args.numbers)
    with cli.write_whole(args.output) as partial, cli.write_whole(args.counts) as counts:
        dtype = relabelling.label_dtype(int(number.max(initial=0)))
        labels = omezarr.create_part(partial, omezarr.INSTANCES, tiles["shape"], dtype)
        boxes = relabelling.part(labels, args.part, args.parts)
        found, voxels = relabelling.write_labels(
            omezarr.Levels([labels]), reader, gid, number, boxes
        )
        if reader.has(outputs.CLASSES):
            dtype = fixedpoint.DTYPE[outputs.CLASSES]
            classes = omezarr.create_part(partial, omezarr.SEMANTIC, tiles["shape"], dtype)
            relabelling.write_classes(omezarr.Levels([classes]), reader, boxes)
        tables.write_parquet({"gid": found, "voxels": voxels}, counts)
    recorder.write(n_objects=len(found))


if __name__ == "__main__":
    cli.run(main)
