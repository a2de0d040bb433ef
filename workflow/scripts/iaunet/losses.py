"""Mask loss and identity losses, one function each (METHODS: IAU-Net, EmbedSeg, ours).

Every function returns a scalar tensor that is 0, with a gradient of 0, when there is no
instance to learn from. A voxel of label -1 is not annotated: no term has a value or a gradient
from it.
"""

import math

import torch
import torch.nn.functional as F

EPSILON = 1e-6


def mask(logit: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted binary cross-entropy plus 1 - soft Dice, the Dice per image.

    Parameters
    ----------
    logit, target, weight : (B, 1, ...) float
        Foreground logit, 0 or 1, and the weight of every voxel (boundaries count more; 0: not
        annotated).
    """
    known = weight > 0
    cross = F.binary_cross_entropy_with_logits(logit, target, weight) * _per_known(known)
    p = (logit.sigmoid() * known).flatten(1)
    t = target.flatten(1)
    dice = (2 * (p * t).sum(1) + 1) / (p.sum(1) + t.sum(1) + 1)
    return cross + (1 - dice).mean()


def _per_known(known: torch.Tensor) -> torch.Tensor:
    """Return what turns a mean over all voxels into one over the known ones."""
    return known.numel() / known.sum().clamp(min=1)


def semantic(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of classes plus 1 - soft Dice, the mean over the classes that occur.

    Parameters
    ----------
    logits : (B, C + 1, ...) float
        Of background and C classes.
    classes : (B, ...) int64
        0 to C; -1 where they are not annotated.
    """
    known = classes >= 0
    if not known.any():
        return logits.sum() * 0
    cross = F.cross_entropy(logits, classes, ignore_index=-1)
    p = logits.softmax(1).movedim(1, -1)[known]  # (P, C + 1)
    t = F.one_hot(classes[known], logits.shape[1]).to(p.dtype)
    dice = (2 * (p * t).sum(0) + 1) / (p.sum(0) + t.sum(0) + 1)
    return cross + (1 - dice)[t.sum(0) > 0].mean()


def outline(labels: torch.Tensor) -> torch.Tensor:
    """Return True where a voxel's 3^d neighbourhood holds several labels.

    `labels` is (B, 1, ...) integer; float32 is exact for the ids of one crop. Beyond the crop
    and where nothing is annotated (-1) there is no label.
    """
    ndim = labels.ndim - 2
    pool = F.max_pool2d if ndim == 2 else F.max_pool3d
    values, unknown = labels.float(), labels < 0
    highest = pool(values.masked_fill(unknown, -math.inf), 3, 1, 1)
    lowest = -pool((-values).masked_fill(unknown, -math.inf), 3, 1, 1)
    return (highest != lowest) & ~unknown


def boundary_weight(labels: torch.Tensor, extra: float) -> torch.Tensor:
    """Return 1 + `extra` at the `outline` of (B, 1, ...) labels, 0 at -1, else 1."""
    return (1 + extra * outline(labels).float()) * (labels >= 0)


def seed(logit: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Squared error to the normalised distance map, class-balanced: fg mean + bg mean.

    `target` is the distance to the outline divided by its maximum in the instance (InstanSeg,
    arXiv 2408.15954), so it is 1 inside every object, also rings and worms; 0 is background, -1 not
    annotated.
    """
    error = (logit.sigmoid() - target) ** 2
    inside, outside = target > 0, target == 0
    fg = (error * inside).sum() / inside.sum().clamp(min=1)
    bg = (error * outside).sum() / outside.sum().clamp(min=1)
    return fg + bg


def boundary(logit: torch.Tensor, labels: torch.Tensor, positive: float = 3.0) -> torch.Tensor:
    """Binary cross-entropy of the `outline`; its voxels count `positive` times.

    Parameters
    ----------
    logit : (B, 1, ...) float
        Boundary logit.
    labels : (B, 1, ...) integer
    """
    known, weight = labels >= 0, logit.new_tensor(positive)
    cross = F.binary_cross_entropy_with_logits(
        logit, outline(labels).float(), known.float(), pos_weight=weight
    )
    return cross * _per_known(known)


class Instances:
    """The instances of a batch of crops: voxels, owners and centres as flat tensors.

    Parameters
    ----------
    labels : (B, ...) int64
        Ids unique within each crop; 0 is background, -1 not annotated.
    centre : (B, d, ...) float
        Position of the voxel's instance centre, px of the crop, array axis order.
    """

    def __init__(self, labels: torch.Tensor, centre: torch.Tensor) -> None:
        self.shape = tuple(labels.shape[1:])
        self.ndim = len(self.shape)
        self.where = (labels > 0).nonzero(as_tuple=True)  # (P,) each: crop, axes
        stride = int(labels.max()) + 1 if labels.numel() else 1
        keys = self.where[0] * stride + labels[self.where]
        self.key, self.owner = keys.unique(return_inverse=True)  # (N,), (P,)
        self.n = len(self.key)
        self.crop = torch.div(self.key, stride, rounding_mode="floor")  # (N,)
        self.label = self.key % stride
        self.size = torch.bincount(self.owner, minlength=self.n).float()  # (N,)
        self.position = torch.stack(self.where[1:], 1).float()  # (P, d)
        target = self.pick(centre)  # (P, d)
        self.centre = self.mean(target)  # (N, d)

    def pick(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the values of (B, C, ...) maps at the foreground voxels, (P, C)."""
        return maps.movedim(1, -1)[self.where]

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean of (P, C) values over every instance, (N, C)."""
        total = values.new_zeros(self.n, values.shape[1]).index_add_(0, self.owner, values)
        return total / self.size[:, None]


def vote(off: torch.Tensor, instances: Instances, unit_px: float) -> torch.Tensor:
    """Smooth L1 between a voxel's vote and its instance's centre, every instance equal.

    `unit_px` is the distance at which the loss turns from square to linear.
    """
    if not instances.n:
        return off.sum() * 0
    miss = instances.position + instances.pick(off) - instances.centre[instances.owner]
    error = F.smooth_l1_loss(miss / unit_px, torch.zeros_like(miss), reduction="none")
    return instances.mean(error).mean()


def variance(lsig: torch.Tensor, instances: Instances) -> torch.Tensor:
    """Return the mean over instances of the variance of log sigma inside the instance."""
    if not instances.n:
        return lsig.sum() * 0
    values = instances.pick(lsig)
    mean = instances.mean(values)
    return instances.mean((values - mean[instances.owner]) ** 2).mean()


def instance(
    off: torch.Tensor,
    lsig: torch.Tensor,
    labels: torch.Tensor,
    instances: Instances,
    *,
    chosen: torch.Tensor,
    window_px: tuple[int, ...],
    overlap: str = "dice",
) -> torch.Tensor:
    """Mean over chosen instances of the mismatch of soft mask and instance, in a window.

    phi_k(p) = exp(-sum_a (x_p + o_p - C_k)_a^2 / (2 sigma_ka^2)), sigma_k = exp(mean log sigma
    over the instance) (form of EmbedSeg, arXiv 2101.10033, after Neven et al.).

    Parameters
    ----------
    off, lsig : (B, d, ...)
    labels : (B, ...) int64
    chosen : (M,) int64
        Which instances take part.
    window_px : d ints
        Window around the centre in which the masks are compared; at most the crop.
    overlap : {"dice", "lovasz"}
        1 - Dice(phi, instance), or the Lovasz hinge of 2 phi - 1.
    """
    if not len(chosen):
        return off.sum() * 0
    sigma = instances.mean(instances.pick(lsig)).exp()[chosen]  # (M, d)
    centre = instances.centre[chosen]  # (M, d)
    crop = instances.crop[chosen]
    shape, d = instances.shape, instances.ndim
    sides = [min(w, s) for w, s in zip(window_px, shape, strict=True)]
    index = []
    for axis, side in enumerate(sides):
        start = (centre[:, axis] - side / 2).round().long().clamp(0, shape[axis] - side)
        line = start[:, None] + torch.arange(side, device=off.device)  # (M, side)
        index.append(line.reshape(-1, *[side if a == axis else 1 for a in range(d)]))
    who = crop.reshape(-1, *[1] * d)
    where = (who, *index)
    at = torch.stack(torch.broadcast_tensors(*[i.float() for i in index]), -1)  # (M, ..., d)
    e = at + off.movedim(1, -1)[where]  # (M, ..., d)
    spread = sigma.reshape(-1, *[1] * d, d)
    delta = (e - centre.reshape(-1, *[1] * d, d)) / spread
    phi = (-0.5 * (delta**2).sum(-1)).exp().flatten(1)  # (M, V)
    here = labels[where]  # (M, ...)
    phi = phi * (here >= 0).flatten(1)
    inside = (here == instances.label[chosen].reshape(-1, *[1] * d)).flatten(1).float()
    if overlap == "lovasz":
        return lovasz_hinge(2 * phi - 1, inside).mean()
    dice = (2 * (phi * inside).sum(1) + EPSILON) / (phi.sum(1) + inside.sum(1) + EPSILON)
    return (1 - dice).mean()


def lovasz_hinge(score: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the Lovasz extension of 1 - IoU at the hinge errors, of every row.

    With errors m_i = [1 - score_i (2 target_i - 1)]_+ sorted from the largest, sum_i m_i
    (J_i - J_(i-1)), J_i the Jaccard loss when the first i voxels are wrong (Berman et al.,
    arXiv 1705.08790, algorithm 1).

    Parameters
    ----------
    score, target : (M, V) float
        Positive scores mean inside; targets are 0 or 1.

    Returns
    -------
    (M,) tensor
    """
    error = 1 - score * (2 * target - 1)
    error, order = error.sort(1, descending=True)
    true = target.gather(1, order)
    total = true.sum(1, keepdim=True)
    jaccard = 1 - (total - true.cumsum(1)) / (total + (1 - true).cumsum(1)).clamp(min=1)
    step = torch.cat([jaccard[:, :1], jaccard[:, 1:] - jaccard[:, :-1]], 1)
    return (F.relu(error) * step).sum(1)


def triplet(
    z: torch.Tensor,
    identity: torch.Tensor,
    centre: torch.Tensor,
    morphology: torch.Tensor,
    *,
    radius_px: float,
    margin: float = 0.3,
    similarity: float = 0.5,
    semi_hard: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """Triplet loss with hard negatives of similar morphology among neighbours.

    Distance d(a, b) = 1 - <a, b>. Positive: the hardest other view of the same instance.
    Negative: argmin over neighbours of d(a, n) - similarity * exp(-|q_a - q_n|^2). Averaged
    over the active anchors (IAU-Net, arXiv 2604.09702, abstract; mining is ours).

    Parameters
    ----------
    z : (N, D) unit vectors, all views stacked
    identity : (N,) int64
        Equal for two views of one instance.
    centre : (N, d)
        px; instances of other images must lie farther than `radius_px`.
    morphology : (N, M)
        Standardised shape and intensity features.
    similarity : float
        How much similar morphology counts; 0: distance alone.
    semi_hard : bool
        Only negatives farther than the positive, as long as there are any.
    generator : torch.Generator, optional
        When given, a negative is any neighbour by chance (for comparison).

    Returns
    -------
    loss, and {"active": share of active anchors, "distance": mean anchor-negative distance}
    """
    n = len(z)
    if n < 3:
        return z.sum() * 0, {"active": math.nan, "distance": math.nan}
    d = 1 - z @ z.T
    same = identity[:, None] == identity[None]
    positive = same & ~torch.eye(n, dtype=torch.bool, device=z.device)
    # Not by matrix product: that loses the difference of far-away centres.
    apart = torch.cdist(centre, centre, compute_mode="donot_use_mm_for_euclid_dist")
    negative = ~same & (apart < radius_px)
    d_ap = torch.where(positive, d, d.new_tensor(-1.0)).amax(1)
    key = d.detach() - similarity * torch.exp(-torch.cdist(morphology, morphology).pow(2))
    if generator is not None:
        key = torch.rand(n, n, generator=generator).to(z)
    elif semi_hard:
        key = torch.where(d > d_ap[:, None], key, key + 10.0)
    nearest = torch.where(negative, key, key.new_tensor(1e4)).argmin(1)
    valid = positive.any(1) & negative.any(1)
    if not bool(valid.any()):
        return z.sum() * 0, {"active": math.nan, "distance": math.nan}
    d_an = d.gather(1, nearest[:, None])[:, 0][valid]
    loss = F.relu(d_ap[valid] - d_an + margin)
    active = (loss > 0).sum()
    facts = {"active": float(active) / len(loss), "distance": float(d_an.detach().mean())}
    return loss.sum() / active.clamp(min=1), facts
