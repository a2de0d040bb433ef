r"""Train on drawn scattered sticks and count how many crossing ones are told apart.

Example
-------
    python sticks.py --output results/sticks --work training/sticks --vectors hybrid \
        --max-steps 2000 --seed 1 --threads 1

Images are drawn anew for every step and never stored. Goes on from `--work` when started
again.
"""

import argparse
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from iaunet import cli, objective, patches, sticks, training
from iaunet.net import IAUNet

log = logging.getLogger("sticks")

NET = {
    "widths": [16, 32, 64, 128, 192],
    "pools": [[2, 2]] * 4,
    "max_offset": [64, 64],
    "max_sigma": [32, 32],
}
EMB_DIM = 8
UNIT_PX = 16.0
"""A vote that misses by so much is as wrong as an embedding that misses by 1."""
IMAGES_PER_STEP = 4
WEIGHTS = {"mask": 1.0, "seed": 1.0, "discriminative": 1.0}
TRAINING, VALIDATION, TEST = range(3)
"""First number of the seed of an image: no image is in two sets."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="folder to write: model, scores, figure")
    add("--work", type=Path, required=True, help="folder of the checkpoint")
    add("--vectors", choices=("conv", "spatial", "hybrid"), required=True, help="what is learnt")
    add("--max-steps", type=int, required=True, help=f"steps of {IMAGES_PER_STEP} images")
    add("--seed", type=int, required=True, help="of weights and drawn images")
    add("--threads", type=int, required=True, help="CPU threads")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Train and evaluate."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    trained(args)


def drawn(part: int, seed: int, index: int) -> patches.Annotated:
    """Return one image of a part, white 1 and black 0, measured."""
    image, labels = sticks.draw(np.random.default_rng([part, seed, index]))
    name = str(index)
    return patches.annotate(name, name, image.astype(np.float32) / 255, labels, (1.0, 1.0))


def batch(step: int, seed: int) -> dict[str, torch.Tensor]:
    """Return the images of a step as `objective.loss_terms` takes them."""
    images = [drawn(TRAINING, seed, step * IMAGES_PER_STEP + k) for k in range(IMAGES_PER_STEP)]

    def stacked(arrays: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(arrays))

    return {
        "image": stacked([one.image[None] for one in images]),
        "labels": stacked([one.labels for one in images]).long(),
        "depth": stacked([one.depth[None].astype(np.float32) / 255 for one in images]),
        "centre": stacked([np.moveaxis(one.centre[one.labels], -1, 0) for one in images]),
    }


def trained(args: argparse.Namespace) -> training.Trainer:
    """Return the trained network; it is saved every hundred steps."""
    torch.manual_seed(args.seed)
    net = IAUNet(2, **NET, emb_dim=0 if args.vectors == "spatial" else EMB_DIM)
    with torch.no_grad():
        # Votes reach 50 px here. From weights near 0 the features would have to grow until they
        # did, and every further step would then be too long: the loss explodes.
        net.head.weight[2:4].normal_(0, 1.0)
        if args.vectors != "spatial":
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
        bf16=bool(torch.cpu.get_capabilities().get("avx512_bf16")),
        vectors=args.vectors,
        unit_px=UNIT_PX,
    )
    trainer = training.Trainer(net, recipe, args.seed, data=f"sticks {args.max_steps}")
    state = args.work / "checkpoint.safetensors"
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


if __name__ == "__main__":
    cli.run(main)
