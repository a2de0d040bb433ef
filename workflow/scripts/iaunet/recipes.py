"""Which network is built for some data, and how it is fitted: sizes, terms, lengths."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from iaunet import checkpoint, objective, patches
from iaunet.errors import InputError, OptionError
from iaunet.net import IAUNet
from iaunet.ranks import Ranks

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
}
"""Terms that are on. The triplet, 0.3 until then, is off since the ablation (docs/ablation)."""
LEARNING_RATE = {True: 2e-3, False: 1e-3}
"""At its peak: from random weights, and from those of a model."""
EMB_DIM = 8
PROJ_DIM = 32


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


def make_net(
    ndim: int,
    train: Sequence[patches.Annotated],
    weights: dict[str, float],
    *,
    vectors: str,
    seed: int,
    start: Path | None,
    n_classes: int = 0,
) -> IAUNet:
    """Return a network with the heads that the weighted terms need: new, or of a model file.

    Raises
    ------
    InputError
        The model file is no model, or of another number of axes.
    """
    torch.manual_seed(seed)
    heads = {
        "emb_dim": EMB_DIM if weights["discriminative"] and vectors != "spatial" else 0,
        "proj_dim": PROJ_DIM if weights["contrastive"] else 0,
        "outline": weights["boundary"] > 0,
        "n_classes": n_classes,
    }
    if start is None:
        return IAUNet(ndim, **NET[ndim], **ranges(ndim, train), **heads)
    started, meta = checkpoint.load(start)
    if meta["ndim"] != ndim:
        raise InputError(f"{start}: a {meta['ndim']}D model, the images are {ndim}D")
    net = IAUNet(**(started.options | heads))
    known = {key: v for key, v in started.state_dict().items() if key in net.state_dict()}
    net.load_state_dict(known, strict=False)  # heads that it had not are new
    return net


def recipe_of(
    net: IAUNet,
    train: Sequence[patches.Annotated],
    weights: dict[str, float],
    place: Ranks,
    *,
    pairs: int | None,
    learning_rate: float,
    crop_px: Sequence[int] | None,
    id_gradient: float,
    overlap: str,
    negatives: str,
    vectors: str,
) -> objective.Recipe:
    """Return how to fit the network; lengths follow from the objects' median diameter.

    Raises
    ------
    OptionError
        There are fewer pairs of crops than processes, the crops do not suit the network, or the
        identity gradient is no share.
    """
    ndim = net.ndim
    pairs = PAIRS[ndim] if pairs is None else pairs
    crop_px = CROP[ndim] if crop_px is None else tuple(crop_px)
    sides = zip(crop_px, net.stride, strict=False)
    if len(crop_px) != ndim or any(n % s or n < 2 * s for n, s in sides):
        raise OptionError(
            f"--crop-px: found {list(crop_px)}, needs multiples of {net.stride}, at least two"
        )
    if not 0 <= id_gradient <= 1:
        raise OptionError(f"--id-gradient: found {id_gradient}, needs a number from 0 to 1")
    if pairs < place.size:
        raise OptionError(f"--pairs {pairs}: needs at least one for each of {place.size} processes")
    diameters = [patches.median_diameter(image) for image in train if image.n]
    diameter = float(np.median(diameters))
    return objective.Recipe(
        weights=weights,
        learning_rate=learning_rate,
        weight_decay=1e-4,
        boundary=1.0,
        vote_px=max(2.0, diameter / 8),
        window_px=(96, 96) if ndim == 2 else (40, 48, 48),
        instances=16 if ndim == 2 else 12,
        neighbours_px=4 * diameter,
        id_gradient=id_gradient,
        ema=0.998,
        bf16=has_bf16(net, crop_px, place.device),
        overlap=overlap,
        negatives=negatives,
        vectors=vectors,
        unit_px=max(2.0, diameter / 4),
        pairs=pairs,
        crop_px=crop_px,
    )


def has_bf16(net: IAUNet, crop_px: Sequence[int], device: torch.device) -> bool:
    """Return whether the device computes in bfloat16 fast, and soundly for such crops."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    # Weight gradients in bfloat16 of maps of few voxels hold NaN at times (torch 2.13, oneDNN).
    tiny = any(side // s < 6 for side, s in zip(crop_px, net.stride, strict=True))
    return bool(torch.cpu.get_capabilities().get("avx512_bf16")) and not tiny


def ranges(ndim: int, train: Sequence[patches.Annotated]) -> dict[str, list[float]]:
    """Return the largest offsets and bandwidths that the sizes of the objects ask for, px."""
    zoom = AUGMENTATION[ndim].zoom[1]
    reach = np.concatenate([image.reach[1:] for image in train if image.n])
    offset = np.clip(np.percentile(reach, 99, axis=0) * 1.25 * zoom**0.5, 8, 400)
    return {
        "max_offset": [round(float(v), 1) for v in offset],
        "max_sigma": [round(float(v), 1) for v in np.maximum(4, offset / 2)],
    }
