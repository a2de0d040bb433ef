"""A model file and the store of an image -> the network over that image."""

import functools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from iaunet import backends, checkpoint, checksums, grid, normalize, omezarr, predict, scale, tiling
from iaunet.errors import InputError, OptionError


def load(path: Path) -> tuple[nn.Module, dict]:
    """Return what `checkpoint.load` does, to read; a process loads a model once."""
    checkpoint.read_meta(path)  # which tells what is wrong with a file
    return _loaded(path, checksums.stamp(path))


def prepare(
    path: Path, backend: str, precision: str, device: torch.device, threads: int
) -> nn.Module:
    """Return what `backends.prepare` makes of a model; a process does so once."""
    return _prepared(path, checksums.stamp(path), backend, precision, device, threads)


@functools.lru_cache(maxsize=1)
def _loaded(path: Path, of: checksums.Stamp) -> tuple[nn.Module, dict]:
    return checkpoint.load(path)


@functools.lru_cache(maxsize=1)
def _prepared(
    path: Path,
    of: checksums.Stamp,
    backend: str,
    precision: str,
    device: torch.device,
    threads: int,
) -> nn.Module:
    return backends.prepare(_loaded(path, of)[0], backend, precision, device, threads)


def check_model(path: Path, meta: dict, tiles: dict) -> None:
    """Raise unless the image was tiled for this very model."""
    if meta["ndim"] != len(tiles["shape"]):
        raise InputError(
            f"{path}: the model is {meta['ndim']}D, the image is {len(tiles['shape'])}D"
        )
    checkpoint.check_tiled_for(path, tiles.get("model", {}))


def pick_device(wanted: str, backend: str = "auto") -> torch.device:
    """Return the device, or say what is there; auto is one on which the backend computes."""
    if wanted == "auto" and backend not in ("auto", "torch"):
        wanted = "cpu"
    try:
        return predict.pick_device(wanted)
    except (ValueError, RuntimeError) as error:
        raise OptionError(f"--device: {error}; use auto, cpu, cuda or cuda:N") from error


def uses_gpu() -> bool:
    """Tell whether this process holds memory of a GPU, which others may need."""
    return torch.cuda.is_initialized()


def device_name(device: torch.device) -> str | None:
    """Return the name of a graphics card; None for the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def open_blocks(
    store: Path, tiles: dict, net: nn.Module, meta: dict, halo_px: Sequence[int], threads: int
) -> predict.Blocks:
    """Return the blocks of a network over the image of a store, on the grid that it works on.

    `net` is as `backends.prepare` returns it.
    """
    image = omezarr.open_level(store)
    if image.shape != tiles["shape"]:
        raise InputError(f"{store}: shape {image.shape}, its tiles.json says {tiles['shape']}")
    low, high = tiles["limits"]
    scaled = normalize.reader(image, low, high, meta["normalize"].get("clip", predict.CLIP))
    to = tiling.grid_shape(tiles)

    def read(box: grid.Box) -> np.ndarray:
        return scale.resampled(scaled, image.shape, to, box)

    return predict.Blocks(
        net, read, shape=to, block_px=meta["block"], halo_px=halo_px, threads=threads
    )
