"""The processes of one training: one, or those that torchrun started, each with a share.

Each process computes its share of the crops of a step; gradients are averaged, so all hold the
same weights. A term is averaged over the instances of a share first, so two processes with
half of the crops each are not, to the bit, one process with all of them. BatchNorm normalises
by the share alone, and its running statistics are averaged over processes after every step.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed, nn

from iaunet.checkpoint import digest
from iaunet.predict import pick_device

PATIENCE = timedelta(hours=3)
"""How long processes wait for the first one, which validates."""


@dataclass(frozen=True)
class Ranks:
    """Which of how many processes this one is, and its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009 a device is a constant

    @property
    def is_first(self) -> bool:
        """Whether this process validates, saves and logs."""
        return self.rank == 0

    def share(self, n: int) -> range:
        """Return which of `n` pairs of crops this process computes."""
        return range(self.rank, n, self.size)

    def of_first(self, value: float) -> float:
        """Return the number that the first process holds."""
        if self.size == 1:
            return value
        number = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(number, 0)
        return float(number)

    def all_true(self, flags: Iterable[bool]) -> list[bool]:
        """Return which of the flags are true in every process."""
        flags = list(flags)
        if self.size == 1:
            return flags
        numbers = torch.tensor(flags, dtype=torch.int64, device=self.device)
        distributed.all_reduce(numbers, distributed.ReduceOp.MIN)
        return [bool(number) for number in numbers]

    def average_gradients(self, net: nn.Module) -> None:
        """Replace every gradient by its mean; what no process has a gradient of keeps none."""
        if self.size == 1:
            return
        weights = list(net.parameters())
        known = torch.tensor([w.grad is not None for w in weights], dtype=torch.float32)
        parts = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        flat = torch.cat([known.to(self.device), *(part.reshape(-1) for part in parts)])
        distributed.all_reduce(flat)
        counts = flat[: len(weights)].tolist()
        means = (flat[len(weights) :] / self.size).split([w.numel() for w in weights])
        for weight, count, mean in zip(weights, counts, means, strict=True):
            weight.grad = mean.view(weight.shape).clone() if count else None

    def average_statistics(self, net: nn.Module) -> None:
        """Replace the running statistics of every BatchNorm in training by their mean."""
        if self.size == 1:
            return
        norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        values = [v for m in norms if m.training for v in (m.running_mean, m.running_var)]
        if values:
            flat = torch.cat(values)
            distributed.all_reduce(flat)
            for value, mean in zip(
                values, (flat / self.size).split([v.numel() for v in values]), strict=True
            ):
                value.copy_(mean)

    def check_equal(self, net: nn.Module) -> None:
        """Raise RuntimeError unless all processes hold the same weights, bit for bit."""
        if self.size == 1:
            return
        number = int(digest(net.state_dict())[:15], 16)
        mine = torch.tensor(number, dtype=torch.int64, device=self.device)
        everyone = [torch.zeros_like(mine) for _ in range(self.size)]
        distributed.all_gather(everyone, mine)
        if any(int(other) != number for other in everyone):
            raise RuntimeError("the processes of the training hold different weights")

    def stop(self) -> None:
        """Leave the others: from here on, every process is alone."""
        if self.size > 1:
            distributed.destroy_process_group()


def start(wanted: str) -> Ranks:
    """Return this process's place among those that torchrun started; alone without torchrun.

    Parameters
    ----------
    wanted : auto, cpu, cuda or cuda:N
        With torchrun on CUDA, every process takes the device of its local rank.

    Raises
    ------
    ValueError
        The device is not there.
    """
    device = pick_device(wanted)
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return Ranks(device=device)
    if device.type == "cuda":
        device = pick_device(f"cuda:{os.environ['LOCAL_RANK']}")
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    return Ranks(distributed.get_rank(), size, device)
