"""Numbers and facts of one image in words, for a reader."""

import math
from collections.abc import Callable, Mapping, Sequence

UNSURE = 0.4
MANY_UNSURE = 0.25
MANY_TOUCHING = 0.25
NAMES = {
    "n_objects": "objects",
    "n_tiles": "tiles",
    "n_batches": "batches",
    "n_failed_tiles": "tiles that failed",
    "shape": "shape, px",
    "pixel_um": "pixel size, µm",
    "density_per_mm2": "density per mm²",
    "density_per_mm3": "density per mm³",
    "n_crossing_seams": "objects on seams",
    "straight_cut_score": "outlines along tile faces against other lines",
    "outline_at_faces": "outline pixels at tile faces",
    "outline_expected": "outline pixels expected there",
    "objects_near_faces": "objects near tile faces",
    "near_faces_expected": "objects expected near tile faces",
    "near_faces_size": "their median size against that of the others",
    "focus": "focus, fine against coarse detail of objects",
    "saturated_fraction": "share of objects' pixels at the largest value",
    "saturated": "saturated",
    "verified_windows": "windows segmented again",
    "verified_voxels": "pixels in them",
    "verified_differ": "of these, pixels that differ",
    "mpx_per_s": "network, Mpx/s",
    "ap50": "AP at IoU 0.5",
    "ap75": "AP at IoU 0.75",
    "ap_mean": "mean AP .5–.95",
    "f1_50": "F1 at IoU 0.5",
    "precision_50": "precision at IoU 0.5",
    "recall_50": "recall at IoU 0.5",
    "n_true": "true objects",
    "tp_50": "true objects found (IoU 0.5)",
    "fp_50": "false objects (IoU 0.5)",
    "fn_50": "missed objects (IoU 0.5)",
    "split_rate": "share of true objects split",
    "merge_rate": "share of objects merged",
    "median_area_px": "median area, px",
    "median_volume_px": "median volume, voxels",
    "seconds": "seconds of all steps",
    "pq": "PQ",
    "aji": "AJI",
}


def number(value: object, digits: int = 3) -> str:
    """Return a value for reading: thousands apart, few digits, a dash for nothing.

    Examples
    --------
    >>> number(1234567), number(0.012345), number(None), number(1536.2)
    ('1,234,567', '0.0123', '–', '1,536')
    """
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return " × ".join(number(item, digits) for item in value)
    try:
        found = float(value)
    except (TypeError, ValueError):
        return str(value)
    if math.isnan(found):
        return "–"
    if math.isinf(found):
        return str(found)
    if found == int(found) and abs(found) < 1e15:
        return f"{int(found):,}"
    if abs(found) >= 10**digits:
        return f"{found:,.0f}"
    return f"{found:.{digits}g}"


UNITS = {"px": "px", "um": "µm", "um2": "µm²", "um3": "µm³"}
"""Of the ends of column names."""


def feature(column: str) -> str:
    """Return what a column of the table of objects is, with its unit.

    Examples
    --------
    >>> feature("axis_major_um"), feature("volume_px"), feature("confidence")
    ('axis major, µm', 'volume, voxels', 'confidence')
    """
    name, _, end = column.rpartition("_")
    if end not in UNITS or not name:
        return column.replace("_", " ")
    return f"{name.replace('_', ' ')}, {'voxels' if column == 'volume_px' else UNITS[end]}"


def counted(count: int, one: str, many: str) -> str:
    """Return a number with the word that fits it."""
    return f"{count:,} {one if count == 1 else many}"


def fragments(counts: Mapping[str, int]) -> str:
    """Return how often fragments that touch were joined, kept apart or refused; or nothing."""
    if not len(counts):
        return ""
    each = ", ".join(f"{int(count):,} {verdict}" for verdict, count in sorted(counts.items()))
    return f" Contacts between fragments of long objects: {each}."


def seam_quality(metrics: dict) -> str:
    """Return whether tiles can be seen in the result, in words."""
    text, score = "", metrics.get("straight_cut_score")
    if metrics.get("verified_windows"):
        windows = counted(metrics["verified_windows"], "window was", "windows were")
        text = (
            f" {windows} segmented again with other tiles: {metrics['verified_differ']:,} of "
            f"{metrics['verified_voxels']:,} pixels differ."
        )
    if score is None:
        return text
    text += (
        f" Outlines run along tile faces {score:.2f} times as often as along other lines "
        f"({metrics['outline_at_faces']:,} pairs of pixels there), "
        + ("more than chance explains." if metrics["seams_visible"] else "within chance.")
    )
    near = metrics.get("objects_near_faces")
    if near is not None:
        many = counted(near, "object lies", "objects lie")
        text += f" {many} near a face, {metrics['near_faces_expected']:.0f} are expected"
        ratio = metrics.get("near_faces_size")
        text += f"; their median size is {ratio:.2f} times that of the others." if ratio else "."
    return text


def cards(metrics: dict, tiles: dict) -> list[dict[str, str]]:
    """Return the handful of numbers that a reader wants first."""
    ndim = len(tiles["shape"])
    shown = [("Objects", number(metrics["n_objects"]), "", share_text(metrics))]
    density = metrics.get("density_per_mm2" if ndim == 2 else "density_per_mm3")
    if density is not None:
        shown.append(("Density", number(density), f"per mm{'²' if ndim == 2 else '³'}", ""))
    if metrics["n_objects"]:
        shown.append(size_card(metrics, tiles))
    if metrics.get("ap50") is not None:
        more = f"mean AP .5–.95: {number(metrics.get('ap_mean'))}"
        shown.append(("Accuracy, AP at IoU 0.5", number(metrics["ap50"]), "", more))
    if tiles["n_tiles"] > 1:
        conflicts, crossing = metrics.get("seam_conflicts"), metrics.get("n_crossing_seams")
        shown.append(
            ("Seam conflicts", number(conflicts), "", f"{number(crossing)} objects on seams")
        )
    if metrics.get("mpx_per_s") is not None:
        more = f"{number(metrics.get('seconds'))} s in all steps"
        shown.append(
            ("Network", number(metrics["mpx_per_s"]), f"M{'px' if ndim == 2 else 'voxel'}/s", more)
        )
    return [dict(zip(("name", "value", "unit", "more"), card, strict=True)) for card in shown]


def share_text(metrics: dict) -> str:
    """Return how much of the image is object."""
    share = metrics.get("foreground_fraction")
    return "" if share is None else f"{100 * share:.3g} % of the image"


def size_card(metrics: dict, tiles: dict) -> tuple[str, str, str, str]:
    """Return the median size, in micrometers when they are known."""
    flat = len(tiles["shape"]) == 2
    name, key, unit = (
        ("Median area", "median_area_px", "px")
        if flat
        else ("Median volume", "median_volume_px", "voxels")
    )
    pixels = metrics.get(key)
    if pixels is None or not tiles["pixel_um"]:
        return name, number(pixels), unit, "pixel size unknown"
    size = pixels * math.prod(tiles["pixel_um"])
    return name, number(size), f"µm{'²' if flat else '³'}", f"{number(pixels)} {unit}"


def warnings(
    metrics: dict, tiles: dict, *, unsure: float | None, touching: float | None
) -> list[str]:
    """Return what a reader should know before using the numbers.

    Parameters
    ----------
    unsure, touching : float or None
        Share of the objects with a confidence below `UNSURE`, and of those cut by the image.
    """
    found = [*metrics.get("warnings", []), *tiles.get("warnings", [])]
    said = " ".join(found).lower()
    conflicts = metrics.get("seam_conflicts") or 0
    if conflicts and "disagree" not in said:
        found.append(f"tiles disagreed on {counted(conflicts, 'object', 'objects')}")
    if tiles.get("constant") and "constant" not in said:
        found.append("the image is constant: all pixels have the same intensity")
    if not metrics["n_objects"] and "no objects" not in said:
        found.append("no objects")
    if unsure is not None and unsure > MANY_UNSURE:
        found.append(f"{100 * unsure:.0f} % of the objects have a confidence below {UNSURE}")
    if touching is not None and touching > MANY_TOUCHING:
        share = f"{100 * touching:.0f} %"
        found.append(f"{share} of the objects touch the image border, which cuts them")
    return [f"{text[:1].upper()}{text[1:]}." for text in serious(found)]


def serious(found: Sequence[str]) -> list[str]:
    """Return the warnings that bear on the objects, each once.

    An unknown pixel size does not: it is so for all images of many microscopes, and the page
    says it beside the sizes.
    """
    return [text for text in dict.fromkeys(found) if "pixel size" not in text]


def numbers(metrics: dict) -> list[tuple[str, str]]:
    """Return all single values of the metrics for reading."""
    return [
        (NAMES.get(key, key.replace("_", " ")), number(value, 4))
        for key, value in metrics.items()
        if key not in ("warnings", "ap", "image", "model", "classes", "failed_tiles")
        and not isinstance(value, dict)
    ]


def classes(metrics: dict) -> list[dict[str, str]]:
    """Return size and number of objects of every class; none when the model tells no classes."""
    rows = []
    for one in metrics.get("classes", []):
        (px, um) = (key for key in one if key.startswith(("area_", "volume_")))
        size = f"{one[px]:,} px"
        if one[um] is not None:
            power = "\N{SUPERSCRIPT TWO}" if um.endswith("um2") else "\N{SUPERSCRIPT THREE}"
            size += f", {one[um]:,.1f} \N{MICRO SIGN}m{power}"
        rows.append(
            {
                "name": one["name"],
                "kind": one["kind"],
                "objects": "" if one["n_objects"] is None else f"{one['n_objects']:,}",
                "size": size,
                "share": f"{100 * one['fraction']:.2f} %",
            }
        )
    return rows


def origin(tiles: dict) -> list[tuple[str, str]]:
    """Return where the image and the model come from."""
    source, model = tiles.get("source", {}), tiles.get("model", {})
    low, high = tiles["limits"]
    percentiles = " and ".join(number(value) for value in tiles.get("percentiles") or [])
    rows = [
        ("file", source.get("path")),
        ("format", source.get("format")),
        ("bytes", number(source.get("bytes"))),
        ("SHA-256 of the file", source.get("sha256")),
        (
            "scene, frame",
            ", ".join(str(source[k]) for k in ("scene", "frame") if source.get(k) is not None),
        ),
        ("channel", tiles.get("channel")),
        ("data type", tiles.get("dtype")),
        (
            "intensity limits",
            f"{low:g} to {high:g} (percentiles {percentiles})",
        ),
        ("model", model.get("name")),
        ("SHA-256 of the model", model.get("sha256")),
        ("size of objects", sizing(tiles)),
        ("tile, halo, px", f"{number(tiles.get('core'))}, {number(tiles.get('halo'))}"),
        ("version", tiles.get("version")),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def sizing(tiles: dict) -> str:
    """Return how large the objects were taken to be, and what the network saw."""
    diameter, to = tiles.get("diameter_px"), tiles.get("grid_shape")
    if to is None:
        return ""
    size = f"median diameter {diameter[-1]:.3g} px" if diameter else "not known"
    text = f"{size} ({tiles.get('diameter_from')})"
    if list(to) == list(tiles["shape"]):
        return f"{text}: the network saw the image as it is"
    return f"{text}: the network saw the image as {' × '.join(map(str, to))} px"


def steps(provenance: dict) -> list[dict]:
    """Return seconds and memory of each step, jobs of one step together."""
    grouped: dict[str, list[dict]] = {}
    for record in provenance.get("steps") or []:
        grouped.setdefault(str(record.get("step", "?")), []).append(record)
    return [
        {
            "name": name,
            "jobs": number(sum(record.get("n_jobs", 1) for record in group)),
            "seconds": number(_known(group, "seconds", sum)),
            "cpu_seconds": number(_known(group, "cpu_seconds", sum)),
            "peak_memory_mb": number(_known(group, "peak_memory_mb", max)),
            "hosts": ", ".join(sorted({str(record.get("host", "")) for record in group})),
        }
        for name, group in grouped.items()
    ]


def _known(records: list[dict], key: str, together: Callable) -> float | None:
    values = [record[key] for record in records if isinstance(record.get(key), (int, float))]
    return together(values) if values else None


def subtitle(tiles: dict) -> str:
    """Return what the image is, in one line."""
    size = " × ".join(f"{length:,}" for length in tiles["shape"])
    spacing = tiles["pixel_um"]
    steps = " × ".join(f"{step:.4g}" for step in spacing or [])
    return " · ".join(
        (
            f"{size} px ({', '.join(tiles['axes'])})",
            str(tiles.get("dtype", "")),
            f"{steps} µm per pixel" if spacing else "pixel size unknown",
            f"channel {tiles.get('channel')}",
            f"model {tiles.get('model', {}).get('name')}",
        )
    )


def accuracy_text(metrics: dict) -> str:
    """Return the scores at IoU 0.5 and the scores of whole objects in one line."""
    words = (
        ("n_true", "true objects"),
        ("tp_50", "found"),
        ("fn_50", "missed"),
        ("fp_50", "false"),
        ("precision_50", "precision"),
        ("recall_50", "recall"),
        ("pq", "PQ"),
        ("aji", "AJI"),
        ("split_rate", "share split"),
        ("merge_rate", "share merged"),
    )
    return ", ".join(
        f"{text} {number(metrics[key])}" for key, text in words if metrics.get(key) is not None
    )
