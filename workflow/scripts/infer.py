"""Run the network on one batch of tiles and store its outputs in fixed point.

Example
-------
    python infer.py --store image.zarr --tiles tiles.json --model nuclei-2d.safetensors \
        --batch 0 --device auto --backend auto --threads 2 --output outputs/0.zarr
"""

import argparse
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from iaunet import checkpoint, cli, grid, normalize, omezarr, outputs, predict, tiling
from iaunet.errors import InputError

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
        raise InputError(f"--backend: '{args.backend}' is not in this version; use auto or torch")
    if args.threads < 1:
        raise InputError(f"--threads: found {args.threads}, needs 1 or more")
    tiles = tiling.read(args.tiles, ("core", "halo", "batches", "limits", "model"), args.batch)
    net, meta = checkpoint.load(args.model)
    check_model(args.model, meta, tiles)
    device = pick_device(args.device)
    shape, core_px = tuple(tiles["shape"]), tuple(tiles["core"])
    image = omezarr.open_level(args.store)
    if image.shape != shape:
        raise InputError(f"{args.store}: shape {image.shape}, {args.tiles} says {shape}")
    low, high = tiles["limits"]

    def read(box: grid.Box) -> np.ndarray:
        return normalize.scale(image[box], low, high).clip(*predict.CLIP)

    blocks = predict.Blocks(
        net.to(device),
        read,
        shape=shape,
        block_px=meta["block"],
        halo_px=tiles["halo"],
        threads=args.threads,
    )
    wanted = [grid.tile(shape, core_px, k) for k in range(*tiles["batches"][args.batch])]
    began = time.perf_counter()
    with cli.write_whole(args.output) as partial, ThreadPoolExecutor(1) as writing:
        writer = outputs.create(partial, shape, core_px, net.id_stride)
        pending = []
        for tile, found in zip(wanted, blocks.of_cores([t.core for t in wanted]), strict=True):
            pending.append(writing.submit(writer.write, tile, found))
            if len(pending) > 2:
                pending.pop(0).result()
        for job in pending:
            job.result()
        writer.close(model=meta["name"])
    seconds = time.perf_counter() - began
    voxels = sum(int(np.prod(grid.box_shape(tile.core))) for tile in wanted)
    log.info(
        "batch %d: %d tiles, %.2f Mpx in %.1f s on %s; computed %.2f Mpx with halo",
        args.batch,
        len(wanted),
        voxels / 1e6,
        seconds,
        device,
        blocks.voxels_computed / 1e6,
    )
    recorder.write(
        n_tiles=len(wanted),
        voxels=voxels,
        voxels_computed=blocks.voxels_computed,
        network_seconds=round(seconds, 3),
        device=str(device),
        backend="torch",
    )


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
        raise InputError(f"--device: {error}; use auto, cpu, cuda or cuda:N") from error


if __name__ == "__main__":
    cli.run(main)
