"""What a network needs to compute in int8: found on images, kept if accuracy stays."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch

from iaunet import backends, grid, int8, predict, tuning
from iaunet.net import IAUNet

log = logging.getLogger("iaunet")

VOXELS = 20_000_000
"""In how many voxels of the training images the largest values are looked for; `train.py` validates
on as many, since a processor computes them in float32."""
MOST_LOST = 0.002
"""Of the mean average precision of the validation images, pooled."""


def calibrated(
    net: IAUNet,
    images: Iterable[np.ndarray],
    validation: Sequence[tuple[np.ndarray, np.ndarray]],
    score_of: Callable[[Sequence[tuning.Case]], float],
    block_px: Sequence[int],
) -> dict[str, object] | None:
    """Return what a model file says for int8; None where it costs accuracy, or cannot be tried.

    Parameters
    ----------
    images : of the training, scaled.
    validation : scaled images and their labels, -1 where nothing is annotated.
    score_of : mean average precision of the validation images' outputs.
    block_px : what goes through the network at once.
    """
    cpu = torch.device("cpu")
    if not int8.is_quick(cpu):
        log.warning("not calibrated for int8: this processor does not compute so")
        return None
    net = net.cpu()
    net.largest = int8.largest_values(backends.folded(net), windows(net, images, block_px))
    scores = {}
    for precision in ("float32", "int8"):
        engine = backends.prepare(net, "torch", precision, cpu, 1)
        cases = [(predict.whole(engine, image), true) for image, true in validation]
        scores[precision] = round(score_of(cases), 4)
    log.info("mean AP in float32 %(float32).4f, in int8 %(int8).4f", scores)
    if scores["int8"] < scores["float32"] - MOST_LOST:
        log.warning("not calibrated for int8: mean AP falls by more than %g", MOST_LOST)
        net.largest = None
        return None
    return {"largest": net.largest, "ap_mean": scores}


def windows(
    net: IAUNet, images: Iterable[np.ndarray], block_px: Sequence[int]
) -> Iterator[torch.Tensor]:
    """Yield images in blocks, as the network takes them, until `VOXELS` are seen."""
    seen = 0
    for image in images:
        for tile in grid.tiles(image.shape, block_px):
            if seen >= VOXELS:
                return
            block = image[tile.core]
            seen += block.size
            yield predict.laid_out(predict.padded(block, net.stride))
