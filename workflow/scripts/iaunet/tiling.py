"""Read the tiles.json that tile.py writes: how an image is cut, scaled and segmented."""

from collections.abc import Sequence
from pathlib import Path

from iaunet import sealed
from iaunet.errors import InputError, OptionError

SIZES = ("shape", "axes", "core", "halo", "grid_shape")


def read(path: Path, needs: Sequence[str] = (), batch: int | None = None) -> dict:
    """Return the tiling of an image, checked; sizes and batches as tuples.

    Parameters
    ----------
    needs : names
        What it must tell besides the shape.
    batch : int, optional
        Must be one of its batches, counted from 0; `needs` them.

    Raises
    ------
    InputError
        No such file, not a tiling, or no such batch.
    """
    try:
        tiles = sealed.loads(path.read_text(encoding="utf-8"), path)
        facts = {name: tiles[name] for name in ("shape", *needs)}
        facts |= {name: tiles[name] for name in ("grid_shape",) if name in tiles}
        tiles |= {name: tuple(facts[name]) for name in SIZES if name in facts}
        lengths = {name: len(tiles[name]) for name in SIZES if name in facts}
        batches = [(int(first), int(end)) for first, end in facts.get("batches", [])]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; needs the tiles.json of tile.py") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a tiles.json of tile.py ({error!r})") from error
    if len(set(lengths.values())) != 1:
        raise InputError(f"{path}: not a tiles.json of tile.py (lengths {lengths})")
    if batch is not None and not 0 <= batch < len(batches):
        raise OptionError(f"--batch: found {batch}, {path} has batches 0 to {len(batches) - 1}")
    return tiles | {"batches": batches}


def grid_shape(tiles: dict) -> tuple[int, ...]:
    """Return the shape of the grid that the network works on; the image's own unless told."""
    return tuple(tiles.get("grid_shape") or tiles["shape"])
