"""Losses of pixel embeddings: discriminative, and contrastive on hard example points.

Every function returns a scalar tensor that is 0, with a gradient of 0, when there is nothing
to learn from. A voxel of label -1 is not annotated and in no term.
"""

import torch
import torch.nn.functional as F

from iaunet.losses import Instances, outline

TINY = 1e-12
"""Under the square root of a distance: its gradient stays finite at 0."""
BACKGROUND, FOREGROUND, CONTACT, UNKNOWN = 0, 1, 2, -1


def discriminative(
    vectors: torch.Tensor,
    instances: Instances,
    *,
    pull_margin: float = 0.5,
    push_margin: float = 1.5,
    regularisation: float = 0.001,
) -> torch.Tensor:
    """Pull the vectors of an instance together, push the means of instances apart.

    Per crop with C instances of N_c voxels, means mu_c (De Brabandere et al., arXiv
    1708.02551, equations 1 to 4; alpha = beta = 1):

    L_var  = 1/C sum_c 1/N_c sum_i [|mu_c - x_i| - pull_margin]_+^2
    L_dist = 1/(C(C-1)) sum_(a != b) [2 push_margin - |mu_a - mu_b|]_+^2
    L_reg  = 1/C sum_c |mu_c|
    L      = L_var + L_dist + regularisation * L_reg, averaged over crops with instances

    With one instance L_dist is 0. Pieces of one instance share its mean.

    Parameters
    ----------
    vectors : (P, E)
        One for every voxel of `instances`, not normalised.
    """
    if not instances.n:
        return vectors.sum() * 0
    mean = instances.mean(vectors)  # (N, E)
    count = torch.bincount(instances.crop).to(vectors.dtype)[instances.crop]  # C, of (N,)
    n_crops = len(instances.crop.unique())
    miss = F.relu(_length(vectors - mean[instances.owner]) - pull_margin) ** 2
    pull = (instances.mean(miss[:, None])[:, 0] / count).sum()
    apart = _length(mean[:, None] - mean[None])  # (N, N)
    pair = instances.crop[:, None] == instances.crop[None]
    pair &= ~torch.eye(instances.n, dtype=torch.bool, device=pair.device)
    weight = pair / (count * (count - 1)).clamp(min=1)[:, None]
    push = (F.relu(2 * push_margin - apart) ** 2 * weight).sum()
    size = (_length(mean) / count).sum()
    return (pull + push + regularisation * size) / n_crops


def hybrid(
    off: torch.Tensor, emb: torch.Tensor | None, instances: Instances, *, unit_px: float, mode: str
) -> torch.Tensor:
    """Return the vectors of the instances' voxels that the discriminative loss compares.

    `conv` is the embedding alone, as in the paper; `spatial` the voxel's vote in units of
    `unit_px`; `hybrid` both, which is semi-convolutional (Novotny et al., arXiv 1807.10712).

    Parameters
    ----------
    off : (B, d, ...) px
    emb : (B, E, ...) or None when the mode is `spatial`
    """
    parts = []
    if mode in ("spatial", "hybrid"):
        parts.append((instances.position + instances.pick(off)) / unit_px)
    if mode in ("conv", "hybrid"):
        if emb is None:
            raise ValueError(f"mode '{mode}' needs a network with an embedding head")
        parts.append(instances.pick(emb))
    if not parts:
        raise ValueError(f"mode '{mode}': needs conv, spatial or hybrid")
    return torch.cat(parts, 1)  # (P, E)


def point_classes(labels: torch.Tensor) -> torch.Tensor:
    """Return background 0, foreground 1, 2 where a neighbour has another label; -1 unknown.

    `labels` is (B, ...) integer. A voxel at an outline, on either side, is of class 2, so that
    features of boundaries are learnt, too.
    """
    edge = outline(labels[:, None])[:, 0]
    return torch.where(edge, CONTACT, labels.clamp(UNKNOWN, FOREGROUND))


def hard_points(
    probability: torch.Tensor,
    target: torch.Tensor,
    count: int,
    generator: torch.Generator,
    *,
    hard_share: float = 0.75,
    pool: int = 4,
) -> torch.Tensor:
    """Choose the voxels from which the contrastive loss learns: hard ones, half per class.

    From a random pool of `pool` * `count` / 2 voxels of the foreground, and as many of the
    background, the share `hard_share` of the choice has the largest |probability - target|,
    the rest is random (after Li et al., arXiv 2109.12363, whose equations are not public; the
    numbers are ours, METHODS 2.3). Fewer than `count` when a class has fewer voxels.

    Parameters
    ----------
    probability, target : flat tensors of one crop
        Predicted foreground, and 0 or 1; voxels with another target are not chosen.

    Returns
    -------
    (n,) int64
        Indices into the flat tensors, each at most once.
    """
    chosen = []
    for value in (0, 1):
        among = (target == value).nonzero()[:, 0]
        order = torch.randperm(len(among), generator=generator)
        among = among[order.to(among.device)][: pool * count // 2]
        n_hard = min(len(among), round(hard_share * (count // 2)))
        error = (probability[among] - value).abs()
        by_error = error.argsort(descending=True, stable=True)
        hardest = by_error[:n_hard]
        rest = by_error[n_hard:].sort().values[: count // 2 - n_hard]  # random, as the pool is
        chosen.append(among[torch.cat([hardest, rest])])
    return torch.cat(chosen)


def similarity(features: torch.Tensor, classes: torch.Tensor, tau: float = 0.1) -> torch.Tensor:
    """Pixel-wise label-based contrastive loss: features of one class alike, others not.

    -1/N sum_i 1/|P(i)| sum_(j in P(i)) log(exp(<f_i, f_j>/tau) / sum_(k != i) exp(<f_i, f_k>/tau))
    with P(i) the other points of the class of i (Li et al., arXiv 2109.12363, after the
    label-based contrastive loss of Zhao et al.). Points alone in their class do not count.

    Parameters
    ----------
    features : (N, D) unit vectors
    classes : (N,) int64
    """
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    alike = (classes[:, None] == classes[None]) & ~itself
    n_alike = alike.sum(1)
    if not bool((n_alike > 0).any()):
        return features.sum() * 0
    score = (features @ features.T / tau).masked_fill(itself, float("-inf"))
    log_share = score - torch.logsumexp(score, 1, keepdim=True)
    per_point = log_share.masked_fill(~alike, 0.0).sum(1)
    known = n_alike > 0
    return -(per_point[known] / n_alike[known]).mean()


def consistency(
    features: torch.Tensor,
    following: torch.Tensor,
    classes: torch.Tensor,
    following_classes: torch.Tensor,
    margin: float = 0.2,
) -> torch.Tensor:
    """Features of one place in neighbouring slices: alike if the class stays, else apart.

    mean over equal classes of 1 - <f, f'>, plus mean over unequal ones of [<f, f'> - margin]_+
    (Li et al., arXiv 2109.12363: sensitivity to changes from frame to frame; form ours).

    Parameters
    ----------
    features, following : (N, D) unit vectors
        At (z, y, x) and at (z + 1, y, x).
    """
    product = (features * following).sum(1)
    same = classes == following_classes
    stay, change = 1 - product[same], F.relu(product[~same] - margin)
    return stay.sum() / max(1, len(stay)) + change.sum() / max(1, len(change))


def _length(vectors: torch.Tensor) -> torch.Tensor:
    return (vectors.pow(2).sum(-1) + TINY).sqrt()
