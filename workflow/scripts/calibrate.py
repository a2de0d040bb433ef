r"""Prepare a model for int8, in which processors with VNNI compute it about twice as fast.

On the training images of the table the largest value of every channel of the network is looked
up, in float32; on the validation images both are compared. Nothing is written when int8 loses
more than 0.002 of the mean average precision. `train.py` does the same at its end.

Example
-------
    python calibrate.py --model my-nuclei.safetensors --table training.csv \
        --output my-nuclei-int8.safetensors
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from iaunet import (
    calibration,
    checkpoint,
    cli,
    clustering,
    joining,
    patches,
    trainingset,
    tuning,
)
from iaunet.errors import InputError

log = logging.getLogger("calibrate")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model file of train.py")
    add("--table", type=Path, required=True, help="as for train.py, with both sides of the split")
    add("--drawn", type=int, default=0, help="as for train.py")
    add("--drawn-kind", choices=tuple(patches.DRAWN), default="nuclei", help="as for train.py")
    add("--seed", type=int, default=1, help="of drawn images, as for train.py")
    add("--output", type=Path, required=True, help="model file to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, compare and write."""
    args = parse_args(argv)
    recorder = cli.Recorder("calibrate", args)
    if args.output.exists():
        raise InputError(f"--output {args.output}: is there already; needs a new file")
    net, meta = checkpoint.load(args.model)
    if "training" not in meta:
        raise InputError(f"{args.model}: not a network of train.py; only those compute in int8")
    train, validation = load_data(args, meta)
    settings = clustering.Settings.from_dict(meta["clustering"], net.ndim)
    joiner = joining.Joiner.from_dict(meta["joining"]) if settings.join else None
    found = calibration.calibrated(
        net,
        (image.image for image in train),
        [(image.image, image.scored()) for image in validation],
        lambda cases: tuning.accuracy(cases, settings, net.id_stride, joiner)["ap_mean"],
        meta["block"],
    )
    if found is None:
        raise InputError(f"{args.model}: int8 is not as good here; nothing was written")
    checkpoint.save(args.output, net.state_dict(), meta | {"int8": found})
    recorder.write(ap_mean=found["ap_mean"])


def load_data(
    args: argparse.Namespace, meta: dict
) -> tuple[list[patches.Annotated], list[patches.Annotated]]:
    """Return the images to look for the largest values in, and those to validate with."""
    percentiles, sizes = meta["normalize"]["percentiles"], meta.get("diameter_px")
    found = []
    for entry in trainingset.read_table(args.table):
        image, labels, roi = entry.read()
        one = patches.prepared(entry.name, entry.group, image, labels, percentiles, sizes, roi)
        found.append((entry.side, one))
    found += patches.drawn(args.drawn, meta["ndim"], args.drawn_kind, args.seed, percentiles, sizes)
    train, validation = (
        [image for where, image in found if where == side] for side in ("train", "validation")
    )
    if not train or not validation:
        raise InputError(f"{args.table}: needs images to train and to validate with")
    return train, validation


if __name__ == "__main__":
    cli.run(main)
