"""Runs of equal values in flat tensors, and which of them make one piece; integers alone."""

import torch


def starts(*keys: torch.Tensor) -> torch.Tensor:
    """Return the places where a run of equal values begins."""
    new = torch.ones(len(keys[0]), dtype=torch.bool, device=keys[0].device)
    new[1:] = False
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    return new.nonzero()[:, 0]


def lengths(starts: torch.Tensor, n: int) -> torch.Tensor:
    """Return the lengths of runs that begin at `starts`, the last of which ends at n."""
    return starts.diff(append=starts.new_full((1,), n))


def sums(values: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
    """Return the sums over runs, of 64 bits."""
    before = torch.cat([values.new_zeros(1), values.cumsum(0)])
    return before[starts + lengths(starts, len(values))] - before[starts]


def runs(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where runs of equal values begin, and the run of every voxel."""
    first = starts(flat)
    new = torch.zeros(len(flat), dtype=torch.int32, device=flat.device)
    new[first[1:]] = 1
    return first, new.cumsum(0, dtype=torch.int32)


def touching(run: torch.Tensor, step: int, which: torch.Tensor) -> torch.Tensor:
    """Return the runs of some voxels and of those `step` further, (2, n), most pairs once."""
    before, after = run[:-step], run[step:]
    new = torch.ones_like(which)
    new[1:] = (before[1:] != before[:-1]) | (after[1:] != after[:-1])
    new &= which
    return torch.stack([before[new], after[new]]).to(torch.int64)


def joined(n: int, pairs: torch.Tensor) -> torch.Tensor:
    """Return the first member of the group of each of n, where pairs (2, m) are of one group.

    Every round hangs first members under earlier ones that they are paired with, and then has
    everyone follow its way up; it ends, since each round leaves fewer of them, and with most
    shapes after a few.
    """
    root = torch.arange(n, device=pairs.device)
    while True:
        pairs = root[pairs]
        pairs = pairs[:, pairs[0] != pairs[1]]
        if pairs.shape[1] == 0:
            return root
        pairs = torch.stack(pairs.aminmax(dim=0))
        root.scatter_reduce_(0, pairs[1], pairs[0], "amin")
        while True:
            above = root[root]
            if torch.equal(above, root):
                break
            root = above
