r"""A first look: segment a few places of an image, with one or several settings, on one page.

The places are a crowded, a typical and a dim one, as the light in the image tells; they come out
as they will in the whole image, if its intensity limits are those of the sample that is read
here (large images are not read whole). So settings can be settled before a long run.

Example
-------
    python preview.py --image plate1_A1.ome.tif --model nuclei-2d \
        --sweep seed=0.3,0.4,0.5 --output preview.html
"""

import argparse
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iaunet import (
    backends,
    checkpoint,
    cli,
    clustering,
    grid,
    images,
    joining,
    metrics,
    network,
    normalize,
    objectsize,
    page,
    predict,
    scale,
    views,
    wording,
)
from iaunet.errors import InputError, OptionError
from iaunet.settings import Settings

log = logging.getLogger("preview")

MODELS = Path(__file__).resolve().parents[2] / "resources/models"
DEFAULT = {2: "nuclei-2d", 3: "nuclei-3d"}
CROP_PX = {2: (384, 384), 3: (32, 128, 128)}
SAMPLE_VOXELS = 1 << 26
"""Of larger images some blocks are read, evenly spread."""
LIT = 0.2
"""Blocks with less than this share of the most light are background."""
PLACES = {"Crowded": 1.0, "Typical": 0.5, "Dim": 0.0}
"""Which of the others is shown, from the darkest 0 to the brightest 1."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--image", type=Path, required=True, help="image file or OME-Zarr")
    add("--model", help="model file, or the name of a shipped model; default: nuclei-2d or -3d")
    add("--channel", help="index or name, when there are several")
    add("--scene", help="when there are several")
    add("--frame", help="when there are several")
    add("--diameter-px", default="auto", help="auto, native, or the median diameter in y and x")
    add("--percentiles", type=float, nargs=2, default=(1, 99.8), help="intensity limits")
    add("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings of the clustering")
    add("--sweep", metavar="KEY=V1,V2", help="one of them, with two or more values")
    add("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    add("--threads", type=int, default=1, help="CPU threads")
    add("--output", type=Path, required=True, help="page to write, HTML")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Place:
    """A part of the image on the network's grid, and what the network says around it."""

    name: str
    box: grid.Box
    around: grid.Box
    outputs: dict[str, np.ndarray]
    pixels: np.ndarray


def main(argv: Sequence[str] | None = None) -> None:
    """Segment the places and write the page."""
    args = parse_args(argv)
    began = time.perf_counter()
    recorder = cli.Recorder("preview", args)
    image = images.open_image(args.image, args.channel, args.scene, args.frame)
    model = checkpoint.resolve(args.model or DEFAULT[image.ndim], MODELS)
    net, meta = checkpoint.load(model)
    if net.ndim != image.ndim:
        raise InputError(f"{args.image}: {image.ndim} axes, the model {model} needs {net.ndim}")
    changes = cli.settings("--set", args.set)
    variants = swept(args.sweep, {**meta["clustering"], **changes}, image.ndim)
    device = network.pick_device(args.device)
    engine = backends.prepare(net, "auto", "auto", device, args.threads)
    joiner = joining.Joiner.from_dict(meta["joining"]) if meta.get("joining") else None

    limits, share, middles, light = sampled(image, args.percentiles)
    to = objectsize.choose_grid(image, args.diameter_px, model, limits, image.pixel_um)
    clip = meta["normalize"].get("clip", predict.CLIP)
    scaled = normalize.reader(image, limits.low, limits.high, clip)

    def read(box: grid.Box) -> np.ndarray:
        return scale.resampled(scaled, image.shape, to["grid_shape"], box)

    places = [
        looked_at(name, box, read, engine, meta["radius"], to["grid_shape"])
        for name, box in chosen(middles, light, to["grid_shape"]).items()
    ]
    found = {
        text: [labelled(place, settings, net.id_stride, joiner) for place in places]
        for text, settings in variants.items()
    }
    facts = described(args, image, meta, limits, to, share)
    html = page.render("preview.html", **content(args.image.name, places, found), **facts)
    with cli.write_whole(args.output) as partial:
        partial.write_text(html, encoding="utf-8")
    counts = {text: [len(np.unique(one[one > 0])) for one in of] for text, of in found.items()}
    log.info("%s: objects %s, %.0f s", args.output, counts, time.perf_counter() - began)
    recorder.write(counts=counts)


def swept(sweep: str | None, values: dict, ndim: int) -> dict[str, Settings]:
    """Return the settings to compare, by what they are called."""
    if sweep is None:
        return {"settings of the model": Settings.from_dict(values, ndim)}
    ((key, tried),) = cli.settings("--sweep", [sweep]).items()
    if not isinstance(tried, list) or len(tried) < 2:
        raise OptionError(f"--sweep: found '{sweep}', needs KEY=V1,V2 with two or more values")
    return {f"{key} = {one}": Settings.from_dict({**values, key: one}, ndim) for one in tried}


def sampled(
    image: images.Image, percentiles: Sequence[float]
) -> tuple[normalize.Limits, float, np.ndarray, np.ndarray]:
    """Return intensity limits, the share of the image they are from, and where there is light.

    The last two: centres of blocks, from 0 to 1 per axis, and the mean scaled intensity of each.
    """
    shape, size = np.array(image.shape), CROP_PX[image.ndim]
    boxes = [tile.core for tile in grid.tiles(image.shape, size)]
    most = SAMPLE_VOXELS // math.prod(size)
    if len(boxes) > most:
        boxes = [boxes[k] for k in np.linspace(0, len(boxes) - 1, most).astype(int)]
    values = [image.read(box).ravel() for box in boxes]
    sample = np.concatenate(values)
    if not np.isfinite(sample).any():
        raise InputError(f"{image.path}: no finite value in the part that was read")
    limits = normalize.limits(sample, percentiles)
    light = [normalize.scale(one, limits.low, limits.high).clip(0, 1).mean() for one in values]
    middles = [[(side.start + side.stop) / 2 for side in box] for box in boxes]
    return limits, len(sample) / shape.prod(), np.array(middles) / shape, np.array(light)


def chosen(middles: np.ndarray, light: np.ndarray, shape: Sequence[int]) -> dict[str, grid.Box]:
    """Return a crowded, a typical and a dim place on the network's grid, each once."""
    lit = np.flatnonzero(light >= LIT * light.max(initial=0))
    order = lit[np.argsort(light[lit], kind="stable")]
    found: dict[str, grid.Box] = {}
    for name, where in PLACES.items():
        middle = middles[order[round(where * (len(order) - 1))]]
        box = []
        for m, n, side in zip(middle, shape, CROP_PX[len(shape)], strict=True):
            start = min(max(0, round(m * n - side / 2)), max(0, n - side))
            box.append(slice(start, min(n, start + side)))
        if tuple(box) not in found.values():
            found[name] = tuple(box)
    return found


def looked_at(
    name: str,
    box: grid.Box,
    read: Callable[[grid.Box], np.ndarray],
    engine,
    radius: Sequence[int],
    shape: Sequence[int],
) -> Place:
    """Return a place with the network's outputs, which see all that they depend on."""
    margin = [-(-2 * r // s) * s for r, s in zip(radius, engine.stride, strict=True)]
    around = grid.grow(box, margin, shape)
    first = [side.start // s * s for side, s in zip(around, engine.stride, strict=True)]
    around = tuple(slice(a, side.stop) for a, side in zip(first, around, strict=True))
    pixels = read(around)
    outputs = predict.whole(engine, pixels)
    return Place(name, box, around, outputs, pixels[grid.shift(box, grid.origin(around))])


def labelled(
    place: Place, settings: Settings, id_stride: Sequence[int], joiner: joining.Joiner | None
) -> np.ndarray:
    """Return the objects of a place, 1..n."""
    if joiner is None and settings.join:
        raise InputError("--set, --sweep: join needs a model that was trained with --join")
    found = clustering.label_array(place.outputs, settings, id_stride, joiner)
    found = found[grid.shift(place.box, grid.origin(place.around))]
    return np.unique(found, return_inverse=True)[1].reshape(found.shape) * (found > 0)


def described(
    args: argparse.Namespace,
    image: images.Image,
    meta: dict,
    limits: normalize.Limits,
    to: dict,
    share: float,
) -> dict[str, object]:
    """Return the part of the page on what was looked at."""
    facts = [
        ("image", f"{args.image}, {' × '.join(map(str, image.shape))} px, channel {image.channel}"),
        ("model", meta["name"]),
        ("intensity limits", f"{wording.number(limits.low)} to {wording.number(limits.high)}"),
        ("read for them", f"{100 * share:.3g} % of the image"),
        ("diameter of the objects, px", diameter_text(to)),
        ("network sees the image at", " × ".join(map(str, to["grid_shape"])) + " px"),
    ]
    return {"facts": facts, "sampled": share < 1}


def content(
    title: str, places: Sequence[Place], found: dict[str, list[np.ndarray]]
) -> dict[str, object]:
    """Return the part of the page on what was found."""
    texts = list(found)
    shown = [
        [place_view(place, found[text][k], text) for text in texts]
        for k, place in enumerate(places)
    ]
    return {
        "title": title,
        "places": shown,
        "names": ["", "objects", "median size, px", "against the first line"],
        "rows": [[text, *compared(found[text], found[texts[0]])] for text in texts],
    }


def diameter_text(to: dict) -> str:
    """Return how large the objects are, and how that is known."""
    known = to["diameter_px"]
    return f"{known[-1]:g}, from: {to['diameter_from']}" if known else to["diameter_from"]


def compared(of: Sequence[np.ndarray], first: Sequence[np.ndarray]) -> list[str]:
    """Return number and size of the objects, and how many are those of the first settings."""
    sizes = np.concatenate([np.bincount(one.ravel())[1:] for one in of])
    sizes = sizes[sizes > 0]
    pairs = [metrics.overlap(old, new) for new, old in zip(of, first, strict=True)]
    counts = [metrics.match_counts(one) for one in pairs]
    same, more, fewer = (int(sum(one[k][0] for one in counts)) for k in range(3))
    middle = wording.number(float(np.median(sizes))) if len(sizes) else "–"
    return [str(len(sizes)), middle, f"{same} same, {more} new, {fewer} gone"]


def place_view(place: Place, labels: np.ndarray, text: str) -> views.View:
    """Return the place with outlines; in 3D the section that shows most."""
    pixels, section = place.pixels, ""
    if labels.ndim == 3:
        at = int((labels > 0).sum(axis=(1, 2)).argmax())
        pixels, labels, section = pixels[at], labels[at], f", section {at}"
    n_objects = len(np.unique(labels[labels > 0]))
    return views.view(
        pixels,
        title=f"{place.name} · {text}",
        caption=wording.counted(n_objects, "object", "objects") + section,
        limits=(0, 1),
        layers=[views.outlines(labels, "found")],
        longest_px=560,
        tallest_px=560,
    )


if __name__ == "__main__":
    cli.run(main)
