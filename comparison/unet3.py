"""Peer: a 3-class U-Net (background, inside, outline), split by a watershed.

Trunk, crops, augmentation, optimiser, schedule and averaged weights are those of our own
network (`train.py`); only the loss and what is made of the outputs differ.
"""

import logging
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from skimage import segmentation

from annotated import Case, spread
from fitting import Budget, Fitted, Options, best_settings, scored
from iaunet import losses, normalize, patches, recipes
from iaunet.baselines import without_small
from iaunet.net import IAUNet
from iaunet.predict import CLIP, laid_out
from iaunet.training import Average, Prefetch, learning_rate_factor, rebuilt

log = logging.getLogger("unet3")

PERCENTILES = (1, 99.8)
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 1e-4
EMA = 0.998
OUTLINE_WEIGHT = 4.0
"""How often an outline pixel counts in the cross-entropy; there are few of them."""
N_QUICK = 16
N_LOOKS = 20
START = {"inside": 0.5, "foreground": 0.5, "min_size": 16}
GRID = {
    "inside": (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
    "foreground": (0.3, 0.4, 0.5, 0.6, 0.7),
    "min_size": (4, 8, 16, 32, 64),
}


def logits(net: IAUNet, image: torch.Tensor) -> torch.Tensor:
    """Return (B, 3, Y, X): background, inside, outline.

    The background is 0: softmax does not change when a number is added to all classes.
    """
    out = net(laid_out(image))
    return torch.cat([torch.zeros_like(out.fg), out.fg, out.bnd], 1)


def classes(labels: torch.Tensor) -> torch.Tensor:
    """Return 0 background, 1 inside, 2 pixel of an object at its outline; int64, as `labels`."""
    inside = labels > 0
    edge = losses.outline(labels[:, None])[:, 0] & inside
    return inside.long() + edge.long()


def fit(train: Sequence[Case], chosen: Sequence[Case], options: Options) -> Fitted:
    """Train within the budget; `chosen` images decide on the best weights and the thresholds."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    data, known = _annotated(train), _annotated(chosen)
    net = IAUNet(2, **recipes.NET[2], max_offset=(8, 8), max_sigma=(4, 4), outline=True)
    net.to(memory_format=torch.channels_last)
    best, facts = _train(net, data, known, options)
    net.load_state_dict(best)
    net.eval()
    outputs = [probabilities(net, image.image) for image in known]
    settings, score = best_settings(scored(instances, outputs, chosen), START, GRID)
    facts |= {"settings": settings, "score": round(score, 4)}

    def segment(image: np.ndarray) -> np.ndarray:
        return instances(probabilities(net, _scaled(image)), **settings)

    return Fitted(segment, facts)


def _train(
    net: IAUNet,
    data: Sequence[patches.Annotated],
    known: Sequence[patches.Annotated],
    options: Options,
) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Take steps until the budget is spent; return the averaged weights of the best look."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    average = Average(net, EMA)
    sampler = patches.Sampler(
        data, recipes.CROP[2], recipes.PAIRS[2], recipes.AUGMENTATION[2], options.seed
    )
    prefetch = Prefetch(sampler.batch, 0)
    budget, step = Budget(options.minutes), 0
    best: dict = {"score": -1.0}
    history: list[dict[str, float]] = []
    total = []
    try:
        while budget.share < 1:
            for group in optimiser.param_groups:
                group["lr"] = LEARNING_RATE * learning_rate_factor(budget.share)
            total.append(_step(net, optimiser, prefetch.next()))
            average.update(net, step)
            step += 1
            if int(N_LOOKS * budget.share) > len(history):
                score = _score(rebuilt(net, average.state), known)
                history.append({"step": step, "loss": float(np.mean(total)), "score": score})
                log.info("%s", history[-1])
                total = []
                if score >= best["score"]:
                    weights = {key: value.clone() for key, value in average.state.items()}
                    best = {"score": score, "step": step, "weights": weights}
    finally:
        prefetch.close()
    facts = {
        "steps": step,
        "minutes": round(budget.minutes, 2),
        "crops_per_step": 2 * recipes.PAIRS[2],
        "best_step": best["step"],
        "history": history,
    }
    return best["weights"], facts


def _step(net: IAUNet, optimiser: torch.optim.Optimizer, batch: dict) -> float:
    net.train()
    bf16 = recipes.has_bf16(net, batch["image"].shape[2:], torch.device("cpu"))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = logits(net, batch["image"])
    weight = torch.tensor([1.0, 1.0, OUTLINE_WEIGHT])
    loss = F.cross_entropy(found, classes(batch["labels"]), weight)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    optimiser.step()
    return float(loss.detach())


def _score(net: IAUNet, known: Sequence[patches.Annotated]) -> float:
    some = spread(known, N_QUICK)
    outputs = [probabilities(net, image.image) for image in some]
    return scored(instances, outputs, some)(START)


def probabilities(net: IAUNet, image: np.ndarray) -> np.ndarray:
    """Return float32 (2, Y, X), inside and outline, of a scaled image."""
    padded = [(0, -n % s) for n, s in zip(image.shape, net.stride, strict=True)]
    x = torch.from_numpy(np.pad(image, padded).astype(np.float32))[None, None]
    with torch.inference_mode():
        found = logits(net, x).softmax(1)[0, 1:]
    return found[:, : image.shape[0], : image.shape[1]].numpy()


def instances(
    probability: np.ndarray, *, inside: float, foreground: float, min_size: int
) -> np.ndarray:
    """Return labels, int32: connected insides, grown to where the foreground ends.

    Parameters
    ----------
    probability : float array, shape (2, Y, X)
        Of inside and outline.
    inside, foreground : float
        Thresholds of inside, and of inside and outline together.
    min_size : int
        Smaller objects are left out, px.
    """
    seeds, _ = ndimage.label(probability[0] > inside)
    both = probability.sum(0)
    labels = segmentation.watershed(-probability[0], seeds, mask=(both > foreground) | (seeds > 0))
    return without_small(labels, min_size)


def _annotated(cases: Sequence[Case]) -> list[patches.Annotated]:
    return [
        patches.annotate(case.name, case.group, _scaled(case.image), case.labels, (1.0, 1.0))
        for case in cases
    ]


def _scaled(image: np.ndarray) -> np.ndarray:
    limits = normalize.limits(image, PERCENTILES)
    return normalize.scale(image, limits.low, limits.high).clip(*CLIP)
