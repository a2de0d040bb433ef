"""Classes of voxels: things, which are counted, and stuff, of which only the area is known."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from iaunet.errors import InputError, OptionError

MOST = 254
"""Classes are stored in 8 bits, of which 0 is background and 255 stands for not annotated."""


@dataclass(frozen=True)
class Class:
    """A class of voxels; its number is its place in the list, from 1 on."""

    name: str
    thing: bool

    def as_dict(self) -> dict[str, object]:
        """Return the class as JSON can store it."""
        return asdict(self)


def parse(words: Sequence[str]) -> list[Class]:
    """Return the classes that options like ``nucleus tissue:stuff`` name.

    Raises
    ------
    OptionError
        A name is empty or stands twice, or there are too many.
    """
    found = []
    for word in words:
        name, _, kind = word.partition(":")
        if not name.isprintable() or not name.strip() or kind not in ("", "thing", "stuff"):
            raise OptionError(f"--classes: found '{word}'; needs NAME, NAME:thing or NAME:stuff")
        found.append(Class(name, kind != "stuff"))
    if len({one.name for one in found}) < len(found) or len(found) > MOST:
        raise OptionError(f"--classes: needs at most {MOST} names, each once")
    return found


def of_model(meta: Mapping) -> list[Class]:
    """Return the classes of a model's metadata; none: the network tells no classes.

    Raises
    ------
    InputError
        They are not as train.py writes them.
    """
    try:
        found = [Class(str(one["name"]), bool(one["thing"])) for one in meta.get("classes") or []]
    except (TypeError, KeyError) as error:
        raise InputError(f"the model's classes are damaged ({error!r})") from error
    if len(found) != meta["net"].get("n_classes", 0):
        raise InputError(f"the model names {len(found)} classes, its network tells others")
    if len(found) > MOST:
        raise InputError(f"the model has {len(found)} classes, at most {MOST} can be stored")
    return found


def iou(
    pairs: Iterable[tuple[np.ndarray, np.ndarray | None]], n_classes: int
) -> list[float | None]:
    """Return the IoU of each class over some images; None for one that is nowhere.

    Parameters
    ----------
    pairs : predicted and true classes; -1 or None where the truth is not known
    """
    counts = np.zeros((n_classes + 1, n_classes + 1), dtype=np.int64)
    for predicted, true in pairs:
        if true is not None:
            known = true >= 0
            index = true[known].astype(np.int64) * (n_classes + 1) + predicted[known]
            counts += np.bincount(index, minlength=counts.size).reshape(counts.shape)
    shared = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - shared
    return [float(a / b) if b else None for a, b in zip(shared[1:], union[1:], strict=True)]
