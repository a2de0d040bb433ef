"""How many cluster jobs an image is split into, from its shape alone."""

from collections.abc import Mapping, Sequence
from math import prod

from iaunet import grid

VOXELS_PER_BATCH = 64 * 2**20
MAX_BATCHES = 10_000
VOXELS_PER_PART = 2**32


def n_batches(shape: Sequence[int], core_px: Sequence[int], tiles_per_batch: int | None) -> int:
    """Return the number of batches of tiles; None: batches of about `VOXELS_PER_BATCH`.

    Examples
    --------
    >>> n_batches((1000, 1000), (512, 512), 1)
    4
    >>> n_batches((1000, 1000), (512, 512), None)
    1
    """
    if tiles_per_batch is None:
        tiles_per_batch = max(1, VOXELS_PER_BATCH // prod(core_px))
    return min(-(-grid.n_tiles(shape, core_px) // tiles_per_batch), MAX_BATCHES)


def n_parts(shape: Sequence[int], jobs: int | None) -> int:
    """Return how many jobs write the final labels of an image; 1: stitch.py does it itself.

    None: jobs of about `VOXELS_PER_PART`.

    Examples
    --------
    >>> n_parts((100_000, 100_000), None)
    3
    """
    return min(-(-prod(shape) // VOXELS_PER_PART) if jobs is None else jobs, MAX_BATCHES)


def tiling_problems(
    core_px: Sequence[int] | None,
    halo_px: Sequence[int] | None,
    *,
    stride: Sequence[int],
    block: Sequence[int],
) -> list[str]:
    """Return what is wrong with the sizes of a tiling for one model, as sentences.

    None stands for sizes that are taken from the model: its `block` as core.
    """
    problems = []
    if core_px is not None and any(a % b for a, b in zip(core_px, stride, strict=True)):
        problems.append(
            f"tiling.core_px: found {list(core_px)}, needs multiples of the model's stride "
            f"{list(stride)}"
        )
    core = block if core_px is None else core_px
    if halo_px is not None and any(h >= c for h, c in zip(halo_px, core, strict=True)):
        problems.append(
            f"tiling.halo: found {list(halo_px)}, needs less than the core {list(core)} "
            "on every axis"
        )
    return problems


def clustering_problems(overrides: Mapping[str, object], meta: Mapping) -> list[str]:
    """Return which settings of the clustering do not fit the model of `meta`, as sentences."""
    problems = []
    window = overrides.get("seed_window")
    if isinstance(window, list) and len(window) != meta["ndim"]:
        problems.append(f"clustering.seed_window: found {window}, needs {meta['ndim']} numbers")
    chosen = {**meta["clustering"], **overrides}
    vectors = chosen.get("vectors", "hybrid")
    compares = chosen.get("mode") == "meanshift" and vectors != "spatial"
    if compares and not meta["net"].get("emb_dim"):
        problems.append(
            f"clustering.mode: meanshift with vectors {vectors} compares embeddings, which the "
            "model has not; use vectors: spatial, or a model trained with a discriminative loss"
        )
    return problems
