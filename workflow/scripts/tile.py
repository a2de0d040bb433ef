r"""Copy one channel of any image into a canonical OME-Zarr store and list its tiles and batches.

Intensity limits are those of the whole image and are computed here, once: with limits per
tile a dim tile would be stretched and its noise become objects.

Example:
    python tile.py --image cells.tif --name cells --model nuclei-2d.safetensors \
        --core-px auto --halo exact --diameter-px auto --batches 4 --percentiles 1 99.8 \
        --output image.zarr --tiles tiles.json
"""

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iaunet import (
    __version__,
    checkpoint,
    checksums,
    cli,
    grid,
    images,
    normalize,
    objectsize,
    omezarr,
    sealed,
)
from iaunet.errors import InputError, OptionError
from iaunet.grid import Box

log = logging.getLogger("tile")

DIAMETER_HELP = (
    "median diameter of the objects in y and x; auto: from the pixel size when the model was "
    "trained at one, else found with the network; native: the image is not resampled"
)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.base_parser(__doc__)
    parser.add_argument("--image", type=Path, required=True, help="image file or OME-Zarr")
    parser.add_argument("--name", required=True, help="id of the image")
    parser.add_argument("--model", type=Path, required=True, help="model file")
    cli.add_sizes(parser, "--core-px", "size of the part a tile owns", ["auto"])
    cli.add_sizes(parser, "--halo", "context read around the core", ["exact", "fast"])
    parser.add_argument("--batches", type=int, required=True, help="number of cluster jobs")
    parser.add_argument("--diameter-px", required=True, help=DIAMETER_HELP)
    parser.add_argument("--channel", help="index or name of the channel")
    parser.add_argument("--scene", help="index or name of the scene")
    parser.add_argument("--frame", help="index of the time point")
    for axis in "zyx":
        parser.add_argument(
            f"--pixel-um-{axis}", type=float, help=f"pixel size along {axis}, micrometers"
        )
    parser.add_argument(
        "--percentiles", type=float, nargs=2, required=True, help="of the whole image"
    )
    parser.add_argument("--output", type=Path, required=True, help="OME-Zarr store to create")
    parser.add_argument("--tiles", type=Path, required=True, help="JSON of tiles and batches")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    recorder = cli.Recorder("tile", args)
    _check_options(args)
    meta = checkpoint.read_meta(args.model)
    image = images.open_image(args.image, args.channel, args.scene, args.frame)
    if image.ndim != meta["ndim"]:
        raise InputError(
            f"{args.image}: has {image.ndim} axes ({' '.join(image.axes)}, shape {image.shape}), "
            f"the model {args.model.name} needs {meta['ndim']}; choose another model"
        )
    core = core_px(args.core_px, meta)
    halo = halo_px(args.halo, meta, core)
    pixel_um, warnings = pixel_size(image, args)
    with cli.write_whole(args.output) as partial:
        limits = write_store(partial, image, args.name, pixel_um, args.percentiles)
        warnings += [*limit_warnings(limits, args.percentiles), *image.warnings]
        warnings += model_warnings(meta, args.percentiles)
        stored = omezarr.open_level(partial)
        resampling = objectsize.choose_grid(stored, args.diameter_px, args.model, limits, pixel_um)
        tiling = tile_geometry(args, meta, core, halo, resampling["grid_shape"])
        description = {
            "version": __version__,
            "image": args.name,
            "shape": image.shape,
            "axes": image.axes,
            "dtype": str(store_dtype(image)),
            "channel": image.channel,
            "pixel_um": pixel_um,
            "limits": [limits.low, limits.high],
            "range": [limits.minimum, limits.maximum],
            "constant": limits.constant,
            **resampling,
            **tiling,
            "model": {
                "name": meta["name"],
                "bytes": checksums.n_bytes(args.model),
                "sha256": checksums.sha256_of_model(args.model),
            },
            "source": source(image, args.image),
            "warnings": warnings,
            "percentiles": args.percentiles,
        }
        keys = ("version", "channel", "limits", "range", "constant", "model", "source")
        omezarr.update_attrs(partial, {key: description[key] for key in keys})
        omezarr.write_display(partial, description["limits"], description["range"])
    with cli.write_whole(args.tiles) as partial:
        partial.write_text(sealed.dumps(description))
    for warning in warnings:
        log.warning("%s: %s", args.image, warning)
    low, high = description["limits"]
    text = "%s: %s %s, limits %g to %g, network grid %s, %d tiles in %d batches"
    n_tiles, to = tiling["n_tiles"], resampling["grid_shape"]
    log.info(text, args.image, image.shape, image.dtype, low, high, to, n_tiles, args.batches)
    recorder.write(
        n_tiles=n_tiles,
        shape=image.shape,
        grid_shape=to,
        output_bytes=checksums.n_bytes(args.output),
    )


def tile_geometry(
    args: argparse.Namespace,
    meta: dict,
    core: tuple[int, ...],
    halo: tuple[int, ...],
    shape: Sequence[int],
) -> dict[str, object]:
    """Return the part of tiles.json that says how the network's grid is divided."""
    exact = halo_px(["exact"], meta, core)
    n_tiles = grid.n_tiles(shape, core)
    return {
        "core": core,
        "halo": halo,
        "exact_halo": all(a >= b for a, b in zip(halo, exact, strict=True)),
        "stride": meta["stride"],
        "n_batches": args.batches,
        "batches": grid.batches(n_tiles, args.batches),
        "n_tiles": n_tiles,
    }


def source(image: images.Image, path: Path) -> dict[str, object]:
    """Return what was read: file, checksum and the choices within it."""
    return {
        "path": str(path),
        **checksums.facts(path),
        "format": image.format,
        "scene": image.scene,
        "frame": image.frame,
        "channel": image.channel,
    }


def core_px(values: Sequence[str | int], meta: dict) -> tuple[int, ...]:
    """Return the core that the option asks for: multiples of the model's stride."""
    core = cli.sizes("--core-px", values)
    stride = meta["stride"]
    auto = rounded_up(meta["block"], stride)
    if core == "auto":
        return auto
    core = grid.sizes_of(core, auto)
    if any(size <= 0 or size % step for size, step in zip(core, stride, strict=True)):
        raise InputError(
            f"tiling: core_px {list(core)} needs positive multiples of the model's stride "
            f"{list(stride)}; the nearest is {list(rounded_up([max(1, n) for n in core], stride))}"
        )
    return core


def halo_px(
    values: Sequence[str | int], meta: dict, core: tuple[int, ...] | None
) -> tuple[int, ...]:
    """Return the halo that the option asks for, in multiples of the stride; below the core."""
    halo = cli.sizes("--halo", values)
    stride = meta["stride"]
    exact = rounded_up(meta["radius"], stride)
    if halo == "exact":
        return exact
    if halo == "fast":
        return tuple(
            max(step, n)
            for step, n in zip(stride, rounded_up([-(-n // 2) for n in exact], stride), strict=True)
        )
    halo = grid.sizes_of(halo, exact)
    if any(size < 0 or size >= limit for size, limit in zip(halo, core, strict=True)):
        raise InputError(
            f"tiling: halo {list(halo)} must be at least 0 and smaller than the core "
            f"{list(core)}; correct halo or core_px"
        )
    return rounded_up(halo, stride)


def rounded_up(sizes: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes as multiples of the stride, not smaller than they were."""
    return tuple(-(-int(n) // step) * step for n, step in zip(sizes, stride, strict=True))


def pixel_size(
    image: images.Image, args: argparse.Namespace
) -> tuple[tuple[float, ...] | None, list[str]]:
    """Return the pixel size along each axis, options first, and warnings."""
    options = {axis: getattr(args, f"pixel_um_{axis}") for axis in "zyx"}
    known = image.partial_pixel_um | {a: um for a, um in options.items() if um is not None}
    missing = [axis for axis in image.axes if axis not in known]
    if not missing:
        return tuple(float(known[axis]) for axis in image.axes), []
    columns = ", ".join(f"pixel_um_{axis}" for axis in missing)
    return None, [f"no pixel size along {', '.join(missing)}: sizes are in pixels; add {columns}"]


def limit_warnings(limits: normalize.Limits, percentiles: Sequence[float]) -> list[str]:
    """Return what is odd about the intensities, as sentences."""
    if limits.constant:
        return [f"the image is constant: every pixel is {limits.low:g}"]
    if limits.widened:
        return [
            f"the percentiles {percentiles} coincide (nearly all background); limits are "
            "minimum and maximum"
        ]
    return []


def model_warnings(meta: dict, percentiles: Sequence[float]) -> list[str]:
    """Return what its maker or `adopt.py` says of the model, as sentences."""
    wanted = meta["normalize"].get("percentiles", percentiles)
    found = [str(text) for text in meta.get("warnings", [])]
    if list(wanted) != list(percentiles):
        found.append(
            f"the model was made for limits at the percentiles {wanted}, used are "
            f"{list(percentiles)}; set normalize: percentiles"
        )
    return found


def store_dtype(image: images.Image) -> np.dtype:
    """Return the dtype of the store: 64-bit integers become 32-bit ones."""
    if image.dtype.kind in "iu" and image.dtype.itemsize == 8:
        return np.dtype(f"{image.dtype.kind}4")
    return image.dtype


def write_store(
    path: Path,
    image: images.Image,
    name: str,
    pixel_um: Sequence[float] | None,
    percentiles: Sequence[float],
) -> normalize.Limits:
    """Stream the image into a new store, build its pyramid and return its intensity limits."""
    dtype = store_dtype(image)
    omezarr.create_image(path, image.shape, image.axes, dtype, pixel_um, name, {})
    array = omezarr.open_level(path)
    levels = omezarr.levels(path, name=None)
    histogram = normalize.Histogram(dtype)
    # Two shards wide, so that what lies under one shard of level 1 lies in one row of boxes.
    align_px = (*array.shards[:-1], 2 * array.shards[-1])
    for box in levels.ordered(image.blocks(align_px)):
        _copy(image, box, levels, histogram)
    levels.close()
    if histogram.n_nan or histogram.n_infinite:
        raise InputError(
            f"{image.path}: {histogram.n_nan} NaN values and {histogram.n_infinite} that are "
            "infinite or beyond 32-bit floats; replace them by numbers, or rescale"
        )
    if histogram.needs_refinement():
        stored = (array[box] for box in omezarr.shard_boxes(array))
        histogram.refine(stored, percentiles)
    return histogram.limits(percentiles)


def _copy(
    image: images.Image, box: Box, levels: omezarr.Levels, histogram: normalize.Histogram
) -> None:
    """Read a box, count its values and write it; it is let go of before the next one is read."""
    values = _in_range(image, image.read(box), histogram.dtype)
    histogram.add(values)
    levels.write(box, values)


def _in_range(image: images.Image, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if values.dtype == dtype:
        return values
    limits = np.iinfo(dtype)
    if values.size and not (limits.min <= values.min() and values.max() <= limits.max):
        raise InputError(
            f"{image.path}: {values.dtype} values beyond the range of {dtype}; save the image "
            "with at most 32 bits"
        )
    return values.astype(dtype)


def _check_options(args: argparse.Namespace) -> None:
    low, high = args.percentiles
    if not 0 <= low < high <= 100:
        raise OptionError(f"normalize: percentiles {low:g} {high:g} need 0 <= low < high <= 100")
    if args.diameter_px not in ("auto", "native"):
        try:
            diameter = float(args.diameter_px)
        except ValueError:
            diameter = math.nan
        if not 0 < diameter <= 1e5:
            raise OptionError(
                f"diameter_px: found '{args.diameter_px}', needs auto, native or pixels above 0"
            )
    if args.batches < 1:
        raise OptionError(f"--batches: found {args.batches}, needs at least 1")
    for axis in "zyx":
        um = getattr(args, f"pixel_um_{axis}")
        if um is not None and not (math.isfinite(um) and um > 0):
            raise OptionError(
                f"pixel_um_{axis}: found {um}, needs a positive number of micrometers"
            )


if __name__ == "__main__":
    cli.run(main)
