r"""Compare rules that make one label array of the labels of tiles.

Example
-------
    python benchmarks/mergers/run.py --data ../shared/data --output docs --seeds 11 12 13
"""

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "workflow/scripts"))

import cases
import rules
import truths
from iaunet import cli, metrics

log = logging.getLogger("mergers")

KEYS = ["truth", "cut", "condition", "rule"]
ERROR = "error"


@dataclasses.dataclass(frozen=True)
class Score:
    """What a rule gave back of the true objects.

    Attributes
    ----------
    exact : bit-exact objects
    merged : true objects of which a predicted one has half or more, that has another one's, too
    lost : true objects of which no predicted one has half
    ap : mean average precision over IoU 0.5 to 0.95
    """

    true: int
    exact: int
    predicted: int
    merged: int
    lost: int
    ap: float


def score(truth: np.ndarray, found: np.ndarray) -> Score:
    """Return what `found` has of the objects of the truth."""
    overlap = metrics.overlap(truth, found)
    row = np.searchsorted(overlap.true_ids, overlap.pairs[:, 0])
    most = np.zeros(len(overlap.true_ids), dtype=np.int64)
    np.maximum.at(most, row, overlap.shared)
    swallowed = overlap.pairs[2 * overlap.shared >= overlap.true_areas[row], 1]
    n_swallowed = np.unique(swallowed, return_counts=True)[1]
    ap = metrics.accuracy(overlap)["ap_mean"]
    return Score(
        true=len(overlap.true_ids),
        exact=int(np.count_nonzero(metrics.iou(overlap) == 1)),
        predicted=len(overlap.predicted_ids),
        merged=int(n_swallowed[n_swallowed > 1].sum()),
        lost=int(np.count_nonzero(2 * most < overlap.true_areas)),
        ap=1.0 if ap is None else ap,
    )


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that has labels_only/")
    parser.add_argument("--output", type=Path, required=True, help="folder for mergers.md and .csv")
    parser.add_argument("--seeds", type=int, nargs="+", required=True, help="of the drawn cases")
    parser.add_argument("--truths", nargs="+", default=[""], help="only those that start so")
    parser.add_argument("--rules", nargs="+", choices=list(rules.RULES), default=list(rules.RULES))
    parser.add_argument(
        "--keep",
        action="store_true",
        help="keep what the tables there say of other truths and rules",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables."""
    args = parse_args(argv)
    rows = []
    for truth in cases.TRUTHS:
        if truth.name.startswith(tuple(args.truths)):
            rows += list(rows_of(truth, args))
    args.output.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    if args.keep:
        old = pd.read_csv(args.output / "mergers.csv", keep_default_na=False, na_values=[""])
        old["error"] = old["error"].fillna("")
        new = set(zip(frame["truth"], frame["rule"], strict=True))
        pairs = zip(old["truth"], old["rule"], strict=True)
        frame = pd.concat([old[[pair not in new for pair in pairs]], frame])
        frame = frame.sort_values(["truth", "rule"], key=order, kind="stable")
    frame.to_csv(args.output / "mergers.csv", index=False, float_format="%.4f")
    (args.output / "mergers.md").write_text(page(frame, len(args.seeds)))


def order(names: pd.Series) -> pd.Series:
    """Return where names stand among the truths and the rules."""
    known = [truth.name for truth in cases.TRUTHS] + list(rules.RULES)
    return names.map(known.index)


def rows_of(truth: cases.Truth, args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """Yield the scores of all cases of one truth."""
    if truth.is_real and not (args.data / truths.FOLDER).is_dir():
        log.warning("%s: left out, there is no folder %s", truth.name, args.data / truths.FOLDER)
        return
    for seed in args.seeds[:1] if truth.is_real else args.seeds:
        labels = truth.draw(args.data, seed)
        for cut in truth.cuts:
            # Errors near faces need an overlap in which other tiles know better.
            for condition in cases.CONDITIONS if cut.halo_px > 1 else (cases.IDEAL,):
                case = cases.case(labels, cut, condition, seed)
                for name in args.rules:
                    keys = (truth.name, cut.name, condition, name)
                    yield {**dict(zip(KEYS, keys, strict=True)), "seed": seed, **result(case, name)}


def result(case: cases.Case, rule: str) -> dict[str, object]:
    """Return the score of one rule, or what it raised."""
    began = time.process_time()
    try:
        found = rules.RULES[rule](case.tiles, case.windows, case.cores, case.truth.shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        # Peers refuse objects that are too large for the overlap, and Cellpose's faces in 2D.
        return {"error": str(error).partition("\n")[0]}
    seconds = time.process_time() - began
    scored = dataclasses.asdict(score(case.truth, found))
    log.info("%s: %s, %.1f s", rule, scored, seconds)
    return {**scored, "seconds": round(seconds, 2), "error": ""}


def page(frame: pd.DataFrame, n_seeds: int) -> str:
    """Return the tables as Markdown."""
    lines = [
        "# Mergers of the labels of tiles",
        "",
        "Which rule gives back the untiled objects? Made by `benchmarks/mergers/run.py`; what the",
        "cases, the conditions and the rules are: `benchmarks/mergers/README.md`.",
        "",
        "A cell is: bit-exact objects (predicted objects; true ones merged; true ones lost), mean",
        f"AP. Drawn truths: sums over {n_seeds} seeds. *error*: the rule stopped.",
    ]
    lines += ["", "## All truths together", "", *together(frame)]
    for condition in cases.CONDITIONS:
        some = frame[frame["condition"] == condition]
        if len(some):
            lines += ["", f"## {condition.capitalize()}", "", *table(some)]
    return "\n".join(lines) + "\n"


def together(frame: pd.DataFrame) -> list[str]:
    """Return one row per kind of cut and condition, summed over all truths.

    A rule that stopped in some cases has its sums over the others, and how many these are.
    """
    names = list(dict.fromkeys(frame["rule"]))
    lines = [
        "Share of bit-exact objects; true objects merged; true objects lost.",
        "",
        "| tiles | labels | objects | " + " | ".join(names) + " |",
        "|-" * (len(names) + 3) + "|",
    ]
    kind = frame["cut"].where(
        ~frame["cut"].str.startswith("overlap") | (frame["cut"] == "overlap 2"), "wide overlap"
    )
    for (cut, condition), some in frame.groupby([kind, "condition"], sort=False):
        n_true = some.groupby("rule")["true"].sum().max()
        cells = []
        for name in names:
            one = some[some["rule"] == name]
            done = one[one["error"] == ""]
            if not len(done):
                cells.append(ERROR)
                continue
            total = done[["true", "exact", "merged", "lost"]].sum()
            text = f"{100 * total['exact'] / total['true']:.1f} %"
            text += f"; {total['merged']:.0f}; {total['lost']:.0f}"
            stopped = f" ({len(done)} of {len(one)} cases)" if len(done) < len(one) else ""
            cells.append(text + stopped)
        lines.append(f"| {cut} | {condition} | {n_true:.0f} | " + " | ".join(cells) + " |")
    return lines


def table(frame: pd.DataFrame) -> list[str]:
    """Return one row per case, one column per rule."""
    names = list(dict.fromkeys(frame["rule"]))
    lines = ["| truth | cut | objects | " + " | ".join(names) + " |", "|-" * (len(names) + 3) + "|"]
    for (truth, cut), some in frame.groupby(["truth", "cut"], sort=False):
        n_true = some.groupby("rule")["true"].sum().max()
        cells = [cell(some[some["rule"] == name]) for name in names]
        lines.append(f"| {truth} | {cut} | {n_true:.0f} | " + " | ".join(cells) + " |")
    return lines


def cell(frame: pd.DataFrame) -> str:
    """Return the scores of one rule in one case, over all seeds."""
    if (frame["error"] != "").any():
        return ERROR
    total = frame[["exact", "predicted", "merged", "lost"]].sum().astype(int)
    return (
        f"{total['exact']} ({total['predicted']}; {total['merged']}; {total['lost']}), "
        f"{frame['ap'].mean():.3f}"
    )


if __name__ == "__main__":
    cli.run(main)
