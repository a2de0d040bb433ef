r"""Fit the thresholds of one row of an ablation, and score it on the test images.

Every row is treated alike: the thresholds of its clustering are searched on the validation
images, one at a time, for the best mean AP; scores are of the test images alone.

Example
-------
    python ablation_score.py --model 7-0.safetensors --row 7 --seed 0 --clustering local --links \
        --training record.json --fit fit.csv --test test.csv --scores 7-0.csv --facts 7-0.json \
        --threads 1

The table of scores has one row per image and measure; a score over several images is the sum of
`amount` over that of `out_of`.
"""

import argparse
import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from iaunet import (
    checkpoint,
    cli,
    hardness,
    linking,
    metrics,
    normalize,
    patches,
    predict,
    tables,
    trainingset,
    ways,
)
from iaunet.net import IAUNet

log = logging.getLogger("ablation_score")

LINKED = 20
CALIBRATED = 12
"""Images of each kind that are cut to score links, and to calibrate them."""
NEAR = 4
"""Fragments are candidates up to so many median diameters apart, as negatives in training."""
POOLED = (0, 2, 4)
"""The overlaps of the criterion, px."""
COLUMNS = {
    "row": "str",
    "seed": "int64",
    "image": "str",
    "kind": "str",
    "part": "str",
    "measure": "str",
    "amount": "float64",
    "out_of": "float64",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="trained network")
    add("--row", required=True, help="of the ablation, for the table")
    add("--seed", type=int, required=True, help="of the training, for the table")
    add("--clustering", choices=tuple(ways.WAYS), required=True, help="from outputs to labels")
    add("--links", action="store_true", help="score the identity vectors, too")
    add("--training", type=Path, required=True, help="record of the training")
    add("--fit", type=Path, required=True, help="table with the parts train and validation")
    add("--test", type=Path, required=True, help="table of the test images")
    add("--scores", type=Path, required=True, help="table to write")
    add("--facts", type=Path, required=True, help="JSON to write: settings, training, time")
    add("--threads", type=int, required=True, help="CPU threads")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write scores and facts."""
    args = parse_args(argv)
    recorder = cli.Recorder("ablation_score", args)
    torch.set_num_threads(args.threads)
    net, meta = checkpoint.load(args.model)
    fit, test = (Part.of(path, meta) for path in (args.fit, args.test))
    way = ways.WAYS[args.clustering](net.ndim, net.id_stride, meta["training"])
    cases = [(predict.whole(net, one.image), one.scored()) for one in fit.read("validation")]
    settings, score = ways.fitted(way, cases, args.clustering == "identity")
    log.info("settings %s: score %.4f", settings, score)
    scored = test.read()
    began = time.process_time()
    predicted = [way.label(predict.whole(net, image.image), settings) for image in scored]
    seconds = (time.process_time() - began) / sum(image.image.size for image in scored) * 1e6
    rows = list(object_scores(scored, predicted))
    if args.links:
        shown = test.spread(LINKED)
        linked = [image for image in scored if image.name in shown]
        rows += link_scores(net, fit.read("train", fit.spread(CALIBRATED, "train")), linked)
    write(args, test, rows)
    facts = {"row": args.row, "seed": args.seed, "clustering": args.clustering}
    facts |= {"settings": settings, "validation": score, "seconds_per_mpx": round(seconds, 3)}
    facts |= {"training": meta["training"], "weights_sha256": meta["weights_sha256"]}
    facts["minutes"] = json.loads(args.training.read_text(encoding="utf-8"))["minutes"]
    with cli.write_whole(args.facts) as partial:
        partial.write_text(json.dumps(facts, indent=1) + "\n")
    recorder.write(settings=settings, score=score)


def write(
    args: argparse.Namespace, test: "Part", rows: Sequence[tuple[str, str, str, float, float]]
) -> None:
    """Write the table of scores."""
    lines = [(args.row, args.seed, row[0], test.kinds[row[0]], *row[1:]) for row in rows]
    columns = dict(zip(COLUMNS, zip(*lines, strict=True), strict=True))
    with cli.write_whole(args.scores) as partial:
        tables.write_csv(tables.conform(columns, COLUMNS), partial)


@dataclass(frozen=True)
class Part:
    """The images of a table: opened, the kind of each, and how they are scaled."""

    entries: list[trainingset.Entry]
    kinds: dict[str, str]
    percentiles: tuple[float, float]

    @classmethod
    def of(cls, table: Path, meta: Mapping) -> "Part":
        """Open the images of a table that `ablation_images.py` wrote."""
        frame = tables.read_images(table)
        kinds = dict(zip(frame["image"], frame["kind"], strict=True))
        percentiles = tuple(meta["normalize"]["percentiles"])
        return cls(trainingset.read_table(table), kinds, percentiles)

    def spread(self, count: int, side: str | None = None) -> set[str]:
        """Return the names of at most `count` images of every kind, evenly spread."""
        found: set[str] = set()
        for kind in sorted(set(self.kinds.values())):
            names = [
                entry.name
                for entry in self.entries
                if self.kinds[entry.name] == kind and side in (None, entry.side)
            ]
            places = np.linspace(0, len(names) - 1, min(count, len(names))).round().astype(int)
            found |= {names[place] for place in places}
        return found

    def read(self, side: str | None = None, among: set[str] | None = None) -> list:
        """Return the images of a side, all or some, with their masks, scaled and measured."""
        found = []
        for entry in self.entries:
            if side not in (None, entry.side) or (among is not None and entry.name not in among):
                continue
            image, labels, roi = entry.read()
            limits = normalize.limits(image, self.percentiles)
            scaled = normalize.scale(image, limits.low, limits.high).clip(*predict.CLIP)
            spacing = (1.0,) * image.ndim
            found.append(patches.annotate(entry.name, entry.group, scaled, labels, spacing, roi))
        return found


def object_scores(
    test: Sequence[patches.Annotated], predicted: Sequence[np.ndarray]
) -> Iterator[tuple[str, str, str, float, float]]:
    """Yield image, part, measure, amount and out_of for all objects and the hard subsets."""
    morphology = patches.standardised_morphology(test)
    alike = hardness.look_alike(
        [
            hardness.neighbour_likeness(image.centre, features)
            for image, features in zip(test, morphology, strict=True)
        ]
    )
    for image, labels, similar in zip(test, predicted, alike, strict=True):
        true, found = metrics.where_annotated(image.scored(), labels)
        overlap = metrics.overlap(true, found)
        owner = hardness.owners(true, found, overlap)
        every = np.arange(image.n + 1) > 0
        parts = {"all": every, "look-alike": similar}
        parts["touching"] = hardness.touching(np.maximum(image.labels, 0), image.n)
        if not image.n:
            empty = float(not len(overlap.predicted_ids))
            for measure in ("ap50", "ap75", "map", "pq"):
                yield image.name, "all", measure, empty, 1.0
        for part, subset in parts.items():
            scores = hardness.subset_scores(overlap, owner, subset)
            if scores is None:
                continue
            for measure in ("ap50", "ap75", "map", "pq"):
                yield image.name, part, measure, scores[measure], 1.0
            for measure in ("merges", "splits"):
                yield image.name, part, measure, 1000.0 * scores[measure], scores["n_true"]


def cut_pairs(
    net: IAUNet, data: Sequence[patches.Annotated], overlap_px: int, reach_px: float
) -> list[linking.Pairs]:
    """Return the candidate pairs of every image across one cut, along y and x in turn."""
    found, morphology = [], patches.standardised_morphology(data)
    for index, image in enumerate(data):
        axis = image.image.ndim - 1 - index % 2
        boxes = linking.tiles(image.image.shape, axis, overlap_px)
        start, stop = boxes[1][axis].start, boxes[0][axis].stop
        bands = ((min(start, stop - 1), stop), (start, max(stop, start + 1)))
        parts = [
            linking.fragments(
                np.maximum(image.labels[box], 0),
                predict.whole(net, image.image[box])["id"],
                net.id_stride,
                box=box,
                axis=axis,
                band=band,
            )
            for box, band in zip(boxes, bands, strict=True)
        ]
        shared = list(boxes[0])
        shared[axis] = slice(start, max(start, stop))
        both = np.maximum(image.labels[tuple(shared)], 0)
        found.append(linking.candidate_pairs(*parts, (both, both), morphology[index], reach_px))
    return found


def link_scores(
    net: IAUNet, calibration: Sequence[patches.Annotated], test: Sequence[patches.Annotated]
) -> Iterator[tuple[str, str, str, float, float]]:
    """Yield image, part, measure, amount and out_of of identity across cuts.

    How evidence is weighed is calibrated on images of the training part, cut alike.
    """
    diameters = [patches.median_diameter(image) for image in calibration if image.n]
    reach_px = NEAR * float(np.median(diameters))
    pooled: dict[tuple[str, str], list[int]] = {}
    for overlap_px in linking.OVERLAPS_PX:
        known = cut_pairs(net, calibration, overlap_px, reach_px)
        scorers = {name: linking.calibrated(known, by) for name, by in linking.MEANS.items()}
        pairs = cut_pairs(net, test, overlap_px, reach_px)
        for image, one in zip(test, pairs, strict=True):
            for name, (hits, out_of) in linking.link_counts(one, scorers).items():
                yield image.name, "links", f"{name} {overlap_px}", hits, out_of
                if overlap_px in POOLED:
                    total = pooled.setdefault((image.name, name), [0, 0])
                    total[0] += hits
                    total[1] += out_of
        if overlap_px == 0:
            scorer = linking.calibrated(known, ("distance", "cosine"))
            yield from auc_scores(test, pairs, scorer)
    for (image, name), (hits, out_of) in pooled.items():
        yield image, "links", f"{name} 0-4", hits, out_of


def auc_scores(
    test: Sequence[patches.Annotated], pairs: Sequence[linking.Pairs], scorer: linking.Scorer
) -> Iterator[tuple[str, str, str, float, float]]:
    """Yield the areas under the ROC curve of same against other object, image by image.

    Among all neighbours, and among those only whose morphologies differ less than the median
    of the pairs of different objects.
    """
    unlike = np.concatenate([one.unlike[~one.same] for one in pairs])
    median = np.median(unlike) if len(unlike) else 0.0
    distance, cosine = (linking.EVIDENCE.index(name) for name in ("distance", "cosine"))
    for image, one in zip(test, pairs, strict=True):
        scores = {
            "identity": one.evidence[:, cosine],
            "distance": -one.evidence[:, distance],
            "both": scorer.score(one.evidence),
        }
        among = {"auc": np.ones(len(one.same), bool)}
        among["auc look-alike"] = one.same | (one.unlike < median)
        for part, kept in among.items():
            for name, score in scores.items():
                area = linking.auc(score[kept], one.same[kept])
                if np.isfinite(area):
                    yield image.name, part, name, area, 1.0


if __name__ == "__main__":
    cli.run(main)
