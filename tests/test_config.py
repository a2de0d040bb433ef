"""config.yaml, its schema, the table's schema and the library speak of the same things."""

from pathlib import Path

import pytest
import yaml

from iaunet import settings, tables
from iaunet.schema import Schema
from runs import REPOSITORY

SCHEMAS = REPOSITORY / "workflow/schemas"


def defaults():
    return yaml.safe_load((REPOSITORY / "config.yaml").read_text())


def config_schema():
    return Schema(SCHEMAS / "config.schema.yaml")


def same_keys(config, schema):
    assert list(config) == list(schema["properties"])
    assert schema["additionalProperties"] is False
    for key, value in config.items():
        if isinstance(value, dict) and value:
            same_keys(value, schema["properties"][key])


def test_every_key_has_a_default_and_an_entry_in_the_schema():
    same_keys(defaults(), config_schema().values)


def test_the_defaults_are_valid():
    assert list(config_schema().problems(defaults())) == []


def test_ranges_of_thresholds_are_those_of_the_clustering():
    properties = config_schema().values["properties"]["clustering"]["properties"]
    assert set(properties) == {*settings.RANGES, *settings.WORDS}
    for name, words in settings.WORDS.items():
        assert properties[name]["enum"] == list(words)
    for name, (low, high) in settings.RANGES.items():
        number = properties[name].get("anyOf", [properties[name]])[0]
        assert (number["minimum"], number["maximum"]) == (low, high), name
        assert (number["type"] == "integer") == (name in settings.INTEGERS), name


def test_columns_of_the_table_are_those_that_the_library_reads():
    schema = yaml.safe_load((SCHEMAS / "images.schema.yaml").read_text())
    assert tuple(schema["properties"]) == tables.IMAGES
    assert tuple(schema["required"]) == tables.REQUIRED_OF_IMAGES


def test_every_description_says_what_is_needed():
    def descriptions(schema):
        for value in schema["properties"].values():
            yield value["description"]
            yield from descriptions(value) if "properties" in value else ()

    assert all(descriptions(config_schema().values))


@pytest.mark.parametrize(
    ("key", "value", "needs"),
    [
        ("tiling.core_px", [256, True], "auto, or"),
        ("tiling.core_px", [256], "auto, or"),
        ("tiling.halo", "huge", "exact, fast, or"),
        ("tiling.tiles_per_batch", 0, "at least 1"),
        ("normalize.percentiles", [1, 100.5], "0 to 100"),
        ("clustering.seed", 2, "from 0 to 1"),
        ("clustering.mode", "mean-shift", "local or meanshift"),
        ("device", "cuda:x", "cuda:N"),
        ("exports", "geojson", "a list of geojson, rois"),
        ("device", "cpu\n", "cuda:N"),
        ("training.name", "../x", "letters"),
        ("training.start", 3, "or null"),
        ("training.classes", "nucleus", "a list"),
        ("ablation.rows", ["x"], "resources/ablation.csv"),
        ("ablation.seeds", 0, "1 to 20"),
        ("images", 3, "CSV"),
        ("tiling", None, "a section"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_needed(key, value, needs):
    config = defaults()
    *sections, last = key.split(".")
    target = config
    for section in sections:
        target = target[section]
    target[last] = value
    ((found, text),) = config_schema().problems(config)
    assert found == key
    assert needs in text


def test_demo_table_and_shipped_files_are_where_the_defaults_say():
    assert (REPOSITORY / Path(defaults()["images"])).is_file()
