import re

import pytest

from iaunet import wording

TILES = {"shape": [10, 10], "pixel_um": None, "n_tiles": 1, "axes": ["y", "x"], "limits": [0, 1]}


def warned(metrics=None, tiles=None, unsure=0.0, touching=0.0):
    return wording.warnings(
        {"n_objects": 5, **(metrics or {})},
        {**TILES, **(tiles or {})},
        unsure=unsure,
        touching=touching,
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0, "0"),
        (1234567, "1,234,567"),
        (0.88976, "0.89"),
        (1536.25, "1,536"),
        (True, "yes"),
        ([3, 0.25], "3 × 0.25"),
        ("text", "text"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_read_well(value, text):
    assert wording.number(value) == text


def test_nothing_to_warn_of_is_no_warning():
    assert warned() == []


def test_each_thing_is_warned_of_once():
    said = warned(
        {"n_objects": 0, "warnings": ["no objects", "the image is constant: every pixel is 7"]},
        {"constant": True, "warnings": ["the image is constant: every pixel is 7"]},
    )
    assert said == ["No objects.", "The image is constant: every pixel is 7."]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"metrics": {"seam_conflicts": 1}}, "disagreed on 1 object$|disagreed on 1 object."),
        ({"unsure": 0.4}, "40 % of the objects have a confidence below"),
        ({"touching": 0.5}, "50 % of the objects touch the image border"),
        ({"tiles": {"constant": True}}, "constant"),
    ],
)
def test_what_bears_on_the_numbers_is_warned_of(more, text):
    (said,) = warned(**more)
    assert re.search(text, said)


def test_sizes_are_in_micrometers_when_the_pixel_size_is_known():
    metrics = {"n_objects": 3, "median_area_px": 100.0}
    cards = wording.cards(metrics, {**TILES, "pixel_um": [0.5, 0.5]})
    assert cards[1] == {"name": "Median area", "value": "25", "unit": "µm²", "more": "100 px"}
    assert wording.cards(metrics, TILES)[1]["more"] == "pixel size unknown"


def test_jobs_of_one_step_are_one_row():
    records = [
        {"step": "infer", "seconds": 2.0, "peak_memory_mb": 10, "host": "a"},
        {"step": "infer", "seconds": 3.0, "peak_memory_mb": 30, "host": "b"},
        {"step": "stitch", "n_jobs": 4, "host": "c"},
    ]
    infer, stitch = wording.steps({"steps": records})
    assert (infer["jobs"], infer["seconds"], infer["peak_memory_mb"]) == ("2", "5", "30")
    assert infer["hosts"] == "a, b"
    assert (stitch["jobs"], stitch["seconds"], stitch["hosts"]) == ("4", "–", "c")


def test_a_provenance_without_steps_has_none():
    assert wording.steps({}) == []


def test_an_unknown_pixel_size_is_no_reason_to_look():
    assert wording.serious(["no pixel size along y, x", "no objects", "no objects"]) == [
        "no objects"
    ]
