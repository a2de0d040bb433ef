r"""Give every object one identity: labels of tiles, from any segmenter -> one label image.

The tiles may overlap, abut, or have gaps of up to 8 px between them. Where they agree on what
they share, the result is that of the untiled image, for objects of any size.

Example
-------
    python reconcile.py --tiles tiles/ --positions positions.csv \
        --output labels.ome.zarr --links links.csv

The table of positions has the columns tile, y, x, in 3D also z: a file in the folder (TIFF or
PNG), or an array of a Zarr group, and the place of its first voxel in the image, in pixels of 0
or more. Labels are integers, 0 is background; the same number in two tiles means nothing.
"""

import argparse
import functools
import logging
import math
import re
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from iaunet import __version__, cli, images, labelfiles, matching, omezarr, painting, tables, tiff
from iaunet import layout as layouts
from iaunet import reconcile as reconciling
from iaunet.errors import InputError, OptionError
from iaunet.grid import Box, shift

log = logging.getLogger("reconcile")

CACHE_BYTES = 1 << 30
LARGEST_RATIO, LARGEST_UNCHECKED = 1000, 1 << 28
"""An image may have so many times the voxels of its tiles; smaller ones are not asked."""
TIFF_SUFFIXES = (".tif", ".tiff")
LINK_COLUMNS = {
    "object": "int64",
    "tile": "str",
    "label": "uint64",
    "other_tile": "str",
    "other_label": "uint64",
    "evidence": "str",
    "shared_px": "int64",
    "iou": "float64",
    "verdict": "str",
}


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument(
        "--tiles", type=Path, required=True, help="folder or Zarr group with the labels of tiles"
    )
    parser.add_argument("--positions", type=Path, required=True, help="CSV: tile, [z,] y, x")
    parser.add_argument(
        "--output", type=Path, required=True, help="labels to create: NAME.zarr or NAME.tif"
    )
    parser.add_argument(
        "--links", type=Path, required=True, help="CSV to create: one row per decision"
    )
    parser.add_argument(
        "--identities", type=Path, help="CSV to create: the object of every label of every tile"
    )
    cli.add_sizes(
        parser,
        "--margin-px",
        "how far from a cut tile border labels are not trusted; auto: a quarter of the overlap",
        ("auto",),
        default=["auto"],
    )
    vote = parser.add_mutually_exclusive_group()
    vote.add_argument(
        "--vectors",
        type=Path,
        help="CSV or Parquet, a second vote: tile, label, and columns of a vector per object",
    )
    vote.add_argument(
        "--intensity", type=Path, help="image of all tiles, a second vote: similar brightness"
    )
    args = parser.parse_args(argv)
    if args.output.suffix not in (".zarr", *TIFF_SUFFIXES):
        raise OptionError(f"--output: found '{args.output.name}', needs NAME.zarr or NAME.tif")
    return args


class Tiles:
    """The label arrays of tiles in files; the last ones read are kept in memory."""

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.names = list(names)
        self.opened = [labelfiles.open_labels(folder / name) for name in names]
        self.kept: OrderedDict[int, np.ndarray] = OrderedDict()
        self.starts = np.zeros(0)

    def read(self, tile: int, box: Box) -> np.ndarray:
        """Return the labels of a tile in a box of the image."""
        return self.whole(tile)[shift(box, self.starts[tile].tolist())]

    def whole(self, tile: int) -> np.ndarray:
        """Return the labels of a tile as unsigned integers."""
        if tile not in self.kept:
            labels = labelfiles.read(self.opened[tile])
            size = np.uint64 if labels.dtype.itemsize == 8 else np.uint32
            self.kept[tile] = labels.astype(size, copy=False)
            while len(self.kept) > 1 and sum(a.nbytes for a in self.kept.values()) > CACHE_BYTES:
                self.kept.popitem(last=False)
        self.kept.move_to_end(tile)
        return self.kept[tile]


def main(argv: Sequence[str] | None = None) -> None:
    """Write the labels and the tables."""
    args = parse_args(argv)
    recorder = cli.Recorder("reconcile", args)
    names, starts, axes = read_positions(args.positions, args.tiles)
    tiles = Tiles(args.tiles, names)
    placed = place(tiles, starts, axes, args)
    nodes = matching.all_nodes(placed, tiles.read)
    log.info("%d labels in %d tiles", len(nodes.tile), len(names))
    similarity = second_vote(args, tiles, nodes, placed)
    matches, covers = matching.all_matches(placed, tiles.read, nodes, similarity)
    touches = functools.cache(lambda tile: reconciling.touching_labels(tiles.whole(tile)))
    decision = reconciling.decide(nodes, matches, covers, touches)
    with cli.write_whole(args.output) as partial:
        number, n_empty = write_labels(partial, args.output, placed, axes, tiles, nodes, decision)
    found = number[decision.group + 1]
    links = link_table(names, nodes, matches, decision, found)
    with cli.write_whole(args.links) as partial:
        tables.write_csv(links, partial)
    if args.identities is not None:
        with cli.write_whole(args.identities) as partial:
            tile = np.array(names, dtype=object)[nodes.tile]
            columns = {"tile": tile, "label": nodes.label, "object": found}
            tables.write_csv(pd.DataFrame(columns), partial)
    counts = {str(name): int(n) for name, n in links["verdict"].value_counts().items()}
    n_objects = int(number.max(initial=0))
    log.info("%d objects; decisions: %s", n_objects, counts)
    if n_empty:
        log.warning("%d voxels of the image lie in no tile; they are background", n_empty)
    recorder.write(n_objects=n_objects, decisions=counts, voxels_in_no_tile=n_empty)


def read_positions(path: Path, folder: Path) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Return the names of the tiles, (n, d) places, and the axes; all mistakes at once."""
    frame = tables.read_text(path, required=("tile", "y", "x"))
    axes = ("z", "y", "x") if "z" in frame.columns else ("y", "x")
    if len(frame) == 0:
        raise InputError(f"{path}: the table has no rows; needs one per tile")
    wrong = []
    seen: dict[object, int] = {}
    for line, row in frame.iterrows():
        name = PurePosixPath(row["tile"])
        if not row["tile"] or name.is_absolute() or ".." in name.parts:
            wrong.append(f"line {line}: tile '{row['tile']}' is not inside {folder}")
        elif not (folder / name).exists():
            wrong.append(f"line {line}: {folder / name}: no such file or array")
        for axis in axes:
            if not re.fullmatch("[0-9]{1,9}", row[axis]):
                wrong.append(
                    f"line {line}: {axis} is '{row[axis][:80]}', needs a whole number >= 0, "
                    "below 1,000,000,000"
                )
        for what in (row["tile"], tuple(row[axis] for axis in axes)):
            if what in seen:
                wrong.append(f"line {line}: the same tile or place as line {seen[what]}")
            seen[what] = int(line)
    if wrong:
        more = f"; {len(wrong) - 20} more" if len(wrong) > 20 else ""
        raise InputError(f"{path}: {'; '.join(wrong[:20])}{more}")
    return list(frame["tile"]), frame[list(axes)].to_numpy().astype(np.int64), axes


def place(
    tiles: Tiles, starts: np.ndarray, axes: Sequence[str], args: argparse.Namespace
) -> layouts.Layout:
    """Return where the tiles lie."""
    for name, labels in zip(tiles.names, tiles.opened, strict=True):
        if labels.ndim != len(axes):
            raise InputError(
                f"{args.tiles / name}: has {labels.ndim} axes, {args.positions} has positions "
                f"along {', '.join(axes)}; needs tiles with these axes"
            )
    tiles.starts = starts
    sizes = [labels.shape for labels in tiles.opened]
    shape = tuple(int(n) for n in (starts + sizes).max(0))
    seen = sum(map(math.prod, sizes))
    if math.prod(shape) > max(LARGEST_UNCHECKED, LARGEST_RATIO * seen):
        raise InputError(
            f"{args.positions}: the tiles have {seen:,} voxels, the image that holds their places "
            f"{math.prod(shape):,}, nearly all of it empty; correct the places"
        )
    margin = cli.sizes("--margin-px", args.margin_px)
    if not isinstance(margin, str) and len(margin) != len(axes):
        raise OptionError(f"--margin-px: found {len(margin)} numbers, needs {len(axes)}")
    try:
        return layouts.layout(
            starts,
            sizes,
            None if isinstance(margin, str) else margin,
        )
    except ValueError as error:
        raise OptionError(f"--margin-px: {error}") from error


def second_vote(
    args: argparse.Namespace, tiles: Tiles, nodes: matching.Nodes, placed: layouts.Layout
) -> matching.Similarity | None:
    """Return how alike two labels are by their vectors, or by their brightness; None: no vote."""
    if args.vectors is not None:
        vectors = read_vectors(args.vectors, tiles.names, nodes)
    elif args.intensity is not None:
        vectors = mean_intensity(args.intensity, tiles, nodes, placed)
    else:
        return None
    return matching.similarity_of(vectors)


def read_vectors(path: Path, names: Sequence[str], nodes: matching.Nodes) -> np.ndarray:
    """Return the vector of every node, (n, c)."""
    if path.suffix == ".parquet":
        frame = tables.read_parquet(path)
    else:
        frame = tables.read_text(path, required=("tile", "label"))
    columns = [name for name in frame.columns if name not in ("tile", "label")]
    try:
        frame[columns] = frame[columns].astype(float)
        frame["label"] = frame["label"].astype(np.uint64)
    except (KeyError, ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: {error}; needs the columns tile, label and numbers of a vector"
        ) from error
    if not columns or not np.isfinite(frame[columns].to_numpy()).all():
        raise InputError(f"{path}: needs columns of finite numbers beside tile and label")
    wanted = pd.DataFrame({"tile": np.array(names, object)[nodes.tile], "label": nodes.label})
    both = frame.merge(wanted, on=["tile", "label"], how="outer", indicator="found_in")
    for wrong, what in (
        (frame[frame.duplicated(["tile", "label"])], "stands twice"),
        (both[both["found_in"] == "right_only"], "has no row"),
        (both[both["found_in"] == "left_only"], "is in no tile"),
    ):
        if len(wrong):
            one = wrong.iloc[0]
            raise InputError(f"{path}: label {one['label']} of {one['tile']} {what}")
    return wanted.merge(frame, on=["tile", "label"], how="left")[columns].to_numpy()


def mean_intensity(
    path: Path, tiles: Tiles, nodes: matching.Nodes, placed: layouts.Layout
) -> np.ndarray:
    """Return the mean brightness of every node, (n, 1)."""
    image = images.open_image(path)
    if image.shape != placed.shape:
        raise InputError(f"{path}: has shape {image.shape}, the tiles together {placed.shape}")
    found = np.zeros((len(nodes.tile), 1))
    for tile in range(len(placed)):
        labels = tiles.whole(tile)
        values = image.read(placed.window(tile))
        first, end = np.searchsorted(nodes.tile, (tile, tile + 1))
        index = nodes.index(tile, labels[labels > 0]) - first
        total = np.bincount(index, values[labels > 0], end - first)
        found[first:end, 0] = total / nodes.area[first:end]
    return found


def write_labels(
    partial: Path,
    output: Path,
    placed: layouts.Layout,
    axes: Sequence[str],
    tiles: Tiles,
    nodes: matching.Nodes,
    decision: reconciling.Decision,
) -> tuple[np.ndarray, int]:
    """Paint all objects, then number them; return the numbers and how many voxels no tile has."""
    store = partial.with_name(f"{partial.name}.store") if output.suffix != ".zarr" else partial
    attrs = {"made_by": "iaunet-workflow", "version": __version__}
    try:
        array = omezarr.create_labels(store, placed.shape, axes, np.uint32, None, attrs)
        numbers = painting.Numbers(int(decision.group.max(initial=-1)) + 1, placed.shape)
        n_empty = 0
        for box in omezarr.shard_boxes(array):
            painted, uncovered = painting.paint(
                box, placed, tiles.read, nodes, decision.group, decision.role
            )
            numbers.add(painted, box)
            n_empty += uncovered
            omezarr.write_box(array, box, painted)
        number = numbers.of_groups()
        for box in omezarr.shard_boxes(array):
            omezarr.write_box(array, box, number[array[box]])
        if store is partial:
            omezarr.write_label_pyramid(store, name=None)
        else:
            tiff.write_labels(partial, array)
    finally:
        if store is not partial:
            cli.remove(store)
    return number, n_empty


def link_table(
    names: Sequence[str],
    nodes: matching.Nodes,
    matches: matching.Matches,
    decision: reconciling.Decision,
    number: np.ndarray,
) -> pd.DataFrame:
    """Return one row per link, refused link, and label that only one tile saw."""
    tile = np.array(names, dtype=object)[nodes.tile]
    used = decision.linked | decision.refused
    one, other = matches.one[used], matches.other[used]
    linked = pd.DataFrame(
        {
            "object": number[one],
            "tile": tile[one],
            "label": nodes.label[one],
            "other_tile": tile[other],
            "other_label": nodes.label[other],
            "evidence": np.where(matches.at_face[used], "face", "overlap"),
            "shared_px": matches.shared[used],
            "iou": matches.iou[used],
            "verdict": np.where(decision.linked[used], reconciling.LINKED, reconciling.REFUSED),
        }
    )
    verdict = decision.verdict.copy()
    verdict[(decision.role == painting.WHOLE) & (number == 0)] = reconciling.OVERRULED
    alone = np.flatnonzero(verdict != "")
    single = pd.DataFrame(
        {
            "object": number[alone],
            "tile": tile[alone],
            "label": nodes.label[alone],
            "other_tile": "",
            "other_label": 0,
            "evidence": "",
            "shared_px": 0,
            "iou": np.nan,
            "verdict": verdict[alone],
        }
    )
    found = single if linked.empty else linked if single.empty else pd.concat([linked, single])
    return tables.conform(found.sort_values(["tile", "label", "other_tile"]), LINK_COLUMNS)


if __name__ == "__main__":
    cli.run(main)
