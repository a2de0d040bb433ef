"""Compare the rows of an ablation: a table of scores and differences, a page, a figure.

Intervals are bootstrapped over images and seeds (crossed; 10 000 resamples, percentiles 2.5 and
97.5); differences are paired by image and seed. The criterion that was registered before the
ablation is applied to the table, and the page says what came out.

Example
-------
    python ablation_table.py --rows ablation.csv --scores 4-0.csv 7-0.csv \
        --facts 4-0.json 7-0.json --output-csv o.csv --output-md o.md --output-png o.png
"""

import argparse
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from iaunet import ablation, cli, comparison, figures, tables
from iaunet.comparison import Sample
from iaunet.errors import InputError

log = logging.getLogger("ablation_table")

ROWS = ("row", "trained_as", "clustering", "links", "against", "what", "options")
SCORES = {
    **dict.fromkeys(("row", "image", "kind", "part", "measure"), "str"),
    **{"seed": "int64", "amount": "float64", "out_of": "float64"},
}
COLUMNS = {
    **dict.fromkeys(("row", "minus", "images", "part", "measure"), "str"),
    **dict.fromkeys(("value", "low", "high", "lowest_seed", "highest_seed"), "float64"),
    **dict.fromkeys(("n_images", "n_seeds"), "int64"),
}
EQUAL = ("steps", "crop_px", "crops_per_step", "data_sha256")
"""What must be the same in all trainings."""
GAIN = ("place and identity 0-4", "place 0-4")
"""What identity adds to position and size, over the cuts with 0, 2 and 4 px of overlap."""
RNG_SEED = 0

Key = tuple[str, str]
Samples = dict[Key, Sample]


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = cli.base_parser(__doc__)
    add = parser.add_argument
    add("--rows", type=Path, required=True, help="CSV that says what every row is")
    add("--scores", type=Path, nargs="+", required=True, help="of every row and seed")
    add("--facts", type=Path, nargs="+", required=True, help="of every row and seed")
    add("--output-csv", type=Path, required=True, help="scores and differences")
    add("--output-md", type=Path, required=True, help="the same as a page")
    add("--output-png", type=Path, required=True, help="the same as a figure")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write table, page and figure."""
    args = parse_args(argv)
    recorder = cli.Recorder("ablation_table", args)
    known = tables.read_text(args.rows, required=ROWS).to_dict("records")
    facts = [json.loads(path.read_text(encoding="utf-8")) for path in args.facts]
    check_equal(facts)
    scores = [tables.read_csv(path, SCORES) for path in args.scores]
    kinds = {image: kind for one in scores for image, kind in zip(one.image, one.kind, strict=True)}
    found = {str(one.row.iloc[0]) for one in scores}
    rows = [row for row in known if row["row"] in found]
    table = list(estimates(rows, samples(scores, rows), kinds))
    outcome = comparison.verdict(table, *ablation.HEADLINE)
    with cli.write_whole(args.output_csv) as partial:
        columns = {name: [rounded(line[name]) for line in table] for name in COLUMNS}
        tables.write_csv(tables.conform(columns, COLUMNS), partial)
    with cli.write_whole(args.output_md) as partial:
        text = ablation.page(rows, table, facts, outcome, args.output_png.name)
        partial.write_text(text, encoding="utf-8")
    with cli.write_whole(args.output_png) as partial:
        partial.write_bytes(figures.intervals(ablation.panels(rows, table)))
    log.info("%d rows, %d images; identity keeps its weight: %s", len(rows), len(kinds), outcome)
    recorder.write(keep=outcome.keep)


def rounded(value: object) -> object:
    """Return a number with the digits that say something."""
    return round(value, 5) if isinstance(value, float) else value


def check_equal(facts: Sequence[dict]) -> None:
    """Raise an error when two trainings had not the same steps, crops and images."""
    first = facts[0]
    for one in facts[1:]:
        for name in EQUAL:
            here, there = one["training"][name], first["training"][name]
            if here != there:
                raise InputError(
                    f"row {one['row']}, seed {one['seed']}: {name} {here}, but row "
                    f"{first['row']}, seed {first['seed']}: {there}; rows are compared after equal "
                    "trainings only: delete the older results and start again"
                )


def samples(scores: Sequence[tables.Table], rows: Sequence[Mapping]) -> dict[str, Samples]:
    """Return, for every row, part and measure, the scores by seed (in order) and image."""
    images = sorted({image for one in scores for image in one.image})
    place = {image: k for k, image in enumerate(images)}
    by_row: dict[str, list[tables.Table]] = {row["row"]: [] for row in rows}
    for one in sorted(scores, key=lambda one: int(one.seed.iloc[0])):
        by_row[str(one.row.iloc[0])].append(one)
    seeds = {row: [int(one.seed.iloc[0]) for one in some] for row, some in by_row.items()}
    if len({tuple(some) for some in seeds.values()}) != 1:
        raise InputError(f"scores: rows have different seeds {seeds}; needs the same of each")
    found: dict[str, Samples] = {}
    for row, some in by_row.items():
        shape = (2, len(some), len(images))
        arrays: dict[Key, np.ndarray] = {}
        for k, one in enumerate(some):
            where = one.image.map(place).to_numpy()
            for key, group in one.groupby(["part", "measure"]).indices.items():
                target = arrays.setdefault(key, np.zeros(shape))
                target[0, k, where[group]] = one.amount.to_numpy()[group]
                target[1, k, where[group]] = one.out_of.to_numpy()[group]
        found[row] = {key: Sample(*pair) for key, pair in arrays.items()}
    return found


def estimates(
    rows: Sequence[Mapping], found: Mapping[str, Mapping[Key, Sample]], kinds: Mapping[str, str]
) -> Iterator[dict[str, object]]:
    """Yield the lines of the table: scores of every row, and differences to other rows.

    Over all images, and over those of every kind alone when there are several.
    """
    of_images = np.array([kinds[image] for image in sorted(kinds)])
    groups = {"all": np.ones(len(of_images), dtype=bool)}
    if len(set(kinds.values())) > 1:
        groups |= {kind: of_images == kind for kind in sorted(set(kinds.values()))}
    n_seeds = len(next(iter(found[rows[0]["row"]].values())).amount)
    for images, kept in groups.items():
        rng = np.random.default_rng(RNG_SEED)
        weights = comparison.resamples(n_seeds, int(kept.sum()), rng)
        scores = {
            name: {
                key: comparison.scored(within(sample, kept), weights)
                for key, sample in some.items()
            }
            for name, some in found.items()
        }
        for row in rows:
            for minus, (part, measure), estimate in of_row(row, scores):
                line = {"row": row["row"], "minus": minus, "images": images, "part": part}
                yield line | {"measure": measure, "n_seeds": n_seeds, **estimate}


def of_row(
    row: Mapping, scores: Mapping[str, Mapping[Key, comparison.Score]]
) -> Iterator[tuple[str, Key, dict[str, float | int]]]:
    """Yield what the row is compared with (nothing: its own score), what, and the estimate."""
    mine = scores[row["row"]]
    for key, score in mine.items():
        yield "", key, comparison.estimate(score)
        for other in row["against"].split():
            if key in scores.get(other, {}):
                yield other, key, comparison.estimate(score, scores[other][key])
    more, less = (mine.get(("links", name)) for name in GAIN)
    if more is not None:
        yield "", ("links", "gain 0-4"), comparison.estimate(more, less)


def within(sample: Sample, kept: np.ndarray) -> Sample:
    """Return the sample of some of the images."""
    return Sample(sample.amount[:, kept], sample.out_of[:, kept])


if __name__ == "__main__":
    cli.run(main)
