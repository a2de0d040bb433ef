"""Compare values with a JSON schema; say what was found and what is needed."""

import difflib
import json
from collections.abc import Iterator, Sequence
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
                        yield ".".join([*keys, key]), unknown("key", key, known)
            elif error.validator == "required":
                for key in sorted(set(error.validator_value) - set(error.instance)):
                    yield ".".join([*keys, key]), "absent; needs a value"
            else:
                found, schema = values, self.values
                for key in keys:
                    found, schema = found[key], schema["properties"][key]
                yield ".".join(keys), f"found {shown(found)}; needs {schema['description']}"


def unknown(kind: str, name: str, known: Sequence[str]) -> str:
    """Return the complaint about a name that is not among the known ones, with the nearest."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    return f"unknown {kind}; did you mean '{near}'? Known: {', '.join(known)}"


def shown(value: object) -> str:
    """Return a value as a short text on one line.

    Examples
    --------
    >>> shown("a b"), shown([1, 2])
    ("'a b'", '[1, 2]')
    """
    text = json.dumps(value) if isinstance(value, (list, dict)) else repr(value)
    return text if len(text) <= 100 else f"{text[:80]}... ({len(text)} characters)"
