"""The page and the figure of an ablation, from its table of scores and differences."""

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from iaunet import figures

HEADLINE = ("7", "4")
ASSIGNMENT = ("8", "7")
"""Identity as a signal for training, and in the assignment: row against row."""
PARTS = ("all", "touching", "look-alike")
CUTS = (-8, -4, -2, 0, 2, 4, 8, 16, 32)
MEANS = ("iou", "place", "identity", "place and identity", "everything")
AUC = ("identity", "distance", "both")
RATES = ("merges", "splits")


class Verdict(Protocol):
    """What the criterion says; see `comparison.Verdict`."""

    improves: tuple[str, ...]
    harmless: bool
    links: bool
    keep: bool


def index(table: Sequence[Mapping]) -> dict[tuple[str, ...], Mapping]:
    """Return the lines of the table by row, minus, images, part and measure."""
    names = ("row", "minus", "images", "part", "measure")
    return {tuple(line[name] for name in names): line for line in table}


def page(
    rows: Sequence[Mapping],
    table: Sequence[Mapping],
    facts: Sequence[dict],
    verdict: Verdict,
    figure: str,
) -> str:
    """Return the page, Markdown: what was run, the verdict, the tables.

    Parameters
    ----------
    rows : what every row is: row, what, against.
    table : row, minus, images, part, measure, value, low, high, lowest_seed, highest_seed,
        n_images, n_seeds of every score and difference.
    facts : of every row and seed: row, training, weights_sha256, seconds_per_mpx.
    figure : name of the figure beside the page.
    """
    by = index(table)
    kinds = [name for name in dict.fromkeys(line["images"] for line in table) if name != "all"]
    blocks = [
        "# Does identity pay? The ablation",
        "Made by `snakemake ablation`; all numbers, with those of every kind of images, are in "
        "the CSV beside this page.",
        budget(facts, table),
        "## What came out",
        outcome(table, verdict),
        f"![Scores and differences with intervals]({figure})",
        "## Scores",
        "Means over the test images (AP, PQ), and numbers per 1000 true objects (merges, splits); "
        "in brackets 95 % intervals.",
        score_table(rows, by, "all", facts),
        "## Differences of mAP, in points",
        "Paired by image and seed; in brackets the 95 % interval, then the lowest and the highest "
        "of the seeds one at a time.",
        difference_table(rows, by, ["all"]),
        *(["By kind of images:", difference_table(rows, by, kinds)] if kinds else []),
        "## Identity across a cut",
        "Area under the ROC curve of same against neighbouring object, for fragments on both "
        "sides of a cut; look-alike: among neighbours of similar morphology.",
        auc_table(rows, by),
        "F1 of links between two tiles, whose fragments are the true objects, by what is looked "
        "at. As the fragments of both tiles agree where the tiles overlap, IoU is perfect there "
        "by construction. The criterion takes position, size and identity against position and "
        "size, the cuts with 0, 2 and 4 px of overlap together.",
        link_table(rows, by),
    ]
    return "\n\n".join(blocks) + "\n"


def budget(facts: Sequence[dict], table: Sequence[Mapping]) -> str:
    """Return how long and on what the trainings were."""
    fit = facts[0]["training"]
    trainings = {one["weights_sha256"]: one["minutes"] for one in facts}
    n_images = max(line["n_images"] for line in table)
    return (
        f"Every training: {fit['steps']} steps of {fit['crops_per_step']} crops of "
        f"{' x '.join(map(str, fit['crop_px']))} px, {fit['train']['images']} images "
        f"({fit['train']['objects']} objects), the last averaged weights. {len(trainings)} "
        f"trainings, {sum(trainings.values()):.0f} minutes together. Thresholds of every row were "
        f"fitted on {fit['validation']['images']} validation images; scores are of {n_images} "
        f"test images that neither saw. {table[0]['n_seeds']} seeds. These are short trainings: "
        "they rank the rows at this budget, and are no statement on the shipped models."
    )


def outcome(table: Sequence[Mapping], found: Verdict) -> str:
    """Return what the criterion says of the weight and of the assignment."""
    by = index(table)
    lines = []
    if (*HEADLINE, "all", "all", "map") in by:
        decision = (
            "**Identity keeps its default weight.**"
            if found.keep
            else "**Identity does not pay here: by the criterion, ship with `w_tri` = 0.**"
        )
        lines.append(
            f"{decision} The criterion was registered before the ablation (METHODS 8.2): the "
            "triplet keeps its weight `w_tri` if (i) mAP on the touching or the look-alike subset "
            "improves, row 7 against row 4, with an interval that excludes 0, and mAP of all "
            "objects does not drop by more than 0.3 points, or (ii) link-F1 improves by at least "
            "5 points over position and size only."
        )
        for part in PARTS:
            line = by.get((*HEADLINE, "all", part, "map"))
            if line:
                lines.append(f"- (i) mAP, {part}: {points(line)}.")
        lines.append(
            f"- (i) {'holds' if found.improves and found.harmless else 'does not hold'}"
            f": improved with an interval above 0: {', '.join(found.improves) or 'none'}; mAP of "
            f"all objects {'does not drop' if found.harmless else 'drops'} too far."
        )
        gain = by.get(("7", "", "all", "links", "gain 0-4"))
        shown = "not measured" if gain is None else f"gain in link-F1 {points(gain)}"
        lines.append(f"- (ii) {'holds' if found.links else 'does not hold'}: {shown}.")
        beyond = by.get((*HEADLINE, "all", "links", "place and identity 0-4"))
        if beyond:
            lines.append(
                f"- Of that gain, {points(beyond)} is beyond the branch of row 4, which sees the "
                "same features and was never trained."
            )
    assignment = by.get((*ASSIGNMENT, "all", "all", "map"))
    if assignment:
        lines.append(
            "Identity in the assignment of voxels (row 8 against row 7): mAP of all objects "
            f"{points(assignment)}."
        )
    return "\n".join(lines) or "The rows of the criterion, 4 and 7, are not in this ablation."


def points(line: Mapping) -> str:
    """Return a difference in points, with its interval and that of the seeds."""
    value, low, high, least, most = (
        100 * line[name] for name in ("value", "low", "high", "lowest_seed", "highest_seed")
    )
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}] (seeds {least:+.1f} to {most:+.1f})"


def cell(line: Mapping | None, digits: int = 3) -> str:
    """Return a score with its interval, or a dash."""
    if line is None or math.isnan(line["value"]):
        return "-"
    return f"{line['value']:.{digits}f} [{line['low']:.{digits}f}, {line['high']:.{digits}f}]"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def score_table(rows: Sequence[Mapping], by: Mapping, images: str, facts: Sequence[dict]) -> str:
    """Return the scores of all rows."""
    shown = [(part, "map") for part in PARTS]
    shown += [("all", name) for name in ("ap50", "ap75", "pq", "merges", "splits")]
    seconds = {row["row"]: [] for row in rows}
    for one in facts:
        seconds[one["row"]].append(one["seconds_per_mpx"])
    header = ["row", "what", "mAP", "touching", "look-alike", "AP50", "AP75", "PQ"]
    lines = [
        [
            row["row"],
            row["what"],
            *(
                cell(by.get((row["row"], "", images, *key)), 0 if key[1] in RATES else 3)
                for key in shown
            ),
            f"{1000 * np.mean(seconds[row['row']]):.0f}",
        ]
        for row in rows
    ]
    return markdown([*header, "merges", "splits", "CPU ms/Mpx"], lines)


def difference_table(rows: Sequence[Mapping], by: Mapping, kinds: Sequence[str]) -> str:
    """Return the differences of mAP between rows."""
    lines = []
    for images in kinds:
        for row in rows:
            for other in row["against"].split():
                found = [by.get((row["row"], other, images, part, "map")) for part in PARTS]
                if any(found):
                    cells = ["-" if line is None else points(line) for line in found]
                    lines.append([f"{row['row']} - {other}", images, *cells])
    return markdown(["rows", "images", "mAP", "touching", "look-alike"], lines)


def auc_table(rows: Sequence[Mapping], by: Mapping) -> str:
    """Return the areas under the ROC curve."""
    shown = [(part, name) for part in ("auc", "auc look-alike") for name in AUC]
    lines = []
    for row in rows:
        found = [by.get((row["row"], "", "all", *key)) for key in shown]
        if any(found):
            lines.append([row["row"], *(cell(line) for line in found)])
    return markdown(["row", *AUC, *(f"look-alike: {name}" for name in AUC)], lines)


def link_table(rows: Sequence[Mapping], by: Mapping) -> str:
    """Return link-F1 of the headline row by cut, and what identity adds in every row."""
    lines = []
    for cut in CUTS:
        found = [by.get((HEADLINE[0], "", "all", "links", f"{name} {cut}")) for name in MEANS]
        if any(found):
            lines.append([cut_name(cut), *(cell(line) for line in found)])
    gains = [
        [row["row"], points(line)]
        for row in rows
        if (line := by.get((row["row"], "", "all", "links", "gain 0-4")))
    ]
    return "\n\n".join(
        [
            f"Row {HEADLINE[0]}:",
            markdown(["cut", *MEANS], lines),
            "What identity adds to position and size, overlaps of 0 to 4 px, in points; in row 4 "
            "the branch is not trained:",
            markdown(["row", "gain in F1"], gains),
        ]
    )


def cut_name(cut: int) -> str:
    """Return what lies between two tiles in words."""
    return f"gap {-cut} px" if cut < 0 else f"overlap {cut} px"


def panels(rows: Sequence[Mapping], table: Sequence[Mapping]) -> list[figures.Panel]:
    """Return what the figure shows."""
    by = index(table)

    def line(*key: str, scale: float = 1.0) -> tuple[float, ...] | None:
        found = by.get(key)
        return found and tuple(scale * found[name] for name in ("value", "low", "high"))

    names = [row["row"] for row in rows]
    pairs = [(row["row"], other) for row in rows for other in row["against"].split()]
    pairs = [pair for pair in pairs if (*pair, "all", "all", "map") in by]
    linked = [name for name in names if (name, "", "all", "auc", "identity") in by]
    cuts = [cut for cut in CUTS if (HEADLINE[0], "", "all", "links", f"place {cut}") in by]
    return [
        figures.Panel(
            "mAP (IoU 0.5 to 0.9)",
            "mean over test images",
            [f"{row['row']}  {row['what']}" for row in rows],
            {part: [line(name, "", "all", part, "map") for name in names] for part in PARTS},
        ),
        figures.Panel(
            "Difference of mAP",
            "points",
            [" - ".join(pair) for pair in pairs],
            {
                part: [line(*pair, "all", part, "map", scale=100) for pair in pairs]
                for part in PARTS
            },
            zero=True,
        ),
        figures.Panel(
            "Same object across a cut?",
            "area under the ROC curve",
            [f"row {name}" for name in linked],
            {name: [line(row, "", "all", "auc", name) for row in linked] for name in AUC},
        ),
        figures.Panel(
            f"Links across a cut, row {HEADLINE[0]}",
            "F1",
            [cut_name(cut) for cut in cuts],
            {
                name: [line(HEADLINE[0], "", "all", "links", f"{name} {cut}") for cut in cuts]
                for name in MEANS
            },
        ),
    ]
