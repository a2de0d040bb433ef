import math

import numpy as np
import pytest
import torch

from crops import drawn_batch
from iaunet import losses


@pytest.fixture(params=[(2, 20, 24), (2, 8, 14, 12)], ids=["2d", "3d"])
def batch(request):
    rng = np.random.default_rng(3)
    labels, centre = drawn_batch(rng, request.param)
    d = len(request.param) - 1
    off = torch.from_numpy(rng.normal(0, 2, (2, d, *request.param[1:])).astype(np.float32))
    lsig = torch.from_numpy(rng.uniform(0.2, 1.5, off.shape).astype(np.float32))
    return labels, centre, off.requires_grad_(), lsig.requires_grad_()


def slow_instance_values(labels, values):
    """Yield crop, label, voxel positions and values, one instance after the other."""
    for b, crop in enumerate(labels.numpy()):
        for label in np.unique(crop[crop > 0]):
            where = np.argwhere(crop == label)
            yield b, label, where, np.array([values[(b, slice(None), *p)] for p in where])


def test_variance_equals_a_loop_over_instances(batch):
    labels, centre, _, lsig = batch
    instances = losses.Instances(labels, centre)
    rows = slow_instance_values(labels, lsig.detach().numpy())
    expected = np.mean([values.var(0).mean() for _, _, _, values in rows])
    assert float(losses.variance(lsig, instances).detach()) == pytest.approx(expected, rel=1e-4)


def test_vote_equals_a_loop_over_instances(batch):
    labels, centre, off, _ = batch
    instances = losses.Instances(labels, centre)
    means = []
    for b, _, where, values in slow_instance_values(labels, off.detach().numpy()):
        target = np.array([centre[(b, slice(None), *p)].numpy() for p in where])
        miss = np.abs(where + values - target) / 3
        means.append(np.where(miss < 1, 0.5 * miss**2, miss - 0.5).mean())
    assert float(losses.vote(off, instances, 3.0).detach()) == pytest.approx(
        np.mean(means), rel=1e-4
    )


def test_instance_loss_equals_a_loop_over_instances_and_voxels(batch):
    labels, centre, off, lsig = batch
    instances = losses.Instances(labels, centre)
    shape = labels.shape[1:]
    expected = []
    for b, label, where, values in slow_instance_values(labels, lsig.detach().numpy()):
        sigma = np.exp(values.mean(0))
        middle = centre[(b, slice(None), *where[0])].numpy()
        both = soft = hard = 0.0
        for p in np.ndindex(*shape):
            e = p + off.detach()[(b, slice(None), *p)].numpy()
            phi = math.exp(-0.5 * (((e - middle) / sigma) ** 2).sum())
            inside = float(labels[(b, *p)] == label)
            both, soft, hard = both + phi * inside, soft + phi, hard + inside
        expected.append(1 - (2 * both + 1e-6) / (soft + hard + 1e-6))
    found = losses.instance(
        off, lsig, labels, instances, chosen=torch.arange(instances.n), window_px=shape
    )
    assert float(found.detach()) == pytest.approx(np.mean(expected), rel=1e-4)


def test_perfect_votes_and_small_bandwidth_have_no_instance_loss_left():
    labels = torch.zeros(1, 16, 16, dtype=torch.long)
    labels[0, 2:7, 3:9] = 1
    labels[0, 7:12, 3:9] = 2
    centre = torch.zeros(1, 2, 16, 16)
    grid = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij"))[None]
    for label, middle in ((1, (4.0, 5.5)), (2, (9.0, 5.5))):
        for axis in range(2):
            centre[0, axis][labels[0] == label] = middle[axis]
    off = torch.where(labels[:, None] > 0, centre - grid, torch.full_like(grid, 99.0))
    instances = losses.Instances(labels, centre)
    found = losses.instance(
        off, torch.zeros_like(off), labels, instances, chosen=torch.arange(2), window_px=(16, 16)
    )
    assert float(found) < 1e-4


@pytest.mark.parametrize("shape", [(2, 12, 12), (1, 4, 8, 8)], ids=["2d", "3d"])
def test_without_instances_every_term_is_zero_with_zero_gradient(shape):
    labels = torch.zeros(shape, dtype=torch.long)
    d = len(shape) - 1
    maps = torch.randn(shape[0], d, *shape[1:], requires_grad=True)
    instances = losses.Instances(labels, torch.zeros_like(maps))
    none = torch.arange(0)
    total = (
        losses.vote(maps, instances, 2.0)
        + losses.variance(maps, instances)
        + losses.instance(maps, maps, labels, instances, chosen=none, window_px=shape[1:])
        + losses.seed(maps[:, :1], torch.zeros(shape)[:, None])
    )
    assert bool(total.isfinite())
    total.backward()
    assert bool(maps.grad.isfinite().all())


def test_mask_loss_is_near_zero_for_a_sure_and_right_answer():
    target = (torch.rand(2, 1, 16, 16) > 0.5).float()
    weight = torch.ones_like(target)
    assert float(losses.mask(40 * (target - 0.5), target, weight)) < 1e-3
    assert float(losses.mask(-40 * (target - 0.5), target, weight)) > 5


def test_boundary_weight_marks_both_sides_of_a_border():
    labels = torch.tensor([[[[1, 1, 1, 2, 2, 2]] * 3]])
    assert losses.boundary_weight(labels, 2.0)[0, 0, 1].tolist() == [1, 1, 3, 3, 1, 1]


def textbook_triplet(z, identity, centre, morphology, radius, margin, similarity, semi_hard):
    values = []
    for a in range(len(z)):
        positives = [p for p in range(len(z)) if p != a and identity[p] == identity[a]]
        negatives = [
            n
            for n in range(len(z))
            if identity[n] != identity[a] and np.linalg.norm(centre[a] - centre[n]) < radius
        ]
        if not positives or not negatives:
            continue
        d_ap = max(1 - z[a] @ z[p] for p in positives)

        def hardness(n, a=a, d_ap=d_ap):
            d = 1 - z[a] @ z[n]
            alike = np.exp(-((morphology[a] - morphology[n]) ** 2).sum())
            return d - similarity * alike + (10 if semi_hard and not d > d_ap else 0)

        d_an = 1 - z[a] @ z[min(negatives, key=hardness)]
        values.append(max(0.0, d_ap - d_an + margin))
    active = [v for v in values if v > 0]
    return sum(active) / max(1, len(active))


@pytest.mark.parametrize("semi_hard", [False, True])
def test_triplet_equals_the_textbook_loop(semi_hard):
    rng = np.random.default_rng(5)
    z = rng.normal(size=(24, 4))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    identity = np.repeat(np.arange(12), 2)
    centre = rng.uniform(0, 100, (24, 2)) + 1e5 * (np.arange(24) >= 12)[:, None]
    morphology = rng.normal(size=(24, 5))
    found, facts = losses.triplet(
        torch.tensor(z),
        torch.tensor(identity),
        torch.tensor(centre),
        torch.tensor(morphology),
        radius_px=60.0,
        semi_hard=semi_hard,
    )
    expected = textbook_triplet(z, identity, centre, morphology, 60.0, 0.3, 0.5, semi_hard)
    assert float(found) == pytest.approx(expected, rel=1e-6)
    assert 0 <= facts["active"] <= 1


def test_triplet_gradients_agree_with_finite_differences():
    rng = np.random.default_rng(1)
    raw = torch.tensor(rng.normal(size=(8, 3)), requires_grad=True)
    identity = torch.arange(8) // 2
    centre = torch.tensor(rng.uniform(0, 10, (8, 2)))
    morphology = torch.zeros(8, 5)

    def loss(x):
        z = torch.nn.functional.normalize(x, dim=1)
        return losses.triplet(z, identity, centre, morphology, radius_px=99.0)[0]

    assert torch.autograd.gradcheck(loss, (raw,))


@pytest.mark.parametrize("n", [0, 1, 2])
def test_triplet_without_enough_instances_is_zero(n):
    z = torch.ones(n, 4, requires_grad=True)
    loss, _ = losses.triplet(
        z, torch.zeros(n), torch.zeros(n, 2), torch.zeros(n, 5), radius_px=10.0
    )
    assert float(loss.detach()) == 0


def test_lovasz_hinge_equals_its_loop():
    rng = np.random.default_rng(5)
    score = rng.normal(0, 1, (4, 30))
    target = (rng.random((4, 30)) < [[0.3], [0.7], [0.0], [1.0]]).astype(float)
    expected = []
    for s, t in zip(score, target, strict=True):
        error = 1 - s * (2 * t - 1)
        order = np.argsort(-error, kind="stable")
        loss = before = 0.0
        for i in range(30):
            wrong = np.zeros(30, bool)
            wrong[order[: i + 1]] = True
            found = np.where(wrong, 1 - t, t)
            union = np.maximum(found, t).sum()
            jaccard = 1 - np.minimum(found, t).sum() / union if union else 0.0
            loss += max(0.0, error[order[i]]) * (jaccard - before)
            before = jaccard
        expected.append(loss)
    found = losses.lovasz_hinge(torch.from_numpy(score), torch.from_numpy(target))
    assert np.allclose(found, expected)


def test_lovasz_instance_loss_is_zero_for_perfect_votes(batch):
    labels, centre, _, lsig = batch
    instances = losses.Instances(labels, centre)
    grid = torch.stack(
        torch.meshgrid(*[torch.arange(float(n)) for n in labels.shape[1:]], indexing="ij")
    )
    perfect = torch.where(labels[:, None] > 0, centre - grid[None], torch.full_like(centre, 99.0))
    found = losses.instance(
        perfect,
        torch.full_like(lsig, -3.0),
        labels,
        instances,
        chosen=torch.arange(instances.n),
        window_px=(8,) * instances.ndim,
        overlap="lovasz",
    )
    assert float(found) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("shape", [(5, 6), (2, 4, 3)])
def test_semantic_loss_equals_a_loop_over_voxels(shape):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, *shape, generator=generator, dtype=torch.float64)
    classes = torch.randint(-1, 3, (2, *shape), generator=generator)  # class 3 is nowhere
    cross, n = 0.0, 0
    sums = torch.zeros(3, 4, dtype=torch.float64)
    for crop, *voxel in np.argwhere(classes.numpy() >= 0):
        p = logits[(crop, slice(None), *voxel)].softmax(0)
        target = int(classes[(crop, *voxel)])
        cross, n = cross - float(p[target].log()), n + 1
        sums[0] += p
        sums[1, target] += 1
        sums[2, target] += p[target]
    dice = [1 - (2 * sums[2, k] + 1) / (sums[0, k] + sums[1, k] + 1) for k in range(3)]
    found = losses.semantic(logits, classes)
    assert float(found) == pytest.approx(cross / n + float(sum(dice)) / 3)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: losses.semantic(x, classes), (logits,))


def test_boundary_counts_outlines_more():
    logit = torch.tensor([[[[0.3, 0.7, -1.0]]]], requires_grad=True)
    labels = torch.tensor([[[[1, 0, 0]]]])
    p = torch.sigmoid(logit.detach()).flatten()
    expected = (3 * -math.log(p[0]) + 3 * -math.log(p[1]) - math.log(1 - p[2])) / 3
    assert float(losses.boundary(logit, labels).detach()) == pytest.approx(expected)
