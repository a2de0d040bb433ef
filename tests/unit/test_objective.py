"""What is not annotated teaches nothing, whatever the network says there."""

import numpy as np
import pytest
import torch

from iaunet import objective, patches
from iaunet.net import Outputs

SHAPES = [pytest.param((48, 48), 4, id="2d"), pytest.param((8, 24, 24), 4, id="3d")]
WEIGHTS = dict.fromkeys(objective.TERMS, 1.0)


def recipe(ndim, overlap):
    return objective.Recipe(
        weights=WEIGHTS,
        learning_rate=1e-3,
        weight_decay=1e-4,
        boundary=1.0,
        vote_px=2.0,
        window_px=(16,) * ndim,
        instances=8,
        neighbours_px=40.0,
        id_gradient=0.1,
        ema=0.99,
        bf16=False,
        overlap=overlap,
    )


def drawn_batch(shape, roi):
    """Return a batch of two pairs of a grid of boxes, of which only `roi` is annotated."""
    labels = np.zeros(shape, np.int32)
    d = len(shape)
    for k, corner in enumerate(np.ndindex(*[n // 8 for n in shape])):
        labels[tuple(slice(8 * c + 1, 8 * c + 7 - c % 2) for c in corner)] = k + 1
    image = (labels > 0).astype(np.float32)
    classes = np.where(labels > 0, 1 + labels % 2, 0)
    found = patches.annotate("a", "a", image, labels, (1.0,) * d, roi, classes)
    plain = patches.Augmentation(zoom=(1, 1), small_px=0, zoom_small=(1, 1), anisotropy=1, empty=0)
    crop = tuple(n * 3 // 4 // 4 * 4 if n > 8 else n for n in shape)
    return patches.Sampler([found], crop, 2, plain, seed=1).batch(0)


def random_outputs(labels, stride, seed):
    generator = torch.Generator().manual_seed(seed)
    b, *shape = labels.shape
    d = len(shape)

    def maps(channels, size):
        return torch.randn(b, channels, *size, generator=generator)

    unit = torch.nn.functional.normalize
    return Outputs(
        fg=maps(1, shape),
        seed=maps(1, shape),
        off=3 * maps(d, shape),
        lsig=maps(d, shape).abs(),
        id=unit(maps(16, [n // stride for n in shape])),
        emb=maps(4, shape),
        bnd=maps(1, shape),
        proj=unit(maps(8, shape)),
        sem=maps(3, shape),
    )


def terms_of(out, batch, overlap="dice"):
    ndim = batch["labels"].ndim - 1
    return objective.loss_terms(
        out,
        batch,
        recipe(ndim, overlap),
        progress=0.5,
        id_stride=(4,) * ndim,
        generator=torch.Generator().manual_seed(0),
    )[0]


def half_of(shape):
    roi = np.zeros(shape, bool)
    roi[..., 4 : shape[-1] // 2 + 3] = True
    return roi


@pytest.mark.parametrize("overlap", ["dice", "lovasz"])
@pytest.mark.parametrize(("shape", "stride"), SHAPES)
def test_no_term_has_a_value_or_a_gradient_from_what_is_not_annotated(shape, stride, overlap):
    batch = drawn_batch(shape, half_of(shape))
    unknown = batch["labels"][:, None] < 0
    assert 0.1 < float(unknown.float().mean()) < 0.9
    out = random_outputs(batch["labels"], stride, seed=1)
    other = random_outputs(batch["labels"], stride, seed=2)
    changed = Outputs(
        *(
            mine if name == "id" else torch.where(unknown, its, mine)
            for name, mine, its in zip(Outputs._fields, out, other, strict=True)
        )
    )
    before, after = terms_of(out, batch, overlap), terms_of(changed, batch, overlap)
    assert set(before) == set(objective.TERMS)
    for name, value in before.items():
        assert float(value) > 0
        assert float(value) == pytest.approx(float(after[name]), rel=1e-5), name
    leaves = Outputs(*(value.requires_grad_() for value in out))
    sum(terms_of(leaves, batch, overlap).values()).backward()
    for name, leaf in zip(Outputs._fields, leaves, strict=True):
        if name != "id":
            assert not bool(leaf.grad[unknown.expand_as(leaf)].any()), name
            assert bool(leaf.grad.any()), name


@pytest.mark.parametrize(("shape", "stride"), SHAPES)
def test_annotation_everywhere_is_the_same_as_no_roi(shape, stride):
    with_roi, without = drawn_batch(shape, np.ones(shape, bool)), drawn_batch(shape, None)
    for key in ("image", "labels", "objects", "depth", "centre"):
        assert torch.equal(with_roi[key], without[key]), key


@pytest.mark.parametrize("labelled", [-1, 0])
@pytest.mark.parametrize(("shape", "stride"), SHAPES)
def test_crops_without_instance_or_annotation_give_finite_terms(shape, stride, labelled):
    batch = drawn_batch(shape, None)
    batch["labels"].fill_(labelled)
    batch["objects"].fill_(labelled)
    batch["depth"].fill_(labelled)
    batch["classes"].fill_(labelled)
    out = random_outputs(batch["labels"], stride, seed=1)
    leaves = Outputs(*(value.requires_grad_() for value in out))
    terms = terms_of(leaves, batch)
    sum(terms.values()).backward()
    assert all(bool(term.isfinite()) for term in terms.values())
    assert all(leaf.grad is None or bool(leaf.grad.isfinite().all()) for leaf in leaves)
    if labelled < 0:
        assert all(leaf.grad is None or not bool(leaf.grad.any()) for leaf in leaves)


def test_the_border_of_the_annotation_is_no_outline():
    labels = torch.tensor([[[[0, 1, 1, 1, -1, -1, -1, 0]]]])
    found = objective.losses.outline(labels)[0, 0, 0].tolist()
    assert found == [True, True, False, False, False, False, False, False]
