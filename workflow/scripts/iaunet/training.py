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
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from iaunet import cli
from iaunet.errors import InputError
from iaunet.net import IAUNet
from iaunet.objective import Recipe, loss_terms
from iaunet.predict import laid_out

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

    `data` says which images it is fitted to, such as a checksum.
    """

    def __init__(self, net: IAUNet, recipe: Recipe, seed: int, data: str = "") -> None:
        self.net = net
        self.recipe = recipe
        self.seed = seed
        recipe_facts = {k: v for k, v in asdict(recipe).items() if k != "bf16"}
        facts = {"network": net.options, "recipe": recipe_facts, "seed": seed, "images": data}
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
        formats = {2: torch.channels_last, 3: torch.channels_last_3d}
        net.to(memory_format=formats[net.ndim])

    def train_step(self, batch: dict, progress: float) -> dict[str, float]:
        """Take one step; `progress` in 0..1 sets learning rate and schedule.

        Raises
        ------
        FloatingPointError
            A term, which is named, or the gradient is not finite. The weights are as before
            the step.
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
            semi_hard=self.collapsed >= PATIENCE,
        )
        total = sum(recipe.weights[name] * term for name, term in terms.items())
        bad = [name for name, term in terms.items() if not bool(term.isfinite())]
        if bad:
            raise FloatingPointError(f"loss term '{bad[0]}' is not finite at step {self.step}")
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        if not bool(torch.nn.utils.clip_grad_norm_(self.net.parameters(), 5.0).isfinite()):
            raise FloatingPointError(f"the gradient is not finite at step {self.step}")
        self.optimiser.step()
        self.average.update(self.net, self.step)
        self.step += 1
        if not math.isnan(facts["distance"]):
            self.collapsed = self.collapsed + 1 if facts["distance"] < COLLAPSED else 0
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
            "of": self.facts,
            "collapsed": self.collapsed,
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
            The file is damaged, or of another network, recipe, seed or other images.
        """
        try:
            tensors = load_file(path)
            with path.open("rb") as file:
                length = struct.unpack("<Q", file.read(8))[0]
                header = json.loads(file.read(length))
            facts = json.loads(header["__metadata__"]["training"])
            other = [name for name, value in self.facts.items() if facts["of"][name] != value]
            self.step, self.seconds = facts["step"], facts["seconds"]
            self.collapsed, self.history = facts["collapsed"], facts["history"]
            best = dict(facts["best"])
        except (SafetensorError, OSError, ValueError, KeyError, struct.error) as error:
            raise InputError(f"{path}: damaged checkpoint; delete it to start anew") from error
        parts: dict[str, dict] = {"net": {}, "average": {}, "optimiser": {}, "best": {}}
        for key, value in tensors.items():
            part, _, rest = key.partition(".")
            parts[part][rest] = value
        if other:
            raise InputError(
                f"{path}: checkpoint of a training that differs in {', '.join(other)}; delete it "
                "to start anew, or train under another name"
            )
        self.net.load_state_dict(parts["net"])
        self.average.state = parts["average"]
        state = self.optimiser.state_dict()
        for key, value in parts["optimiser"].items():
            index, _, name = key.partition(".")
            state["state"].setdefault(int(index), {})[name] = value
        self.optimiser.load_state_dict(state)
        self.best = {**best, "weights": parts["best"]}


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
