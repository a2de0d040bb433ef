"""Read the tiles.json that tile.py writes: how an image is cut, scaled and segmented."""

import json
from pathlib import Path

from iaunet.errors import InputError

LISTS = ("shape", "core", "halo", "limits", "batches")


def read(path: Path, batch: int | None = None) -> dict:
    """Return the tiling of an image, checked.

    Parameters
    ----------
    batch : int, optional
        Must be one of its batches, counted from 0.

    Raises
    ------
    InputError
        No such file, not a tiling, or no such batch.
    """
    try:
        tiles = json.loads(path.read_text(encoding="utf-8"))
        lengths = {name: len(tiles[name]) for name in LISTS}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; needs the tiles.json of tile.py") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a tiles.json of tile.py ({error!r})") from error
    if not lengths["shape"] == lengths["core"] == lengths["halo"] or lengths["limits"] != 2:
        raise InputError(f"{path}: not a tiles.json of tile.py (lengths {lengths})")
    if batch is not None and not 0 <= batch < lengths["batches"]:
        raise InputError(
            f"--batch: found {batch}, {path} has batches 0 to {lengths['batches'] - 1}"
        )
    return tiles
