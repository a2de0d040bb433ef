import math

import numpy as np
import pytest
import torch

from crops import drawn_batch
from iaunet import embedding, losses


@pytest.fixture(params=[(2, 20, 24), (2, 8, 10, 12)], ids=["2d", "3d"])
def instances(request):
    labels, centre = drawn_batch(np.random.default_rng(4), request.param)
    return losses.Instances(labels, centre)


def vectors_of(instances, dims=5, seed=0):
    rng = np.random.default_rng(seed)
    values = torch.from_numpy(rng.normal(0, 1.2, (len(instances.owner), dims)))
    return values.requires_grad_()


def slow_discriminative(x, owner, crop, pull_margin, push_margin, gamma):
    """Equations 1 to 4 of the paper, one loop per sum."""
    per_crop = []
    for b in np.unique(crop):
        of_crop = np.flatnonzero(crop == b)
        mean = {k: x[owner == k].mean(0) for k in of_crop}
        n = len(of_crop)
        pull = push = size = 0.0
        for k in of_crop:
            inside = x[owner == k]
            terms = [max(0.0, math.dist(mean[k], v) - pull_margin) ** 2 for v in inside]
            pull += sum(terms) / len(inside) / n
            size += math.hypot(*mean[k]) / n
            for other in of_crop:
                if other != k:
                    gap = max(0.0, 2 * push_margin - math.dist(mean[k], mean[other]))
                    push += gap**2 / (n * (n - 1))
        per_crop.append(pull + push + gamma * size)
    return np.mean(per_crop)


def test_discriminative_equals_the_loops_of_the_paper(instances):
    x = vectors_of(instances)
    found = embedding.discriminative(x, instances)
    expected = slow_discriminative(
        x.detach().numpy(), instances.owner.numpy(), instances.crop.numpy(), 0.5, 1.5, 0.001
    )
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_discriminative_has_the_gradient_of_its_value(instances):
    few = losses.Instances(
        torch.tensor([[[1, 1, 2], [0, 3, 2]], [[1, 0, 0], [1, 0, 0]]]), torch.zeros(2, 2, 2, 3)
    )
    x = vectors_of(few, dims=3)
    few.size = few.size.double()
    assert torch.autograd.gradcheck(lambda v: embedding.discriminative(v, few), (x,))


def test_separated_tight_clusters_cost_nothing_but_their_length():
    labels = torch.tensor([[[1, 1, 2, 2]]])
    found = losses.Instances(labels, torch.zeros(1, 2, 1, 4))
    x = torch.tensor([[0.0, 0.1], [0.0, -0.1], [4.0, 0.1], [4.0, -0.1]])
    assert float(embedding.discriminative(x, found, regularisation=0)) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("labels", [[[[0, 0]]], [[[1, 1]]], [[[1, 0]]]])
def test_none_or_one_instance_gives_finite_values_and_gradients(labels):
    found = losses.Instances(torch.tensor(labels), torch.zeros(1, 2, 1, 2))
    x = torch.zeros(len(found.owner), 4, requires_grad=True)
    loss = embedding.discriminative(x, found)
    loss.backward()
    assert bool(loss.isfinite())
    assert bool(x.grad.isfinite().all())


def test_modes_of_the_vectors(instances):
    d = instances.ndim
    off = torch.randn(2, d, *instances.shape)
    emb = torch.randn(2, 4, *instances.shape)
    parts = {
        mode: embedding.hybrid(off, emb, instances, unit_px=2.0, mode=mode)
        for mode in ("conv", "spatial", "hybrid")
    }
    assert bool((torch.cat([parts["spatial"], parts["conv"]], 1) == parts["hybrid"]).all())
    vote = instances.position + instances.pick(off)
    assert torch.allclose(parts["spatial"] * 2, vote)
    with pytest.raises(ValueError, match="needs a network with an embedding head"):
        embedding.hybrid(off, None, instances, unit_px=2.0, mode="conv")


def test_classes_mark_both_sides_of_every_outline():
    labels = torch.zeros(1, 7, 9, dtype=torch.long)
    labels[0, 1:6, 1:4], labels[0, 1:6, 4:8] = 1, 2
    classes = embedding.point_classes(labels)[0]
    for y in range(7):
        for x in range(9):
            around = labels[0, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
            inner = int(labels[0, y, x] > 0)
            assert classes[y, x] == (embedding.CONTACT if len(around.unique()) > 1 else inner)


def test_hard_points_are_the_worst_of_each_class_and_random_ones():
    rng = torch.Generator().manual_seed(0)
    target = (torch.arange(4000) % 5 == 0).float()
    probability = torch.rand(4000, generator=rng)
    chosen = embedding.hard_points(probability, target, 64, rng, pool=1000)
    assert len(chosen.unique()) == len(chosen) == 64
    for value in (0, 1):
        mine = chosen[target[chosen] == value]
        error = (probability - value).abs()
        worst = error[target == value].sort(descending=True).values[:24]
        assert len(mine) == 32
        assert set(worst.tolist()) <= set(error[mine].tolist())
    assert len(embedding.hard_points(probability, torch.zeros(4000), 64, rng)) == 32
    assert len(embedding.hard_points(torch.zeros(0), torch.zeros(0), 64, rng)) == 0


def unit(rows, seed):
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=(rows, 6)))
    return torch.nn.functional.normalize(values, dim=1)


def test_similarity_equals_its_loop():
    f, classes, tau = unit(15, 1), torch.tensor([0] * 7 + [1] * 7 + [2]), 0.1
    total, n = 0.0, 0
    for i in range(15):
        alike = [j for j in range(15) if j != i and classes[j] == classes[i]]
        below = sum(math.exp(float(f[i] @ f[k]) / tau) for k in range(15) if k != i)
        if alike:
            logs = [math.log(math.exp(float(f[i] @ f[j]) / tau) / below) for j in alike]
            total, n = total - sum(logs) / len(logs), n + 1
    assert float(embedding.similarity(f, classes, tau)) == pytest.approx(total / n)
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda v: embedding.similarity(v, torch.tensor([0, 0, 1, 1, 1, 2]), 1.0), (x,)
    )


def test_consistency_equals_its_loop():
    f, g = unit(20, 2), unit(20, 3)
    y, after = torch.arange(20) % 3, torch.arange(20) % 2
    same = [1 - float(f[i] @ g[i]) for i in range(20) if y[i] == after[i]]
    other = [max(0.0, float(f[i] @ g[i]) - 0.2) for i in range(20) if y[i] != after[i]]
    expected = np.mean(same) + np.mean(other)
    assert float(embedding.consistency(f, g, y, after)) == pytest.approx(expected)
    assert float(embedding.consistency(f, f, y, y)) == pytest.approx(0, abs=1e-9)


def test_nothing_to_compare_costs_nothing():
    f = torch.zeros(0, 4, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    assert float(embedding.similarity(f, none).detach()) == 0
    assert float(embedding.consistency(f, f, none, none).detach()) == 0
    alone = torch.nn.functional.normalize(torch.ones(2, 4), dim=1)
    assert float(embedding.similarity(alone, torch.tensor([0, 1]))) == 0
