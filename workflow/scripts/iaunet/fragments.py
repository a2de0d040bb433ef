"""Tables of fragments -> tables of the objects that they were joined to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from iaunet import identity, joining, tables
from iaunet.errors import InputError


@dataclass(frozen=True)
class Joined:
    """The fragments of an image, by gid, the object of each, and the contacts."""

    gid: np.ndarray
    of_object: np.ndarray
    contacts: joining.Columns
    probability: np.ndarray
    verdict: np.ndarray


def joined(
    facts: Mapping, table: pd.DataFrame, paths: Sequence[Path], ndim: int, *, whole: bool = True
) -> Joined | None:
    """Return the joined fragments of an image; None where the settings do not join.

    Parameters
    ----------
    facts : settings and weights that cluster.py noted
    table : instances of all batches, by gid
    paths : tables of contacts of all batches
    whole : no tile failed; else contacts of fragments whose row is lost are left out
    """
    settings = facts.get("settings") or {}
    if not settings.get("join"):
        return None
    frames = [tables.read_parquet(path, joining.CONTACTS) for path in paths]
    contacts = joining.added([{n: f[n].to_numpy() for n in joining.CONTACTS} for f in frames])
    rows = table.drop_duplicates("gid")
    gid = rows["gid"].to_numpy(np.uint64)
    for name in ("one", "other"):
        known = np.isin(contacts[name], gid)
        strange = contacts[name][~known]
        if not whole:
            contacts = {column: values[known] for column, values in contacts.items()}
        elif len(strange):
            raise InputError(
                f"the tables of contacts name object {strange[0]}, which no table of instances "
                "has; the batches are of different runs, run cluster.py again"
            )
    columns = {name: rows[name].to_numpy() for name in rows.columns}
    found = joining.join(
        columns,
        contacts,
        joining.Joiner.from_dict(facts["joining"]) if facts.get("joining") else None,
        least=settings["join"],
        min_size=settings["min_size"],
        ndim=ndim,
    )
    return Joined(gid, found.gid, contacts, found.probability, found.verdict)


def object_of(gid: np.ndarray, joined: Joined) -> np.ndarray:
    """Return the object of each gid; one that no table knows is its own object."""
    found = gid.copy()
    known = np.isin(gid, joined.gid)
    found[known] = joined.of_object[np.searchsorted(joined.gid, gid[known])]
    return found


def in_groups_with(gid: np.ndarray, joined: Joined) -> np.ndarray:
    """Return these fragments and all whose joining may depend on them, ascending.

    Joining goes along contacts that the weights would join.
    """
    from scipy.sparse import coo_array  # few runs need them
    from scipy.sparse.csgraph import connected_components

    likely = joined.verdict != joining.APART
    one, other = (
        np.searchsorted(joined.gid, joined.contacts[name][likely]) for name in ("one", "other")
    )
    count = len(joined.gid)
    graph = coo_array((np.ones(len(one), np.int8), (one, other)), shape=(count, count))
    group = connected_components(graph, directed=False)[1]
    touched = np.isin(group, group[np.isin(joined.gid, gid)])
    return np.union1d(gid, joined.gid[touched])


def objects(found: pd.DataFrame, batches: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """Return one row per object from one per fragment (of `stitch.judge`), by gid.

    Fragments of objects that are too small are left out. An object gets the worst verdict on its
    fragments.
    """
    dropped = (found["label"] == 0) & (found["size"] > 0)
    found = found[~dropped]
    key = found["label"].where(found["label"] > 0, -1 - np.arange(len(found)))
    order = np.lexsort((found["gid"], key))
    found, key = found.iloc[order], key.iloc[order].to_numpy()
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else []
    if len(first) == len(found):
        return found.sort_values("gid", ignore_index=True)
    ends = np.append(first[1:], len(found))
    result = found.iloc[first].reset_index(drop=True)
    for name in ("size", "voxels", "area", "claimed"):
        result[name] = np.add.reduceat(found[name].to_numpy(), first)
    for name in ("n_rows", "min_voxels_in_a_core", "agreement"):
        result[name] = np.minimum.reduceat(found[name].to_numpy(), first)
    starts = np.array([start for start, _ in batches])
    texts, verdicts = found["tiles"].to_list(), found["verdict"].to_list()
    for row, (start, end) in enumerate(zip(first.tolist(), ends.tolist(), strict=True)):
        if end - start == 1:
            continue
        seen = np.unique([int(word) for text in texts[start:end] for word in text.split()])
        result.loc[row, "tiles"] = " ".join(map(str, seen))
        result.loc[row, "n_tiles"] = len(seen)
        batch = np.searchsorted(starts, seen, side="right") - 1
        result.loc[row, "n_batches"] = len(np.unique(batch))
        result.loc[row, "verdict"] = max(verdicts[start:end], key=identity.VERDICTS.index)
    return result.sort_values("gid", ignore_index=True)


def instances(table: pd.DataFrame, joined: Joined) -> pd.DataFrame:
    """Return one row per object: seed of its first fragment, means weighted by area.

    The identity vector is the mean of those of the fragments, scaled to length 1.
    """
    known = table.drop_duplicates("gid").assign(of_object=joined.of_object)
    known = known[known["of_object"] != joining.NO_OBJECT].sort_values(["of_object", "gid"])
    key = known["of_object"].to_numpy()
    if not len(key):
        return known.drop(columns="of_object")
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    area = known["area"].to_numpy()
    result = known.iloc[first].drop(columns="of_object").reset_index(drop=True)
    total = np.add.reduceat(area, first)
    result["area"] = total
    names = [name for name in known.columns if name.startswith("id_")]
    for name in ("confidence", *names):
        weighed = np.add.reduceat(known[name].to_numpy(float) * area, first) / total
        result[name] = weighed.astype(np.float32)
    if names:
        square = np.zeros(len(result))
        for name in names:
            square = square + result[name].to_numpy(float) ** 2
        length = np.where(square > 0, np.sqrt(square), 1)
        for name in names:
            result[name] = (result[name] / length).astype(np.float32)
    return result


def rows(joined: Joined, found: pd.DataFrame, columns: Sequence[str], image: str) -> pd.DataFrame:
    """Return one row per contact for seams.csv; its other columns are empty.

    `found` has one row per object.
    """
    contacts = joined.contacts
    of_object = object_of(contacts["one"], joined)
    place = np.searchsorted(found["gid"].to_numpy(np.uint64), of_object)
    place = np.minimum(place, max(len(found) - 1, 0))
    real = np.zeros(len(of_object), dtype=bool)
    label = np.zeros(len(of_object), dtype=np.int64)
    if len(found):
        real = found["gid"].to_numpy(np.uint64)[place] == of_object
        label = np.where(real, found["label"].to_numpy()[place], 0)
    table = pd.DataFrame(
        {
            "image": np.full(len(label), image, dtype=object),
            "label": label,
            "gid": contacts["one"],
            "evidence": [
                f"touches fragment {other}, {faces} faces"
                for other, faces in zip(
                    contacts["other"].tolist(), contacts["faces"].tolist(), strict=True
                )
            ],
            "probability": joined.probability.round(6),
            "verdict": joined.verdict,
        }
    )
    empty = {"tiles": "", "agreement": np.nan}
    more = {name: empty.get(name, 0) for name in columns if name not in table.columns}
    return table.assign(**more)[list(columns)]
