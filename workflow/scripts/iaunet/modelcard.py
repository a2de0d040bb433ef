"""What a model says of itself to a reader: its card, and the command that makes it again."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

NOT_REPEATED = ("record", "card", "curves_csv", "curves_png")
"""Options that do not change the model."""


def command(options: Mapping[str, object], processes: int) -> str:
    """Return the command that makes a model again, with names instead of paths.

    `options` are those of train.py by name, such as ``max_steps``.
    """
    words = ["python"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes)]
    words.append("train.py")
    for key, value in options.items():
        if key in NOT_REPEATED or value in (None, []):
            continue
        if isinstance(value, bool):
            words.append(f"--{'' if value else 'no-'}{key.replace('_', '-')}")
            continue
        values = value if isinstance(value, list) else [value]
        words.append(f"--{key.replace('_', '-')}")
        words += [one.name if isinstance(one, Path) else str(one) for one in values]
    return shlex.join(words)


def sizes(diameter_px: Mapping[str, object] | None) -> str:
    """Return which sizes of objects the model takes, in words."""
    if diameter_px is None:
        return "not fixed: images are never resampled"
    return f"{diameter_px['smallest']} to {diameter_px['largest']}; other images are resampled"


def joining(meta: Mapping) -> list[str]:
    """Return the row on fragments of long objects, where the model joins them."""
    if "joining" not in meta:
        return []
    weights = dict(zip(meta["joining"]["features"], meta["joining"]["weight"][1:], strict=True))
    shown = ", ".join(f"{name} {weight:.2f}" for name, weight in weights.items())
    return [f"| weights that join fragments | {shown} |"]


def in_int8(meta: Mapping) -> list[str]:
    """Return the row on int8, where the model is calibrated for it."""
    if meta.get("int8") is None:
        return []
    ap = meta["int8"]["ap_mean"]
    return [f"| calibrated for int8 | mean AP 0.5:0.95 {ap['int8']}, in float32 {ap['float32']} |"]


def card(meta: dict) -> str:
    """Return the model card: data, recipe, scores, licence."""
    scores, fit = meta["scores"], meta["training"]
    lines = [
        f"# {meta['name']}",
        "",
        f"Identity-aware U-Net, {meta['ndim']}D, one channel.",
        "",
        "| | |",
        "|---|---|",
        f"| fitted to | {fit['train']['images']} images, {fit['train']['objects']} objects |",
        f"| of all images, drawn by the project | {fit['drawn']} |",
        f"| validated with | {fit['validation']['images']} images of other groups, "
        f"{fit['validation']['objects']} objects |",
        f"| started from | {fit['start'] or 'random weights'} |",
        f"| budget | {fit['steps']} steps of {fit['crops_per_step']} crops of "
        f"{fit['crop_px']} px, seed {fit['seed']} |",
        f"| made by | `{fit['command']}` |",
        f"| with | {', '.join(f'{name} {v}' for name, v in fit['packages'].items())} |",
        f"| weights of the loss | `{json.dumps(fit['weights'])}` |",
        f"| validation, pooled | AP50 {scores['ap50']} (mean of images "
        f"{scores['ap50_per_image']}), AP75 {scores['ap75']}, "
        f"mean AP 0.5:0.95 {scores['ap_mean']}, F1 {scores['f1_50']}, "
        f"IoU of the foreground {scores['foreground_iou']} |",
        f"| median diameters of objects, px | {sizes(meta['diameter_px'])} |",
        f"| pixel size, um | {meta['pixel_um'] or 'not fixed'} |",
        f"| thresholds, fitted on these | `{json.dumps(meta['clustering'])}` |",
        *joining(meta),
        *in_int8(meta),
        f"| stride, dependency radius, block, px | {meta['stride']}, {meta['radius']}, "
        f"{meta['block']} |",
        f"| licence of the data | {meta['licence']} |",
        f"| checksum of the data | {fit['data_sha256']} |",
        "",
    ]
    return "\n".join(lines)
