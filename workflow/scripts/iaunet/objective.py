"""What the network is fitted to: the weighted terms of the loss of one batch."""

import math
from dataclasses import dataclass

import torch

from iaunet import embedding, losses
from iaunet.net import Outputs

VISIBLE = 0.3
"""Share of an instance that a crop must show for its identity to count."""
TERMS = (
    "mask",
    "seed",
    "instance",
    "variance",
    "vote",
    "triplet",
    "discriminative",
    "contrastive",
    "boundary",
    "semantic",
)
NEGATIVES = {"random": 0.0, "hard": 0.0, "similar": 0.5}
"""How a triplet's negative is found, and how much similar morphology counts."""
N_POINTS = 512
CONSISTENCY = 0.5
"""Weight of the consistency between slices within the contrastive term."""


@dataclass(frozen=True)
class Recipe:
    """How a network is fitted.

    `weights` by name of `TERMS`; what is not named has weight 0 and is not computed.
    `boundary` is the extra weight of mask voxels at outlines, `vote_px` the distance at which
    the vote term turns linear, `window_px` the window of the instance term, `neighbours_px`
    how far a triplet's negative may be, `id_gradient` the share of the identity gradient
    that reaches the trunk. `overlap` is dice or lovasz (instance term), `negatives` one of
    `NEGATIVES` (triplet), `vectors` conv, spatial or hybrid (discriminative term), with votes
    in units of `unit_px`. A step has `pairs` of crops of `crop_px`.
    """

    weights: dict[str, float]
    learning_rate: float
    weight_decay: float
    boundary: float
    vote_px: float
    window_px: tuple[int, ...]
    instances: int
    neighbours_px: float
    id_gradient: float
    ema: float
    bf16: bool
    overlap: str = "dice"
    negatives: str = "similar"
    vectors: str = "hybrid"
    unit_px: float = 8.0
    pairs: int = 1
    crop_px: tuple[int, ...] = ()

    def weight(self, term: str) -> float:
        """Return the weight of a term."""
        return self.weights.get(term, 0.0)


def loss_terms(
    out: Outputs,
    batch: dict,
    recipe: Recipe,
    *,
    progress: float,
    id_stride: tuple[int, ...],
    generator: torch.Generator,
    semi_hard: bool = False,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return the unweighted terms whose weight is not 0, and facts about the triplets.

    The triplet starts after 5 % of the training, semi-hard until 20 %, then batch-hard
    unless `semi_hard`.
    """
    labels = batch["labels"]
    instances = losses.Instances(labels, batch["centre"])
    whole = batch["objects"][:, None]
    target = (whole > 0).float()
    chosen = torch.randperm(instances.n, generator=generator)[: recipe.instances * len(labels)]
    makers = {
        "mask": lambda: losses.mask(out.fg, target, losses.boundary_weight(whole, recipe.boundary)),
        "seed": lambda: losses.seed(out.seed, batch["depth"]),
        "instance": lambda: losses.instance(
            out.off,
            out.lsig,
            labels,
            instances,
            chosen=chosen,
            window_px=recipe.window_px,
            overlap=recipe.overlap,
        ),
        "variance": lambda: losses.variance(out.lsig, instances),
        "vote": lambda: losses.vote(out.off, instances, recipe.vote_px),
        "discriminative": lambda: embedding.discriminative(
            embedding.hybrid(
                out.off, out.emb, instances, unit_px=recipe.unit_px, mode=recipe.vectors
            ),
            instances,
        ),
        "contrastive": lambda: contrastive(out, batch["objects"], generator),
        "boundary": lambda: losses.boundary(out.bnd, whole),
        "semantic": lambda: losses.semantic(out.sem, batch["classes"]),
    }
    terms = {name: make() for name, make in makers.items() if recipe.weight(name) > 0}
    facts = {"active": math.nan, "distance": math.nan}
    if progress >= 0.05 and recipe.weight("triplet") > 0 and instances.n:
        terms["triplet"], facts = _triplet(
            out.id,
            batch,
            losses.Instances(batch["objects"], batch["centre"]),
            recipe,
            id_stride,
            semi_hard=semi_hard or progress < 0.2,
            generator=generator,
        )
    return terms, facts


def contrastive(out: Outputs, labels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return similarity, and in 3D consistency, at hard points of every crop; their mean."""
    probability = out.fg.detach().sigmoid()[:, 0]
    classes = embedding.point_classes(labels)
    total = out.proj.sum() * 0
    for crop in range(len(labels)):
        features = out.proj[crop].flatten(1).T  # (V, 32)
        here = classes[crop].flatten()
        target = labels[crop].clamp(max=1).flatten()
        at = embedding.hard_points(probability[crop].flatten(), target, N_POINTS, generator)
        total = total + embedding.similarity(features[at], here[at])
        if labels.ndim == 4:  # crop, z, y, x
            plane = labels[crop, 0].numel()
            at = at[at + plane < len(here)]
            at = at[here[at + plane] != embedding.UNKNOWN]
            total = total + CONSISTENCY * embedding.consistency(
                features[at], features[at + plane], here[at], here[at + plane]
            )
    return total / len(labels)


def _triplet(
    id_map: torch.Tensor,
    batch: dict,
    instances: losses.Instances,
    recipe: Recipe,
    id_stride: tuple[int, ...],
    *,
    semi_hard: bool,
    generator: torch.Generator,
) -> tuple[torch.Tensor, dict[str, float]]:
    where = instances.where
    cells = [
        torch.div(p, s, rounding_mode="floor") for p, s in zip(where[1:], id_stride, strict=True)
    ]
    per_voxel = id_map.movedim(1, -1)[(where[0], *cells)]  # (P, 16)
    z = torch.nn.functional.normalize(instances.mean(per_voxel), dim=1, eps=1e-6)
    pair = batch["pair"][instances.crop]
    first = torch.tensor([0, *(len(of_crop) for of_crop in batch["size"])]).cumsum(0)
    row = first.to(instances.crop.device)[instances.crop] + instances.label
    size, morphology = torch.cat(batch["size"])[row], torch.cat(batch["morphology"])[row]
    visible = instances.size >= VISIBLE * size
    centre = instances.centre + batch["shift"][instances.crop] + 1e5 * pair[:, None]
    return losses.triplet(
        z[visible],
        (pair * 10**7 + instances.label)[visible],
        centre[visible],
        morphology[visible],
        radius_px=recipe.neighbours_px,
        similarity=NEGATIVES[recipe.negatives],
        semi_hard=semi_hard,
        generator=generator if recipe.negatives == "random" else None,
    )
