import base64
import gzip
import json
import subprocess
import sys

import numpy as np
import pytest

from iaunet import planes, plots
from runs import REPOSITORY


def test_what_is_packed_comes_back_and_has_no_markup():
    text = plots.packed({"a": "</script><b>", "b": [1, 2.5, None]})
    assert not set(text) & set("<>&\"'")
    found = json.loads(gzip.decompress(base64.b64decode(text.partition(",")[2])))
    assert found == {"a": "</script><b>", "b": [1, 2.5, None]}


def test_a_document_does_not_know_how_many_were_made_before():
    def made():
        edges, log = plots.bins(np.arange(5.0))
        figures = {"x": plots.histogram("p1", "p2", "p3", edges, log), "bar": plots.colour_bar()}
        return json.dumps(plots.document(figures))

    assert made() == made()


def test_what_bokeh_is_asked_once_does_not_change_a_figure():
    script = """
import json, sys
from iaunet import bokeh_once
if sys.argv[1] == "as ever":
    bokeh_once.use = lambda: None
from iaunet import planes, plots
plane = planes.Plane("XY", "", 30, 20, (0.5, 0.5), ([9], [9]), [], 0, 0)
edges, log = plots.bins(plots.np.arange(5.0))
figures = {**plots.plane_figures([plane], "µm"), "bar": plots.colour_bar()}
figures |= {"x": plots.histogram("p", "q", "r", edges, log), "strips": plots.strips(["a"])}
print(json.dumps(plots.document(figures)))
"""
    said = [
        subprocess.run(
            [sys.executable, "-c", script, how],
            cwd=REPOSITORY / "workflow/scripts",
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for how in ("once", "as ever")
    ]
    assert said[0] == said[1] != ""


def test_a_document_names_the_element_of_every_figure():
    found = plots.document({"left": plots.colour_bar(), "right": plots.strips(["a"])})
    (item,) = found["items"]
    assert sorted(item["roots"].values()) == ["left", "right"]
    roots = [one["id"] for one in found["documents"]["page"]["roots"]]
    assert roots == item["root_ids"] == list(item["roots"])


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([], id="no objects"),
        pytest.param([5.0], id="one object"),
        pytest.param([3.0] * 100, id="all alike"),
        pytest.param([np.nan, np.inf, 1.0], id="not all finite"),
        pytest.param(np.geomspace(1, 1e6, 5000), id="six decades"),
        pytest.param([-4.0, 0.0, 2.5e299], id="negative and huge"),
        pytest.param([1e15, 1e15 + 1], id="closer than their size allows"),
    ],
)
def test_bins_hold_all_finite_values_and_grow(values):
    values = np.array(values, float)
    edges, _ = plots.bins(values)
    known = values[np.isfinite(values)]
    assert (np.diff(edges) > 0).all()
    assert ((known >= edges[0] * (1 - 1e-9)) | (known >= edges[0])).all()
    assert ((known <= edges[-1] * (1 + 1e-9)) | (known <= edges[-1])).all()
    assert 8 <= len(edges) - 1 <= 48


@pytest.mark.parametrize(("width", "height"), [(100, 50), (1, 5000), (5000, 1)])
def test_a_picture_has_square_pixels_however_long_it_is(width, height):
    plane = planes.Plane("XY", "", width, height, (0.5, 0.5), ([], []), [], 0, 0)
    (shown,) = plots.plane_figures([plane], None).values()
    across = shown.x_range.end - shown.x_range.start
    down = shown.y_range.start - shown.y_range.end
    assert across / down == pytest.approx(shown.aspect_ratio)
    assert across >= width
    assert down >= height
