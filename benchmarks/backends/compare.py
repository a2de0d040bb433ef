r"""Speed and accuracy of a model by every backend and precision, on images with masks.

Images are taken as they are, and segmented with the model's own thresholds; every way computes
the same image right after the others, with one thread.

Example
-------
    python benchmarks/backends/compare.py --model resources/models/nuclei-2d.safetensors \\
        --table table.csv --output docs/backends.csv
"""

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

from iaunet import (
    backends,
    checkpoint,
    cli,
    clustering,
    joining,
    metrics,
    normalize,
    predict,
    trainingset,
    tuning,
)

log = logging.getLogger("backends")

EAGER = ("torch, as trained", "float32")
WAYS = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("torch", "int8"),
    ("onnxruntime", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model file")
    parser.add_argument("--table", type=Path, required=True, help="as for train.py")
    parser.add_argument("--split", default="validation", help="side of the table to take")
    parser.add_argument("--output", type=Path, required=True, help="CSV to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Compute all images in all ways."""
    args = parse_args(argv)
    torch.set_num_threads(1)
    net, meta = checkpoint.load(args.model)
    settings = clustering.Settings.from_dict(meta["clustering"], net.ndim)
    joiner = joining.Joiner.from_dict(meta["joining"]) if settings.join else None
    engines = {EAGER: net}
    engines |= {way: backends.prepare(net, *way, torch.device("cpu"), 1) for way in WAYS}
    seconds = dict.fromkeys(engines, 0.0)
    overlaps: dict[tuple[str, str], list[metrics.Overlap]] = {way: [] for way in engines}
    voxels = 0
    for entry in trainingset.read_table(args.table):
        if entry.side != args.split:
            continue
        image, true, annotated = entry.read()
        limits = normalize.limits(image, meta["normalize"]["percentiles"])
        scaled = normalize.scale(image, limits.low, limits.high).clip(*predict.CLIP)
        true = true.astype(np.int64)
        if annotated is not None:
            true[~annotated] = -1
        voxels += image.size
        for way, engine in engines.items():
            began = time.process_time()
            outputs = predict.whole(engine, scaled)
            seconds[way] += time.process_time() - began
            found = tuning.compared((outputs, true), settings, net.id_stride, joiner)
            overlaps[way].append(found)
    rows = []
    for way in engines:
        ap = metrics.pooled([metrics.match_counts(one) for one in overlaps[way]])
        rows.append(
            {
                "backend": way[0],
                "precision": way[1],
                "Mvx_per_cpu_second": voxels / seconds[way] / 1e6,
                "times_as_fast": seconds[EAGER] / seconds[way],
                "ap50": ap[0],
                "ap_mean": float(np.mean([value or 0.0 for value in ap])),
            }
        )
    table = pd.DataFrame(rows).round(4)
    log.info("%s, %d images:\n%s", meta["name"], len(overlaps[EAGER]), table.to_string())
    with cli.write_whole(args.output) as partial:
        table.to_csv(partial, index=False)


if __name__ == "__main__":
    cli.run(main)
