"""Compare values with a JSON schema; say what was found and what is needed."""

import difflib
import itertools
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jsonschema
import yaml


class Schema:
    """A schema whose descriptions say, in error messages, what is needed."""

    def __init__(self, path: Path) -> None:
        self.values = yaml.safe_load(path.read_text(encoding="utf-8"))
        self.validator = jsonschema.Draft202012Validator(self.values)

    def problems(self, values: object) -> Iterator[tuple[str, str]]:
        """Yield (keys joined by dots, what was found and what is needed) of every mistake."""
        for error in self.validator.iter_errors(values):
            keys = [key for key in error.absolute_path if isinstance(key, str)]
            if error.validator == "additionalProperties":
                known = sorted(error.schema["properties"])
                for key in error.instance:
                    if key not in known:
                        yield ".".join([*keys, key]), unknown("key", key, known, self.places(key))
            elif error.validator == "required":
                for key in sorted(set(error.validator_value) - set(error.instance)):
                    yield ".".join([*keys, key]), "absent; needs a value"
            else:
                found, schema = values, self.values
                for key in keys:
                    found, schema = found[key], schema["properties"][key]
                text = f"found {shown(found)}; needs {schema['description']}"
                comma = isinstance(found, str) and DECIMAL_COMMA.fullmatch(found)
                yield ".".join(keys), f"{text}; write a point for the comma" if comma else text

    def places(self, key: str) -> list[str]:
        """Return where a key belongs, sections and it joined by dots."""
        return [name for name in names_of(self.values) if name.rpartition(".")[2] == key]


PATH_HINTS = {
    "\\": "needs / between folders",
    "*": "patterns are not expanded; give every file a row",
    "~": "~ is not expanded; give the whole path",
}
MOST_FILES = 10_000
"""Names of a folder that are compared with one that is not there."""
DECIMAL_COMMA = re.compile(r"[0-9]*,[0-9]+")


def names_of(schema: Mapping, prefix: str = "") -> Iterator[str]:
    """Yield every key of a schema, sections and it joined by dots."""
    for key, inner in schema.get("properties", {}).items():
        yield f"{prefix}{key}"
        yield from names_of(inner, f"{prefix}{key}.")


def unknown(kind: str, name: str, known: Sequence[str], places: Sequence[str] = ()) -> str:
    """Return the complaint about a name that is not among the known ones, with the nearest.

    `places` are where exactly this name belongs, which is nearer.
    """
    near = places or difflib.get_close_matches(name, known, n=1, cutoff=0.0)
    meant = " or ".join(f"'{one}'" for one in near)
    return f"unknown {kind}; did you mean {meant}? Known: {', '.join(known)}"


def near_files(path: Path) -> str:
    """Return what may be wrong with a path that is not there, or the name that may be meant."""
    text = str(path)
    for mark, hint in PATH_HINTS.items():
        if mark in text:
            return f" ({hint})"
    try:
        with os.scandir(path.parent) as entries:
            names = {one.name.casefold(): one.name for one in itertools.islice(entries, MOST_FILES)}
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(path.name.casefold(), list(names), n=1, cutoff=0.8)
    return f" (did you mean {shown(names[near[0]])}?)" if near else ""


def shown(value: object) -> str:
    """Return a value as a short text on one line.

    Examples
    --------
    >>> shown("a b"), shown([1, 2])
    ("'a b'", '[1, 2]')
    """
    text = json.dumps(value) if isinstance(value, (list, dict)) else repr(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"
