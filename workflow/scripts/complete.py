r"""Tell whether every tile of an image was segmented; fail when some were given up.

It is the last step of an image: while it fails, Snakemake keeps the files between the steps, so
that the same command redoes the batches of the tiles that failed, and no others.

Example
-------
    python complete.py --metrics metrics.json --output complete.json
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from iaunet import cli, quarantine, sealed
from iaunet.errors import InputError


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.json of measure.py")
    parser.add_argument("--output", type=Path, required=True, help="JSON to write: how many tiles")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write how many tiles there are, if none failed."""
    args = parse_args(argv)
    recorder = cli.Recorder("complete", args)
    try:
        metrics = sealed.loads(args.metrics.read_text(), args.metrics)
        n_tiles, failed = metrics["n_tiles"], metrics["failed_tiles"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{args.metrics}: not the metrics.json of measure.py ({error!r})"
        ) from None
    if failed:
        raise InputError(
            f"{args.metrics}: {quarantine.sentence(failed, n_tiles)}; the same command again "
            "redoes their batches and keeps the rest"
        )
    with cli.write_whole(args.output) as partial:
        partial.write_text(json.dumps({"n_tiles": n_tiles}) + "\n")
    recorder.write()


if __name__ == "__main__":
    cli.run(main)
