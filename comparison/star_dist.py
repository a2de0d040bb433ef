"""Peer: StarDist (Schmidt et al., MICCAI 2018), as its authors train it on nuclei.

Configuration, augmentation, normalisation and choice of thresholds are those of the 2D example
notebooks of the project. Two things are ours: training stops when the budget is spent, and
the learning rate falls with the budget like that of our own network, since theirs, which is
halved after 40 epochs without progress, would never fall within one hour of CPU time.
"""

import contextlib
import io
import logging
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from csbdeep.utils import normalize
from stardist import fill_label_holes
from stardist.models import Config2D, StarDist2D

from annotated import Case
from fitting import Budget, Fitted, Options
from iaunet.errors import InputError

log = logging.getLogger("stardist")

PATCH_PX = (256, 256)
LEARNING_RATE = 3e-4
STEPS_PER_EPOCH = 100
MANY_EPOCHS = 10_000


class Timebox(keras.callbacks.Callback):
    """Stop when the budget is spent; until then, lower the learning rate along a cosine."""

    def __init__(self, budget: Budget) -> None:
        super().__init__()
        self.budget = budget
        self.steps = 0
        self.losses: list[dict[str, float]] = []

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        """Set the learning rate: from the full one to a hundredth of it."""
        wave = 0.5 * (1 + np.cos(np.pi * self.budget.share))
        self.model.optimizer.learning_rate = LEARNING_RATE * (0.01 + 0.99 * wave)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Count the step and look at the clock."""
        self.steps += 1
        if self.budget.share >= 1:
            self.model.stop_training = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Keep the losses."""
        values = {name: float(value) for name, value in (logs or {}).items()}
        minutes = round(self.budget.minutes, 3)
        self.losses.append({"step": self.steps, "minutes": minutes, **values})
        shown = {name: round(values.get(name, np.nan), 4) for name in ("loss", "val_loss")}
        log.info("step %d, %.1f minutes: %s", self.steps, minutes, shown)


def fit(train: Sequence[Case], chosen: Sequence[Case], options: Options) -> Fitted:
    """Train within the budget; `chosen` images decide on the best weights and the thresholds."""
    keras.utils.set_random_seed(options.seed)
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    config = Config2D(
        n_rays=32,
        grid=(2, 2),
        train_patch_size=PATCH_PX,
        train_batch_size=4,
        train_learning_rate=LEARNING_RATE,
        train_steps_per_epoch=STEPS_PER_EPOCH,
        train_reduce_lr=None,
        train_tensorboard=False,
    )
    fitted_to, known = _arrays(train), _arrays(chosen)
    model = StarDist2D(config, name="stardist", basedir=str(options.work))
    model.prepare_for_training()
    timebox = Timebox(Budget(options.minutes))
    model.callbacks.append(timebox)
    with contextlib.redirect_stdout(io.StringIO()):  # a line per step
        model.train(
            *fitted_to,
            validation_data=known,
            augmenter=Augmenter(options.seed),
            epochs=MANY_EPOCHS,
        )
    minutes = timebox.budget.minutes
    thresholds = model.optimize_thresholds(*known, optimize_kwargs={"verbose": 0})
    best = min(timebox.losses, key=lambda row: row["val_loss"])
    facts = {
        "steps": timebox.steps,
        "minutes": round(minutes, 2),
        "crops_per_step": config.train_batch_size,
        "best_step": best["step"],
        "settings": {name: float(value) for name, value in thresholds.items()},
        "history": timebox.losses,
    }
    return Fitted(lambda image: model.predict_instances(scaled(image))[0], facts)


def scaled(image: np.ndarray) -> np.ndarray:
    """Return the image with its 1st and 99.8th percentiles at 0 and 1."""
    return normalize(image, 1, 99.8)


class Augmenter:
    """Flips, quarter turns, brightness, contrast and noise, as in the example notebooks."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def __call__(self, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return one patch and its labels, changed alike."""
        if self.rng.random() < 0.5:
            image, labels = image.T, labels.T
        for axis in (0, 1):
            if self.rng.random() < 0.5:
                image, labels = np.flip(image, axis), np.flip(labels, axis)
        image = image * self.rng.uniform(0.6, 2) + self.rng.uniform(-0.2, 0.2)
        noise = 0.02 * self.rng.uniform() * self.rng.standard_normal(image.shape)
        return image + noise, labels


def _arrays(cases: Sequence[Case]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    for case in cases:
        if min(case.image.shape) < max(PATCH_PX):
            raise InputError(
                f"image '{case.name}': {case.image.shape} px; this peer needs {PATCH_PX} or more"
            )
    return (
        [scaled(case.image) for case in cases],
        [fill_label_holes(case.labels) for case in cases],
    )
