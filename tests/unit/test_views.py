import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from iaunet import views


def points(path):
    """Return the corners of each outline of an SVG path, (x, y) in half pixels."""
    found = []
    for part in path.split("M")[1:]:
        numbers = [int(text) for text in re.findall(r"-?\d+", part)]
        steps = np.array(numbers).reshape(-1, 2)
        found.append(np.cumsum(steps, axis=0))
    return found


def test_the_outline_runs_between_the_pixels():
    labels = np.zeros((5, 6), int)
    labels[1:4, 2:5] = 7
    (corners,) = points(views.outlines(labels, "found").path)
    assert corners.min(axis=0).tolist() == [4, 2]
    assert corners.max(axis=0).tolist() == [10, 8]


def test_touching_instances_have_an_outline_each():
    labels = np.array([[0, 0, 0, 0], [0, 1, 2, 0], [0, 1, 2, 0], [0, 0, 0, 0]])
    assert len(points(views.outlines(labels, "found").path)) == 2


def test_an_instance_that_the_window_cuts_stays_open():
    labels = np.zeros((6, 6), int)
    labels[2:4, :3] = 1
    path = views.outlines(labels, "found").path
    assert "z" not in path
    assert points(path)[0].min() < 0


def test_an_instance_at_the_border_of_a_plane_is_closed_along_it():
    labels = np.zeros((6, 6), int)
    labels[:2, :3] = 4
    ((label, (line,)),) = views.contours(labels, closed=True)
    assert label == 4
    assert (line[0] == line[-1]).all()
    assert (line.min(axis=0).tolist(), line.max(axis=0).tolist()) == ([0, 0], [4, 6])


def test_a_hole_is_outlined_too():
    labels = np.ones((7, 7), int)
    labels[3, 3] = labels[0] = labels[-1] = labels[:, 0] = labels[:, -1] = 0
    labels[3, 3] = 0
    assert len(points(views.outlines(labels, "found").path)) == 2


@pytest.mark.parametrize(
    "labels",
    [np.zeros((4, 4), np.uint32), np.zeros((1, 1), np.uint8)],
)
def test_no_instances_give_no_lines(labels):
    assert views.outlines(labels, "found").path == ""


def test_a_window_without_background_is_outlined():
    labels = np.array([[1, 2], [1, 2]], np.uint64) + 2**40
    assert len(points(views.outlines(labels, "found").path)) == 2


def test_tile_borders_lie_at_multiples_of_the_core():
    layer = views.grid_lines((10, 20), (95, 0), (100, 8), "seam")
    assert layer.path == "M0 10H40M16 0V20M32 0V20"


def test_no_tile_border_runs_along_the_image_border():
    assert views.grid_lines((100, 100), (0, 0), (100, 100), "seam").path == ""


@pytest.mark.parametrize(
    ("width_um", "text"),
    [(110.0, "20 µm"), (9000.0, "2 mm"), (1.0, "200 nm"), (0.0, None), (float("nan"), None)],
)
def test_the_scale_bar_has_a_round_length(width_um, text):
    bar = views.scale_bar(width_um)
    assert bar is text if text is None else bar[1] == text


def test_the_scale_bar_is_as_long_as_it_says():
    share, text = views.scale_bar(300.0)
    assert share * 300 == pytest.approx(float(text.split()[0]), rel=0.01)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.float64])
def test_intensities_between_the_limits_use_all_greys(dtype):
    plane = np.array([[0, 10, 100, 120]], dtype)
    shown = views.grey(plane, (10, 100))
    assert shown.tolist() == [[0, 0, 255, 255]]


@pytest.mark.parametrize("limits", [(7, 7), (float("nan"), 1)])
def test_a_constant_image_is_grey(limits):
    assert np.unique(views.grey(np.full((3, 3), 7), limits)).tolist() == [96]


def test_not_a_number_is_black():
    assert views.grey(np.array([[np.nan, 1.0]]), (0, 1))[0, 0] == 0


def test_a_view_has_the_aspect_of_the_sample_not_of_the_array():
    view = views.view(np.zeros((10, 100)), title="XZ", limits=(0, 1), spacing=(2.0, 0.5))
    assert (view.width, view.height) == (100, 40)
    assert view.scale == (0.5, 2.0)


def test_a_picture_is_a_jpeg_of_the_right_aspect():
    view = views.view(np.zeros((30, 60)), title="a", limits=(0, 1), smallest_px=120)
    kind, _, text = view.picture.partition(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (120, 60)


def test_borders_as_pixels_are_transparent_between():
    labels = np.zeros((8, 8), int)
    labels[2:6, 2:6] = 3
    uri = views.outline_pixels(labels, (255, 176, 0))
    pixels = np.asarray(
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGBA")
    )
    assert pixels[4, 4, 3] == 0
    assert pixels[1, 3].tolist()[:3] == [255, 176, 0]
    assert pixels[1, 3, 3] > 0
