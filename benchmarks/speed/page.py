r"""Write docs/benchmarks.md from the tables that the benchmarks leave: goals, figures, ratios.

Example
-------
    python benchmarks/speed/page.py --tables docs/benchmarks --output docs/benchmarks.md
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

from iaunet import cli
from iaunet.errors import InputError

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = Path(__file__).with_name("page.md")
TB_PX = 5e11


def parse_args(argv: Sequence[str] | None) -> object:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    parser.add_argument("--tables", type=Path, required=True, help="folder of the CSV tables")
    parser.add_argument("--output", type=Path, required=True, help="page to write, Markdown")
    return parser.parse_args(argv)


def read(path: Path) -> pd.DataFrame:
    """Return a table."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; run `make bench`, which writes it")
    return pd.read_csv(path)


def table(frame: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    rows = [frame.columns, ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
    shown = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in shown)


def span(values: pd.Series, form: str = "{:.2f}") -> str:
    """Return the smallest and the largest of some figures."""
    low, high = form.format(values.min()), form.format(values.max())
    return low if low == high else f"{low} to {high}"


def goal(part: str, against: str, wanted: str, found: str, *, met: object) -> dict[str, str]:
    """Return a row of the table of goals."""
    return {
        "part": part,
        "measured against": against,
        "goal": wanted,
        "here": found,
        "": "met" if bool(met) else "missed",
    }


def measuring() -> dict[str, float]:
    """Return how many times faster than scikit-image we measure, by image, from its page."""
    lines = (DOCS / "measuring.md").read_text(encoding="utf-8").splitlines()
    cells = [line.split("|")[1:-1] for line in lines if line.startswith("| ") and "px" not in line]
    rows = [[cell.strip() for cell in row] for row in cells]
    head = next(row for row in rows if row[0] == "image")
    at = head.index("ratio")
    return {row[0]: float(row[at]) for row in rows if row is not head}


def by_precision(network: pd.DataFrame, column: str) -> str:
    """Return percentages of the network in every precision, in words."""
    groups = network.groupby("precision", sort=False)[column]
    return "; ".join(f"{name} {span(100 * values, '{:.0f}')} %" for name, values in groups)


def goals(tables: Path) -> list[dict[str, str]]:
    """Return the goals with what was measured."""
    tile, network = read(tables / "tile.csv"), read(tables / "network.csv")
    small = small_images(tables)
    mosaic = read(tables / "mosaic.csv").set_index("who")
    stitch = read(tables / "stitch.csv")
    backends = pd.concat([read(DOCS / f"backends-{n}d.csv") for n in (2, 3)])
    int8 = backends[backends["precision"] == "int8"]["times_as_fast"]
    half = backends[backends["precision"] == "bfloat16"]["times_as_fast"]
    star = mosaic.loc["StarDist"]
    mine = mosaic.drop("StarDist")
    rows = [
        goal(
            "`tile.py`",
            "tifffile reading the file and zarr writing the same chunks",
            "at most 1.5 times",
            f"{span(tile['of_a_copy'])} times, pyramid, statistics and checksum included",
            met=tile["of_a_copy"].max() <= 1.5,
        ),
        goal(
            "`tile.py`",
            "compressing the chunks of level 0 in memory",
            "0.6 of that rate",
            f"{span(tile['of_the_codec_rate'])}, decoding counted {span(tile['with_decoding'])}; "
            "decoding, checksum and compression of all levels, which nobody can leave out: "
            f"{span(tile['least_of_ours'])}",
            met=tile["of_the_codec_rate"].min() >= 0.6,
        ),
        goal(
            "`tile.py`",
            "",
            "below 1 GB at any size",
            f"{tile['peak_mb'].max():.0f} MB",
            met=tile["peak_mb"].max() < 1000,
        ),
        goal(
            "`tile.py`",
            "ome-zarr and ngff-zarr writing the same image with a pyramid",
            "5 times as fast",
            f"{span(tile['ome-zarr_s'] / tile['ours_s'], '{:.1f}')} and "
            f"{span(tile['ngff-zarr_s'] / tile['ours_s'], '{:.1f}')} times",
            met=(tile[["ome-zarr_s", "ngff-zarr_s"]].min(axis=1) / tile["ours_s"]).min() >= 5,
        ),
        goal(
            "`infer.py`, CPU",
            "the bare network on the same windows, tensors in memory",
            "95 % of its voxels per CPU second",
            by_precision(network, "of_the_network"),
            met=network["of_the_network"].min() >= 0.95,
        ),
        goal(
            "`infer.py`, CPU",
            "the bare network on the blocks without halo",
            "85 %",
            by_precision(network, "of_it_without_halo"),
            met=network["of_it_without_halo"].min() >= 0.85,
        ),
        goal(
            "network, CPU",
            "PyTorch in float32, as trained",
            "3 times",
            f"in int8 {span(int8)} times, in bfloat16 {span(half)}",
            met=int8.min() >= 3,
        ),
        goal(
            "`cluster.py`",
            "the network on the same tiles",
            "at most 10 %",
            by_precision(network, "cluster_of_network"),
            met=network["cluster_of_network"].max() <= 0.10,
        ),
        goal(
            "`stitch.py`",
            "zarr reading and writing the same labels",
            "at most 1.25 times",
            f"{span(stitch['of_a_copy'])} times",
            met=stitch["of_a_copy"].max() <= 1.25,
        ),
        goal(
            "`measure.py`",
            "one `regionprops_table` over arrays in memory, the same features",
            "25 times less CPU time",
            " and ".join(f"{ratio:.0f} ({image})" for image, ratio in measuring().items()),
            met=min(measuring().values()) >= 25,
        ),
        goal(
            f"whole, {small['images']} images of 256 x 256 px",
            "the same steps in one process, nothing started or imported",
            "at most 1.3 times",
            f"{small['ratio']:.2f} times",
            met=small["ratio"] <= 1.3,
        ),
    ]
    for who, row in mine.iterrows():
        rows.append(
            goal(
                f"mosaic of nuclei, {who}",
                "StarDist `predict_instances_big`, same threads",
                "3 times as fast, less memory",
                f"{star['wall'] / row['wall']:.1f} times by the clock, "
                f"{star['cpu'] / row['cpu']:.1f} in CPU seconds; "
                f"{row['peak_mb']:,.0f} MB beside {star['peak_mb']:,.0f}; "
                f"AP50 {row['ap50']:.3f} beside {star['ap50']:.3f}",
                met=star["wall"] / row["wall"] >= 3 and row["peak_mb"] < star["peak_mb"],
            )
        )
    return rows


def small_images(tables: Path) -> dict[str, float]:
    """Return what small images cost, and how many times the bare work that is."""
    found = json.loads((tables / "load.json").read_text())["run"]
    return found | {"ratio": found["cpu_seconds_per_image"] / found["cpu_seconds_pure_per_image"]}


def clustered(tables: Path) -> str:
    """Return the CPU seconds of cluster.py for the largest images, without what it imports."""
    rows = read(tables / "scaling.csv")
    voxels = rows["voxels"].str.split(" x ").map(lambda sides: math.prod(map(int, sides)))
    seconds = rows["cluster_s_per_mvoxel"] * voxels / 1e6
    largest = seconds.groupby(rows["voxels"].str.count("x")).last()
    return " and ".join(f"{one:.1f}" for one in largest)


def terabyte(tables: Path) -> str:
    """Return core hours of every step for a terabyte of 16-bit voxels, from the largest images."""
    scaling = read(tables / "scaling.csv")
    ndim = scaling["voxels"].str.count("x") + 1
    steps = [name for name in scaling if name.endswith("_s_per_mvoxel")]
    hours = pd.DataFrame(
        {
            f"core hours, {n}D": scaling.loc[ndim == n, steps].iloc[-1] * TB_PX / 1e6 / 3600
            for n in (2, 3)
        }
    )
    hours.loc["all"] = hours.sum()
    shown = hours.map("{:,.0f}".format)
    shown.insert(0, "step", [name.removesuffix("_s_per_mvoxel") for name in hours.index])
    return table(shown)


def profiles(tables: Path) -> str:
    """Return the parts of every step: CPU seconds and shares, of both images side by side."""
    found = read(tables / "profiles.csv")
    sums = found.groupby(["image", "step"], sort=False)["cpu_s"].sum().reset_index()
    found = pd.concat([found, sums.assign(part="all", share=1.0)])
    rows: list[dict[str, str]] = []
    for (step, part), values in found.groupby(["step", "part"], sort=False):
        row = {"step": f"`{step}.py`", "part": part}
        for one in values.itertuples():
            row[f"{one.image}, s"] = f"{one.cpu_s:.2f}"
            row[f"{one.image[:2]}, %"] = f"{100 * one.share:.0f}"
        rows.append(row)
    order = list(dict.fromkeys(row["step"] for row in rows))
    return table(pd.DataFrame(sorted(rows, key=lambda row: order.index(row["step"]))))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    args = parse_args(argv)
    text = TEXT.read_text(encoding="utf-8")
    large = read(args.tables / "mosaic.csv").set_index("who")["wall"]
    network = read(args.tables / "network.csv").set_index("precision")["infer_mvox_s"]
    parts = {
        "cluster_large": clustered(args.tables),
        "infer_rates": " and ".join(map(str, network["int8"])),
        "small": f"{small_images(args.tables)['ratio']:.2f}",
        "small_s": f"{small_images(args.tables)['cpu_seconds_per_image']:.2f}",
        "mosaic_torch": f"{large['ours, torch']:.0f}",
        "goals": table(pd.DataFrame(goals(args.tables))),
        "terabyte": terabyte(args.tables),
        "profiles": profiles(args.tables),
        **{
            name: table(read(args.tables / f"{name}.csv"))
            for name in ("tile", "network", "stitch", "scaling", "threads", "mosaic")
        },
    }
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    with cli.write_whole(args.output) as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
