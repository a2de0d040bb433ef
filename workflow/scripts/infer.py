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

from iaunet import (
    backends,
    checksums,
    cli,
    grid,
    network,
    outputs,
    predict,
    quarantine,
    tiling,
)
from iaunet.errors import OptionError
from iaunet.quarantine import Failed

log = logging.getLogger("infer")

IN_FLIGHT = 3
"""Blocks on a GPU at the same time."""
PRECISION_HELP = (
    "auto: int8 or bfloat16 where the device is fast with it, int8 where the model is calibrated"
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--store", type=Path, required=True, help="image store that tile.py wrote")
    add("--tiles", type=Path, required=True, help="JSON that tile.py wrote")
    add("--model", type=Path, required=True, help="model file")
    add("--batch", type=int, required=True, help="batch to compute, from 0")
    add("--device", required=True, help="auto, cpu, cuda or cuda:N")
    add("--backend", required=True, choices=backends.BACKENDS, help="what computes the network")
    add("--precision", choices=backends.PRECISIONS, default="auto", help=PRECISION_HELP)
    add("--threads", type=int, required=True, help="blocks computed at the same time on the CPU")
    add("--output", type=Path, required=True, help="Zarr store of outputs to write")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Compute the outputs of one batch."""
    args = parse_args(argv)
    recorder = cli.Recorder("infer", args)
    if args.threads < 1:
        raise OptionError(f"--threads: found {args.threads}, needs 1 or more")
    tiles = tiling.read(args.tiles, ("core", "halo", "batches", "limits", "model"), args.batch)
    _, meta = network.load(args.model)
    network.check_model(args.model, meta, tiles)
    device = network.pick_device(args.device, args.backend)
    # A GPU computes one block while others are read, or brought to fixed point.
    at_once = args.threads if device.type == "cpu" else IN_FLIGHT
    engine = network.prepare(args.model, args.backend, args.precision, device, args.threads)

    def over_image(halo_px: Sequence[int]) -> predict.Blocks:
        return network.open_blocks(args.store, tiles, engine, meta, halo_px, at_once)

    blocks = over_image(tiles["halo"])
    wanted = [
        grid.tile(blocks.shape, tiles["core"], k) for k in range(*tiles["batches"][args.batch])
    ]
    began, used = time.perf_counter(), time.process_time()
    failed = write_outputs(args.output, blocks, wanted, tiles["core"], args.batch)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    voxels = sum(math.prod(grid.box_shape(tile.core)) for tile in wanted)
    spent = {what: round(took, 3) for what, took in sorted(blocks.seconds.items())}
    log.info(
        "batch %d: %d tiles, %.2f Mpx in %.1f s on %s by %s in %s; computed %.2f Mpx with halo",
        args.batch,
        len(wanted),
        voxels / 1e6,
        seconds,
        device,
        engine.backend,
        engine.precision,
        blocks.voxels_computed / 1e6,
    )
    text = ", ".join(f"{what} {took:.1f} s" for what, took in spent.items())
    log.info("%d blocks at a time, together: %s", blocks.room.size, text)
    exact = tuple(-(-r // s) * s for r, s in zip(meta["radius"], engine.stride, strict=True))
    without = {one["tile"] for one in failed}
    good = [tile for tile in wanted if tile.index not in without]
    sample = {"halo_checked": 0, "halo_changed": 0}
    if good and any(a < b for a, b in zip(tiles["halo"], exact, strict=True)):
        sample = halo_check(blocks, over_image(exact), good[0])
    recorder.write(
        n_tiles=len(wanted),
        voxels=voxels,
        voxels_computed=blocks.voxels_computed,
        voxels_decoded=blocks.voxels_decoded,
        network_seconds=round(seconds, 3),
        network_cpu_seconds=round(used, 3),
        output_bytes=checksums.n_bytes(args.output),
        device=str(device),
        device_name=network.device_name(device),
        backend=engine.backend,
        precision=engine.precision,
        block_seconds=spent,
        blocks_at_a_time=blocks.room.size,
        blocks_halved=blocks.n_halved,
        blocks_reused=blocks.n_reused,
        failed_tiles=failed,
        **sample,
    )


def write_outputs(
    path: Path,
    blocks: predict.Blocks,
    wanted: Sequence[grid.Tile],
    core_px: Sequence[int],
    batch: int,
) -> list[quarantine.Failure]:
    """Write the outputs of all tiles, one while the next are computed; return which failed."""
    failed = []
    with cli.write_whole(path) as partial, ThreadPoolExecutor(1) as writing:
        net = blocks.net
        more = {"emb_dim": net.emb_dim, "n_classes": net.n_classes}
        writer = outputs.create(partial, blocks.shape, core_px, net.id_stride, **more)
        pending = []
        for tile, found in zip(wanted, blocks.of_cores([t.core for t in wanted]), strict=True):
            if isinstance(found, Failed):
                failed.append(quarantine.failure(tile, batch, "infer", found.cause))
                pending.append(writing.submit(writer.write_empty, tile))
            else:
                pending.append(writing.submit(writer.write, tile, found))
            if len(pending) > 2:
                with blocks.timed("waiting for the writer"):
                    pending.pop(0).result()
        for job in pending:
            job.result()
        quarantine.check_some_left(failed, len(wanted), grid.n_tiles(blocks.shape, core_px))
        writer.close(backend=net.backend, precision=net.precision, failed_tiles=failed)
    return failed


def halo_check(blocks: predict.Blocks, exact: predict.Blocks, tile: grid.Tile) -> dict[str, int]:
    """Return how many voxels of the block under a tile a halo below the exact one changes.

    A voxel counts when its foreground or seed, in fixed point, moves by more than one step.
    """
    (index, *_) = grid.tiles_meeting(blocks.padded, blocks.block_px, tile.core)
    near, far = blocks.compute(index), exact.compute(index)
    if isinstance(near, Failed) or isinstance(far, Failed):
        return {"halo_checked": 0, "halo_changed": 0}
    moved = np.zeros(near["fg"].shape, bool)
    for name in ("fg", "seed"):
        moved |= np.abs(near[name].astype(int) - far[name]) > 1
    return {"halo_checked": moved.size, "halo_changed": int(moved.sum())}


if __name__ == "__main__":
    cli.run(main)
