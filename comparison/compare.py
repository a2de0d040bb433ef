"""Score several segmenters on the validation images of a training table, side by side.

Example
-------
    python comparison/compare.py --table training.csv --output docs/comparison \
        --predicted ours=results stardist=results/stardist otsu-watershed=results/otsu \
        --worst-png results/worst.png

A folder of predictions has, per image of the validation side, `{image}.tif`, or
`{image}/{image}.ome.zarr` as a run of the workflow leaves it. The first one named is ours: the
worst images are its worst, and differences are taken to it. The table is printed, too.
"""

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "workflow/scripts"))

import annotated
import evaluate
import pictures
from iaunet import cli, labelfiles, metrics, tables, trainingset
from iaunet.errors import InputError, OptionError

log = logging.getLogger("compare")

EDGES_PX = (0, 8, 12, 18, 30, np.inf)
"""Bins of the diameter of the disc of an object's area; a bin has its lower edge."""
BINS = ("below 8", "8 to 12", "12 to 18", "18 to 30", "30 and more")
SCORES = {
    "ap50_pooled": "AP50",
    "ap75_pooled": "AP75",
    "ap_mean_pooled": "mean AP",
    "f1_50_pooled": "F1",
    "pq_pooled": "PQ",
    "ap50_mean": "AP50, images",
    "ap75_mean": "AP75, images",
    "ap_mean_mean": "mean AP, images",
    "f1_50_mean": "F1, images",
    "pq_mean": "PQ, images",
}
FIT = ("steps", "minutes", "choose_on")
RESAMPLES = 2000
N_WORST = 12


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--table", type=Path, required=True, help="CSV of images with masks, as for train.py")
    add("--predicted", nargs="+", required=True, metavar="NAME=FOLDER", help="ours first")
    add("--output", type=Path, required=True, help="folder of tables and figure to write")
    add("--worst-png", type=Path, help="picture of the worst images; it shows the data")
    args = parser.parse_args(argv)
    pairs = [text.partition("=") for text in args.predicted]
    args.folders = {name: Path(folder) for name, _, folder in pairs}
    if len(args.folders) < len(pairs) or not all(name and folder for name, _, folder in pairs):
        raise OptionError("--predicted needs NAME=FOLDER, each name once")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Score, print, write tables and figure."""
    args = parse_args(argv)
    recorder = cli.Recorder("compare", args)
    rows = annotated.entries_of(args.table, "validation")
    paths = {
        name: [labels_path(folder, row.name) for row in rows]
        for name, folder in args.folders.items()
    }
    overlaps = {name: overlaps_of(found, rows) for name, found in paths.items()}
    groups = [row.group for row in rows]
    ours = next(iter(overlaps))
    scores = [
        {
            "method": name,
            **summary(found),
            **differences(overlaps[ours], found, groups),
            **fit_facts(args.folders[name]),
        }
        for name, found in overlaps.items()
    ]
    bins = [row for name, found in overlaps.items() for row in by_diameter(name, found)]
    text = markdown(scores, bins)
    sys.stdout.write(text)
    images = [row for name, found in overlaps.items() for row in per_image(name, rows, found)]
    for name, table in (("scores", scores), ("diameters", bins), ("images", images)):
        with cli.write_whole(args.output / f"{name}.csv") as partial:
            tables.write_csv(tables.Table(table), partial)
    with cli.write_whole(args.output / "comparison.md") as partial:
        partial.write_text(text)
    curves = {name: metrics.pooled(counts_of(found)) for name, found in overlaps.items()}
    with cli.write_whole(args.output / "comparison.svg") as partial:
        partial.write_bytes(pictures.figure(curves, BINS, ap_of_bins(bins)))
    if args.worst_png is not None:
        draw_worst(args.worst_png, rows, paths, overlaps)
    recorder.write(n_images=len(rows))


def labels_path(folder: Path, name: str) -> Path:
    """Return where the predicted labels of an image lie."""
    choices = (folder / f"{name}.tif", folder / name / f"{name}.ome.zarr")
    for path in choices:
        if path.exists():
            return path
    raise InputError(f"{folder}: no {choices[0].name} and no {name}/{choices[1].name}")


def overlaps_of(paths: Sequence[Path], rows: Sequence[trainingset.Entry]) -> list[metrics.Overlap]:
    """Return true against predicted objects, image by image."""
    return [
        labelfiles.overlap(row.mask, labelfiles.open_labels(path))
        for path, row in zip(paths, rows, strict=True)
    ]


def counts_of(overlaps: Sequence[metrics.Overlap]) -> list[tuple]:
    """Return matched, false and missed objects of every image, per IoU threshold."""
    return [metrics.match_counts(overlap) for overlap in overlaps]


def summary(overlaps: Sequence[metrics.Overlap]) -> dict[str, object]:
    """Return the scores of all images together, by the names of `evaluate.together`."""
    found = evaluate.together([metrics.accuracy(one) for one in overlaps], counts_of(overlaps))
    names = ("n_images", "n_true", "tp_50", "fp_50", "fn_50", *SCORES)
    return {name: found[name] for name in names}


def per_image(
    method: str, rows: Sequence[trainingset.Entry], overlaps: Sequence[metrics.Overlap]
) -> list[dict[str, object]]:
    """Return one row per image: what the differences and the worst images rest on."""
    return [
        {"method": method, "image": row.name, "group": row.group}
        | {name: metrics.accuracy(one)[name] for name in ("n_true", "ap50", "ap_mean", "pq")}
        for row, one in zip(rows, overlaps, strict=True)
    ]


def differences(
    ours: Sequence[metrics.Overlap], other: Sequence[metrics.Overlap], groups: Sequence[str]
) -> dict[str, float | None]:
    """Return by how much ours is better, pooled, with 95 % intervals over resampled groups.

    Images of one group are parts of one field of view, so that groups, not images, are drawn
    with replacement, the same ones for both.
    """
    _, group = np.unique(groups, return_inverse=True)
    draws = np.random.default_rng(0).integers(0, group.max() + 1, (RESAMPLES, group.max() + 1))
    times = np.stack([np.bincount(draw, minlength=group.max() + 1) for draw in draws])
    found: dict[str, float | None] = {}
    for name, thresholds in (("ap50", slice(0, 1)), ("ap_mean", slice(None))):
        drawn = [
            _resampled(np.array(counts_of(one))[..., thresholds], group, times)
            for one in (ours, other)
        ]
        gain = drawn[0] - drawn[1]
        whole, *_ = gain
        low, high = np.percentile(gain[1:], (2.5, 97.5))
        found |= {f"{name}_gain": whole, f"{name}_gain_low": low, f"{name}_gain_high": high}
    return {name: float(value) for name, value in found.items()}


def _resampled(counts: np.ndarray, group: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return mean AP of all images, then of every resample.

    `counts` is (images, 3, thresholds): matched, false, missed.
    """
    per_group = np.zeros((group.max() + 1, *counts.shape[1:]))
    np.add.at(per_group, group, counts)
    weight = np.concatenate([np.ones((1, len(per_group))), times])
    total = np.tensordot(weight, per_group, 1)  # (1 + resamples, 3, thresholds)
    return (total[:, 0] / np.maximum(total.sum(1), 1)).mean(-1)


def by_diameter(method: str, overlaps: Sequence[metrics.Overlap]) -> list[dict[str, object]]:
    """Return AP50 per bin of diameter.

    A matched or missed object is in the bin of the true one, a false one in its own; the bins
    together hold every object once.
    """
    tp, fp, fn = (np.zeros(len(BINS), int) for _ in range(3))
    for one in overlaps:
        pairs = one.pairs[metrics.matched_pairs(one, 0.5)]
        found = np.isin(one.true_ids, pairs[:, 0])
        false = ~np.isin(one.predicted_ids, pairs[:, 1])
        tp += in_bins(one.true_areas[found])
        fn += in_bins(one.true_areas[~found])
        fp += in_bins(one.predicted_areas[false])
    return [
        {
            "method": method,
            "diameter_px": name,
            "n_true": int(tp[k] + fn[k]),
            "tp_50": int(tp[k]),
            "fp_50": int(fp[k]),
            "fn_50": int(fn[k]),
            "ap50": metrics.pooled([(tp[k], fp[k], fn[k])]),
        }
        for k, name in enumerate(BINS)
    ]


def in_bins(areas: np.ndarray) -> np.ndarray:
    """Return how many areas, px, are of objects in each bin of diameter."""
    return np.histogram(2 * np.sqrt(areas / np.pi), EDGES_PX)[0]


def ap_of_bins(bins: Sequence[Mapping]) -> dict[str, list[float | None]]:
    """Return AP50 of every bin by method."""
    found: dict[str, list[float | None]] = {}
    for row in bins:
        found.setdefault(row["method"], []).append(row["ap50"])
    return found


def fit_facts(folder: Path) -> dict[str, object]:
    """Return what `peers.py` tells of a fit, if it made the folder."""
    path = folder / "peer.json"
    if not path.is_file():
        return dict.fromkeys(FIT)
    try:
        facts = json.loads(path.read_text())
        return {name: facts.get(name) for name in FIT}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path}: not what peers.py writes ({error}); delete it") from None


def markdown(scores: Sequence[Mapping], bins: Sequence[Mapping]) -> str:
    """Return scores, gains of ours and AP50 per diameter as Markdown tables."""
    first, ours = scores[0], scores[0]["method"]
    gains = [
        [row["method"]]
        + [
            "{:+.3f} ({:+.3f} to {:+.3f})".format(
                *(row[f"{name}_gain{end}"] for end in ("", "_low", "_high"))
            )
            for name in ("ap50", "ap_mean")
        ]
        for row in scores[1:]
    ]
    methods = ap_of_bins(bins)
    sizes = [row["n_true"] for row in bins if row["method"] == ours]
    parts = [
        "# Our accuracy beside that of others",
        f"{first['n_images']} images, {first['n_true']} objects. Pooled over all objects; "
        "'images': mean over the images.",
        lines(
            ["", *SCORES.values(), *FIT],
            [[row["method"], *(row[name] for name in (*SCORES, *FIT))] for row in scores],
        ),
        "AP50 by the diameter of the objects, px:\n\n"
        + lines(
            ["", *(f"{name} ({n})" for name, n in zip(BINS, sizes, strict=True))],
            [[name, *values] for name, values in methods.items()],
        ),
    ]
    if gains:
        parts.append(
            f"What {ours} gains over each, pooled, with 95 % intervals over groups of images:\n\n"
            + lines(["", "AP50", "mean AP"], gains)
        )
    return "\n\n".join(parts) + "\n"


def lines(header: Sequence[str], rows: Sequence[Sequence]) -> str:
    """Return a Markdown table; fractions get three decimals, nothing a dash."""

    def text(value: object) -> str:
        if value is None:
            return "–"
        return f"{value:.3f}" if isinstance(value, float) and value <= 1 else f"{value}"

    table = [header, ["---"] * len(header), *[[text(value) for value in row] for row in rows]]
    return "\n".join("| " + " | ".join(row) + " |" for row in table)


def draw_worst(
    path: Path,
    rows: Sequence[trainingset.Entry],
    paths: Mapping[str, Sequence[Path]],
    overlaps: Mapping[str, Sequence[metrics.Overlap]],
) -> None:
    """Draw the images of lowest mean AP of the first method, with the outlines of two."""
    ours, *others = overlaps
    shown = [ours, *others[:1]]
    score = {name: [metrics.accuracy(one)["ap_mean"] for one in overlaps[name]] for name in shown}
    ranked = np.argsort([1.0 if value is None else value for value in score[ours]], kind="stable")
    sheets = []
    for k in ranked[:N_WORST]:
        case = annotated.load(rows[k])
        found = {
            f"{name} {pictures.number(score[name][k])}": labelfiles.open_labels(
                paths[name][k]
            ).read()
            for name in shown
        }
        sheets.append((case.name, case.image, {"truth": case.labels} | found))
    with cli.write_whole(path) as partial:
        partial.write_bytes(pictures.worst(sheets))


if __name__ == "__main__":
    cli.run(main)
