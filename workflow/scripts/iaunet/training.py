"""Fit the network: one optimisation step, average of the weights, checkpoints.

A batch is a function of (seed, step), and a checkpoint holds everything else, so a run that
was killed and resumed takes the same steps as an unbroken one.
"""

import json
import math
import queue
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from iaunet import cli, losses
from iaunet.errors import InputError
from iaunet.net import IAUNet, Outputs
from iaunet.predict import laid_out

VISIBLE = 0.3
"""Share of an instance that a crop must show for its identity to count."""


@dataclass(frozen=True)
class Recipe:
    """How a network is fitted; see METHODS for the terms.

    Weights are those of the terms mask, seed, instance, variance, vote and triplet.
    `boundary` is the extra weight of mask voxels at outlines, `vote_px` the distance at which
    the vote term turns linear, `window_px` the window of the instance term, `neighbours_px`
    how far a triplet's negative may be, `id_gradient` the share of the identity gradient
    that reaches the trunk.
    """

    weights: dict[str, float]
    learning_rate: float
    weight_decay: float
    boundary: float
    vote_px: float
    window_px: tuple[int, ...]
    instances: int
    neighbours_px: float
    id_gradient: float
    ema: float
    bf16: bool


def loss_terms(
    out: Outputs,
    batch: dict,
    recipe: Recipe,
    *,
    progress: float,
    id_stride: tuple[int, ...],
    generator: torch.Generator,
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Return the unweighted terms of the loss, and facts about the triplets.

    The triplet starts after 5 % of the training, semi-hard until 20 %, then batch-hard.
    """
    labels = batch["labels"]
    instances = losses.Instances(labels, batch["centre"])
    whole = labels[:, None]
    target = (whole > 0).float()
    chosen = torch.randperm(instances.n, generator=generator)[: recipe.instances * len(labels)]
    terms = {
        "mask": losses.mask(out.fg, target, losses.boundary_weight(whole, recipe.boundary)),
        "seed": losses.seed(out.seed, batch["depth"]),
        "instance": losses.instance(
            out.off, out.lsig, labels, instances, chosen=chosen, window_px=recipe.window_px
        ),
        "variance": losses.variance(out.lsig, instances),
        "vote": losses.vote(out.off, instances, recipe.vote_px),
    }
    facts = {"active": math.nan, "distance": math.nan}
    if progress >= 0.05 and recipe.weights["triplet"] > 0 and instances.n:
        terms["triplet"], facts = _triplet(
            out.id, batch, instances, recipe, id_stride, semi_hard=progress < 0.2
        )
    return terms, facts


def _triplet(
    id_map: torch.Tensor,
    batch: dict,
    instances: losses.Instances,
    recipe: Recipe,
    id_stride: tuple[int, ...],
    *,
    semi_hard: bool,
) -> tuple[torch.Tensor, dict[str, float]]:
    where = instances.where
    cells = [
        torch.div(p, s, rounding_mode="floor") for p, s in zip(where[1:], id_stride, strict=True)
    ]
    per_voxel = id_map.movedim(1, -1)[(where[0], *cells)]  # (P, 16)
    z = torch.nn.functional.normalize(instances.mean(per_voxel), dim=1, eps=1e-6)
    pair = batch["pair"][instances.crop]
    size = torch.stack(
        [batch["size"][c][k] for c, k in zip(instances.crop, instances.label, strict=True)]
    )
    morphology = torch.stack(
        [batch["morphology"][c][k] for c, k in zip(instances.crop, instances.label, strict=True)]
    )
    visible = instances.size >= VISIBLE * size
    centre = instances.centre + batch["shift"][instances.crop] + 1e5 * pair[:, None]
    return losses.triplet(
        z[visible],
        (pair * 10**7 + instances.label)[visible],
        centre[visible],
        morphology[visible],
        radius_px=recipe.neighbours_px,
        semi_hard=semi_hard,
    )


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
    """A network on its way: optimiser, average, step counter, history of scores."""

    def __init__(self, net: IAUNet, recipe: Recipe, seed: int) -> None:
        self.net = net
        self.recipe = recipe
        self.seed = seed
        self.optimiser = torch.optim.AdamW(
            net.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        self.average = Average(net, recipe.ema)
        self.step = 0
        self.seconds = 0.0
        self.best: dict = {"score": -1.0}
        self.history: list[dict] = []
        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        net.to(memory_format=formats[net.ndim])

    def train_step(self, batch: dict, progress: float) -> dict[str, float]:
        """Take one step; `progress` in 0..1 sets learning rate and schedule.

        Raises
        ------
        FloatingPointError
            A term is not finite; names it. The weights are as before the step.
        """
        recipe = self.recipe
        rate = recipe.learning_rate * learning_rate_factor(progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.net.train()
        if self.net.ndim == 3 and progress > 0.7:
            self.net.freeze_batchnorm()
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            out = self.net(laid_out(batch["image"]), recipe.id_gradient)
        terms, facts = loss_terms(
            out,
            batch,
            recipe,
            progress=progress,
            id_stride=self.net.id_stride,
            generator=generator,
        )
        total = sum(recipe.weights[name] * term for name, term in terms.items())
        bad = [name for name, term in terms.items() if not bool(term.isfinite())]
        if bad:
            raise FloatingPointError(f"loss term '{bad[0]}' is not finite at step {self.step}")
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0, error_if_nonfinite=True)
        self.optimiser.step()
        self.average.update(self.net, self.step)
        self.step += 1
        return {name: float(term.detach()) for name, term in terms.items()} | facts | {"rate": rate}

    def save(self, path: Path) -> None:
        """Write everything that resuming needs; tensors and JSON, no pickle."""
        tensors = {f"net.{k}": v for k, v in self.net.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.state.items()}
        for index, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"optimiser.{index}.{key}": v for key, v in state.items()}
        facts = {
            "step": self.step,
            "seconds": self.seconds,
            "seed": self.seed,
            "history": self.history,
            "best": {k: v for k, v in self.best.items() if k != "weights"},
        }
        tensors |= {f"best.{k}": v for k, v in self.best.get("weights", {}).items()}
        with cli.write_whole(path) as partial:
            tensors = {k: v.detach().clone().contiguous() for k, v in tensors.items()}
            save_file(tensors, partial, {"training": json.dumps(facts)})

    def load(self, path: Path) -> None:
        """Go on from what `save` wrote.

        Raises
        ------
        InputError
            The file is damaged, or of a network or seed that is not this one's.
        """
        try:
            tensors = load_file(path)
            with path.open("rb") as file:
                length = struct.unpack("<Q", file.read(8))[0]
                header = json.loads(file.read(length))
            facts = json.loads(header["__metadata__"]["training"])
        except (SafetensorError, OSError, ValueError, KeyError, struct.error) as error:
            raise InputError(f"{path}: damaged checkpoint; delete it to start anew") from error
        parts: dict[str, dict] = {"net": {}, "average": {}, "optimiser": {}, "best": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value
        if facts["seed"] != self.seed:
            raise InputError(f"{path}: seed {facts['seed']}, this run has {self.seed}; delete it")
        try:
            self.net.load_state_dict(parts["net"])
        except RuntimeError as error:
            raise InputError(f"{path}: checkpoint of another network; delete it") from error
        self.average.state = parts["average"]
        state = self.optimiser.state_dict()
        for key, value in parts["optimiser"].items():
            index, _, name = key.partition(".")
            state["state"].setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict(state)
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.history = facts["history"]
        self.best = {**facts["best"], "weights": parts["best"]}


def learning_rate_factor(progress: float) -> float:
    """Return warm-up over 3 %, then cosine to 1 % of the peak."""
    if progress < 0.03:
        return max(progress / 0.03, 0.01)
    done = min(1.0, (progress - 0.03) / 0.97)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))


class Prefetch:
    """Prepare the batches of coming steps in a thread."""

    def __init__(self, make: Callable[[int], dict], first: int, ahead: int = 3) -> None:
        self.batches: queue.Queue = queue.Queue(ahead)
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._work, args=(make, first), daemon=True)
        self.thread.start()

    def _work(self, make: Callable[[int], dict], step: int) -> None:
        while not self.stop.is_set():
            try:
                item: object = make(step)
            except Exception as error:  # handed to the consumer, which raises it
                item = error
            while not self.stop.is_set():
                try:
                    self.batches.put(item, timeout=0.2)
                    break
                except queue.Full:
                    continue
            step += 1

    def next(self) -> dict:
        """Return the batch of the next step."""
        item = self.batches.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Stop preparing."""
        self.stop.set()
        self.thread.join()
