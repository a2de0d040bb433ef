"""Score predicted against true labels of one image, or of a table of images.

Example
-------
    python evaluate.py --predicted labels.tif --reference truth.tif --output-json scores.json
    python evaluate.py --pairs pairs.csv --output-csv scores.csv --output-json scores.json

A table of pairs has the columns image, predicted, reference; paths are relative to it.
Scores of all pairs together come in two kinds: `_pooled` sums the counts of all images,
`_mean` averages over the images that have the score.
"""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iaunet import cli, labelfiles, metrics, tables
from iaunet.errors import InputError

log = logging.getLogger("evaluate")

PAIRS = ("image", "predicted", "reference")
AP = [f"ap{100 * threshold:.0f}" for threshold in metrics.THRESHOLDS]
COLUMNS = {
    "image": "str",
    **dict.fromkeys(metrics.RATIOS, "float64"),
    **dict.fromkeys(metrics.COUNTS, "int64"),
    **dict.fromkeys((name for name in AP if name not in metrics.RATIOS), "float64"),
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--predicted", type=Path, help="labels: TIFF, PNG or OME-Zarr")
    parser.add_argument("--reference", type=Path, help="true labels, of the same shape")
    parser.add_argument("--pairs", type=Path, help="CSV: image, predicted, reference")
    parser.add_argument(
        "--output-json", type=Path, help="all scores (stdout when no file is named)"
    )
    parser.add_argument("--output-csv", type=Path, help="one row per image")
    args = parser.parse_args(argv)
    one = args.predicted is not None and args.reference is not None
    some = args.predicted is not None or args.reference is not None
    if (args.pairs is None and not one) or (args.pairs is not None and some):
        parser.error("needs --predicted and --reference, or --pairs")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Score one or many pairs."""
    args = parse_args(argv)
    recorder = cli.Recorder("evaluate", args)
    if args.pairs is None:
        pairs = [(args.predicted.name, args.predicted, args.reference)]
    else:
        pairs = read_pairs(args.pairs)
    # All are opened before the first is scored, so that a missing file is not found at the end.
    opened = [
        (name, labelfiles.open_labels(true), labelfiles.open_labels(predicted))
        for name, predicted, true in pairs
    ]
    rows, counts = [], []
    for name, true, predicted in opened:
        overlap = labelfiles.overlap(true, predicted)
        rows.append({"image": name, **metrics.accuracy(overlap)})
        counts.append(metrics.match_counts(overlap))
        log.info("%s: AP50 %s, mean AP %s", name, rows[-1]["ap50"], rows[-1]["ap_mean"])
    found = rows[0] if args.pairs is None else {**together(rows, counts), "images": rows}
    text = json.dumps(found, indent=1, allow_nan=False) + "\n"
    if args.output_json is not None:
        with cli.write_whole(args.output_json) as partial:
            partial.write_text(text)
    elif args.output_csv is None:
        sys.stdout.write(text)
    if args.output_csv is not None:
        with cli.write_whole(args.output_csv) as partial:
            tables.write_csv(as_table(rows), partial)
    recorder.write(n_images=len(rows))


def read_pairs(path: Path) -> list[tuple[str, Path, Path]]:
    """Return name, predicted and true labels of each row of a table of pairs."""
    frame = tables.read_text(path, required=PAIRS)
    if len(frame) == 0:
        raise InputError(f"{path}: the table has no rows; needs one per image")
    for line, row in frame.iterrows():
        empty = [name for name in PAIRS if not row[name]]
        if empty:
            raise InputError(f"{path}, line {line}: column '{empty[0]}' is empty")
    twice = frame["image"][frame["image"].duplicated()]
    if len(twice):
        raise InputError(f"{path}, line {twice.index[0]}: image '{twice.iloc[0]}' stands twice")
    return [
        (row["image"], path.parent / row["predicted"], path.parent / row["reference"])
        for _, row in frame.iterrows()
    ]


def together(rows: Sequence[dict], counts: Sequence[tuple]) -> dict[str, object]:
    """Return pooled and mean scores of several images."""
    ap = metrics.pooled(counts)
    tp, fp, fn = (sum(row[name] for row in rows) for name in ("tp_50", "fp_50", "fn_50"))
    some = [value for value in ap if value is not None]
    weight = [row["tp_50"] + row["fp_50"] / 2 + row["fn_50"] / 2 for row in rows]
    iou = sum(w * row["pq"] for w, row in zip(weight, rows, strict=True) if w)
    found = {
        "n_images": len(rows),
        "n_true": sum(row["n_true"] for row in rows),
        "tp_50": tp,
        "fp_50": fp,
        "fn_50": fn,
        "ap50_pooled": ap[metrics.THRESHOLDS.index(0.5)],
        "ap75_pooled": ap[metrics.THRESHOLDS.index(0.75)],
        "ap_mean_pooled": float(np.mean(some)) if some else None,
        "ap_pooled": ap,
        "f1_50_pooled": 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else None,
        "pq_pooled": iou / sum(weight) if sum(weight) else None,
    }
    for name in metrics.RATIOS:
        values = [row[name] for row in rows if row[name] is not None]
        found[f"{name}_mean"] = float(np.mean(values)) if values else None
    return found


def as_table(rows: Sequence[dict]) -> tables.Table:
    """Return one row per image; a score that an image does not have is NaN."""
    flat = [{**row, **dict(zip(AP, row["ap"], strict=True))} for row in rows]
    return tables.conform({name: [row[name] for row in flat] for name in COLUMNS}, COLUMNS)


if __name__ == "__main__":
    cli.run(main)
