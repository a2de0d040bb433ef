"""Fit a peer to the images of a training table, and segment the validation images with it.

Example
-------
    python comparison/peers.py --peer stardist --table training.csv --choose-on validation \
        --output results/stardist --work results/stardist-work \
        --max-minutes 66 --threads 1 --seed 1

The table is that of `train.py`. The output is a folder with one TIFF of labels per image of
the validation side, and `peer.json`, which tells of the fit.
"""

import argparse
import importlib
import json
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

import annotated
from fitting import Fitted, Options
from iaunet import cli
from iaunet.errors import InputError, OptionError

log = logging.getLogger("peers")

PEERS = {
    "otsu-watershed": "otsu_watershed",
    "stardist": "star_dist",
    "unet3": "unet3",
}
FACTS = "peer.json"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--peer", choices=tuple(PEERS), required=True, help="which one")
    add("--table", type=Path, required=True, help="CSV of images with masks, as for train.py")
    add("--choose-on", choices=annotated.SIDES, required=True, help=CHOOSE_HELP)
    add("--output", type=Path, required=True, help="folder of labels to write")
    add("--work", type=Path, required=True, help="folder for the files of the peer itself")
    add("--max-minutes", type=float, required=True, help="budget of training, CPU minutes")
    add("--threads", type=int, required=True, help="CPU threads")
    add("--seed", type=int, required=True, help="of weights and crops")
    args = parser.parse_args(argv)
    if args.max_minutes <= 0 or args.threads < 1:
        raise OptionError("--max-minutes and --threads need to be above 0")
    return args


CHOOSE_HELP = (
    "images that decide on weights and thresholds; validation is what train.py does for our network"
)


def main(argv: Sequence[str] | None = None) -> None:
    """Fit, predict, write."""
    args = parse_args(argv)
    recorder = cli.Recorder("peers", args)
    sides = {
        side: [annotated.load(entry) for entry in annotated.entries_of(args.table, side)]
        for side in annotated.SIDES
    }
    log.info("%d images to fit, %d to segment", *(len(sides[side]) for side in annotated.SIDES))
    peer = peer_named(args.peer)
    options = Options(args.max_minutes, args.threads, args.seed, args.work)
    began = time.perf_counter()
    fitted = peer.fit(sides["train"], sides[args.choose_on], options)
    facts = {
        "peer": args.peer,
        "choose_on": args.choose_on,
        "threads": args.threads,
        "seed": args.seed,
        "n_train": len(sides["train"]),
        "fit_wall_minutes": round((time.perf_counter() - began) / 60, 2),
        **fitted.facts,
    }
    log.info("%s", {name: value for name, value in facts.items() if name != "history"})
    write(args.output, fitted, sides["validation"], facts)
    recorder.write(n_images=len(sides["validation"]))


def peer_named(name: str) -> object:
    """Return the module of a peer; only that one loads its packages."""
    try:
        return importlib.import_module(PEERS[name])
    except ModuleNotFoundError as error:
        raise InputError(
            f"--peer {name} needs the package '{error.name}', which this Python has not; see "
            "comparison/README.md for the environment of each peer"
        ) from error


def write(
    folder: Path, fitted: Fitted, cases: Sequence[annotated.Case], facts: dict[str, object]
) -> None:
    """Write the labels of every image, and the facts with the seconds that predicting took."""
    with cli.write_whole(folder) as partial:
        partial.mkdir(parents=True)
        began = time.process_time()
        for case in cases:
            labels = fitted.segment(case.image).astype(np.uint32)
            tifffile.imwrite(partial / f"{case.name}.tif", labels, compression="zlib")
        facts = facts | {"predict_cpu_seconds": round(time.process_time() - began, 1)}
        (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    cli.run(main)
