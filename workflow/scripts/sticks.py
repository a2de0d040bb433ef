r"""Train on drawn scattered sticks and count how many crossing ones are told apart.

Example
-------
    python sticks.py --output results/sticks --work training/sticks --vectors hybrid \
        --max-steps 1000 --seed 1 --threads 1

Images are drawn anew for every step and never stored; the thresholds are fitted on others, and
the scores are those of a third set. Writes `scores.csv`, `worst.png` (images on which the first of
`--vectors` is worst) and a model each. Goes on from `--work` when started again.
"""

import argparse
import csv
import logging
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from skimage.feature import peak_local_max
from skimage.segmentation import watershed

from iaunet import (
    checkpoint,
    cli,
    clustering,
    figures,
    meanshift,
    metrics,
    objective,
    patches,
    predict,
    recipes,
    sticks,
    training,
)
from iaunet.net import IAUNet

log = logging.getLogger("sticks")

RANGES = {"max_offset": [64, 64], "max_sigma": [32, 32]}
UNIT_PX = 16.0
"""A vote that misses by so much is as wrong as an embedding that misses by 1."""
IMAGES_PER_STEP = 4
WEIGHTS = {"mask": 1.0, "seed": 1.0, "discriminative": 1.0}
TRAINING, VALIDATION, TEST = range(3)
"""First number of the seed of an image: no image is in two sets."""
N_IMAGES = {VALIDATION: 12, TEST: 64}
N_WORST = 6
START = {"mode": "meanshift", "unit_px": UNIT_PX, "window_px": 100, "min_size": 100}
GRID = {
    "bandwidth": (0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
    "fg": (0.3, 0.5, 0.7),
    "min_size": (50, 100, 200, 300),
}
PEAKS_PX = (3, 5, 8, 12, 20, 30)
"""Smallest distances of the seeds of the watershed among which the best is taken."""
OUTLINES, COMPONENTS, WATERSHED = (
    "connected components of the true foreground without the outlines",
    "connected components of the true foreground",
    "watershed of the distance map of the true foreground",
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to write: models, scores, figure")
    add("--work", type=Path, required=True, help="folder of the checkpoints")
    vectors = "of the discriminative loss and the clustering; one network each"
    add("--vectors", nargs="+", choices=meanshift.VECTORS, required=True, help=vectors)
    add("--max-steps", type=int, required=True, help=f"steps of {IMAGES_PER_STEP} images")
    add("--seed", type=int, required=True, help="of weights and drawn images")
    add("--threads", type=int, required=True, help="CPU threads")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, fit, evaluate."""
    args = parse_args(argv)
    recorder = cli.Recorder("sticks", args)
    torch.set_num_threads(args.threads)
    validation, test = (
        [drawn(k, args.seed, part) for k in range(n)] for part, n in N_IMAGES.items()
    )
    found = classical(validation, test)
    for vectors in args.vectors:
        trainer = trained(args, vectors)
        net = training.averaged(trainer)
        settings = fitted(outputs_of(net, validation), validation, vectors)
        outputs = outputs_of(net, test)
        found[f"connected components of the foreground of {vectors}"] = [
            ndimage.label(one["fg"] >= settings.fg_least)[0] for one in outputs
        ]
        found[f"mean-shift, {vectors}"] = labels_of(outputs, settings)
        save_model(args.output / f"sticks-{vectors}.safetensors", trainer, net, settings)
    rows = [{"method": name, **scores(test, labels)} for name, labels in found.items()]
    for row in rows:
        log.info("%s", row)
    write(args.output, rows, test, found)
    recorder.write(scores=rows)


def drawn(index: int, seed: int, part: int) -> patches.Annotated:
    """Return one image of a part, white 1 and black 0, measured."""
    image, labels = sticks.draw(np.random.default_rng([part, seed, index]))
    name = str(index)
    return patches.annotate(name, name, image.astype(np.float32) / 255, labels, (1.0, 1.0))


def batch(step: int, seed: int) -> dict[str, torch.Tensor]:
    """Return the images of a step as `objective.loss_terms` takes them."""
    images = [drawn(step * IMAGES_PER_STEP + k, seed, TRAINING) for k in range(IMAGES_PER_STEP)]

    def stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays))

    return {
        "image": stacked([one.image[None] for one in images]),
        "labels": stacked([one.labels for one in images]).long(),
        "objects": stacked([one.labels for one in images]).long(),
        "depth": stacked([one.depth[None].astype(np.float32) / 255 for one in images]),
        "centre": stacked([np.moveaxis(one.centre[one.labels], -1, 0) for one in images]),
    }


def trained(args: argparse.Namespace, vectors: str) -> training.Trainer:
    """Return the trained network; it is saved every hundred steps."""
    trainer = make_trainer(args, vectors)
    state = args.work / vectors / "checkpoint.safetensors"
    if state.exists():
        trainer.load(state)
        log.info("going on from step %d", trainer.step)
    prefetch = training.Prefetch(lambda step: batch(step, args.seed), trainer.step)
    began, before = time.process_time(), trainer.seconds
    try:
        while trainer.step < args.max_steps:
            terms = trainer.train_step(prefetch.next(), trainer.step / args.max_steps)
            trainer.seconds = before + time.process_time() - began
            if trainer.step % 50 == 0:
                shown = {name: round(terms[name], 4) for name in WEIGHTS}
                log.info("step %d, %.0f CPU s: %s", trainer.step, trainer.seconds, shown)
            if trainer.step % 100 == 0 or trainer.step == args.max_steps:
                trainer.save(state)
    finally:
        prefetch.close()
    return trainer


def make_trainer(args: argparse.Namespace, vectors: str) -> training.Trainer:
    """Return a new network and how it is fitted."""
    torch.manual_seed(args.seed)
    emb_dim = 0 if vectors == "spatial" else recipes.EMB_DIM
    net = IAUNet(2, **recipes.NET[2], **RANGES, emb_dim=emb_dim)
    with torch.no_grad():
        # Votes reach 50 px here. From weights near 0 the features would have to grow until they
        # did, and every further step would then be too long: the loss explodes.
        net.head.weight[2:4].normal_(0, 1.0)
        if vectors != "spatial":
            net.heads["emb"].weight.normal_(0, 0.2)
    recipe = objective.Recipe(
        weights=WEIGHTS,
        learning_rate=1e-3,
        weight_decay=1e-4,
        boundary=1.0,
        vote_px=1.0,
        window_px=(1, 1),
        instances=0,
        neighbours_px=0.0,
        id_gradient=0.0,
        ema=0.99,
        bf16=recipes.has_bf16(net, sticks.SHAPE, torch.device("cpu")),
        vectors=vectors,
        unit_px=UNIT_PX,
    )
    return training.Trainer(net, recipe, args.seed, data=f"sticks {args.max_steps}")


def outputs_of(net: IAUNet, images: Iterable[patches.Annotated]) -> list[dict[str, np.ndarray]]:
    """Return the fixed-point outputs of every image."""
    return [predict.whole(net, one.image) for one in images]


def fitted(
    outputs: Sequence[dict[str, np.ndarray]], images: Sequence[patches.Annotated], vectors: str
) -> clustering.Settings:
    """Return the settings of the best mean AP, searched one after the other."""
    settings, best = clustering.Settings.from_dict(START | {"vectors": vectors}, 2), -1.0
    for name, values in GRID.items():
        for value in values:
            trial = clustering.Settings.from_dict(settings.as_dict() | {name: value}, 2)
            score = scores(images, labels_of(outputs, trial))
            if score["ap_mean"] > best:
                settings, best = trial, score["ap_mean"]
        log.info("%s: %s %s, %s", vectors, name, getattr(settings, name), best)
    return settings


def labels_of(
    outputs: Sequence[dict[str, np.ndarray]], settings: clustering.Settings
) -> list[np.ndarray]:
    """Return the labels of every image."""
    return [clustering.label_array(one, settings, None) for one in outputs]


def classical(
    validation: Sequence[patches.Annotated], test: Sequence[patches.Annotated]
) -> dict[str, list[np.ndarray]]:
    """Return the labels of what needs no training, given the true foreground, by name."""

    def flooded(image: patches.Annotated, peaks_px: int) -> np.ndarray:
        mask = image.labels > 0
        distance = ndimage.distance_transform_edt(mask)
        peaks = peak_local_max(distance, min_distance=peaks_px, labels=ndimage.label(mask)[0])
        markers = np.zeros(mask.shape, np.int32)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        return watershed(-distance, markers, mask=mask)

    def score_of(peaks_px: int) -> float:
        return scores(validation, [flooded(one, peaks_px) for one in validation])["ap50"]

    best = max(PEAKS_PX, key=score_of)
    return {
        COMPONENTS: [ndimage.label(one.labels > 0)[0] for one in test],
        OUTLINES: [ndimage.label((one.labels > 0) & (one.image > 0))[0] for one in test],
        WATERSHED: [flooded(one, best) for one in test],
    }


def scores(
    images: Sequence[patches.Annotated], labels: Sequence[np.ndarray]
) -> dict[str, float | int]:
    """Return the AP of all images together, and the mean of the AP50 of single ones."""
    counts = [
        metrics.match_counts(metrics.overlap(one.labels, found))
        for one, found in zip(images, labels, strict=True)
    ]
    ap = metrics.pooled(counts)
    single = [metrics.pooled([count])[0] for count in counts]
    return {
        "ap50": round(ap[0], 4),
        "ap75": round(ap[metrics.THRESHOLDS.index(0.75)], 4),
        "ap_mean": round(float(np.mean(ap)), 4),
        "ap50_per_image": round(float(np.mean(single)), 4),
        "n_images": len(images),
        "n_true": sum(one.n for one in images),
    }


def save_model(
    path: Path, trainer: training.Trainer, net: IAUNet, settings: clustering.Settings
) -> None:
    """Write a model that `infer.py` and `cluster.py` take."""
    meta = {
        "name": path.stem,
        **predict.model_facts(net),
        "normalize": {"percentiles": [0, 100]},
        "clustering": settings.as_dict(),
        "training": {**trainer.facts, "steps": trainer.step, "cpu_seconds": trainer.seconds},
    }
    checkpoint.save(path, net.state_dict(), meta)


def write(
    folder: Path,
    rows: Sequence[dict],
    images: Sequence[patches.Annotated],
    found: dict[str, list[np.ndarray]],
) -> None:
    """Write the scores, and a figure of the images on which the first network is worst."""
    with cli.write_whole(folder / "scores.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    ours = [name for name in found if name.startswith("mean-shift")]
    shown = [COMPONENTS, WATERSHED, *ours]
    ap = [
        scores([one], [labels])["ap50"] for one, labels in zip(images, found[ours[0]], strict=True)
    ]
    order = np.argsort(ap, kind="stable")
    worst = [
        [images[k].image, images[k].labels, *(found[name][k] for name in shown)]
        for k in order[:N_WORST]
    ]
    with cli.write_whole(folder / "worst.png") as partial:
        partial.write_bytes(figures.labelled(["image", "truth", *shown], worst))


if __name__ == "__main__":
    cli.run(main)
