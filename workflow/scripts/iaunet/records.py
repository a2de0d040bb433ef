"""Read the provenance.json of an image."""

import json
from collections.abc import Mapping
from pathlib import Path

from iaunet.errors import InputError

INPUTS = {"image": "input", "reference": "reference_source", "model": "model"}
"""What went into an image, by its key in provenance.json: path, bytes and sha256 of each."""
NEEDED = ("image", "folder", "input", "model", "code", "config", "steps")


def read(path: Path) -> dict:
    """Return a provenance.json, checked."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; needs the provenance.json of an image") from None
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    absent = [key for key in NEEDED if not isinstance(found, dict) or found.get(key) is None]
    if absent:
        raise InputError(
            f"{path}: has no '{absent[0]}'; needs a provenance.json that a run of the workflow "
            "wrote, of this version or later"
        )
    return found


def inputs(provenance: Mapping) -> dict[str, Mapping]:
    """Return path, bytes and sha256 of image, reference (when there is one) and model."""
    return {name: provenance[key] for name, key in INPUTS.items() if provenance.get(key)}
