import jinja2
import pytest

from iaunet import page, views

EMPTY = {
    "image": "a",
    "subtitle": "",
    "warnings": [],
    "cards": [],
    "reference": None,
    "n_tiles": 1,
    "look": {
        "planes": [],
        "widths": "",
        "longest_px": 1,
        "colours": [],
        "histograms": [],
        "note": "",
        "n_chosen": 0,
        "counted": "",
    },
    "library": "",
    "figures": "",
    "projections": None,
    "zooms": [],
    "zoom_note": "",
    "seams": {"text": "", "views": []},
    "unsure": [],
    "unsure_note": "",
    "classes": [],
    "numbers": [],
    "origin": [],
    "steps": [],
    "provenance": "{}",
    "version": "0",
    "display_note": "",
}
ATTACK = "\"'><script>alert(1)</script>"


def test_a_page_without_anything_is_a_page():
    html = page.render("report.html", **EMPTY)
    assert html.startswith("<!DOCTYPE html>")
    assert "No warnings" in html


def test_a_missing_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="subtitle"):
        page.render("report.html", **{k: v for k, v in EMPTY.items() if k != "subtitle"})


def test_text_of_files_cannot_become_markup():
    view = views.View(
        title=ATTACK,
        picture=ATTACK,
        width=1,
        height=1,
        scale=(1, 1),
        layers=(views.Layer(ATTACK, ATTACK),),
        overlay=ATTACK,
        bar=(0.1, ATTACK),
        caption=ATTACK,
        tags=((0, 0, ATTACK),),
    )
    html = page.render(
        "report.html",
        **{
            **EMPTY,
            "image": ATTACK,
            "subtitle": ATTACK,
            "warnings": [ATTACK],
            "cards": [{"name": ATTACK, "value": ATTACK, "unit": ATTACK, "more": ATTACK}],
            "look": {
                **EMPTY["look"],
                "planes": [
                    {**dict.fromkeys(("name", "label", "aspect", "first"), ATTACK), "last": 1}
                ],
                "colours": [(ATTACK, ATTACK)],
                "histograms": [(ATTACK, ATTACK)],
                "note": ATTACK,
                "n_chosen": 1,
            },
            "zooms": [view],
            "unsure": [view],
            "projections": {
                "caption": ATTACK,
                "views": dict.fromkeys(("xy", "xz", "zy"), view),
            },
            "classes": [dict.fromkeys(("name", "kind", "objects", "size", "share"), ATTACK)],
            "numbers": [(ATTACK, ATTACK)],
            "provenance": ATTACK,
        },
    )
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;") > 20
