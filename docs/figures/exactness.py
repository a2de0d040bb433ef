"""Draw what a tile owns, what it reads, and who names an object.

Example
-------
    python docs/figures/exactness.py --output docs/figures/exactness.png

Cores, margins, indices and names come from the functions that the steps call, sizes from the
shipped model `nuclei-2d`; the nuclei are drawn.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.patches import Rectangle
from matplotlib.pyplot import Axes, subplots

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY / "workflow/scripts"))

from iaunet import bounds, checkpoint, fixedpoint, grid, seeds, settings, synthetic  # noqa: E402

SHAPE, CORE_PX = (768, 1024), (256, 256)
TILE = 5
"""Whose core and context are shown."""
OFFSET_PX, SIGMA_PX = 16, 5
"""Largest offset and bandwidth of an image of nuclei of some 24 px; the run measures its own."""
CLOSE = (slice(460, 564), slice(447, 577))
"""Where four cores meet."""
COLOURS = mpl.colormaps["tab10"].colors


def main(argv: Sequence[str] | None = None) -> None:
    """Write the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="PNG to write")
    args = parser.parse_args(argv)
    image, labels = synthetic.draw_nuclei(
        SHAPE, np.random.default_rng(4), diameter_px=24, coverage=0.5
    )
    meta = checkpoint.read_meta(REPOSITORY / "resources/models/nuclei-2d.safetensors")
    figure, (left, right) = subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    show_tile(left, image, meta)
    show_owners(right, image, labels)
    figure.savefig(args.output, dpi=90)


def show_tile(axes: Axes, image: np.ndarray, meta: dict) -> None:
    """Draw all cores, and the two margins of one tile."""
    axes.imshow(image, cmap="gray", vmax=np.percentile(image, 99.8))
    for tile in grid.tiles(SHAPE, CORE_PX):
        box(axes, tile.core, edgecolor="white", linewidth=0.8)
    core = grid.tile(SHAPE, CORE_PX, TILE).core
    chosen = settings.Settings.from_dict(meta["clustering"], len(SHAPE))
    wide = int(np.searchsorted(fixedpoint.SIGMA, SIGMA_PX))
    far = bounds.reach(chosen, bounds.Bounds((OFFSET_PX * bounds.UNIT,) * 2, (wide,) * 2))
    looks = [sum(parts) for parts in zip(far.extent, far.seeds, far.maxima, strict=True)]
    reads = [a + b for a, b in zip(looks, meta["radius"], strict=True)]
    shown = (
        (grid.grow(core, reads, SHAPE), COLOURS[0], f"pixels that these depend on: {reads[0]} px"),
        (
            grid.grow(core, looks, SHAPE),
            COLOURS[1],
            f"outputs that its labels depend on: {looks[0]} px",
        ),
        (core, COLOURS[2], f"core of tile {TILE}: what it writes"),
    )
    for around, colour, text in shown:
        box(axes, around, facecolor=(*colour, 0.18), edgecolor=colour, linewidth=2, label=text)
    axes.legend(loc="lower left", fontsize=8, framealpha=0.9)
    axes.set(title="What a tile owns and what it reads", xticks=[], yticks=[])


def show_owners(axes: Axes, image: np.ndarray, labels: np.ndarray) -> None:
    """Draw the objects around a corner of four cores in the colour of the tile of their seed."""
    axes.imshow(image, cmap="gray", vmax=np.percentile(image, 99.8))
    for tile in grid.tiles(SHAPE, CORE_PX):
        box(axes, tile.core, edgecolor="white", linewidth=1.5)
    for label in np.unique(labels[CLOSE])[1:]:
        voxels = np.argwhere(labels == label)
        inside = voxels[np.square(voxels - voxels.mean(0)).sum(1).argmin()]
        (owner,) = grid.tiles_meeting(SHAPE, CORE_PX, tuple(slice(n, n + 1) for n in inside))
        name = int(seeds.gids(np.array([[0, *inside]]), SHAPE)[0])
        colour = COLOURS[owner % len(COLOURS)]
        axes.contour(labels == label, levels=[0.5], colors=[colour], linewidths=2)
        y, x = inside
        axes.plot(x, y, "o", color=colour, markersize=5)
        if all(a.start + 4 <= n < a.stop - 4 for a, n in zip(CLOSE, inside, strict=True)):
            axes.annotate(str(name), (x, y), (0, 6), textcoords="offset points", **words(colour))
    rows, columns = CLOSE
    axes.set(
        title="Named by the seed voxel; colour: the tile that has it in its core",
        xlim=(columns.start, columns.stop), ylim=(rows.stop, rows.start), xticks=[], yticks=[],
    )  # fmt: skip


def words(colour: Sequence[float]) -> dict[str, object]:
    """Return how a name is written."""
    return {
        "color": "white",
        "fontsize": 8,
        "ha": "center",
        "bbox": {"fc": colour, "pad": 1, "lw": 0},
    }


def box(axes: Axes, where: grid.Box, **style: object) -> None:
    """Draw a box of pixels."""
    rows, columns = where
    size = (columns.stop - columns.start, rows.stop - rows.start)
    style.setdefault("facecolor", "none")
    axes.add_patch(Rectangle((columns.start - 0.5, rows.start - 0.5), *size, **style))


if __name__ == "__main__":
    main()
