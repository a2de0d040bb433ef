r"""Fit the network to images with masks, and the thresholds of its clustering.

Example
-------
    python train.py --table training.csv --name my-nuclei --output my-nuclei.safetensors \
        --work training/my-nuclei --max-minutes 120 --max-steps 6000 --seed 1 --threads 4

    torchrun --nproc-per-node 2 train.py ...     # two processes, two GPUs where there are

The table has the columns image, path, reference (the mask), and may have group (images of
one group stay on one side of the split), channel, scene, frame, split (train or validation),
weight (a number above 0, empty: 1: relative probability that a crop comes from this image),
and roi: a mask image of the same shape that is not 0 where the reference says what is there;
the rest of the image is neither learned from nor scored. A run that was stopped goes on from
`--work` when started again.
"""

import argparse
import csv
import hashlib
import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from iaunet import (
    calibration,
    checkpoint,
    checksums,
    classes,
    cli,
    figures,
    groundtruth,
    modelcard,
    objective,
    patches,
    predict,
    ranks,
    recipes,
    training,
    trainingset,
    tuning,
)
from iaunet.clustering import Settings
from iaunet.errors import InputError, OptionError
from iaunet.net import IAUNet

log = logging.getLogger("train")

PERCENTILES = (1, 99.8)
QUICK_VOXELS = 3_000_000
"""How much is looked at while training; all of it at the end."""
JOIN_VOXELS = 20_000_000
"""In how many voxels of the training images contacts of fragments are looked for."""
SIZES_HELP = (
    "median diameters, [z] y x, between which the model takes an image as it is; images outside "
    "are resampled, here and when the model is used"
)
PIXEL_HELP = "pixel size of all images of the table, [z] y x: others are resampled to it later"
PAIRS_HELP = f"pairs of crops per step; default {recipes.PAIRS[2]}, in 3D {recipes.PAIRS[3]}"
RATE_HELP = (
    f"at its peak; default {recipes.LEARNING_RATE[True]}, with --start "
    f"{recipes.LEARNING_RATE[False]}"
)
CLASSES_HELP = (
    "names of the classes of voxels, from 1 on, that the column classes of the table has images "
    "of; NAME:stuff is for what has no instances, like tissue"
)
JOIN_HELP = "fit which fragments that touch are one object: for objects longer than a crop"
SPLIT_HELP = (
    "objects longer than this along an axis are taught as compact parts of about this length, "
    "which --join puts together"
)
VALIDATE_HELP = "take the best weights and fitted thresholds, or the last and start values"
VECTORS_HELP = "of the discriminative term: embedding, voted position, or both"


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--table", type=Path, help="CSV of images with masks; not needed with --drawn")
    add("--drawn", type=int, default=0, help="how many images of nuclei to draw besides")
    add("--drawn-kind", choices=tuple(patches.DRAWN), default="nuclei", help="what is drawn")
    add("--smallest-px", type=float, nargs="+", metavar="PX", help=SIZES_HELP)
    add("--largest-px", type=float, nargs="+", metavar="PX", help="see --smallest-px")
    add("--pixel-um", type=float, nargs="+", metavar="UM", help=PIXEL_HELP)
    add("--ndim", type=int, choices=(2, 3), help="axes; needed when there is no table")
    add("--start", type=Path, help="model file whose weights the training starts from")
    add("--weights", nargs="*", default=[], metavar="TERM=WEIGHT", help=recipes.weights_help())
    add("--overlap", choices=("dice", "lovasz"), default="dice", help="of the instance term")
    add("--negatives", choices=tuple(objective.NEGATIVES), default="similar", help="of triplets")
    add("--vectors", choices=("conv", "spatial", "hybrid"), default="hybrid", help=VECTORS_HELP)
    add("--id-gradient", type=float, default=0.1, help="share of it that reaches the trunk")
    add("--validate", action=argparse.BooleanOptionalAction, default=True, help=VALIDATE_HELP)
    add("--join", action=argparse.BooleanOptionalAction, default=False, help=JOIN_HELP)
    add("--split-px", type=float, metavar="PX", help=SPLIT_HELP)
    add("--classes", nargs="*", default=[], metavar="NAME", help=CLASSES_HELP)
    add("--name", required=True, help="name of the model")
    add("--output", type=Path, required=True, help="model file to write")
    add("--card", type=Path, help="model card to write, Markdown")
    add("--licence", default="not stated", help="licence of the data, for the card")
    add("--curves-csv", type=Path, help="losses and scores over time")
    add("--curves-png", type=Path, help="the same as a figure")
    add("--work", type=Path, required=True, help="folder of the checkpoints")
    add("--max-minutes", type=float, required=True, help="budget of time; 0: no limit")
    add("--max-steps", type=int, required=True, help="budget of steps; 0: no limit")
    add("--threads", type=int, required=True, help="CPU threads of one process")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--pairs", type=int, help=PAIRS_HELP)
    add("--learning-rate", type=float, help=RATE_HELP)
    add("--crop-px", type=int, nargs="+", metavar="N", help="[z] y x; default by the axes")
    add("--seed", type=int, required=True, help="of weights, crops and drawn images")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    recorder = cli.Recorder("train", args)
    if args.max_minutes <= 0 and args.max_steps <= 0:
        raise OptionError("--max-minutes and --max-steps are both 0: give one of them")
    if args.split_px is not None and not args.split_px > 0:
        raise OptionError(f"--split-px: found {args.split_px}, needs a number above 0")
    if args.learning_rate is not None and not 0 < args.learning_rate <= 1:
        raise OptionError(f"--learning-rate: found {args.learning_rate}, needs 0 to 1")
    torch.set_num_threads(args.threads)
    place = ranks_of(args)
    ndim, train, validation = load_data(args)
    findings = groundtruth.check(train, validation)
    if not validation:
        log.warning("no image left to validate with: scores are of the training images")
        validation = train
    trainer = make_trainer(ndim, train, args, place)
    state = args.work / "checkpoint.safetensors"
    if state.exists():
        trainer.load(state)
        log.info("going on from step %d", trainer.step)
    share = optimise(trainer, train, validation, args, state)
    place.stop()
    if place.is_first:
        meta = finished(trainer, train, validation, args)
        recorder.write(
            scores=meta["scores"],
            steps=trainer.step,
            minutes=round(trainer.seconds / 60, 1),
            loader_percent=share,
            device=str(place.device),
            processes=place.size,
            ground_truth=findings,
        )


def ranks_of(args: argparse.Namespace) -> ranks.Ranks:
    """Return this process's place; processes but the first do not log."""
    try:
        place = ranks.start(args.device)
    except (ValueError, RuntimeError) as error:
        raise OptionError(f"--device: {error}; use auto, cpu, cuda or cuda:N") from error
    if not place.is_first:
        logging.disable(logging.WARNING)
    return place


def finished(
    trainer: training.Trainer,
    train: Sequence[patches.Annotated],
    validation: Sequence[patches.Annotated],
    args: argparse.Namespace,
) -> dict:
    """Fit the thresholds, write the model and its card; return what the model says of itself."""
    place = trainer.ranks.device
    tried = []
    for step, weights in training.candidates(trainer).items():
        net = training.exported(weights).to(place)
        cases = outputs_of(net, validation)
        known = outputs_of(net, spread(train, JOIN_VOXELS)) if args.join else []
        for start in starts(train, net, args):
            settings, score = start, 0.0
            if args.validate:
                settings, score = tuning.fit_thresholds(cases, start, net.id_stride, known)
            tried.append((score, step, net, cases, known, settings))
    _, step, net, cases, known, settings = max(tried, key=lambda one: one[:2])
    joiner = None
    if args.join:
        settings, joiner = tuning.fit_joining(known, cases, settings, net.id_stride)
    scores = tuning.accuracy(cases, settings, net.id_stride, joiner)
    if args.classes:
        pairs = [(out["sem"], i.classes) for (out, _), i in zip(cases, validation, strict=True)]
        scores["class_iou"] = classes.iou(pairs, net.n_classes)
    meta = model_meta(net, trainer, settings, scores, args, train, validation, step)
    if joiner is not None:
        meta["joining"] = joiner.as_dict()
    meta["int8"] = calibration.calibrated(
        net,
        (image.image for image in spread(train, calibration.VOXELS)),
        [(image.image, image.scored()) for image in spread(validation, calibration.VOXELS)],
        lambda cases: tuning.accuracy(cases, settings, net.id_stride, joiner)["ap_mean"],
        meta["block"],
    )
    checkpoint.save(args.output, net.cpu().state_dict(), meta)
    if args.card:
        with cli.write_whole(args.card) as partial:
            partial.write_text(modelcard.card(meta))
    log.info("%s: %d steps, validation AP50 %.3f", args.output, trainer.step, scores["ap50"] or 0)
    return meta


def starts(
    train: Sequence[patches.Annotated], net: IAUNet, args: argparse.Namespace
) -> list[Settings]:
    """Return the thresholds from which the search starts: general ones, those of `--start`."""
    found = [tuning.start_settings(sizes_of(train), net.ndim)]
    if args.start is not None and args.validate:
        known = checkpoint.read_meta(args.start)["clustering"]
        found.append(Settings.from_dict(known, net.ndim))
    return found


def load_data(
    args: argparse.Namespace,
) -> tuple[int, list[patches.Annotated], list[patches.Annotated]]:
    """Return the number of axes, the images to fit and those to validate with."""
    entries = [] if args.table is None else trainingset.read_table(args.table)
    ndims = {entry.image.ndim for entry in entries} | ({args.ndim} if args.ndim else set())
    if len(ndims) != 1:
        raise InputError(f"{args.table or '--ndim'}: needs images of 2 or of 3 axes, found {ndims}")
    ndim = ndims.pop()
    sizes, n_classes = size_range(args, ndim), len(classes.parse(args.classes))
    if n_classes and not any(entry.classes for entry in entries):
        raise InputError(f"{args.table}: --classes needs a column classes with images of them")
    if args.pixel_um and not (len(args.pixel_um) == ndim and all(um > 0 for um in args.pixel_um)):
        raise OptionError(f"--pixel-um: found {args.pixel_um}, needs {ndim} numbers above 0")
    trainingset.check_memory(entries, args.table)
    everything = []
    for entry in entries:
        image, labels, annotated = entry.read()
        of_voxels = entry.read_classes(n_classes) if n_classes else None
        found = patches.prepared(
            entry.name,
            entry.group,
            image,
            labels,
            PERCENTILES,
            sizes,
            annotated,
            of_voxels,
            longest_px=args.split_px,
        )
        everything.append((entry.side, replace(found, weight=entry.weight)))
    everything += patches.drawn(
        args.drawn, ndim, args.drawn_kind, args.seed, PERCENTILES, sizes, longest_px=args.split_px
    )
    train = [image for part, image in everything if part == "train"]
    validation = [image for part, image in everything if part == "validation"]
    if not train or not any(image.n for image in train):
        raise InputError(f"{args.table}: no image with objects to train with")
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


def make_trainer(
    ndim: int, train: Sequence[patches.Annotated], args: argparse.Namespace, place: ranks.Ranks
) -> training.Trainer:
    """Return a new network with what the data say of object sizes, or that of `--start`."""
    n_classes = len(classes.parse(args.classes))
    weights = recipes.weights_of([f"semantic={int(n_classes > 0)}", *args.weights])
    if weights["semantic"] and not n_classes:
        raise OptionError("--weights: semantic needs --classes")
    net = recipes.make_net(
        ndim,
        train,
        weights,
        vectors=args.vectors,
        seed=args.seed,
        start=args.start,
        n_classes=n_classes,
    )
    recipe = recipes.recipe_of(
        net,
        train,
        weights,
        place,
        pairs=args.pairs,
        learning_rate=args.learning_rate or recipes.LEARNING_RATE[args.start is None],
        crop_px=args.crop_px,
        id_gradient=args.id_gradient,
        overlap=args.overlap,
        negatives=args.negatives,
        vectors=args.vectors,
    )
    start = "" if args.start is None else checksums.sha256(args.start)
    return training.Trainer(net, recipe, args.seed, data_digest(train) + start, place)


def optimise(
    trainer: training.Trainer,
    train: Sequence[patches.Annotated],
    validation: Sequence[patches.Annotated],
    args: argparse.Namespace,
    state: Path,
) -> float | None:
    """Take steps until the budget is spent; return which percentage was spent on waiting.

    The first process validates and saves at every twentieth part of the budget.
    """
    batches = prefetched(trainer, train, args)
    few = spread(validation, QUICK_VOXELS)
    clock = training.Clock(trainer, batches)
    mark = math.floor(20 * progress_of(trainer, args))
    terms: list[dict[str, float]] = []
    try:
        while (progress := progress_of(trainer, args)) < 1:
            terms.append(trainer.train_step(batches.next(), progress))
            clock.tick()
            if trainer.step % 50 == 0:
                log.info("step %d: %s, %s", trainer.step, training.means(terms[-50:]), clock)
            if math.floor(20 * progress_of(trainer, args)) > mark:
                mark = math.floor(20 * progress_of(trainer, args))
                trainer.ranks.check_equal(trainer.net)
                if trainer.ranks.is_first:
                    if args.validate:
                        validate(trainer, few, terms, clock)
                    trainer.save(state)
                    write_curves(trainer.history, args)
                terms = []
    except FloatingPointError as error:
        kept = f"the last good checkpoint is {state}" if state.exists() else "no checkpoint yet"
        raise InputError(
            f"{error}; {kept}; lower the weight of that term or check the images"
        ) from error
    finally:
        batches.close()
    return clock.loader_percent()


def prefetched(
    trainer: training.Trainer, train: Sequence[patches.Annotated], args: argparse.Namespace
) -> training.Prefetch:
    """Return the batches that follow the trainer's step, this process's share of each."""
    ndim, n_pairs = trainer.net.ndim, trainer.recipe.pairs
    sampler = patches.Sampler(
        train, trainer.recipe.crop_px, n_pairs, recipes.AUGMENTATION[ndim], args.seed
    )
    share = trainer.ranks.share(n_pairs)
    # The threads compute the step as well, unless a GPU does.
    workers = args.threads if trainer.ranks.device.type == "cuda" else max(1, args.threads // 2)
    return training.Prefetch(lambda step: sampler.batch(step, share), trainer.step, workers)


def progress_of(trainer: training.Trainer, args: argparse.Namespace) -> float:
    """Return which part of the budget, in steps or minutes, is spent."""
    steps = trainer.step / args.max_steps if args.max_steps > 0 else 0.0
    minutes = trainer.seconds / 60 / args.max_minutes if args.max_minutes > 0 else 0.0
    return max(steps, minutes)


def sizes_of(data: Sequence[patches.Annotated]) -> np.ndarray:
    """Return the sizes of all instances, voxels."""
    return np.concatenate([image.size[1:] for image in data])


def spread(images: Sequence[patches.Annotated], n_voxels: int) -> list[patches.Annotated]:
    """Return images evenly chosen over the groups, about `n_voxels` together."""
    ordered = sorted(images, key=lambda image: (image.group, image.name))
    total = sum(image.image.size for image in ordered)
    count = max(1, int(len(ordered) * min(1.0, n_voxels / total)))
    return [ordered[int(k * len(ordered) / count)] for k in range(count)]


def validate(
    trainer: training.Trainer,
    few: Sequence[patches.Annotated],
    terms: list[dict[str, float]],
    clock: training.Clock,
) -> None:
    """Score the averaged network by the real clustering; keep the best."""
    began = time.perf_counter()
    net = training.averaged(trainer)
    cases = outputs_of(net, few)
    settings = tuning.start_settings(sizes_of(few), net.ndim)
    scores, _ = tuning.pooled_ap(cases, settings, net.id_stride)
    score = float(np.mean(scores))
    row = {"step": trainer.step, "seconds": round(trainer.seconds, 1), **training.means(terms)}
    row["loader_percent"] = clock.loader_percent()
    trainer.history.append(row | {"ap50": scores[0], "ap_mean": score})
    log.info("step %d: validation AP50 %.3f, mean AP %.3f", trainer.step, scores[0], score)
    if score >= trainer.best["score"]:
        weights = {key: value.clone() for key, value in trainer.average.state.items()}
        trainer.best = {"score": score, "step": trainer.step, "weights": weights}
    clock.elsewhere += time.perf_counter() - began


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
    step: int,
) -> dict:
    """Return everything a model file says of itself; its weights are those of `step`."""
    recipe = trainer.recipe
    return {
        "name": args.name,
        **predict.model_facts(net),
        "normalize": {"percentiles": list(PERCENTILES)},
        "diameter_px": size_range(args, net.ndim),
        "pixel_um": args.pixel_um,
        "clustering": settings.as_dict(),
        "classes": [one.as_dict() for one in classes.parse(args.classes)],
        "training": {
            "steps": trainer.step,
            "command": modelcard.command(vars(args), trainer.ranks.size),
            "packages": cli.package_versions(),
            "seed": args.seed,
            "weights": {name: w for name, w in recipe.weights.items() if w},
            "overlap": recipe.overlap,
            "negatives": recipe.negatives,
            "vectors": recipe.vectors,
            "unit_px": recipe.unit_px,
            "learning_rate": recipe.learning_rate,
            "id_gradient": recipe.id_gradient,
            "crop_px": list(recipe.crop_px),
            "crops_per_step": 2 * recipe.pairs,
            "processes": trainer.ranks.size,
            "train": {"images": len(train), "objects": sum(i.n for i in train)},
            "validation": {"images": len(validation), "objects": sum(i.n for i in validation)},
            "drawn": args.drawn,
            "start": None if args.start is None else checksums.sha256(args.start),
            "best_step": step,
            "data_sha256": data_digest([*train, *validation]),
        },
        "scores": {key: round(v, 4) if isinstance(v, float) else v for key, v in scores.items()},
        "licence": args.licence,
    }


def data_digest(data: Sequence[patches.Annotated]) -> str:
    """Return a checksum of all images and masks, as they were used."""
    digest = hashlib.sha256()
    for image in data:
        digest.update(image.image)
        digest.update(image.labels)
        if image.classes is not None:
            digest.update(image.classes)
    return digest.hexdigest()


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
