r"""Write one CSV row per image and one page per run, worst images first.

Example
-------
    python summarize.py --table images.csv --results results --logs logs \
        --output-csv results/summary.csv --output-html results/summary.html
"""

import argparse
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from iaunet import (
    __version__,
    cli,
    cost,
    groups,
    metrics,
    omezarr,
    page,
    plots,
    sealed,
    tables,
    views,
    wording,
)
from iaunet.errors import InputError

log = logging.getLogger("summarize")

COLUMNS = (
    "image",
    "group",
    "status",
    "model",
    "n_objects",
    "foreground_fraction",
    "density_per_mm2",
    "density_per_mm3",
    "median_area_px",
    "median_volume_px",
    "n_tiles",
    "n_batches",
    "n_failed_tiles",
    "n_crossing_seams",
    "seam_conflicts",
    "focus",
    "saturated_fraction",
    "seconds",
    "mpx_per_s",
    "peak_memory_mb",
    "objects_per_s",
    "shape",
    "pixel_um",
)
ACCURACY = (*metrics.RATIOS, *metrics.COUNTS)
PLANNED = {
    "core_hours": (sum, "hours of one core, all images"),
    "final_mb": (sum, "disk in the end, MB, all images"),
    "temporary_mb": (max, "disk besides, MB, of one image"),
    **{f"peak_mb_{step}": (max, f"memory of {step}, MB, largest job") for step in cost.STEPS},
}
"""Columns of plan.csv, how they are taken together, and what they are."""
LISTS = ("shape", "pixel_um")
POOLED = ("tp_50", "fp_50", "fn_50")
COUNTS = frozenset(
    name for name in (*COLUMNS, *ACCURACY) if name.startswith(("n_", "tp_", "fp_", "fn_", "seam_"))
)
STATUS = ("failed", "incomplete", "ok")
"""The worst first; incomplete: tiles failed, and their regions are empty."""
NOT_FINISHED = "not finished"
THUMBNAIL_PX = (32, 96)
"""Long side of the picture of an image, of many images and of few."""
THUMBNAILS_PX = 2_000_000
"""Of all together, which keeps the page light."""
ERROR = "error: "
LOG_BYTES = 65536
LAST_LINES = 4


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.base_parser(__doc__)
    parser.add_argument("--table", type=Path, required=True, help="table of images, CSV")
    parser.add_argument(
        "--results", type=Path, required=True, help="folder with one per image, and plan.csv"
    )
    parser.add_argument("--output-csv", type=Path, required=True, help="CSV to write")
    parser.add_argument("--output-html", type=Path, required=True, help="HTML page to write")
    parser.add_argument("--logs", type=Path, help="folder of logs, where reasons are looked for")
    parser.add_argument("--model", default="", help="model of the rows that name none")
    parser.add_argument("--failures", type=Path, help="JSON of reasons by image")
    parser.add_argument(
        "--expanded", type=Path, help="JSON: images that a row with all scenes or frames is"
    )
    return parser.parse_args(argv)


def read_metrics(path: Path) -> dict | None:
    """Return the metrics of an image, or None when it has none that can be read."""
    try:
        return sealed.loads(path.read_text(encoding="utf-8"), path)
    except (OSError, ValueError, RecursionError, InputError):
        return None


def is_sound(found: dict) -> bool:
    """Tell whether metrics hold numbers where the summary needs them: one file must not stop it."""
    numbers = {*COLUMNS, *ACCURACY} - {"image", "group", "status", "model", *LISTS, *COUNTS}
    values = [found.get(name) for name in numbers]
    counts = [found[name] for name in COUNTS if found.get(name) is not None]
    if not all(isinstance(count, int) and 0 <= count < 2**63 for count in counts):
        return False
    if len({found.get(name) is None for name in POOLED}) > 1:
        return False
    for name in (*LISTS, "warnings"):
        part = found.get(name) or []
        if not isinstance(part, list):
            return False
        values += part if name in LISTS else []
    return all(value is None or isinstance(value, (int, float)) for value in values)


def last_error(logs: Path, image: str) -> str:
    """Return the last error line in the newest log of an image that has one, or an empty text."""
    found = []
    for log_file in [*logs.glob(f"*/{image}.log"), *logs.glob(f"*/{image}/*.log")]:
        with log_file.open("rb") as file:
            file.seek(max(0, log_file.stat().st_size - LOG_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
        errors = [line[len(ERROR) :].strip() for line in lines if line.startswith(ERROR)]
        if errors:
            found.append((log_file.stat().st_mtime_ns, str(log_file), errors[-1]))
    return max(found)[2] if found else ""


def failures(path: Path | None) -> dict[str, str]:
    """Return the reasons by image that another program found."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); needs {{image: reason}}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: found a {type(found).__name__}, needs {{image: reason}}")
    return {str(image): " ".join(str(reason).split()) for image, reason in found.items()}


def read_plan(path: Path) -> dict[str, dict[str, float]]:
    """Return what plan.py said of every image; nothing where there is no plan."""
    if not path.is_file():
        return {}
    try:
        return {
            row["image"]: {name: float(row[name]) for name in PLANNED if row[name]}
            for row in tables.read_text(path, ("image", *PLANNED)).to_dict("records")
        }
    except ValueError as error:
        raise InputError(f"{path}: {error}; make it again with plan.py, or remove it") from None


def measured(provenance: dict) -> dict[str, float]:
    """Return what a finished image took; nothing where its provenance does not tell."""
    try:
        return cost.taken(provenance)
    except (AttributeError, KeyError, TypeError):
        return {}


def spent(taken: Mapping[str, float], found: Mapping) -> dict[str, float | None]:
    """Return the largest memory of a job of an image, and the objects per second of all jobs."""
    peaks = [groups.finite(value) for name, value in taken.items() if name.startswith("peak_mb_")]
    seconds, count = found.get("seconds"), found.get("n_objects")
    return {
        "peak_memory_mb": max((peak for peak in peaks if peak is not None), default=None),
        "objects_per_s": count / seconds if seconds and count is not None else None,
    }


def plan_table(rows: Sequence[dict]) -> dict | None:
    """Return the plan against what was measured, over all finished images that have both."""
    body = []
    for name, (together, text) in PLANNED.items():
        pairs = [(row["planned"] or {}, row["measured"]) for row in rows]
        known = [[side[name] for side in pair] for pair in pairs if all(name in s for s in pair)]
        if known:
            totals = map(together, zip(*known, strict=True))
            body.append([text, *map(wording.number, totals)])
    return {"names": ["", "planned", "measured"], "rows": body} if body else None


def failed_tiles(rows: Sequence[dict], logs: Path | None) -> list[str]:
    """Return image, tile, stage, cause and the last lines of the log of every tile that failed."""
    found = []
    for row in rows:
        for one in row["failed_tiles"]:
            place = Path(one["stage"], row["image"], f"{one['batch']}.log")
            text = f"{row['image']}, tile {one['tile']}: failed twice in {place.parts[0]}, "
            text += f"batch {one['batch']}: {one['cause']}"
            if logs is not None and (logs / place).is_file():
                lines = (logs / place).read_text(encoding="utf-8", errors="replace").splitlines()
                text += f"; {logs / place} ends with:\n"
                text += "\n".join(f"    {line}" for line in lines[-LAST_LINES:])
            found.append(text)
    return found


def model_name(row: Mapping[str, str], provenance: dict, default: str) -> str:
    """Return the model of an image: as recorded, or as the table or the config says."""
    model = provenance.get("model")
    name = model.get("name") if isinstance(model, dict) else None
    return str(name or row["model"] or default)


def summary_row(
    row: Mapping[str, str], args: argparse.Namespace, reasons: dict[str, str], plan: dict[str, dict]
) -> dict:
    """Return everything that is known of one image, by column; lists stay lists."""
    image = row["image"]
    home = args.results / image
    found = read_metrics(home / "metrics.json")
    found = found if found is not None and is_sound(found) else None
    failed = found is None or image in reasons
    reason = reasons.get(image, "")
    if failed and not reason and args.logs is not None:
        reason = last_error(args.logs, image)
    warnings = [] if found is None else [str(text) for text in found.get("warnings") or []]
    provenance = read_metrics(home / "provenance.json") or {}
    taken = {} if failed else measured(provenance)
    values = {} if failed else {name: found.get(name) for name in (*COLUMNS, *ACCURACY)}
    return {
        **values,
        **({} if failed else spent(taken, found)),
        "image": image,
        "group": row["group"],
        "status": "failed" if failed else "incomplete" if found.get("failed_tiles") else "ok",
        "model": model_name(row, provenance, args.model),
        "warnings": wording.serious(warnings),
        "reason": (reason or NOT_FINISHED) if failed else "; ".join(warnings),
        "planned": plan.get(image),
        "measured": taken if image in plan else {},
        "failed_tiles": [] if failed else found.get("failed_tiles") or [],
    }


def severity(row: dict) -> tuple:
    """Return a sort key: failed, incomplete, seam conflicts, warnings, then low accuracy."""
    accuracy = row.get("ap50")
    return (
        STATUS.index(row["status"]),
        -(row.get("seam_conflicts") or 0),
        not row["warnings"],
        np.inf if accuracy is None else accuracy,
    )


def frame(rows: Sequence[dict]) -> pd.DataFrame:
    """Return the table of the run; columns of accuracy only when an image has a reference."""
    scored = any(row.get(name) is not None for row in rows for name in ACCURACY)
    columns = [*COLUMNS, *(ACCURACY if scored else ()), "reason"]
    found = pd.DataFrame({name: [_plain(row.get(name)) for row in rows] for name in columns})
    if any(row.get("planned") for row in rows):
        for name in PLANNED:
            for place, key in ((f"planned_{name}", "planned"), (name, "measured")):
                values = [(row.get(key) or {}).get(name) for row in rows]
                found.insert(len(found.columns) - 1, place, values)
    for name in ("group", "model", "reason"):
        found[name] = found[name].map(tables.no_formula)
    for name in COUNTS.intersection(columns):
        found[name] = pd.array(found[name].to_numpy(object), dtype="Int64")
    return found


def _plain(value: object) -> object:
    if not isinstance(value, list):
        return value
    return "x".join(str(item) if isinstance(item, int) else f"{item:.6g}" for item in value)


def group_table(rows: Sequence[dict]) -> dict | None:
    """Return one row per group, with accuracy pooled over its objects; None without groups."""
    names = sorted({row["group"] for row in rows})
    if names in ([], [""]):
        return None
    scored = any(row.get("tp_50") is not None for row in rows)
    head = ["group", "images", "failed", "objects", "median objects per image", "seam conflicts"]
    body = []
    for name in names:
        group = [row for row in rows if row["group"] == name]
        counts = [row["n_objects"] for row in group if row.get("n_objects") is not None]
        body.append(
            [
                name or "(none)",
                wording.number(len(group)),
                wording.number(sum(row["status"] == "failed" for row in group)),
                wording.number(sum(counts)),
                wording.number(float(np.median(counts)) if counts else None),
                wording.number(sum(row.get("seam_conflicts") or 0 for row in group)),
                *([score(pooled_ap50(group)), score(mean_of(group, "ap_mean"))] if scored else []),
            ]
        )
    if scored:
        head += ["AP50 of all objects", "mean of AP .5–.95"]
    return {"names": head, "rows": body}


def pooled_ap50(rows: Sequence[dict]) -> float | None:
    """Return TP / (TP + FP + FN) over the objects of all images with a reference."""
    known = [[row[name] for name in POOLED] for row in rows if row.get("tp_50") is not None]
    total = sum(sum(counts) for counts in known)
    return sum(counts[0] for counts in known) / total if total else None


def mean_of(rows: Sequence[dict], name: str) -> float | None:
    """Return the mean over the images that have a value."""
    values = [row[name] for row in rows if row.get(name) is not None]
    return float(np.mean(values)) if values else None


def score(value: float | None) -> str:
    """Return a score for reading."""
    return "–" if value is None else f"{value:.3f}"


def thumbnail(store: Path, longest_px: int) -> str | None:
    """Return the coarsest level of a store as a small picture; the middle plane in 3D."""
    try:
        meta = omezarr.read_meta(store)
        array = omezarr.open_level(store, len(meta.levels) - 1)
        plane = np.asarray(array[array.shape[0] // 2] if array.ndim == 3 else array[...])
    except Exception:  # a damaged store of one image must not stop the page of all
        return None
    limits = meta.attrs.get("limits") or np.percentile(plane, (1, 99.8)).tolist()
    shrink = min(1.0, longest_px / max(plane.shape))
    shape = [max(1, round(length * shrink)) for length in plane.shape]
    return views.jpeg(views.grey(plane, limits), shape, 0, quality=75)


def thumbnail_px(n_images: int) -> int | None:
    """Return the long side of the pictures of so many images; None when there is no room."""
    side = int((THUMBNAILS_PX / max(1, n_images)) ** 0.5)
    return None if side < THUMBNAIL_PX[0] else min(side, THUMBNAIL_PX[1])


def page_row(
    row: dict, order: int, args: argparse.Namespace, *, shown: Sequence[str], side: int | None
) -> dict:
    """Return one image for the page: what is shown, what is sorted by, where its page lies."""
    home = args.results / row["image"]
    report = home / "report.html"
    mark = "look" if row["status"] == "ok" and row["warnings"] else row["status"]
    cells = []
    for name in shown:
        value = row.get(name)
        text = score(value) if name in ACCURACY else wording.number(value)
        if name in ("group", "model", "reason"):
            text = value
        if name == "reason" and row["status"] != "failed":
            text = "; ".join(row["warnings"])
        kind = {"reason": "long", "group": "wrap", "model": "wrap"}.get(name, "n")
        cells.append({"text": text, "kind": kind, "sort": "" if value is None else str(value)})
    link = os.path.relpath(report, args.output_html.parent) if report.is_file() else None
    return {
        "image": row["image"],
        "link": link,
        "order": order,
        "mark": mark,
        "group": row["group"],
        "cells": cells,
        "thumbnail": side and thumbnail(home / f"{row['image']}.ome.zarr", side),
    }


TITLES = {
    "n_objects": "objects",
    "density_per_mm2": "per mm²",
    "density_per_mm3": "per mm³",
    "n_tiles": "tiles",
    "seam_conflicts": "seam conflicts",
    "peak_memory_mb": "peak MB",
    "objects_per_s": "objects per s",
    "ap50": "AP50",
    "ap_mean": "AP .5–.95",
    "pq": "PQ",
}


def content(rows: Sequence[dict], args: argparse.Namespace) -> dict:
    """Return everything that the page shows."""
    known = {name for row in rows for name, value in row.items() if value not in (None, "")}
    wanted = (
        "group",
        "model",
        "n_objects",
        "density_per_mm2",
        "density_per_mm3",
        "ap50",
        "ap_mean",
    )
    wanted += ("pq", "n_tiles", "seam_conflicts", "seconds", "peak_memory_mb", "objects_per_s")
    wanted += ("reason",)
    if len({row["model"] for row in rows} - {""}) == 1:
        known.discard("model")
    shown = [name for name in wanted if name in known]
    ordered = sorted(rows, key=severity)
    n_failed, n_incomplete = (sum(row["status"] == s for row in rows) for s in STATUS[:2])
    side = thumbnail_px(len(rows))
    entries = [
        page_row(row, order, args, shown=shown, side=side) for order, row in enumerate(ordered)
    ]
    compared, figures = groups.compared(rows) or (None, None)
    names = sorted({row["group"] for row in rows})
    numeric = {name: "n" for name in shown if name not in ("group", "model", "reason")}
    return {
        "subtitle": subtitle(rows, args.table),
        "rows": entries,
        "n_failed": n_failed,
        "n_incomplete": n_incomplete,
        "n_look": sum(entry["mark"] == "look" for entry in entries),
        "cards": cards(rows, n_failed, n_incomplete),
        "groups": group_table(rows),
        "compared": compared,
        "library": plots.library() if figures else None,
        "figures": plots.packed(figures) if figures else None,
        "filters": {
            "groups": names if names != [""] else [],
            "marks": sorted({entry["mark"] for entry in entries}),
        },
        "plan": plan_table(rows),
        "columns": [
            ("image", ""),
            ("status", ""),
            *((TITLES.get(name, name), numeric.get(name, "")) for name in shown),
        ],
        "thumbnails": any(entry["thumbnail"] for entry in entries),
        "version": __version__,
    }


def subtitle(rows: Sequence[dict], table: Path) -> str:
    """Return what was run, in one line."""
    models = sorted({row["model"] for row in rows} - {""})
    images = wording.counted(len(rows), "image", "images")
    used = f", model {', '.join(models)}" if models else ""
    return f"{images} of {table.name}{used}"


def cards(rows: Sequence[dict], n_failed: int, n_incomplete: int) -> list[dict[str, str]]:
    """Return the numbers of the whole run."""
    objects, conflicts, crossing = (
        wording.number(sum(row.get(name) or 0 for row in rows))
        for name in ("n_objects", "seam_conflicts", "n_crossing_seams")
    )
    unfinished = f"{n_failed} failed" + (f", {n_incomplete} incomplete" if n_incomplete else "")
    shown = [
        ("Images", wording.number(len(rows)), unfinished),
        ("Objects", objects, ""),
        ("Seam conflicts", conflicts, f"{crossing} objects on seams"),
    ]
    if (accuracy := pooled_ap50(rows)) is not None:
        n_scored = sum(row.get("tp_50") is not None for row in rows)
        shown.append(("AP50 of all objects", score(accuracy), f"{n_scored} with a reference"))
        shown.append(("Mean of AP .5–.95", score(mean_of(rows, "ap_mean")), "mean over images"))
    return [dict(zip(("name", "value", "more"), card, strict=True)) for card in shown]


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    recorder = cli.Recorder("summarize", args)
    reasons = failures(args.failures)
    if not args.results.is_dir():
        raise InputError(f"{args.results}: no such folder; needs the results of a run")
    plan = read_plan(args.results / "plan.csv")
    rows = [
        summary_row(row, args, reasons, plan) for row in tables.read_rows(args.table, args.expanded)
    ]
    html = page.render("summary.html", **content(rows, args))
    with cli.write_whole(args.output_csv) as partial:
        tables.write_csv(frame(rows), partial)
    with cli.write_whole(args.output_html) as partial:
        partial.write_text(html, encoding="utf-8")
    n_failed = sum(row["status"] == "failed" for row in rows)
    log.info("%s: %d images, %d failed", args.output_csv, len(rows), n_failed)
    for text in failed_tiles(rows, args.logs):
        log.warning("%s", text)
    recorder.write(n_images=len(rows), n_failed=n_failed)


if __name__ == "__main__":
    cli.run(main)
