"""JSON files of the steps, with a checksum over all that they say: a changed byte shows."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from iaunet.errors import InputError

KEY = "checksum"


def dumps(facts: Mapping[str, object]) -> str:
    """Return facts as JSON text, their checksum the first key; NaN is an error of ours."""
    plain = json.loads(json.dumps(facts, allow_nan=False))
    return json.dumps({KEY: _checksum(plain), **plain}, indent=1) + "\n"


def loads(text: str, path: Path) -> dict:
    """Return the facts without their checksum; a text that has none is taken as it is.

    Raises
    ------
    ValueError
        The text is not a JSON object.
    InputError
        It is not what `dumps` wrote.
    """
    facts = json.loads(text)
    if not isinstance(facts, dict):
        raise ValueError(f"found a {type(facts).__name__}, needs an object")
    noted = facts.pop(KEY, None)
    if noted is not None and noted != _checksum(facts):
        raise InputError(
            f"{path}: damaged or edited: it does not have the checksum that it was written with; "
            "run the step that writes it again"
        )
    return facts


def _checksum(facts: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
