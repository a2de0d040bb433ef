r"""Run the network on one batch of tiles and store its outputs in fixed point.

Example
-------
    python infer.py --store image.zarr --tiles tiles.json --model nuclei-2d.safetensors \
        --batch 0 --device auto --backend auto --threads 2 --output outputs/0.zarr
"""

import argparse
import logging
import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from iaunet import checkpoint, cli, grid, normalize, omezarr, outputs, predict, scale, tiling
from iaunet.errors import InputError, OptionError
from iaunet.net import IAUNet

log = logging.getLogger("infer")


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--store", type=Path, required=True, help="image store that tile.py wrote")
    add("--tiles", type=Path, required=True, help="JSON that tile.py wrote")
    add("--model", type=Path, required=True, help="model file")
    add("--batch", type=int, required=True, help="batch to compute, from 0")
    add("--device", required=True, help="auto, cpu, cuda or cuda:N")
    add("--backend", required=True, choices=("auto", "torch", "openvino", "onnxruntime"))
    add("--threads", type=int, required=True, help="blocks computed at the same time")
    add("--output", type=Path, required=True, help="Zarr store of outputs to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Compute the outputs of one batch."""
    args = parse_args(argv)
    recorder = cli.Recorder("infer", args)
    if args.backend not in ("auto", "torch"):
        raise OptionError(f"--backend: '{args.backend}' is not in this version; use auto or torch")
    if args.threads < 1:
        raise OptionError(f"--threads: found {args.threads}, needs 1 or more")
    tiles = tiling.read(args.tiles, ("core", "halo", "batches", "limits", "model"), args.batch)
    net, meta = checkpoint.load(args.model)
    check_model(args.model, meta, tiles)
    device = pick_device(args.device)
    blocks = open_blocks(args, tiles, net.to(device), meta, tiles["halo"])
    wanted = [
        grid.tile(blocks.shape, tiles["core"], k) for k in range(*tiles["batches"][args.batch])
    ]
    began = time.perf_counter()
    write_outputs(args.output, blocks, wanted, tiles["core"])
    seconds = time.perf_counter() - began
    voxels = sum(math.prod(grid.box_shape(tile.core)) for tile in wanted)
    log.info(
        "batch %d: %d tiles, %.2f Mpx in %.1f s on %s; computed %.2f Mpx with halo",
        args.batch,
        len(wanted),
        voxels / 1e6,
        seconds,
        device,
        blocks.voxels_computed / 1e6,
    )
    exact = tuple(-(-r // s) * s for r, s in zip(meta["radius"], net.stride, strict=True))
    if wanted and any(a < b for a, b in zip(tiles["halo"], exact, strict=True)):
        sample = halo_check(blocks, open_blocks(args, tiles, net, meta, exact), wanted[0])
    else:
        sample = {"halo_checked": 0, "halo_changed": 0}
    recorder.write(
        n_tiles=len(wanted),
        voxels=voxels,
        voxels_computed=blocks.voxels_computed,
        network_seconds=round(seconds, 3),
        device=str(device),
        backend="torch",
        **sample,
    )


def open_blocks(
    args: argparse.Namespace, tiles: dict, net: IAUNet, meta: dict, halo_px: Sequence[int]
) -> predict.Blocks:
    """Return the network's blocks over the image of the store."""
    image = omezarr.open_level(args.store)
    if image.shape != tiles["shape"]:
        raise InputError(f"{args.store}: shape {image.shape}, {args.tiles} says {tiles['shape']}")
    low, high = tiles["limits"]
    clip = meta["normalize"].get("clip", predict.CLIP)

    scaled = normalize.reader(image, low, high, clip)
    to = tiling.grid_shape(tiles)

    def read(box: grid.Box) -> np.ndarray:
        return scale.resampled(scaled, image.shape, to, box)

    return predict.Blocks(
        net,
        read,
        shape=to,
        block_px=meta["block"],
        halo_px=halo_px,
        threads=args.threads,
    )


def write_outputs(
    path: Path, blocks: predict.Blocks, wanted: Sequence[grid.Tile], core_px: Sequence[int]
) -> None:
    """Write the outputs of all tiles; one is written while the next are computed."""
    with cli.write_whole(path) as partial, ThreadPoolExecutor(1) as writing:
        net = blocks.net
        writer = outputs.create(partial, blocks.shape, core_px, net.id_stride, emb_dim=net.emb_dim)
        pending = []
        for tile, found in zip(wanted, blocks.of_cores([t.core for t in wanted]), strict=True):
            pending.append(writing.submit(writer.write, tile, found))
            if len(pending) > 2:
                pending.pop(0).result()
        for job in pending:
            job.result()
        writer.close()


def halo_check(blocks: predict.Blocks, exact: predict.Blocks, tile: grid.Tile) -> dict[str, int]:
    """Return how many voxels of the block under a tile a halo below the exact one changes.

    A voxel counts when its foreground or seed, in fixed point, moves by more than one step.
    """
    (index, *_) = grid.tiles_meeting(blocks.padded, blocks.block_px, tile.core)
    near, far = blocks.compute(index), exact.compute(index)
    moved = np.zeros(near["fg"].shape, bool)
    for name in ("fg", "seed"):
        moved |= np.abs(near[name].astype(int) - far[name]) > 1
    return {"halo_checked": moved.size, "halo_changed": int(moved.sum())}


def check_model(path: Path, meta: dict, tiles: dict) -> None:
    """Raise unless the image was tiled for this very model."""
    if meta["ndim"] != len(tiles["shape"]):
        raise InputError(
            f"{path}: the model is {meta['ndim']}D, the image is {len(tiles['shape'])}D"
        )
    found, needed = checkpoint.sha256(path), tiles.get("model", {}).get("sha256")
    if found != needed:
        raise InputError(
            f"{path}: another model than the image was tiled for (sha256 {found[:12]}, "
            f"tiles.json says {str(needed)[:12]}); run tile.py again"
        )


def pick_device(wanted: str) -> torch.device:
    """Return the device, or say what is there."""
    try:
        return predict.pick_device(wanted)
    except (ValueError, RuntimeError) as error:
        raise OptionError(f"--device: {error}; use auto, cpu, cuda or cuda:N") from error


if __name__ == "__main__":
    cli.run(main)
