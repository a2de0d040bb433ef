"""Draw network outputs in fixed point, and store them as infer.py does."""

import numpy as np

from iaunet import grid, outputs


def empty(shape, id_stride):
    """Return outputs without foreground."""
    ndim = len(shape)
    cells = tuple(-(-length // step) for length, step in zip(shape, id_stride, strict=True))
    return {
        "fg": np.zeros(shape, "u1"),
        "seed": np.zeros(shape, "u2"),
        "off": np.zeros((ndim, *shape), "i2"),
        "lsig": np.zeros((ndim, *shape), "u1"),
        "id": np.zeros((16, *cells), "i1"),
    }


def add_object(drawn, mask, seed_at, target, sigma_px, rng, jitter_px=0.0):
    """Make all voxels of a mask point at one target; the seed voxel has the best score."""
    where = np.nonzero(mask)
    distance = np.sqrt(sum((w - s) ** 2 for w, s in zip(where, seed_at, strict=True)))
    drawn["fg"][where] = rng.integers(140, 256, len(where[0]))
    drawn["seed"][where] = np.rint(30000 / (1 + distance / 4)).astype("u2")
    for axis in range(mask.ndim):
        jitter = rng.normal(0, jitter_px, len(where[0]))
        drawn["off"][axis][where] = np.rint(16 * (target[axis] - where[axis] + jitter))
        drawn["lsig"][axis][where] = round(32 * np.log(sigma_px[axis]))


def ellipsoids(shape, id_stride, rng, *, n, radius_px=(3, 9), sigma_ratio=0.6):
    """Draw touching and overlapping ellipsoids with noisy offsets."""
    drawn = empty(shape, id_stride)
    grid_ = np.indices(shape)
    for _ in range(n):
        centre = [rng.uniform(0, length) for length in shape]
        radius = [rng.uniform(*radius_px) for _ in shape]
        parts = zip(grid_, centre, radius, strict=True)
        mask = sum(((g - c) / r) ** 2 for g, c, r in parts) < 1
        sigma = [max(1.0, sigma_ratio * r) for r in radius]
        add_object(drawn, mask, centre, centre, sigma, rng, jitter_px=1.0)
    return with_identity(drawn, rng)


def rings(shape, id_stride, rng, *, n):
    """Draw rings and discs, also one in another, that point beside themselves."""
    drawn = empty(shape, id_stride)
    grid_ = np.indices(shape)
    for _ in range(n):
        centre = [rng.integers(0, length) for length in shape]
        distance = np.sqrt(sum((g - c) ** 2 for g, c in zip(grid_, centre, strict=True)))
        outer = rng.uniform(2, 9)
        mask = (distance < outer) & (distance >= outer - rng.uniform(1.5, 9))
        target = [c + rng.uniform(-12, 12) for c in centre]
        voxels = np.argwhere(mask)
        at = voxels[rng.integers(len(voxels))]
        add_object(drawn, mask, at, target, [2.0] * len(shape), rng)
    return with_identity(drawn, rng)


def sticks(shape, id_stride, rng, *, n, emb_dim=3):
    """Draw bars of any direction, later ones over earlier ones, which may leave pieces."""
    drawn = empty(shape, id_stride)
    drawn["emb"] = np.zeros((emb_dim, *shape), "i2")
    at = np.moveaxis(np.indices(shape), 0, -1)
    for _ in range(n):
        centre = np.array([rng.integers(0, length) for length in shape])
        direction = rng.normal(size=len(shape))
        direction /= np.linalg.norm(direction)
        along = (at - centre) @ direction
        across = np.linalg.norm(at - centre - along[..., None] * direction, axis=-1)
        mask = (np.abs(along) < rng.uniform(6, 14)) & (across < rng.uniform(1, 2.5))
        add_object(drawn, mask, centre, centre, [2.0] * len(shape), rng, jitter_px=1.0)
        where = np.nonzero(mask)
        vector = rng.normal(0, 1.5, (emb_dim, 1)) + rng.normal(0, 0.2, (emb_dim, len(where[0])))
        drawn["emb"][(slice(None), *where)] = np.rint(1024 * vector)
    return with_identity(drawn, rng)


def fibres(shape, rng, lines=(12, 32)):
    """Draw two lines of discs that overlap, of two identities, longer than clustering looks."""
    drawn = empty(shape, (4,) * len(shape))
    at = np.indices(shape)
    for y, vector in zip(lines, (1, -1), strict=True):
        for x in range(8, shape[-1] - 6, 9):
            centre = [*(length // 2 for length in shape[:-2]), y, x]
            mask = sum((a - c) ** 2 for a, c in zip(at, centre, strict=True)) < 49
            add_object(drawn, mask, centre, centre, [4.0] * len(shape), rng)
        drawn["id"][0, ..., (y - 9) // 4 : (y + 10) // 4, :] = 127 * vector
    return drawn


def noise(shape, id_stride, rng):
    """Draw numbers without any sense: strays, ties, seeds that lose their own voxel."""
    drawn = empty(shape, id_stride)
    drawn["fg"] = rng.choice([0, 60, 127, 128, 255], size=shape).astype("u1")
    drawn["seed"] = rng.integers(0, 12, shape).astype("u2") * 2900
    drawn["off"] = rng.integers(-2, 3, (len(shape), *shape)).astype("i2") * 16
    drawn["lsig"] = rng.choice([0, 35, 55], size=drawn["lsig"].shape).astype("u1")
    return with_identity(drawn, rng)


def with_identity(drawn, rng):
    """Give every cell a random unit vector, and hide outputs below the floor."""
    vectors = rng.normal(size=drawn["id"].shape)
    vectors /= np.linalg.norm(vectors, axis=0)
    drawn["id"] = np.rint(127 * vectors).astype("i1")
    for name in ("seed", "off", "lsig"):
        drawn[name][..., drawn["fg"] < 26] = 0
    return drawn


def reader(drawn):
    """Return the function that `label_window` reads with."""
    return lambda name, box: drawn[name][(..., *box)]


def store(folder, drawn, core_px, id_stride, n_batches):
    """Write one store per batch; return their paths and the tiling."""
    shape = drawn["fg"].shape
    runs = grid.batches(grid.n_tiles(shape, core_px), n_batches)
    tiles = {"shape": list(shape), "core": list(core_px), "batches": [list(run) for run in runs]}
    paths = [folder / f"{batch}.zarr" for batch in range(n_batches)]
    for path, run in zip(paths, runs, strict=True):
        emb_dim = len(drawn.get("emb", ()))
        writer = outputs.create(path, shape, core_px, id_stride, emb_dim=emb_dim)
        for index in range(*run):
            tile = grid.tile(shape, core_px, index)
            cells = tuple(
                slice(side.start // step, -(-side.stop // step))
                for side, step in zip(tile.core, id_stride, strict=True)
            )
            boxes = {name: cells if name == "id" else tile.core for name in drawn}
            writer.write(tile, {name: drawn[name][(..., *box)] for name, box in boxes.items()})
        writer.close()
    return paths, tiles
