"""Fit the network: one optimisation step, average of the weights, checkpoints.

A batch is a function of (seed, step), and a checkpoint holds everything else, so a run that
was killed and resumed takes the same steps as an unbroken one.
"""

import json
import math
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from iaunet import checkpoint, cli
from iaunet.errors import InputError
from iaunet.net import LAST, IAUNet
from iaunet.objective import TERMS, Recipe, loss_terms
from iaunet.predict import laid_out
from iaunet.ranks import Ranks

MALFORMED = (ValueError, KeyError, TypeError, AttributeError, struct.error)
COLLAPSED = 0.1
PATIENCE = 200
"""Steps with a mean anchor-negative distance below `COLLAPSED` that bring semi-hard back."""


class Average:
    """Exponential moving average of weights and BatchNorm statistics."""

    def __init__(self, net: IAUNet, decay: float) -> None:
        self.decay = decay
        self.state = {key: value.detach().clone() for key, value in net.state_dict().items()}

    def update(self, net: IAUNet, step: int) -> None:
        """Move towards the network's weights; faster at the start."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in net.state_dict().items():
            mine = self.state[key]
            if mine.dtype.is_floating_point:
                mine.lerp_(value.detach(), 1 - decay)
            else:
                mine.copy_(value)


class Trainer:
    """A network on its way: optimiser, average, step counter, history of scores.

    `data` says which images it is fitted to, such as a checksum; `ranks` which part of the
    work this process does, and on which device.
    """

    def __init__(
        self, net: IAUNet, recipe: Recipe, seed: int, data: str = "", ranks: Ranks | None = None
    ) -> None:
        self.ranks = ranks or Ranks()
        self.net = net.to(self.ranks.device, memory_format=LAST[net.ndim])
        self.recipe = recipe
        self.seed = seed
        recipe_facts = {k: v for k, v in asdict(recipe).items() if k != "bf16"}
        facts = {"network": net.options, "recipe": recipe_facts, "seed": seed, "images": data}
        facts["processes"] = self.ranks.size
        self.facts = json.loads(json.dumps(facts))
        self.optimiser = torch.optim.AdamW(
            net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.average = Average(net, recipe.ema)
        self.step = 0
        self.seconds = 0.0
        self.collapsed = 0
        self.best: dict = {"score": -1.0}
        self.history: list[dict] = []

    def train_step(self, batch: dict, progress: float) -> dict[str, float]:
        """Take one step; `progress` in 0..1 sets learning rate and schedule.

        Raises
        ------
        FloatingPointError
            A term, which is named, or the gradient is not finite. The weights are as before
            the step.
        """
        rate = self.recipe.learning_rate * learning_rate_factor(progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.net.train()
        if self.net.ndim == 3 and progress > 0.7:
            self.net.freeze_batchnorm()
        terms, facts = self._terms(on_device(batch, self.ranks.device), progress)
        self._check(terms)
        self.optimiser.zero_grad(set_to_none=True)
        sum(self.recipe.weights[name] * term for name, term in terms.items()).backward()
        self.ranks.average_gradients(self.net)
        if not bool(torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0).isfinite()):
            raise FloatingPointError(f"the gradient is not finite at step {self.step}")
        self.optimiser.step()
        self.ranks.average_statistics(self.net)
        self.average.update(self.net, self.step)
        self.step += 1
        if not math.isnan(facts["distance"]):
            self.collapsed = self.collapsed + 1 if facts["distance"] < COLLAPSED else 0
        return {name: float(term.detach()) for name, term in terms.items()} | facts | {"rate": rate}

    def _terms(self, batch: dict, progress: float) -> tuple[dict[str, torch.Tensor], dict]:
        """Return the terms of the loss, and the facts about triplets, of this process's crops."""
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            out = self.net(laid_out(batch["image"]), self.recipe.id_gradient)
        terms, facts = loss_terms(
            out,
            batch,
            self.recipe,
            progress=progress,
            id_stride=self.net.id_stride,
            generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.step),
            semi_hard=self.collapsed >= PATIENCE,
        )
        distance = self.ranks.of_first(facts["distance"])  # all change the mining together
        return terms, facts | {"distance": distance}

    def _check(self, terms: dict[str, torch.Tensor]) -> None:
        good = self.ranks.all_true(
            name not in terms or bool(terms[name].isfinite()) for name in TERMS
        )
        for name, finite in zip(TERMS, good, strict=True):
            if not finite:
                raise FloatingPointError(f"loss term '{name}' is not finite at step {self.step}")

    def save(self, path: Path) -> None:
        """Write everything that resuming needs; tensors and JSON, no pickle."""
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state.items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}": v for key, v in state.items()}
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            "of": self.facts,
            "collapsed": self.collapsed,
            "history": self.history,
            "best": {k: v for k, v in self.best.items() if k != "weights"},
        }
        tensors |= {f"best.{k}": v for k, v in self.best.get("weights", {}).items()}
        with cli.write_whole(path) as partial:
            tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
            facts["sha256"] = checkpoint.digest(tensors)
            save_file(tensors, partial, {"training": json.dumps(facts)})

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises
        ------
        InputError
            The file is damaged, or of another network, recipe, seed or other images.
        """
        try:
            tensors, facts = _read(path)
            if facts["sha256"] != checkpoint.digest(tensors):
                raise ValueError("other tensors than were saved")
            other = [name for name in self.facts if facts["of"].get(name) != self.facts[name]]
            if not other:
                self._restore(tensors, facts)
        except (SafetensorError, OSError, RuntimeError, *MALFORMED) as error:
            raise InputError(f"{path}: damaged checkpoint; delete it to start anew") from error
        if other:
            raise InputError(
                f"{path}: checkpoint of a training that differs in {', '.join(other)}; delete it "
                "to start anew, or train under another name"
            )

    def _restore(self, tensors: dict[str, torch.Tensor], facts: dict) -> None:
        parts: dict[str, dict] = {"net": {}, "average": {}, "optimiser": {}, "best": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value if part == "optimiser" else value.to(self.ranks.device)
        self.net.load_state_dict(parts["net"])
        state = self.optimiser.state_dict()
        for key, value in parts["optimiser"].items():
            index, _, name = key.partition(".")
            state["state"].setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict(state)
        self.average.state = parts["average"]
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.collapsed, self.history = facts["collapsed"], facts["history"]
        self.best = {**facts["best"], "weights": parts["best"]}


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Return the tensors and the facts of a checkpoint."""
    tensors = load_file(path)
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
    return tensors, json.loads(header["__metadata__"]["training"])


def on_device(batch: dict, device: torch.device) -> dict:
    """Return a batch of tensors, and of lists of tensors, on a device."""
    return {
        key: [one.to(device) for one in value] if isinstance(value, list) else value.to(device)
        for key, value in batch.items()
    }


def learning_rate_factor(progress: float) -> float:
    """Return warm-up over 3 %, then cosine to 1 % of the peak."""
    if progress < 0.03:
        return max(progress / 0.03, 0.01)
    done = min(1.0, (progress - 0.03) / 0.97)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


class Prefetch:
    """Prepare the batches of coming steps in threads; they come in order.

    `waited` is how many seconds the steps have waited for their batches.
    """

    def __init__(self, make: Callable[[int], dict], first: int, workers: int = 1) -> None:
        self.make = make
        self.pool = ThreadPoolExecutor(workers)
        self.after = first
        self.coming: deque = deque()
        self.waited = 0.0
        for _ in range(2 * workers + 1):
            self._order()

    def _order(self) -> None:
        self.coming.append(self.pool.submit(self.make, self.after))
        self.after += 1

    def next(self) -> dict:
        """Return the batch of the next step."""
        began = time.perf_counter()
        batch = self.coming.popleft().result()
        self.waited += time.perf_counter() - began
        self._order()
        return batch

    def close(self) -> None:
        """Stop preparing."""
        self.pool.shutdown(cancel_futures=True)


class Clock:
    """The time that a training took, and how much of it the steps waited for batches."""

    def __init__(self, trainer: Trainer, batches: Prefetch) -> None:
        self.trainer = trainer
        self.batches = batches
        self.before = trainer.seconds
        self.began = time.perf_counter()
        self.elsewhere = 0.0

    def tick(self) -> None:
        """Tell the trainer, in all processes, what the first one's clock says."""
        seconds = self.before + time.perf_counter() - self.began
        self.trainer.seconds = self.trainer.ranks.of_first(seconds)

    def loader_percent(self) -> float | None:
        """Return which percentage of the time of all steps was spent on waiting for batches."""
        steps = time.perf_counter() - self.began - self.elsewhere
        return round(100 * self.batches.waited / steps, 1) if steps > 0 else None

    def __str__(self) -> str:
        """Say it as the log does."""
        return f"loader {self.loader_percent()} %"


def means(terms: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return the mean of every term, without those that are not defined."""
    names = sorted({name for term in terms for name in term})
    values = {
        name: [t[name] for t in terms if not math.isnan(t.get(name, math.nan))] for name in names
    }
    return {name: round(float(np.mean(v)), 5) for name, v in values.items() if v}


def averaged(trainer: Trainer) -> IAUNet:
    """Return the network with averaged weights, in evaluation mode."""
    return rebuilt(trainer.net, trainer.average.state).to(trainer.ranks.device)


def candidates(trainer: Trainer) -> dict[int, IAUNet]:
    """Return the networks that may be the result, by step: the last, and the best validated.

    While training, thresholds are not fitted and only some images are looked at, so the best of
    many noisy scores need not be the best in the end.
    """
    found = {trainer.step: trainer.average.state}
    if trainer.best.get("weights"):
        found.setdefault(trainer.best["step"], trainer.best["weights"])
    return {step: rebuilt(trainer.net, weights) for step, weights in found.items()}


def exported(net: IAUNet) -> IAUNet:
    """Return the network without what only training needs."""
    final = IAUNet(**(net.options | {"proj_dim": 0}))
    names = final.state_dict().keys()
    final.load_state_dict({key: v for key, v in net.state_dict().items() if key in names})
    return final.eval()


def rebuilt(like: IAUNet, weights: dict[str, torch.Tensor]) -> IAUNet:
    """Return a network of the same shape with other weights."""
    net = IAUNet(**like.options)
    net.load_state_dict(weights)
    return net.eval()
