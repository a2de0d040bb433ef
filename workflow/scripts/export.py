r"""Write a model for other programs: ONNX, and OpenVINO's two files, compared with the model.

Beside them goes a JSON file with all that a program needs to know to use them: how intensities
are scaled, of what windows are multiples, how far outputs can see, what the outputs are; and how
much their values differ from those of PyTorch on an image that is drawn. Nothing is written when
they differ by more than float32 explains.

Example
-------
    python export.py --model nuclei-2d.safetensors --output exported
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from iaunet import backends, checkpoint, checksums, cli, extras, normalize, predict, synthetic
from iaunet.errors import InputError

log = logging.getLogger("export")

MOST = 1e-3
"""Largest difference that is accepted: of logits, px, log px and components of vectors."""
HEADS = {
    "fg": "logit of the foreground",
    "seed": "logit of the seed map",
    "off": "offset to the centre of the object, px, in the order of the axes",
    "lsig": "logarithm of the bandwidth in px, in the order of the axes",
    "id": "identity, a vector of length 1 per cell of id_stride px",
    "emb": "embedding",
    "sem": "logits of background and classes",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="model file")
    parser.add_argument("--output", type=Path, required=True, help="folder to create")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write and compare."""
    args = parse_args(argv)
    recorder = cli.Recorder("export", args)
    if args.output.exists():
        raise InputError(f"--output {args.output}: is there already; needs a folder to create")
    net, meta = checkpoint.load(args.model)
    openvino = extras.imported("openvino", "backends")
    name, onnx = meta["name"], backends.to_onnx(net)
    image = drawn(net)
    parity = {backend: compared(net, image, backend) for backend in ("onnxruntime", "openvino")}
    worst = max(found["largest"] for of in parity.values() for found in of.values())
    if not worst <= MOST:
        raise InputError(
            f"{args.model}: converted outputs differ by up to {worst:.2g}, needs {MOST:g} at most; "
            f"nothing was written: {json.dumps(parity)}"
        )
    with cli.write_whole(args.output) as partial:
        partial.mkdir(parents=True)
        (partial / f"{name}.onnx").write_bytes(onnx)
        model = openvino.Core().read_model(onnx)
        openvino.save_model(model, partial / f"{name}.xml", compress_to_fp16=False)
        facts = contract(net, meta) | {"sha256": checksums.sha256(args.model), "parity": parity}
        (partial / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
    log.info("%s: %s, largest difference %.2g", args.output, name, worst)
    recorder.write(parity=parity)


def contract(net: torch.nn.Module, meta: dict) -> dict[str, object]:
    """Return what a program has to know to use the network."""
    return {
        "name": meta["name"],
        "input": {
            "name": "image",
            "axes": "bc" + "zyx"[-net.ndim :],
            "scaling": "(value - low) / (high - low), cut at `clip`; low and high are the "
            "`percentiles` of the whole image",
            "percentiles": meta["normalize"]["percentiles"],
            "clip": list(meta["normalize"].get("clip", predict.CLIP)),
            "multiple_of": list(net.stride),
        },
        "outputs": {head: HEADS[head] for head in backends.heads(net)},
        "id_stride": list(net.id_stride),
        "dependency_radius": list(meta["radius"]),
        "median_diameter_px": meta.get("diameter_px"),
        "pixel_um": meta.get("pixel_um"),
    }


def drawn(net: torch.nn.Module) -> torch.Tensor:
    """Return a drawn image of nuclei, scaled, of sides that are multiples of the stride."""
    rng = np.random.default_rng(1)
    wanted = {2: (256, 320), 3: (32, 96, 128)}[net.ndim]
    shape = tuple(-(-n // step) * step for n, step in zip(wanted, net.stride, strict=True))
    image, _ = synthetic.draw_nuclei(shape, rng, **synthetic.random_options(rng, net.ndim))
    limits = normalize.limits(image, (1, 99.8))
    scaled = normalize.scale(image, limits.low, limits.high).clip(*predict.CLIP)
    return torch.from_numpy(scaled)[None, None]


def compared(net: torch.nn.Module, image: torch.Tensor, backend: str) -> dict[str, dict]:
    """Return, per output, the largest difference and the share of stored values that differ."""
    cpu = torch.device("cpu")
    with torch.inference_mode():
        expected, found = (
            backends.prepare(net, which, "float32", cpu, 1)(image) for which in ("torch", backend)
        )
    stored = [predict.quantised(out) for out in (expected, found)]
    result = {}
    for head in backends.heads(net):
        largest = (getattr(expected, head) - getattr(found, head)).abs().max()
        one, other = (values[head].astype(int) for values in stored)
        result[head] = {"largest": float(largest), "stored_differ": float((one != other).mean())}
    return result


if __name__ == "__main__":
    cli.run(main)
