import time

import numpy as np
import pytest
import torch

from iaunet import objective, patches, training
from iaunet.errors import InputError
from iaunet.net import IAUNet
from nets import small_net

PLAIN = patches.Augmentation(
    zoom=(0.8, 1.2), small_px=0, zoom_small=(1, 1), anisotropy=1, empty=0.1
)


def recipe(**change):
    options = {
        "weights": dict.fromkeys(("mask", "seed", "instance", "variance", "vote", "triplet"), 1.0),
        "learning_rate": 1e-3,
        "weight_decay": 1e-4,
        "boundary": 1.0,
        "vote_px": 2.0,
        "window_px": (16, 16),
        "instances": 4,
        "neighbours_px": 40.0,
        "id_gradient": 0.1,
        "ema": 0.99,
        "bf16": False,
    }
    return objective.Recipe(**(options | change))


@pytest.fixture
def sampler(rng):
    labels = np.zeros((64, 64), np.int32)
    for k in range(9):
        y, x = 20 * (k // 3) + 3, 20 * (k % 3) + 3
        labels[y : y + 10, x : x + 8] = k + 1
    image = (0.1 * rng.normal(size=labels.shape) + (labels > 0)).astype(np.float32)
    found = patches.annotate("a", "a", image, labels, (1.0, 1.0))
    return patches.Sampler([found], (32, 32), 2, PLAIN, seed=0)


def run(trainer, sampler, until):
    while trainer.step < until:
        trainer.train_step(sampler.batch(trainer.step), trainer.step / 10)
    return trainer


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one(sampler, tmp_path):
    torch.set_num_threads(1)
    unbroken = run(training.Trainer(small_net(2), recipe(), 1), sampler, 8)
    killed = run(training.Trainer(small_net(2), recipe(), 1), sampler, 4)
    killed.save(tmp_path / "checkpoint.safetensors")
    resumed = training.Trainer(small_net(2, seed=9), recipe(), 1)
    resumed.load(tmp_path / "checkpoint.safetensors")
    run(resumed, sampler, 8)
    for key, value in unbroken.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[key]), key
    for key, value in unbroken.average.state.items():
        assert torch.equal(value, resumed.average.state[key]), key


def test_steps_lower_the_loss(sampler):
    trainer = training.Trainer(small_net(2), recipe(learning_rate=1e-2), 1)
    batch = sampler.batch(1)
    first = trainer.train_step(batch, 0.3)
    for _ in range(40):
        last = trainer.train_step(batch, 0.3)
    names = trainer.recipe.weights
    assert sum(last[name] for name in names) < 0.8 * sum(first[name] for name in names)


def test_a_term_that_is_not_finite_stops_and_is_named(sampler):
    trainer = training.Trainer(small_net(2), recipe(), 1)
    before = {k: v.clone() for k, v in trainer.net.named_parameters()}
    batch = sampler.batch(0)
    batch["depth"][:] = float("nan")
    with pytest.raises(FloatingPointError, match="loss term 'seed' is not finite at step 0"):
        trainer.train_step(batch, 0.5)
    assert all(torch.equal(before[k], v) for k, v in trainer.net.named_parameters())


def test_a_damaged_checkpoint_and_one_of_another_network_are_refused(sampler, tmp_path):
    path = tmp_path / "checkpoint.safetensors"
    trainer = training.Trainer(small_net(2), recipe(), 1)
    trainer.save(path)
    with pytest.raises(InputError, match="differs in network, recipe;"):
        training.Trainer(small_net(3), recipe(window_px=(4, 8, 8)), 1).load(path)
    with pytest.raises(InputError, match="differs in seed;"):
        training.Trainer(small_net(2), recipe(), 2).load(path)
    other = recipe(weights={"mask": 1.0})
    with pytest.raises(InputError, match="differs in recipe; delete it"):
        training.Trainer(small_net(2), other, 1).load(path)
    with pytest.raises(InputError, match="differs in images; delete it"):
        training.Trainer(small_net(2), recipe(), 1, data="others").load(path)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="damaged checkpoint"):
        trainer.load(path)


def test_every_term_can_be_chosen_and_lowers_itself(sampler):
    torch.manual_seed(0)
    net = IAUNet(**(small_net(2).options | {"emb_dim": 4, "proj_dim": 8, "outline": True}))
    names = ("discriminative", "contrastive", "boundary")
    chosen = recipe(weights=dict.fromkeys(names, 1.0), learning_rate=1e-2)
    trainer = training.Trainer(net, chosen, 1)
    batch = sampler.batch(1)
    first = trainer.train_step(batch, 0.3)
    assert set(names) == set(first) & set(objective.TERMS)
    for _ in range(30):
        last = trainer.train_step(batch, 0.3)
    for name in names:
        assert last[name] < 0.9 * first[name], name


def test_consistency_between_slices_is_part_of_the_contrastive_term_in_3d():
    torch.manual_seed(0)
    net = IAUNet(**(small_net(3).options | {"proj_dim": 8}))
    labels = torch.zeros(1, 8, 16, 16, dtype=torch.long)
    labels[:, 2:6, 4:12, 4:12] = 1
    out = net(torch.randn(1, 1, 8, 16, 16))

    def term():
        generator = torch.Generator().manual_seed(0)
        return float(objective.contrastive(out, labels, generator).detach())

    with pytest.MonkeyPatch.context() as patch:
        together = term()
        patch.setattr(objective, "CONSISTENCY", 0.0)
        assert term() < together


@pytest.mark.parametrize("negatives", ["random", "hard", "similar"])
def test_a_triplet_that_collapses_becomes_semi_hard(sampler, negatives, monkeypatch):
    seen = []

    def triplet(z, *rest, semi_hard, **more):
        seen.append(semi_hard)
        return z.sum() * 0, {"active": 1.0, "distance": 0.01}

    monkeypatch.setattr(objective.losses, "triplet", triplet)
    monkeypatch.setattr(training, "PATIENCE", 3)
    trainer = training.Trainer(small_net(2), recipe(negatives=negatives), 1)
    for _ in range(5):
        trainer.train_step(sampler.batch(0), 0.5)
    assert seen == [False, False, False, True, True]


def test_learning_rate_warms_up_and_ends_at_one_percent():
    rates = [training.learning_rate_factor(p) for p in (0, 0.015, 0.03, 0.5, 1.0, 1.2)]
    assert rates[0] == 0.01
    assert rates[2] == max(rates) == 1.0
    assert rates[4] == rates[5] == pytest.approx(0.01)


@pytest.mark.parametrize("workers", [1, 3])
def test_prefetch_hands_on_batches_in_order_and_errors(workers):
    def make(step):
        time.sleep(0.01 * (step % 3))
        if step == 8:
            raise ValueError("no such batch")
        return {"step": step}

    prefetch = training.Prefetch(make, 3, workers)
    assert [prefetch.next()["step"] for _ in range(5)] == [3, 4, 5, 6, 7]
    with pytest.raises(ValueError, match="no such batch"):
        prefetch.next()
    assert prefetch.waited > 0
    prefetch.close()
