"""Fragments that touch -> objects longer than any window.

Clustering finds what is at most as long as its reach. Of a longer object (a mitochondrion, a
neurite, a fibre) it finds fragments, which touch. How they touch are sums of integers over the
faces between their voxels, so that tiles can each count their own; and whether two of them are
one object is decided once, on the graph of all fragments of an image, by weights that were
fitted to true labels and lie in the model file. The graph knows nothing of tiles, and neither do
the objects. An object bears the name (``gid``) of the first of its fragments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from iaunet import fixedpoint, logistic
from iaunet.errors import InputError

CONTACTS = ("one", "other", "faces", "fg", "seed")
"""Names of both fragments, the smaller first; faces that they share; over these, the sums of the
smaller foreground and of the smaller seed probability of the two voxels, as they are stored."""

FEATURES = ("faces", "share", "fg", "seed", "cosine")
"""Logarithm of the number of faces; the same against the smaller fragment's own surface (its
area to the power (d-1)/d); mean foreground and mean seed probability at the faces, the latter
against the mean confidence of the two; cosine of their identity vectors."""

EVEN = 0.5
"""Probability of a contact at which fragments are as likely one object as two."""
NO_OBJECT = np.uint64(2**64 - 1)
VERDICTS = JOINED, REFUSED, APART = "joined", "refused", "apart"

Columns = dict[str, np.ndarray]


@dataclass(frozen=True)
class Joiner:
    """The fitted weights: log odds of (n, 5) `FEATURES`."""

    weights: logistic.Weights

    @classmethod
    def from_dict(cls, values: object) -> "Joiner":
        """Return the joiner that `as_dict` gave to a model file."""
        try:
            if tuple(values["features"]) != FEATURES:
                raise InputError(f"joining by {values['features']}; this version knows {FEATURES}")
            return cls(logistic.Weights.from_dict(values, len(FEATURES)))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"weights of the joining are damaged ({error!r})") from error

    def as_dict(self) -> dict[str, object]:
        """Return the joiner as JSON can store it."""
        return {"features": list(FEATURES), **self.weights.as_dict()}

    def probability(self, features: np.ndarray) -> np.ndarray:
        """Return how likely the two fragments of each contact are one object."""
        return 1 / (1 + np.exp(-np.clip(self.weights.log_odds(features), -30, 30)))


@dataclass(frozen=True)
class Joined:
    """What the graph says.

    Attributes
    ----------
    gid : uint64 array, one per fragment
        Of its object.
    probability : float array, one per contact
    verdict : array of str, one per contact
        ``joined``; ``refused``: the weights would, but fragments of opposite identity would
        become one object; ``apart``.
    """

    gid: np.ndarray
    probability: np.ndarray
    verdict: np.ndarray


def contacts(one: np.ndarray, other: np.ndarray, weakest: np.ndarray) -> Columns:
    """Return the contacts of single faces, added up.

    Parameters
    ----------
    one, other : (n,) gids, the smaller first
    weakest : (n, 2) int64, see `CONTACTS`
    """
    columns = {"one": one.astype(np.uint64), "other": other.astype(np.uint64)}
    columns |= {"faces": np.ones(len(one), np.int64), "fg": weakest[:, 0], "seed": weakest[:, 1]}
    return added([columns])


def added(parts: Sequence[Mapping[str, np.ndarray]]) -> Columns:
    """Return the contacts of several tiles as one table, by gids; each pair stands once."""
    every = {name: np.concatenate([part[name] for part in parts]) for name in CONTACTS}
    order = np.lexsort((every["other"], every["one"]))
    every = {name: values[order] for name, values in every.items()}
    new = np.ones(len(order), dtype=bool)
    new[1:] = (every["one"][1:] != every["one"][:-1]) | (every["other"][1:] != every["other"][:-1])
    first = np.flatnonzero(new)
    if not len(first):
        return every
    sums = {name: np.add.reduceat(every[name], first) for name in CONTACTS[2:]}
    return {"one": every["one"][first], "other": every["other"][first], **sums}


def features(table: Mapping[str, np.ndarray], found: Columns, ndim: int) -> np.ndarray:
    """Return the (n, 5) `FEATURES` of contacts.

    Parameters
    ----------
    table : columns gid (ascending), area, confidence, id_* of all fragments
    """
    rows = [np.searchsorted(table["gid"], found[name]) for name in ("one", "other")]
    area = np.minimum(*(np.asarray(table["area"])[row] for row in rows)).astype(float)
    trust = np.mean([np.asarray(table["confidence"], float)[row] for row in rows], axis=0)
    cosine = np.zeros(len(area))
    for name in sorted(name for name in table if name.startswith("id_")):
        vector = np.asarray(table[name], dtype=float)
        cosine = cosine + vector[rows[0]] * vector[rows[1]]
    faces = found["faces"].astype(float)
    seed = found["seed"] / (faces * fixedpoint.SCALE["seed"])
    return np.stack(
        [
            np.log(faces),
            np.log(faces) - (ndim - 1) / ndim * np.log(np.maximum(area, 1)),
            found["fg"] / (faces * fixedpoint.SCALE["fg"]),
            seed / np.maximum(trust, 1e-3),
            cosine,
        ],
        axis=1,
    )


def join(
    table: Mapping[str, np.ndarray],
    found: Columns,
    joiner: Joiner | None,
    *,
    least: float,
    min_size: int,
    ndim: int,
) -> Joined:
    """Return the object of every fragment.

    Contacts are joined from the likeliest to the one of probability `least`; one that would join
    two groups whose summed identity vectors point apart (cosine below 0) is refused.

    Parameters
    ----------
    table : as for `features`, one row per fragment
    found : contacts of the whole image, each pair once
    min_size : objects with fewer voxels are none

    Raises
    ------
    InputError
        The model has no joiner.
    """
    if joiner is None:
        raise InputError(
            "clustering: join is set, but the model has no weights for it; train it with --join, "
            "or set join to 0"
        )
    gid = np.asarray(table["gid"], dtype=np.uint64)
    probability = joiner.probability(features(table, found, ndim))
    rows = [np.searchsorted(gid, found[name]) for name in ("one", "other")]
    wanted = np.flatnonzero(probability >= least)
    order = wanted[np.lexsort((rows[1][wanted], rows[0][wanted], -probability[wanted]))]
    names = sorted(name for name in table if name.startswith("id_"))
    vectors = np.zeros((len(gid), len(names)))
    for k, name in enumerate(names):
        vectors[:, k] = table[name]
    from iaunet import growth  # with numba, few runs join

    root, kept = growth.grown(rows[0][order], rows[1][order], vectors)
    size = np.bincount(root, np.asarray(table["area"]), minlength=len(gid))
    verdict = np.full(len(probability), APART, dtype=object)
    verdict[order] = np.where(kept, JOINED, REFUSED)
    return Joined(np.where(size[root] < min_size, NO_OBJECT, gid[root]), probability, verdict)


def renamed(labels: np.ndarray, gid: np.ndarray, of_object: np.ndarray) -> np.ndarray:
    """Return labels (gid + 1) of fragments as those of their objects, uint64.

    Parameters
    ----------
    gid : uint64 array, ascending; all that occur
    of_object : uint64 array, its object for each, or `NO_OBJECT`
    """
    values = np.concatenate([np.zeros(1, np.uint64), of_object + np.uint64(1)])  # NO_OBJECT: 0
    place = np.searchsorted(gid + np.uint64(1), labels) + 1
    return np.where(labels > 0, values[np.minimum(place, len(gid))], np.uint64(0))


def fit(
    parts: Sequence[tuple[Mapping[str, np.ndarray], Columns, np.ndarray]], ndim: int
) -> Joiner | None:
    """Fit the weights to fragments of images whose true objects are known.

    Parameters
    ----------
    parts : per image, the table of fragments, the contacts, and the true object of each fragment
        (0: none, or not clear; contacts of such are left out)

    Returns
    -------
    None where there are not both kinds of contacts.
    """
    x, y = [np.zeros((0, len(FEATURES)))], [np.zeros(0, bool)]
    for table, found, true in parts:
        one, other = (true[np.searchsorted(table["gid"], found[n])] for n in ("one", "other"))
        known = (one > 0) & (other > 0)
        x.append(features(table, found, ndim)[known])
        y.append((one == other)[known])
    same = np.concatenate(y)
    if same.all() or not same.any():
        return None
    return Joiner(logistic.fit(np.concatenate(x), same))
