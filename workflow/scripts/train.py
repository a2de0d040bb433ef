r"""Fit the network to images with masks, and the thresholds of its clustering.

Example
-------
    python train.py --table training.csv --name my-nuclei --output my-nuclei.safetensors \
        --work training/my-nuclei --max-minutes 120 --max-steps 6000 --seed 1 --threads 4

The table has the columns image, path, reference (the mask), and may have group (images of
one group stay on one side of the split), channel, scene, frame, split (train or validation),
and roi: a mask image of the same shape that is not 0 where the reference says what is there;
the rest of the image is neither learned from nor scored. A run that was stopped goes on from
`--work` when started again.
"""

import argparse
import csv
import hashlib
import json
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from iaunet import (
    checkpoint,
    cli,
    figures,
    normalize,
    objective,
    patches,
    predict,
    scale,
    synthetic,
    training,
    trainingset,
    tuning,
)
from iaunet.clustering import Settings
from iaunet.errors import InputError, OptionError
from iaunet.net import IAUNet, dependency_radius

log = logging.getLogger("train")

PERCENTILES = (1, 99.8)
QUICK_VOXELS = 3_000_000
"""How much is looked at while training; all of it at the end."""
NET = {
    2: {"widths": [16, 32, 64, 128, 192], "pools": [[2, 2]] * 4},
    3: {
        "widths": [16, 16, 48, 96],
        "pools": [[1, 2, 2], [2, 2, 2], [2, 2, 2]],
        "kernels": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    },
}
CROP = {2: (256, 256), 3: (40, 72, 72)}
PAIRS = {2: 4, 3: 2}
DRAWN_SHAPE = {2: (512, 512), 3: (48, 144, 144)}
AUGMENTATION = {
    2: patches.Augmentation(
        zoom=(0.55, 1.9), small_px=14, zoom_small=(1.4, 3.2), anisotropy=1.0, empty=0.03
    ),
    3: patches.Augmentation(
        zoom=(0.75, 1.33), small_px=8, zoom_small=(1.0, 1.5), anisotropy=1.25, empty=0.03
    ),
}
WEIGHTS = {
    "mask": 1.0,
    "seed": 1.0,
    "instance": 1.0,
    "variance": 1.0,
    "vote": 1.0,
    "triplet": 0.3,
}
EMB_DIM = 8
PROJ_DIM = 32
DRAWN = {
    "nuclei": (synthetic.random_options, synthetic.draw_nuclei),
    "cells": (synthetic.random_cell_options, synthetic.draw_cells),
}
"""What can be drawn: the options of one image, and the image."""
SIZES_HELP = (
    "median diameters, [z] y x, between which the model takes an image as it is; images outside "
    "are resampled, here and when the model is used"
)
VECTORS_HELP = "of the discriminative term: embedding, voted position, or both"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--table", type=Path, help="CSV of images with masks; not needed with --drawn")
    add("--drawn", type=int, default=0, help="how many images of nuclei to draw besides")
    add("--drawn-kind", choices=tuple(DRAWN), default="nuclei", help="what is drawn")
    add("--smallest-px", type=float, nargs="+", metavar="PX", help=SIZES_HELP)
    add("--largest-px", type=float, nargs="+", metavar="PX", help="see --smallest-px")
    add("--ndim", type=int, choices=(2, 3), help="axes; needed when there is no table")
    add("--start", type=Path, help="model file whose weights the training starts from")
    add("--weights", nargs="*", default=[], metavar="TERM=WEIGHT", help=weights_help())
    add("--overlap", choices=("dice", "lovasz"), default="dice", help="of the instance term")
    add("--negatives", choices=tuple(objective.NEGATIVES), default="similar", help="of triplets")
    add("--vectors", choices=("conv", "spatial", "hybrid"), default="hybrid", help=VECTORS_HELP)
    add("--name", required=True, help="name of the model")
    add("--output", type=Path, required=True, help="model file to write")
    add("--card", type=Path, help="model card to write, Markdown")
    add("--licence", default="not stated", help="licence of the data, for the card")
    add("--curves-csv", type=Path, help="losses and scores over time")
    add("--curves-png", type=Path, help="the same as a figure")
    add("--work", type=Path, required=True, help="folder of the checkpoints")
    add("--max-minutes", type=float, required=True, help="budget of time; 0: no limit")
    add("--max-steps", type=int, required=True, help="budget of steps; 0: no limit")
    add("--threads", type=int, required=True, help="CPU threads")
    add("--seed", type=int, required=True, help="of weights, crops and drawn images")
    return parser.parse_args(argv)


def weights_help() -> str:
    """Return which terms of the loss there are, with their weights."""
    known = (f"{name} {WEIGHTS.get(name, 0.0):g}" for name in objective.TERMS)
    return f"change terms of the loss; the default is {', '.join(known)}"


def weights_of(changes: Sequence[str]) -> dict[str, float]:
    """Return the weight of every term, with changes like triplet=0.1.

    Raises
    ------
    InputError
        A term is unknown, or a weight is no number of at least 0.
    """
    weights = {name: WEIGHTS.get(name, 0.0) for name in objective.TERMS}
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if name not in weights or not 0 <= value < math.inf:
            raise OptionError(
                f"--weights: '{change}': needs TERM=WEIGHT with a weight of at least 0 and a "
                f"term of {', '.join(objective.TERMS)}"
            )
        weights[name] = value
    return weights


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    recorder = cli.Recorder("train", args)
    if args.max_minutes <= 0 and args.max_steps <= 0:
        raise OptionError("--max-minutes and --max-steps are both 0: give one of them")
    torch.set_num_threads(args.threads)
    ndim, train, validation = load_data(args)
    trainer = make_trainer(ndim, train, args)
    state = args.work / "checkpoint.safetensors"
    if state.exists():
        trainer.load(state)
        log.info("going on from step %d", trainer.step)
    optimise(trainer, train, validation, args, state)
    net = exported(best_net(trainer))
    cases = outputs_of(net, validation)
    settings, score = tuning.fit_thresholds(
        cases, tuning.start_settings(sizes_of(train), ndim), net.id_stride
    )
    scores = tuning.accuracy(cases, settings, net.id_stride)
    meta = model_meta(net, trainer, settings, scores, args, train, validation)
    checkpoint.save(args.output, net.state_dict(), meta)
    if args.card:
        with cli.write_whole(args.card) as partial:
            partial.write_text(card(meta))
    log.info("%s: %d steps, validation AP50 %.3f", args.output, trainer.step, scores["ap50"] or 0)
    recorder.write(scores=scores, steps=trainer.step, fitted=score)


def load_data(
    args: argparse.Namespace,
) -> tuple[int, list[patches.Annotated], list[patches.Annotated]]:
    """Return the number of axes, the images to fit and those to validate with."""
    rows = [] if args.table is None else trainingset.read_rows(args.table)
    loaded = [(row, *trainingset.load_row(row, args.table)) for row in rows]
    ndims = {image.ndim for _, image, _, _ in loaded} | ({args.ndim} if args.ndim else set())
    if len(ndims) != 1:
        raise InputError(f"{args.table or '--ndim'}: needs images of 2 or of 3 axes, found {ndims}")
    ndim = ndims.pop()
    sizes = size_range(args, ndim)
    everything = []
    for row, image, labels, annotated in loaded:
        part = row["split"] or trainingset.side_of(row["group"] or row["image"])
        group = row["group"] or row["image"]
        everything.append((part, prepared(row["image"], group, image, labels, sizes, annotated)))
    everything += [drawn(k, ndim, args, sizes) for k in range(args.drawn)]
    train = [image for part, image in everything if part == "train"]
    validation = [image for part, image in everything if part == "validation"]
    if not train or not any(image.n for image in train):
        raise InputError(f"{args.table}: no image with objects to train with")
    if not validation:
        log.warning("no image left to validate with: scores are of the training images")
        validation = train
    log.info(
        "%d images to fit, %d objects; %d to validate with, %d objects",
        len(train),
        sum(image.n for image in train),
        len(validation),
        sum(image.n for image in validation),
    )
    return ndim, train, validation


def size_range(args: argparse.Namespace, ndim: int) -> dict[str, list[float]] | None:
    """Return the diameters per axis that the model takes; None: all.

    Raises
    ------
    OptionError
        One of the two options is missing, or they are not positive numbers in order.
    """
    given = {"smallest": args.smallest_px, "largest": args.largest_px}
    if not any(given.values()):
        return None
    small, large = ([*(values or [])] for values in given.values())
    good = len(small) == len(large) == ndim and all(
        0 < a <= b < math.inf for a, b in zip(small, large, strict=True)
    )
    if not good:
        raise OptionError(
            f"--smallest-px {small}, --largest-px {large}: need {ndim} positive numbers each, "
            "the smallest not above the largest"
        )
    return {"smallest": small, "largest": large}


def prepared(
    name: str,
    group: str,
    image: np.ndarray,
    labels: np.ndarray,
    sizes: dict[str, list[float]] | None,
    annotated: np.ndarray | None = None,
) -> patches.Annotated:
    """Scale an image by its own limits, as inference does, and measure its instances."""
    limits = normalize.limits(image, PERCENTILES)
    scaled = normalize.scale(image, limits.low, limits.high).clip(*predict.CLIP)
    if sizes and labels.any():
        middle = scale.median_diameter(scale.diameters(labels))
        to = scale.grid_shape(image.shape, scale.factors(middle, *sizes.values()))
        everywhere = tuple(slice(0, n) for n in to)
        here = np.ix_(*scale.nearest(image.shape, to, everywhere))
        labels, annotated = labels[here], None if annotated is None else annotated[here]
        scaled = scale.resampled(lambda box: scaled[box], image.shape, to, everywhere)
    return patches.annotate(name, group, scaled, labels, (1.0,) * image.ndim, annotated)


def drawn(
    index: int, ndim: int, args: argparse.Namespace, sizes: dict[str, list[float]] | None
) -> tuple[str, patches.Annotated]:
    """Draw one image, every twentieth without any object; every seventh validates."""
    rng = np.random.default_rng([args.seed, 7, index])
    if index % 20 == 19:
        image = synthetic.draw_background(DRAWN_SHAPE[ndim], rng)
        labels = np.zeros(image.shape, np.uint32)
    else:
        options_of, draw = DRAWN[args.drawn_kind]
        image, labels = draw(DRAWN_SHAPE[ndim], rng, **options_of(rng, ndim))
    side = "validation" if index % 7 == 3 else "train"
    return side, prepared(f"drawn-{index}", f"drawn-{index}", image, labels, sizes)


def make_trainer(
    ndim: int, train: Sequence[patches.Annotated], args: argparse.Namespace
) -> training.Trainer:
    """Return a new network with what the data say of object sizes, or that of `--start`."""
    torch.manual_seed(args.seed)
    weights = weights_of(args.weights)
    heads = {
        "emb_dim": EMB_DIM if weights["discriminative"] and args.vectors != "spatial" else 0,
        "proj_dim": PROJ_DIM if weights["contrastive"] else 0,
        "outline": weights["boundary"] > 0,
    }
    if args.start is None:
        net = IAUNet(ndim, **NET[ndim], **ranges(ndim, train), **heads)
    else:
        started, meta = checkpoint.load(args.start)
        if meta["ndim"] != ndim:
            raise InputError(f"{args.start}: a {meta['ndim']}D model, the images are {ndim}D")
        net = IAUNet(**(started.options | heads))
        known = {key: v for key, v in started.state_dict().items() if key in net.state_dict()}
        net.load_state_dict(known, strict=False)  # heads that it had not are new
    diameters = [patches.median_diameter(image) for image in train if image.n]
    diameter = float(np.median(diameters))
    # Weight gradients in bfloat16 of maps of few voxels hold NaN at times (torch 2.13, oneDNN).
    tiny = any(side // s < 6 for side, s in zip(CROP[ndim], net.stride, strict=True))
    recipe = objective.Recipe(
        weights=weights,
        learning_rate=2e-3 if args.start is None else 1e-3,
        weight_decay=1e-4,
        boundary=1.0,
        vote_px=max(2.0, diameter / 8),
        window_px=(96, 96) if ndim == 2 else (40, 48, 48),
        instances=16 if ndim == 2 else 12,
        neighbours_px=4 * diameter,
        id_gradient=0.1,
        ema=0.998,
        bf16=bool(torch.cpu.get_capabilities().get("avx512_bf16")) and not tiny,
        overlap=args.overlap,
        negatives=args.negatives,
        vectors=args.vectors,
        unit_px=max(2.0, diameter / 4),
    )
    start = "" if args.start is None else checkpoint.sha256(args.start)
    return training.Trainer(net, recipe, args.seed, data=data_digest(train) + start)


def ranges(ndim: int, train: Sequence[patches.Annotated]) -> dict[str, list[float]]:
    """Return the largest offsets and bandwidths that the sizes of the objects ask for, px."""
    zoom = AUGMENTATION[ndim].zoom[1]
    reach = np.concatenate([image.reach[1:] for image in train if image.n])
    offset = np.clip(np.percentile(reach, 99, axis=0) * 1.25 * zoom**0.5, 8, 400)
    return {
        "max_offset": [round(float(v), 1) for v in offset],
        "max_sigma": [round(float(v), 1) for v in np.maximum(4, offset / 2)],
    }


def optimise(
    trainer: training.Trainer,
    train: Sequence[patches.Annotated],
    validation: Sequence[patches.Annotated],
    args: argparse.Namespace,
    state: Path,
) -> None:
    """Take steps until the budget is spent; validate and save every twentieth part of it."""
    ndim = trainer.net.ndim
    sampler = patches.Sampler(train, CROP[ndim], PAIRS[ndim], AUGMENTATION[ndim], args.seed)
    few = spread(validation)
    prefetch = training.Prefetch(sampler.batch, trainer.step)
    began, before = time.perf_counter(), trainer.seconds
    mark = math.floor(20 * progress_of(trainer, args))
    terms: list[dict[str, float]] = []
    try:
        while (progress := progress_of(trainer, args)) < 1:
            terms.append(trainer.train_step(prefetch.next(), progress))
            trainer.seconds = before + time.perf_counter() - began
            if trainer.step % 50 == 0:
                log.info("step %d: %s", trainer.step, means(terms[-50:]))
            if math.floor(20 * progress_of(trainer, args)) > mark:
                mark = math.floor(20 * progress_of(trainer, args))
                validate(trainer, few, terms)
                terms = []
                trainer.save(state)
                write_curves(trainer.history, args)
    except FloatingPointError as error:
        raise InputError(
            f"{error}; the last good checkpoint is {state}; lower the learning rate or check "
            "the images"
        ) from error
    finally:
        prefetch.close()


def progress_of(trainer: training.Trainer, args: argparse.Namespace) -> float:
    """Return which part of the budget, in steps or minutes, is spent."""
    steps = trainer.step / args.max_steps if args.max_steps > 0 else 0.0
    minutes = trainer.seconds / 60 / args.max_minutes if args.max_minutes > 0 else 0.0
    return max(steps, minutes)


def means(terms: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every term, without those that are not defined."""
    names = sorted({name for term in terms for name in term})
    values = {
        name: [t[name] for t in terms if not math.isnan(t.get(name, math.nan))] for name in names
    }
    return {name: round(float(np.mean(v)), 5) for name, v in values.items() if v}


def sizes_of(data: Sequence[patches.Annotated]) -> np.ndarray:
    """Return the sizes of all instances, voxels."""
    return np.concatenate([image.size[1:] for image in data])


def spread(validation: Sequence[patches.Annotated]) -> list[patches.Annotated]:
    """Return images evenly chosen over the groups, at most `QUICK_VOXELS` together."""
    ordered = sorted(validation, key=lambda image: (image.group, image.name))
    total = sum(image.image.size for image in ordered)
    count = max(1, int(len(ordered) * min(1.0, QUICK_VOXELS / total)))
    return [ordered[int(k * len(ordered) / count)] for k in range(count)]


def validate(
    trainer: training.Trainer, few: Sequence[patches.Annotated], terms: list[dict[str, float]]
) -> None:
    """Score the averaged network by the real clustering; keep the best."""
    net = averaged(trainer)
    cases = outputs_of(net, few)
    settings = tuning.start_settings(sizes_of(few), net.ndim)
    scores, _ = tuning.pooled_ap(cases, settings, net.id_stride)
    score = float(np.mean(scores))
    row = {"step": trainer.step, "seconds": round(trainer.seconds, 1), **means(terms)}
    trainer.history.append(row | {"ap50": scores[0], "ap_mean": score})
    log.info("step %d: validation AP50 %.3f, mean AP %.3f", trainer.step, scores[0], score)
    if score >= trainer.best["score"]:
        weights = {key: value.clone() for key, value in trainer.average.state.items()}
        trainer.best = {"score": score, "step": trainer.step, "weights": weights}


def averaged(trainer: training.Trainer) -> IAUNet:
    """Return the network with averaged weights, in evaluation mode."""
    return rebuilt(trainer.net, trainer.average.state)


def best_net(trainer: training.Trainer) -> IAUNet:
    """Return the network of the best validation, or the last one when there was none."""
    return rebuilt(trainer.net, trainer.best.get("weights") or trainer.average.state)


def exported(net: IAUNet) -> IAUNet:
    """Return the network without what only training needs."""
    final = IAUNet(**(net.options | {"proj_dim": 0}))
    names = final.state_dict().keys()
    final.load_state_dict({key: v for key, v in net.state_dict().items() if key in names})
    return final.eval()


def rebuilt(like: IAUNet, weights: dict[str, torch.Tensor]) -> IAUNet:
    """Return a network of the same shape with other weights."""
    net = IAUNet(**like.options)
    net.load_state_dict(weights)
    return net.eval()


def outputs_of(
    net: IAUNet, validation: Sequence[patches.Annotated]
) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """Return the fixed-point outputs and the true labels of every image, -1 where unknown."""
    return [(predict.whole(net, image.image), image.scored()) for image in validation]


def model_meta(
    net: IAUNet,
    trainer: training.Trainer,
    settings: Settings,
    scores: dict,
    args: argparse.Namespace,
    train: Sequence[patches.Annotated],
    validation: Sequence[patches.Annotated],
) -> dict:
    """Return everything a model file says of itself."""
    recipe = trainer.recipe
    return {
        "name": args.name,
        "ndim": net.ndim,
        "in_channels": 1,
        "net": net.options,
        "stride": list(net.stride),
        "id_stride": list(net.id_stride),
        "radius": list(dependency_radius(net)),
        "block": predict.default_block(net.ndim, net.stride),
        "normalize": {"percentiles": list(PERCENTILES)},
        "max_offset": net.options["max_offset"],
        "max_sigma": net.options["max_sigma"],
        "diameter_px": size_range(args, net.ndim),
        "clustering": settings.as_dict(),
        "training": {
            "steps": trainer.step,
            "minutes": round(trainer.seconds / 60, 1),
            "seed": args.seed,
            "weights": {name: w for name, w in recipe.weights.items() if w},
            "overlap": recipe.overlap,
            "negatives": recipe.negatives,
            "vectors": recipe.vectors,
            "learning_rate": recipe.learning_rate,
            "crop_px": list(CROP[net.ndim]),
            "crops_per_step": 2 * PAIRS[net.ndim],
            "train": {"images": len(train), "objects": sum(i.n for i in train)},
            "validation": {"images": len(validation), "objects": sum(i.n for i in validation)},
            "drawn": args.drawn,
            "start": None if args.start is None else checkpoint.sha256(args.start),
            "best_step": trainer.best.get("step", trainer.step),
            "data_sha256": data_digest([*train, *validation]),
        },
        "scores": {key: round(v, 4) if isinstance(v, float) else v for key, v in scores.items()},
        "licence": args.licence,
    }


def data_digest(data: Sequence[patches.Annotated]) -> str:
    """Return a checksum of all images and masks, as they were used."""
    digest = hashlib.sha256()
    for image in data:
        digest.update(image.image.tobytes())
        digest.update(image.labels.tobytes())
    return digest.hexdigest()


def card(meta: dict) -> str:
    """Return the model card: data, recipe, scores, licence."""
    scores, fit = meta["scores"], meta["training"]
    lines = [
        f"# {meta['name']}",
        "",
        f"Identity-aware U-Net, {meta['ndim']}D, one channel.",
        "",
        "| | |",
        "|---|---|",
        f"| fitted to | {fit['train']['images']} images, {fit['train']['objects']} objects |",
        f"| of all images, drawn by the project | {fit['drawn']} |",
        f"| validated with | {fit['validation']['images']} images of other groups, "
        f"{fit['validation']['objects']} objects |",
        f"| started from | {fit['start'] or 'random weights'} |",
        f"| budget | {fit['steps']} steps of {fit['crops_per_step']} crops of "
        f"{fit['crop_px']} px, {fit['minutes']} minutes, seed {fit['seed']} |",
        f"| weights of the loss | `{json.dumps(fit['weights'])}` |",
        f"| validation, pooled | AP50 {scores['ap50']} (mean of images "
        f"{scores['ap50_per_image']}), AP75 {scores['ap75']}, "
        f"mean AP 0.5:0.95 {scores['ap_mean']}, F1 {scores['f1_50']} |",
        f"| thresholds, fitted on these | `{json.dumps(meta['clustering'])}` |",
        f"| stride, dependency radius, block, px | {meta['stride']}, {meta['radius']}, "
        f"{meta['block']} |",
        f"| licence of the data | {meta['licence']} |",
        f"| checksum of the data | {fit['data_sha256']} |",
        "",
    ]
    return "\n".join(lines)


def write_curves(history: Sequence[dict], args: argparse.Namespace) -> None:
    """Write losses and scores as CSV and figure."""
    if args.curves_csv:
        names = list(dict.fromkeys(name for row in history for name in row))
        with cli.write_whole(args.curves_csv) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(history)
    if args.curves_png:
        with cli.write_whole(args.curves_png) as partial:
            partial.write_bytes(figures.training_curves(history))


if __name__ == "__main__":
    cli.run(main)
