import itertools

import pytest
import torch
from torch import nn

from iaunet import ranks
from nets import small_net


@pytest.fixture
def two(monkeypatch):
    """This process as the first of two; `others` is what the second one adds to every sum."""
    others = []
    monkeypatch.setattr(ranks.distributed, "all_reduce", lambda flat: flat.add_(others.pop(0)))
    return ranks.Ranks(0, 2), others


@pytest.mark.parametrize(("n", "size"), [(4, 1), (4, 2), (5, 3), (2, 2)])
def test_the_shares_partition_the_pairs_and_none_is_empty(n, size):
    shares = [list(ranks.Ranks(rank, size).share(n)) for rank in range(size)]
    assert sorted(itertools.chain(*shares)) == list(range(n))
    assert all(shares)


def test_one_process_alone_changes_nothing(monkeypatch):
    for name in ("all_reduce", "broadcast", "all_gather", "destroy_process_group"):
        monkeypatch.setattr(ranks.distributed, name, None)
    net, alone = small_net(2), ranks.Ranks()
    net.head.weight.grad = torch.ones_like(net.head.weight)
    alone.average_gradients(net)
    alone.average_statistics(net)
    alone.check_equal(net)
    alone.stop()
    assert bool((net.head.weight.grad == 1).all())
    assert alone.of_first(3.5) == 3.5
    assert alone.all_true([True, False]) == [True, False]


def test_gradients_become_their_mean_and_missing_ones_count_as_zero(two):
    place, others = two
    net = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in (2, 1, 3)])
    net[0].grad = torch.tensor([2.0, 4.0])
    others.append(torch.tensor([1, 1, 0, 6.0, 0, 5, 0, 0, 0]))  # has, has, has not; the values
    place.average_gradients(net)
    assert net[0].grad.tolist() == [4, 2]
    assert net[1].grad.tolist() == [2.5]
    assert net[2].grad is None


def test_running_statistics_become_their_mean_unless_frozen(two):
    place, others = two
    net = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(1))
    net[1].eval()
    others.append(torch.tensor([4.0, 6.0, 3.0, 5.0]))
    place.average_statistics(net)
    assert net[0].running_mean.tolist() == [2, 3]
    assert net[0].running_var.tolist() == [2, 3]
    assert net[1].running_mean.tolist() == [0]


def test_different_weights_are_noticed(two, monkeypatch):
    place, net = two[0], small_net(2)

    def gather(everyone, mine):
        everyone[0].copy_(mine)
        everyone[1].copy_(mine + 1)

    monkeypatch.setattr(ranks.distributed, "all_gather", gather)
    with pytest.raises(RuntimeError, match="different weights"):
        place.check_equal(net)


def test_without_torchrun_a_process_is_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    place = ranks.start("cpu")
    assert (place.rank, place.size, place.device.type) == (0, 1, "cpu")
    assert place.is_first
