r"""Write one self-contained HTML page about one image.

Example
-------
    python report.py --store results/a/a.ome.zarr --objects results/a/objects.parquet \
        --metrics results/a/metrics.json --provenance results/a/provenance.json \
        --seams results/a/seams.csv --tiles results/a/steps/tiles.json \
        --output results/a/report.html
"""

import argparse
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from iaunet import (
    __version__,
    cli,
    gallery,
    grid,
    images,
    joining,
    labelfiles,
    look,
    omezarr,
    page,
    plots,
    quarantine,
    regions,
    scale,
    sealed,
    tables,
    tiling,
    views,
    wording,
)
from iaunet.errors import InputError

log = logging.getLogger("report")

UNFINISHED = "unfinished.html"
"""Beside the file of `--complete`: the page of an image without some of its tiles."""

# Windows compared with a reference, when the image is too large to compare all.
N_WINDOWS = 36
SMALL_VOXELS = 2**24
# Size that close-ups are made for when there are no objects.
TYPICAL_PX = 400.0


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = cli.base_parser(__doc__)
    parser.add_argument("--store", type=Path, required=True, help="final OME-Zarr of the image")
    parser.add_argument("--objects", type=Path, required=True, help="table of objects, Parquet")
    parser.add_argument("--metrics", type=Path, required=True, help="metrics.json")
    parser.add_argument("--provenance", type=Path, required=True, help="provenance.json")
    parser.add_argument("--seams", type=Path, required=True, help="seams.csv")
    parser.add_argument(
        "--complete", type=Path, help="JSON to write when no tile was given up; fail when one was"
    )
    parser.add_argument("--tiles", type=Path, required=True, help="tiles.json")
    parser.add_argument("--reference", type=Path, help="label image with the true instances")
    parser.add_argument("--output", type=Path, required=True, help="HTML page to write")
    return parser.parse_args(argv)


def open_sample(args: argparse.Namespace, tiles: dict) -> gallery.Sample:
    """Return the image of a store with its table of objects."""
    meta = omezarr.read_meta(args.store)
    objects = tables.read_parquet(args.objects)
    size = "area_px" if len(meta.shape) == 2 else "volume_px"
    if size not in objects:
        raise InputError(f"{args.objects}: no column '{size}'; needs the table of {args.store}")
    spacing = meta.pixel_um or (1.0,) * len(meta.shape)
    median = float(objects[size].median()) if len(objects) else TYPICAL_PX
    levels = range(len(meta.levels))
    return gallery.Sample(
        images=tuple(omezarr.open_level(args.store, level) for level in levels),
        labels=tuple(omezarr.open_labels(args.store, level=level) for level in levels),
        axes=meta.axes,
        spacing=tuple(float(step) for step in spacing),
        unit_um=None if meta.pixel_um is None else 1.0,
        limits=tuple(tiles["limits"]),
        core=core_of_image(tiles) if tiles["n_tiles"] > 1 else None,
        objects=objects,
        diameter_px=regions.equivalent_diameter(median, spacing),
    )


def core_of_image(tiles: dict) -> tuple[float, ...]:
    """Return the core of a tile in pixels of the image, which the network's may not be."""
    sides = zip(tiles["core"], tiles["shape"], tiling.grid_shape(tiles), strict=True)
    return tuple(core * n / m for core, n, m in sides)


def worst_windows(
    sample: gallery.Sample, reference: images.Image
) -> tuple[list[tuple[grid.Box, regions.Mistakes]], int, int]:
    """Compare windows with the reference, the one with most mistakes first.

    Returns
    -------
    windows : list of (box, mistakes)
    seen, total : int
        Windows compared, and windows that would cover the image.
    """
    sides = sample.zoom_sides()
    whole = tuple(slice(0, length) for length in sample.shape)
    small = int(np.prod(sample.shape)) <= SMALL_VOXELS
    read_true = reference.read(whole).__getitem__ if small else reference.read
    labels = sample.labels[0]
    read_found = np.asarray(labels[whole]).__getitem__ if small else labels.__getitem__
    most = 10 * N_WINDOWS if small else N_WINDOWS
    boxes, total = regions.candidates(sample.shape, sides, most)
    margin = [round(1.5 * length) + 1 for length in sample.diameter_px]
    found = []
    for box in boxes:
        # With a margin: objects that the window cuts would else look like mistakes.
        near = grid.grow(box, margin, sample.shape)
        inner = grid.shift(box, grid.origin(near))
        found.append((box, regions.mistakes(read_true(near), read_found(near), inner)))
    found.sort(key=lambda item: -item[1].count)
    return found, len(boxes), total


def reference_section(sample: gallery.Sample, path: Path, metrics: dict) -> dict:
    """Return views of the windows that differ most from the reference, and the accuracy."""
    reference = labelfiles.open_labels(path)
    if reference.shape != sample.shape:
        raise InputError(
            f"{path}: shape {reference.shape}, the image has {sample.shape}; needs a "
            "reference of the same shape"
        )
    found, seen, total = worst_windows(sample, reference)
    shown = [item for item in found[:3] if item[1].count] or found[:1]
    names = ("Worst region", "Second worst", "Third worst")
    note = (
        "Blue: true outline; orange: segmented. Filled blue: missed; filled orange: false, both at "
        "IoU 0.5. "
    )
    if not found[0][1].count:
        note += "No mistake in any region that was compared."
        names = ("No mistakes",)
    if seen < total:
        note += f" {seen} of {total:,} regions were compared, spread over the image."
    ap = metrics.get("ap") or []
    return {
        "note": note,
        "views": [
            mistake_view(sample, reference, box, wrong, name)
            for (box, wrong), name in zip(shown, names, strict=False)
        ],
        "thresholds": [
            (0.5 + 0.05 * k, "–" if value is None else f"{value:.3f}") for k, value in enumerate(ap)
        ],
        "summary": wording.accuracy_text(metrics),
    }


def mistake_view(
    sample: gallery.Sample,
    reference: images.Image,
    box: grid.Box,
    wrong: regions.Mistakes,
    title: str,
) -> views.View:
    """Return one window with true outlines below, mistakes filled and named."""
    true = reference.read(box)
    found = np.asarray(sample.labels[0][box])
    bad = np.isin(true, wrong.missed) | np.isin(found, wrong.false)
    face, at = sample.faces[0], 0
    if face is not None:
        # The plane of the window that shows most of what is wrong.
        at = int(np.argmax(bad.sum(axis=(1, 2)))) if bad.any() else true.shape[0] // 2
        true, found = true[at], found[at]
    tags = []
    for labels, ids, text in ((found, wrong.merged, "merged"), (true, wrong.split, "split")):
        for label in ids:
            where = np.nonzero(labels == label)
            if len(where[0]):
                top, left = (
                    100 * axis.mean() / length
                    for axis, length in zip(where, labels.shape, strict=True)
                )
                tags.append((round(min(left, 88), 1), round(top, 1), text))
    caption = (
        f"{len(wrong.missed)} missed, {len(wrong.false)} false, {len(wrong.merged)} merged, "
        f"{len(wrong.split)} split."
    )
    start = 0 if face is None else box[0].start + at
    return gallery.plane_view(
        sample,
        box,
        face=face,
        at=start,
        title=title if face is None else f"{title} · XY, z = {start}",
        caption=caption,
        tags=tags,
        layers=[
            views.outlines(np.isin(true, wrong.missed) * true, "missed"),
            views.outlines(np.isin(found, wrong.false) * found, "false"),
            views.outlines(true, "true"),
        ],
    )


def seam_section(sample: gallery.Sample, tiles: dict, seams: pd.DataFrame, metrics: dict) -> dict:
    """Return what happened at the borders of tiles, and close-ups of the worst cases."""
    n_tiles = tiles["n_tiles"]
    of_contact = seams["verdict"].isin(joining.VERDICTS)
    contacts, seams = seams[of_contact], seams[~of_contact]
    more = wording.fragments(contacts["verdict"].value_counts())
    rows = {int(label): row for row, label in enumerate(sample.objects["label"])}
    links = doubtful_links(sample, tiles, contacts, rows)
    if n_tiles == 1:
        return {"text": "The image was one tile: there are no seams." + more, "views": links}
    core = " × ".join(str(length) for length in tiles["core"])
    batches = wording.counted(tiles["n_batches"], "batch", "batches")
    more = wording.seam_quality(metrics) + more
    text = f"{n_tiles:,} tiles of {core} px in {batches}. "
    if not len(seams):
        return {"text": text + "No object lies on a tile border." + more, "views": links}
    flagged = (seams["verdict"] != "agreed").to_numpy()
    many = wording.counted(len(seams), "object lies", "objects lie")
    text += f"{many} on tile borders, in up to {int(seams['n_tiles'].max())} tiles. "
    if flagged.any():
        counts = seams["verdict"][flagged].value_counts()
        each = ", ".join(f"{verdict} {count:,}" for verdict, count in counts.items())
        why = "tiles do not agree on them"
        if metrics.get("n_failed_tiles"):
            why += ", or a tile failed there (cut, near)"
        text += f"Flagged, {why}: {each}."
    else:
        text += "All tiles agree on every pixel of every one of them."
    order = np.lexsort((seams["label"].to_numpy(), -seams["n_tiles"].to_numpy(), ~flagged))
    shown, seen = [], set()
    for index in order:
        seam = seams.iloc[int(index)]
        if seam["tiles"] in seen or int(seam["label"]) not in rows:
            continue
        seen.add(seam["tiles"])
        title = "Worst seam" if not shown else "Another seam"
        caption = (
            f"White: object {int(seam['label'])}, tiles {seam['tiles'][:60]}: {seam['verdict']}"
            + (f", {seam['evidence']}." if seam["verdict"] != "agreed" else ".")
        )
        shown.extend(gallery.zoom(sample, rows[int(seam["label"])], title, caption, focus=True)[:1])
        if len(shown) == 3:
            break
    return {"text": text + more, "views": shown + links}


def doubtful_links(
    sample: gallery.Sample, tiles: dict, contacts: pd.DataFrame, rows: dict[int, int]
) -> list[views.View]:
    """Return close-ups of the contacts of fragments of which the model was least sure."""
    doubt = (contacts["probability"] - joining.EVEN).abs().to_numpy()
    shown, seen = [], set()
    for index in np.argsort(doubt, kind="stable"):
        contact = contacts.iloc[int(index)]
        label = int(contact["label"])
        if label in seen or label not in rows:
            continue
        seen.add(label)
        on_grid = np.unravel_index(int(contact["gid"]), tiling.grid_shape(tiles))
        at = scale.under(on_grid, tiling.grid_shape(tiles), tiles["shape"])
        caption = (
            f"White: object {label}, around one of its fragments, which {contact['evidence']}: "
            f"one object with a probability of {contact['probability']:.2f}, {contact['verdict']}."
        )
        shown += gallery.zoom(
            sample, rows[label], "Least sure link", caption, focus=True, centre=np.array(at)
        )[:1]
        if len(shown) == 3:
            break
    return shown


def shares(objects: pd.DataFrame) -> dict[str, float | None]:
    """Return the share of objects that are unsure, and that the image border cuts."""
    if not len(objects):
        return {"unsure": None, "touching": None}
    unsure = float((objects["confidence"] < wording.UNSURE).mean())
    return {"unsure": unsure, "touching": float(objects["touches_border"].mean())}


def content(args: argparse.Namespace) -> dict:
    """Return everything that the page shows."""
    tiles = tiling.read(args.tiles, ("core", "limits", "n_tiles"))
    metrics, provenance = (read_json(path) for path in (args.metrics, args.provenance))
    noted = provenance.get("outputs") or {}
    for path in (args.objects, args.seams):
        tables.check_sha256(path, (noted.get(path.name) or {}).get("sha256"))
    sample = open_sample(args, tiles)
    n_objects = len(sample.objects)
    seams = tables.read_csv(
        args.seams,
        {
            "label": "uint64",
            "n_tiles": "int64",
            "tiles": "str",
            "evidence": "str",
            "probability": "float64",
            "verdict": "str",
            "gid": "uint64",
        },
    )
    reference = reference_section(sample, args.reference, metrics) if args.reference else None
    shown, figures = look.look(sample)
    return {
        "image": tiles["image"],
        "subtitle": wording.subtitle(tiles),
        "warnings": wording.warnings(metrics, tiles, **shares(sample.objects)),
        "cards": wording.cards(metrics, tiles),
        "reference": reference,
        "n_tiles": tiles["n_tiles"],
        "look": shown,
        "library": plots.library(),
        "figures": figures,
        "projections": gallery.projections(sample),
        "zooms": gallery.zooms(sample),
        "zoom_note": zoom_note(n_objects),
        "seams": seam_section(sample, tiles, seams, metrics),
        "unsure": gallery.unsure(sample),
        "unsure_note": "Number of the object and its confidence, the lowest first.",
        "classes": wording.classes(metrics),
        "numbers": wording.numbers(metrics),
        "origin": wording.origin(tiles),
        "steps": wording.steps(provenance),
        "provenance": json.dumps(provenance, indent=1, ensure_ascii=False),
        "version": __version__,
        "display_note": "intensities between the limits above, gamma "
        f"{views.GAMMA} to show dim objects; the numbers are from the original intensities",
    }


def zoom_note(n_objects: int) -> str:
    """Return how the close-ups were chosen."""
    note = "Full resolution."
    if n_objects > regions.MAX_SAMPLE:
        note += f" Chosen among {regions.MAX_SAMPLE:,} of {n_objects:,} objects, evenly sampled."
    return note


def read_json(path: Path) -> dict:
    """Return a JSON file that another step wrote."""
    try:
        return sealed.loads(path.read_text(encoding="utf-8"), path)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); run the step that writes it") from None


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    recorder = cli.Recorder("report", args)
    html = page.render("report.html", **content(args))
    with cli.write_whole(args.output) as partial:
        partial.write_text(html, encoding="utf-8")
    log.info("%s: %.2f MB", args.output, len(html) / 1e6)
    if args.complete is not None:
        finish(read_json(args.metrics), html, args)
    recorder.write(bytes=len(html))


def finish(found: dict, html: str, args: argparse.Namespace) -> None:
    """Write that no tile was given up; or keep the page, of which Snakemake knows nothing.

    Raises
    ------
    InputError
        Tiles were given up. While this step fails, Snakemake keeps the files between the steps,
        so that the same command redoes the batches of these tiles, and no others.
    """
    kept = args.complete.with_name(UNFINISHED)
    if found["failed_tiles"]:
        with cli.write_whole(kept) as partial:
            partial.write_text(html, encoding="utf-8")
        raise InputError(
            f"{args.metrics}: {quarantine.sentence(found['failed_tiles'], found['n_tiles'])}; the "
            "same command again redoes their batches and keeps the rest"
        )
    cli.remove(kept)
    with cli.write_whole(args.complete) as partial:
        partial.write_text(json.dumps({"n_tiles": found["n_tiles"]}) + "\n")


if __name__ == "__main__":
    cli.run(main)
