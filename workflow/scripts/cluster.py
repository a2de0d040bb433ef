r"""Turn the network outputs of one batch of tiles into instances.

The labels of a tile's core are those that the whole image would get: the step reads the
outputs of neighbouring tiles, also those of other batches, as far as the clustering looks.

Example
-------
    python cluster.py --tiles tiles.json --model nuclei-2d.safetensors \
        --outputs 0.zarr 1.zarr --batch 0 --set seed=0.4 \
        --output labels/0.zarr --table labels/0.parquet \
        --sightings labels/0.sightings.parquet --contacts labels/0.contacts.parquet
"""

import argparse
import functools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from iaunet import (
    checkpoint,
    checksums,
    classes,
    cli,
    clustering,
    grid,
    joining,
    kernels,
    machine,
    outputs,
    plan,
    quarantine,
    tables,
    tiling,
    windows,
)
from iaunet.errors import InputError, OptionError
from iaunet.fixedpoint import SCALE
from iaunet.quarantine import Failed
from iaunet.settings import DEFAULTS

log = logging.getLogger("cluster")

WINDOW_VOXELS = 64 * 2**20
"""Of the windows in which a thread labels, with what lies around the tiles."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--tiles", type=Path, required=True, help="JSON that tile.py wrote")
    parser.add_argument("--model", type=Path, required=True, help="model file; its thresholds")
    parser.add_argument(
        "--outputs", type=Path, nargs="+", required=True, help="stores of all batches, in order"
    )
    parser.add_argument("--batch", type=int, required=True, help="batch to label, from 0")
    parser.add_argument(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help=f"overrides of the model's thresholds: {', '.join(DEFAULTS)}",
    )
    parser.add_argument(
        "--device", default="cpu", help="auto, cpu, cuda or cuda:N; the result is the same"
    )
    parser.add_argument("--threads", type=int, default=1, help="tiles labelled at the same time")
    parser.add_argument("--output", type=Path, required=True, help="Zarr store of labels to write")
    parser.add_argument("--table", type=Path, required=True, help="Parquet of objects to write")
    parser.add_argument(
        "--sightings", type=Path, required=True, help="Parquet to write: objects seen per tile"
    )
    parser.add_argument("--contacts", type=Path, required=True, help="Parquet to write: touching")
    return parser.parse_args(argv)


def thresholds(model: Path, meta: dict, words: Sequence[str], ndim: int) -> clustering.Settings:
    """Return the settings of the model with the overrides of `words`."""
    if meta["ndim"] != ndim:
        raise InputError(f"{model}: the model is {meta['ndim']}D, the image is {ndim}D")
    chosen = cli.settings("--set", words)
    settings = clustering.Settings.from_dict({**meta["clustering"], **chosen}, ndim)
    for problem in plan.clustering_problems(chosen, meta):
        raise InputError(f"{model}: {problem}")
    return settings


class Found(NamedTuple):
    """What the tables get of a tile, see `clustering.Labelled`; and how many voxels it lost."""

    objects: clustering.Columns
    sightings: clustering.Columns
    contacts: clustering.Columns
    outlines: np.ndarray
    n_lost: int


Label = Callable[[clustering.Loops], list[Found]]


def compiled(label: Label, _: str) -> list[Found]:
    """Label a window with the compiled loops."""
    return label(kernels)


ON_CPU = compiled, WINDOW_VOXELS


def on_device(
    wanted: str, mode: str, threads: int
) -> tuple[Callable[[Label, str], list[Found]], int]:
    """Return what labels a window, whose name it is told, on a device, and its most voxels."""
    if wanted == "cpu" or (wanted == "auto" and not machine.has_cuda()):
        return ON_CPU  # without PyTorch
    try:
        from iaunet import network, tensorkernels
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        if wanted == "auto":
            return ON_CPU
        raise OptionError(
            f"--device: {wanted} needs PyTorch, which is not installed here; install it or use cpu"
        ) from error
    device = network.pick_device(wanted)
    if device.type == "cpu":
        return ON_CPU
    if mode != "local":
        log.info("mode %s is computed on the CPU", mode)
        return ON_CPU
    log.info("labels on %s, %s", device, network.device_name(device))
    most_voxels = min(WINDOW_VOXELS, tensorkernels.most_voxels(device, threads))
    return functools.partial(tensorkernels.on_device, device), most_voxels


def concatenate(
    rows: Sequence[Mapping[str, np.ndarray]], like: Mapping[str, np.ndarray]
) -> clustering.Columns:
    """Return the rows of all tiles as one table; without tiles an empty one like `like`."""
    return {name: np.concatenate([part[name] for part in (like, *rows)]) for name in like}


def in_turn(
    label: Callable[[Sequence[grid.Tile]], list[Found | Failed]],
    together: Iterable[Sequence[grid.Tile]],
    threads: int,
) -> Iterator[tuple[grid.Tile, Found | Failed]]:
    """Yield what is found of the tiles of every window, in turn; one more per thread is ahead."""
    with ThreadPoolExecutor(threads) as pool:
        coming: deque = deque()
        for tiles in together:
            coming.append((tiles, pool.submit(label, tiles)))
            if len(coming) > threads:
                first, found = coming.popleft()
                yield from zip(first, found.result(), strict=True)
        for tiles, found in coming:
            yield from zip(tiles, found.result(), strict=True)


def voxels_lost(
    reader: outputs.Reader,
    tile: grid.Tile,
    labels: np.ndarray,
    failed: Sequence[quarantine.Failure],
    settings: clustering.Settings,
) -> int:
    """Return how many voxels of a core are of no object because its centre is in a failed tile."""
    fg, off = (reader.read(name, tile.core) for name in ("fg", "off"))
    lost = (labels == 0) & (fg >= settings.fg_least)
    return quarantine.pointing_in(lost, off / SCALE["off"], grid.origin(tile.core), failed)


def main(argv: Sequence[str] | None = None) -> None:
    """Label the cores of one batch."""
    args = parse_args(argv)
    recorder = cli.Recorder("cluster", args)
    if args.threads < 1:
        raise OptionError(f"--threads: found {args.threads}, needs 1 or more")
    tiles = tiling.read(args.tiles, ("core", "batches"), args.batch)
    shape, core = tiling.grid_shape(tiles), tuple(tiles["core"])
    meta = checkpoint.read_meta(args.model)
    checkpoint.check_tiled_for(args.model, tiles.get("model"))
    known_classes = [one.as_dict() for one in classes.of_model(meta)]
    settings = thresholds(args.model, meta, args.set, len(shape))
    compute, most_voxels = on_device(args.device, settings.mode, args.threads)
    reader = outputs.Reader(args.outputs, tiles)
    bounds = clustering.Bounds(*reader.largest(settings.fg_least))
    id_stride = reader.stride("id")
    far = clustering.reach(settings, bounds)
    log.info("batch %d: reaches %s", args.batch, far)
    empty = reader.failed()  # of all batches, where the outputs are
    failed = [one for one in empty if one["batch"] == args.batch]

    found_in: dict[int, Found] = {}
    no_objects, not_seen, no_contacts = clustering.empty_tables(settings, id_stride)
    outlines = np.zeros((len(shape), max(core)), dtype=np.int64)
    clustering.load(settings, id_stride)
    began = time.process_time()
    with ExitStack() as stack:
        output, table_path, sightings_path, contacts_path = (
            stack.enter_context(cli.write_whole(path))
            for path in (args.output, args.table, args.sightings, args.contacts)
        )
        has_classes = reader.has(outputs.CLASSES)
        writer = outputs.create_labels(output, shape, core, classes=has_classes)
        n_tiles = len(range(*tiles["batches"][args.batch]))
        for one in failed:
            writer.write_empty(grid.tile(shape, core, one["tile"]))
        without = {one["tile"] for one in failed}
        wanted = [
            grid.tile(shape, core, index)
            for index in range(*tiles["batches"][args.batch])
            if index not in without
        ]
        margin = [sum(parts) + 1 for parts in zip(far.extent, far.seeds, far.maxima, strict=True)]
        together = windows.gathered(
            wanted, shape, core, far.extent, margin, most_voxels=most_voxels, threads=args.threads
        )

        def label(some: Sequence[grid.Tile], loops: clustering.Loops) -> list[Found]:
            """Label and write the cores of some tiles, in one window."""
            cores = [tile.core for tile in some]
            labelled = clustering.label_windows(
                reader.read, cores, shape, settings, bounds, id_stride, loops=loops
            )
            done = []
            for tile, found in zip(some, labelled, strict=True):
                arrays = {outputs.LABELS: found.labels}
                if has_classes:
                    arrays[outputs.CLASSES] = reader.read(outputs.CLASSES, tile.core)
                writer.write(tile, arrays)
                n_lost = voxels_lost(reader, tile, found.labels, empty, settings) if empty else 0
                seen = {"tile": np.full(len(found.sightings["gid"]), tile.index), **found.sightings}
                done.append(Found(found.table, seen, found.contacts, found.outlines, n_lost))
            return done

        def attempt(some: Sequence[grid.Tile]) -> list[Found | Failed]:
            """Return what is found of some tiles; one by one where they fail together."""
            name = "tile" if len(some) == 1 else "tiles"
            name += f" {', '.join(str(tile.index) for tile in some)}"
            found = quarantine.attempt(
                lambda: compute(lambda loops: label(some, loops), name), name
            )
            if not isinstance(found, Failed):
                return found
            return [found] if len(some) == 1 else [attempt([tile])[0] for tile in some]

        for tile, found in in_turn(attempt, together, args.threads):
            if isinstance(found, Failed):
                failed.append(quarantine.failure(tile, args.batch, "cluster", found.cause))
                writer.write_empty(tile)
                continue
            found_in[tile.index] = found
            outlines[:, : found.outlines.shape[1]] += found.outlines
        quarantine.check_some_left(failed, n_tiles, grid.n_tiles(shape, core))
        writer.close(
            settings=settings.as_dict(),
            joining=meta.get("joining"),
            classes=known_classes,
            bounds={"off": list(bounds.off), "lsig": list(bounds.lsig)},
            computed={
                name: reader.facts(args.batch).get(name) for name in ("backend", "precision")
            },
            reach=margin,
            failed_tiles=failed,
            voxels_lost=sum(found.n_lost for found in found_in.values()),
        )
        by_tile = [found_in[index] for index in sorted(found_in)]
        table = concatenate([found.objects for found in by_tile], no_objects)
        seen = concatenate(
            [found.sightings for found in by_tile],
            {"tile": np.zeros(0, dtype=np.int64), **not_seen},
        )
        tables.write_parquet(table, table_path)
        tables.write_parquet(seen, sightings_path)
        touching = joining.added([no_contacts, *(found.contacts for found in by_tile)])
        tables.write_parquet(touching, contacts_path)
        took = time.process_time() - began
    log.info("batch %d: %d objects in %d tiles", args.batch, len(table["gid"]), n_tiles)
    recorder.write(
        n_tiles=n_tiles,
        failed_tiles=failed,
        n_objects=len(table["gid"]),
        clustering=settings.as_dict(),
        outlines=outlines.tolist(),
        clustering_seconds=round(took, 3),
        output_bytes=checksums.n_bytes(args.output),
    )


if __name__ == "__main__":
    cli.run(main)
