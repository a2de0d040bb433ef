"""The grid on which the objects of an image have a size that the model knows."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iaunet import checkpoint, clustering, normalize, scale, sizing
from iaunet.settings import Settings

log = logging.getLogger("iaunet")


def choose_grid(
    image,
    wanted: str,
    model: Path,
    limits: normalize.Limits,
    pixel_um: Sequence[float] | None,
) -> dict[str, object]:
    """Return the part of tiles.json on the grid of the network.

    Parameters
    ----------
    image : array, or what is sliced alike and has a shape
    wanted : auto, native, or the median diameter of the objects in y and x, px

    Returns
    -------
    dict
        grid_shape; diameter_px, of the objects, per axis, or None; diameter_from, what that
        rests on; and model_diameter_px, smallest and largest median that the model takes.
    """
    meta = checkpoint.read_meta(model)
    diameter, source, factors = None, "not asked", (1.0,) * len(image.shape)
    trained_um, sizes = meta.get("pixel_um"), meta.get("diameter_px")
    if wanted == "native":
        source = "option native"
    elif wanted != "auto":
        spacing = pixel_um or (1.0,) * len(image.shape)
        diameter = [float(wanted) * spacing[-1] / step for step in spacing]
        source = "table or config"
    elif trained_um and pixel_um:
        factors = scale.spacing_factors(pixel_um, trained_um)
        source = "pixel size"
    elif sizes and not limits.constant:
        diameter, agreements = estimated(model, image, limits, pixel_um)
        source = "network" if diameter else "network, in vain"
        log.info("diameter %s px, agreement of zooms %s", diameter, agreements)
    if diameter and sizes:
        factors = scale.factors(diameter, sizes["smallest"], sizes["largest"])
    return {
        "grid_shape": scale.grid_shape(image.shape, factors),
        "diameter_px": diameter and [round(value, 2) for value in diameter],
        "diameter_from": source,
        "model_diameter_px": sizes,
    }


def estimated(
    model: Path, image, limits: normalize.Limits, pixel_um: Sequence[float] | None
) -> tuple[list[float] | None, dict[str, float]]:
    """Return the median diameter of the objects per axis, found with the network; see `sizing`."""
    # With torch, which takes seconds and is not always needed.
    import torch

    from iaunet import backends, predict

    net, meta = checkpoint.load(model)
    # Every kind of processor shall find the same sizes.
    net = backends.prepare(net, "torch", "float32", torch.device("cpu"), 1)
    # Fragments of long objects count as they are: their widths tell the scale as well.
    settings = Settings.from_dict({**meta["clustering"], "join": 0.0}, net.ndim)

    def segment(window: np.ndarray) -> np.ndarray:
        named = clustering.label_array(predict.whole(net, window), settings, net.id_stride)
        return np.unique(named, return_inverse=True)[1].reshape(named.shape)

    clip = meta["normalize"].get("clip", predict.CLIP)
    read = normalize.reader(image, limits.low, limits.high, clip)
    return sizing.estimate(segment, read, image.shape, pixel_um or (1.0,) * net.ndim)
