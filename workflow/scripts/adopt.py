r"""Make a model file of a network that others made: BioImage.IO package or TorchScript file.

The network is checked before: operations that make a tile's result differ from the whole
image's are named with their layer, the context that the network needs is measured, and tiled
outputs are compared with untiled ones on a drawn image. A network that fails is refused;
--allow-inexact takes it with a warning, which every page of every image will show.

What a package does not say in its section `config: iaunet:`, options of the same names do.

Example
-------
    python adopt.py --source package.zip --output their-nuclei.safetensors
    python adopt.py --source unet.pt --output unet.safetensors --ndim 2 --stride 16 \
        --heads fg=0:0 seed=0:1 off=0:2-3 --scores logits --percentiles 1 99.8 \
        --max-offset 32 --max-sigma 16 --sigma 6
"""

import argparse
import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from iaunet import (
    bioimageio,
    checkpoint,
    cli,
    clustering,
    foreign,
    normalize,
    predict,
    probing,
    safety,
    synthetic,
)
from iaunet.errors import InputError, OptionError
from iaunet.settings import DEFAULTS

log = logging.getLogger("adopt")

NEEDED = ("ndim", "stride", "heads", "scores", "percentiles", "max_offset", "max_sigma")
KEYS = {*NEEDED, "halo", "sigma", "block", "clip", "gain", "shift", "clustering"}
LARGEST_SIZE_PX = 2**15
HALO_WITHOUT_END_PX = 64
"""Halo of a network that looks at the whole tile, where nobody says another."""


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--source", type=Path, required=True, help="package (zip or folder) or TorchScript file")
    add("--output", type=Path, required=True, help="model file to write, NAME.safetensors")
    add("--ndim", type=int, choices=(2, 3), help="image axes of the network")
    add("--stride", type=int, nargs="+", help="px of which windows are multiples, [z] y x or one")
    add("--halo", type=int, nargs="+", help="least context in px, if more than is measured")
    add("--block", type=int, nargs="+", help="px that are computed at once: less needs less memory")
    add(
        "--heads",
        nargs="+",
        metavar="HEAD=PLACE",
        help="where fg, seed, off, lsig, id are: OUTPUT or OUTPUT:CHANNEL or OUTPUT:FIRST-LAST",
    )
    add("--scores", choices=("logits", "probabilities"), help="what fg and seed are")
    add("--percentiles", type=float, nargs=2, help="of the image, that become 0 and 1")
    add("--max-offset", type=float, nargs="+", help="longest offset to a centre, px")
    add("--max-sigma", type=float, nargs="+", help="largest bandwidth, px")
    add("--sigma", type=float, nargs="+", help="bandwidth without a head lsig, px")
    add(
        "--set",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help=f"thresholds of the model: {', '.join(DEFAULTS)}",
    )
    add(
        "--allow-inexact",
        action="store_true",
        help="take a network whose tiled result is not the untiled one",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Check a network and write it as a model."""
    args = parse_args(argv)
    recorder = cli.Recorder("adopt", args)
    if args.output.suffix != checkpoint.SUFFIX:
        raise OptionError(f"--output: found '{args.output}', needs NAME{checkpoint.SUFFIX}")
    package = read_source(args.source)
    facts = checked(package.facts | given(args), args.source)
    facts["heads"] = with_indices(facts["heads"], package.outputs)
    names = [field.name for field in dataclasses.fields(foreign.Contract)]
    contract = foreign.Contract(**{name: facts[name] for name in names if name in facts})
    settings = clustering.Settings.from_dict(facts.get("clustering", {}), contract.ndim)
    if settings.identity > 0 and "id" not in contract.heads:
        raise InputError(f"{args.source}: clustering identity needs a head id; leave it 0")
    net, radius, verdict = examined(package.content, contract, facts.get("halo"), args)
    meta = {
        "name": args.output.stem,
        "ndim": net.ndim,
        "in_channels": 1,
        "net": {checkpoint.TORCHSCRIPT: net.contract.as_dict()},
        "stride": list(net.stride),
        "id_stride": list(net.id_stride),
        "radius": list(radius),
        "block": facts.get("block") or predict.default_block(net.ndim, net.stride),
        "normalize": {"percentiles": facts["percentiles"], "clip": facts["clip"]},
        "max_offset": list(contract.max_offset),
        "max_sigma": list(contract.max_sigma),
        "clustering": settings.as_dict(),
        "origin": {"file": args.source.name, **package.origin},
        **verdict,
    }
    checkpoint.save_foreign(args.output, package.content, meta)
    log.info("%s: stride %s, sees %s px", args.output, meta["stride"], meta["radius"])
    recorder.write(radius=meta["radius"], **verdict)


def read_source(path: Path) -> bioimageio.Package:
    """Return the network of a file or folder, with what is said of it."""
    if bioimageio.is_package(path):
        return bioimageio.read(path)
    if path.is_dir():
        raise InputError(f"{path}: a folder without {' or '.join(bioimageio.DESCRIPTIONS)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file; needs a TorchScript file or a BioImage.IO package")
    if path.stat().st_size > foreign.MAX_BYTES:
        raise InputError(f"{path}: larger than {foreign.MAX_BYTES} bytes")
    return bioimageio.Package(path.read_bytes())


def given(args: argparse.Namespace) -> dict[str, object]:
    """Return what the options say, by the names of the section of a package."""
    said = {name: getattr(args, name, None) for name in KEYS - {"heads", "clustering"}}
    said["heads"] = dict(pair.partition("=")[::2] for pair in args.heads) if args.heads else None
    said["clustering"] = cli.settings("--set", args.set) or None
    return {name: value for name, value in said.items() if value is not None}


def checked(facts: Mapping[str, object], source: Path) -> dict[str, object]:
    """Return the facts with one number per axis; raise unless all are there and make sense."""
    unknown = set(facts) - KEYS
    if unknown:
        raise InputError(
            f"{source}: config, iaunet: unknown key {', '.join(sorted(map(str, unknown)))}; "
            f"known: {', '.join(sorted(KEYS))}"
        )
    missing = [name for name in NEEDED if name not in facts and name != "heads"]
    if missing:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in missing)
        raise InputError(f"{source}: does not say {', '.join(missing)}; say it with {options}")
    ndim = facts["ndim"]
    if ndim not in (2, 3):
        raise InputError(f"{source}: ndim {ndim!r}; needs 2 or 3")
    found = {"gain": 1.0, "shift": 0.0, "clip": list(predict.CLIP), "heads": {}, **facts}
    for name in ("stride", "halo", "block", "max_offset", "max_sigma", "sigma"):
        if name in found:
            found[name] = per_axis(found[name], name, ndim, source)
    low, high = numbers(found["percentiles"], "percentiles", 2, source)
    if not 0 <= low < high <= 100:
        raise InputError(f"{source}: percentiles {low:g} {high:g}; needs 0 <= low < high <= 100")
    found["percentiles"] = [low, high]
    numbers([found["gain"], found["shift"]], "gain and shift", 2, source)
    clip = found["clip"] if isinstance(found["clip"], list) else [found["clip"]] * 3
    numbers([0 if limit is None else limit for limit in clip], "clip", 2, source)
    check_sizes(found, source)
    for name, kind in (("heads", dict), ("clustering", dict), ("scores", str)):
        if not isinstance(found.get(name, kind()), kind):
            raise InputError(
                f"{source}: {name}: found {found[name]!r}, needs another kind of value"
            )
    return found


def check_sizes(found: Mapping[str, object], source: Path) -> None:
    """Raise unless block fits the stride, and the largest values fit the stored numbers."""
    stride = found["stride"]
    if "block" in found and any(b % s for b, s in zip(found["block"], stride, strict=True)):
        raise InputError(f"{source}: block {found['block']}; needs multiples of stride {stride}")
    for name in ("max_offset", "max_sigma", "sigma"):
        if not all(1 <= value <= 2000 for value in found.get(name, [1])):
            raise InputError(f"{source}: {name} {found[name]}; needs 1 to 2000 px")


def per_axis(value: object, name: str, ndim: int, source: Path) -> list:
    """Return one number per axis from one, or from one per axis; sizes are whole numbers."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if len(values) == 1:
        values = [*values] * ndim
    found = numbers(values, name, ndim, source)
    if name not in ("stride", "halo", "block"):
        return found
    least = 0 if name == "halo" else 1
    if not all(v == int(v) and least <= v <= LARGEST_SIZE_PX for v in found):
        raise InputError(f"{source}: {name} {found}; needs whole numbers of px")
    return [int(v) for v in found]


def numbers(values: object, name: str, count: int, source: Path) -> list[float]:
    """Return finite numbers, as many as needed."""
    good = isinstance(values, (list, tuple)) and all(
        isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    if not good or len(values) != count:
        raise InputError(f"{source}: {name}: found {values!r}, needs {count} numbers")
    return list(values)


def with_indices(heads: Mapping, outputs: Sequence[str]) -> dict[str, str]:
    """Return heads with outputs by index; without any, outputs that are named as heads are.

    Packages name their outputs; the network itself returns them in the same order.
    """
    found = {str(head): str(place) for head, place in heads.items()}
    if not found:
        names = outputs or foreign.HEADS
        found = {name: name for name in names if name in foreign.HEADS}
    index = {name: str(k) for k, name in enumerate(outputs)}
    return {
        head: ":".join([index.get(output, output), *rest])
        for head, (output, *rest) in ((h, place.split(":")) for h, place in found.items())
    }


def examined(
    content: bytes,
    contract: foreign.Contract,
    halo_px: Sequence[int] | None,
    args: argparse.Namespace,
) -> tuple[foreign.Foreign, tuple[int, ...], dict[str, object]]:
    """Return the network, how far it sees, and the verdict; raise when it is refused."""
    net = foreign.Foreign(content, contract, str(args.source))
    reasons = safety.findings(net)
    if any(reason.startswith(safety.STRIDES) for reason in reasons):
        refuse(args.source, reasons, None)
    found = probing.id_stride(net)
    net = foreign.Foreign(content, dataclasses.replace(contract, id_stride=found), net.name)
    measured = probing.radius(net)
    if measured is None and not reasons:
        reasons = safety.suspects(net) or ["its outputs depend on the whole tile"]
    seen = measured or (HALO_WITHOUT_END_PX,) * net.ndim
    said = halo_px or (1,) * net.ndim
    if measured is None and halo_px:
        seen = said
    radius = tuple(max(a, b, 1) for a, b in zip(seen, said, strict=True))
    halo = [-(-r // s) * s for r, s in zip(radius, net.stride, strict=True)]
    strips = [drawn(shape) for shape in probing.strip_shapes(net, halo)]
    differ = probing.differences(net, strips, halo)
    log.info("%s: tiled and untiled outputs differ by up to %s", args.source, shown(differ))
    if not reasons and probing.in_steps(differ) > probing.TOLERANCE:
        reasons = ["for no known reason"]
    if reasons and not args.allow_inexact:
        refuse(args.source, reasons, differ)
    warnings = [f"the model is not exact in tiles: {told(reasons, differ)}"] if reasons else []
    for warning in warnings:
        log.warning("%s: %s", args.source, warning)
    facts = {"reasons": reasons, "differences": differ, "halo_px": halo}
    return net, radius, {"warnings": warnings, "tile_safety": facts}


def drawn(shape: Sequence[int]) -> np.ndarray:
    """Return drawn nuclei, scaled as an image is; the same every time."""
    rng = np.random.default_rng(0)
    image, _ = synthetic.draw_nuclei(shape, rng, **synthetic.random_options(rng, len(shape)))
    limits = normalize.limits(image, (1, 99.8))
    return normalize.scale(image, limits.low, limits.high).clip(*predict.CLIP)


def refuse(source: Path, reasons: Sequence[str], differ: Mapping[str, float] | None) -> None:
    """Raise, with the reasons and what was measured."""
    hint = (
        "correct the stride, or the network"
        if differ is None
        else "use a network without it, or take it with --allow-inexact"
    )
    raise InputError(f"{source}: not exact in tiles: {told(reasons, differ)}; {hint}")


def told(reasons: Sequence[str], differ: Mapping[str, float] | None) -> str:
    """Return reasons, and the largest differences if measured, as one sentence."""
    more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    text = f"{', '.join(reasons[:3])}{more}"
    if differ is None:
        return text
    return f"{text}; tiled and untiled outputs of a drawn image differ by up to {shown(differ)}"


def shown(differ: Mapping[str, float]) -> str:
    """Return differences with their units."""
    units = {"off": " px", "lsig": " log px"}
    moved = {name: value for name, value in differ.items() if value > 0}
    return (
        ", ".join(f"{name} {value:.2g}{units.get(name, '')}" for name, value in moved.items())
        or "0"
    )


if __name__ == "__main__":
    cli.run(main)
