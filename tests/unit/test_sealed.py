import json
from pathlib import Path

import pytest

from iaunet import sealed
from iaunet.errors import InputError

FACTS = {"limits": [12.5, 1e300], "image": "é", "more": {"n": 3, "none": None}}
FILE = Path("a.json")


def test_what_was_sealed_comes_back():
    assert sealed.loads(sealed.dumps(FACTS), FILE) == FACTS
    assert sealed.loads(sealed.dumps({}), FILE) == {}


def test_no_changed_byte_gives_other_facts():
    text = sealed.dumps(FACTS).encode()
    for place in range(len(text)):
        changed = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
        try:
            found = sealed.loads(changed.decode(), FILE)
        except (ValueError, InputError):
            continue
        # Only the name of the checksum itself is not under it.
        assert {key: found[key] for key in FACTS} == FACTS


def test_a_text_without_checksum_is_taken_and_another_json_is_not():
    assert sealed.loads(json.dumps(FACTS), FILE) == FACTS
    with pytest.raises(ValueError, match="found a list, needs an object"):
        sealed.loads("[]", FILE)


def test_an_edited_value_is_named_with_its_file():
    text = sealed.dumps(FACTS).replace("12.5", "12.25")
    with pytest.raises(InputError, match=r"a\.json: damaged or edited.*run the step that writes"):
        sealed.loads(text, FILE)
