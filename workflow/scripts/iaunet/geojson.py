"""Write objects as the GeoJSON that QuPath imports."""

import json
import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from iaunet.rings import Polygon

NAMES = uuid.UUID("6f1c6f2c-3a0f-5d0e-9d6b-1e5a6a2f4c11")
"""Of the ids of objects: image and label always give the same one."""
COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)
"""Of classes, by number: Okabe and Ito, told apart by everybody."""


def feature(
    image: str,
    label: int,
    polygons: Sequence[Polygon],
    measurements: Mapping[str, float],
    kind: str = "",
    colour: Sequence[int] = COLOURS[0],
) -> dict[str, object]:
    """Return one object as QuPath's detection.

    Coordinates are x and y in pixels of the image. What is not finite is left out of the
    measurements: JSON has no NaN. The keys are those of QuPath's PathObjectTypeAdapters, from
    version 0.4 on; an `id` is a UUID there.

    Parameters
    ----------
    kind : its class; empty: none
    """
    coordinates = [[_closed(ring.tolist()) for ring in rings] for rings in polygons]
    one = len(coordinates) == 1
    geometry = {
        "type": "Polygon" if one else "MultiPolygon",
        "coordinates": coordinates[0] if one else coordinates,
    }
    properties: dict[str, object] = {"objectType": "detection", "name": str(label)}
    if kind:
        properties["classification"] = {"name": kind, "color": list(colour)}
    properties["measurements"] = {
        name: value for name, value in measurements.items() if math.isfinite(value)
    }
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(NAMES, f"{image}/{label}")),
        "geometry": geometry,
        "properties": properties,
    }


def write(path: Path, features: Iterable[Mapping[str, object]]) -> None:
    """Write a collection, one feature per line and in memory at a time."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        for count, one in enumerate(features):
            file.write(",\n" if count else "\n")
            file.write(json.dumps(one, allow_nan=False, separators=(",", ":")))
        file.write("\n]}\n")


def _closed(ring: list) -> list:
    return [*ring, ring[0]]
