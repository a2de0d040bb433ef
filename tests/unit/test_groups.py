import json

from iaunet import groups


def row(image, group="", **more):
    return {"image": image, "group": group, **more}


def test_the_first_group_of_the_table_is_what_the_others_are_compared_with():
    rows = [row(f"b{k}", "b", n_objects=10 + k) for k in range(5)]
    rows += [row(f"a{k}", "a", n_objects=20 + k) for k in range(4)]
    shown, data = groups.compared(rows)
    assert (shown["reference"], shown["n"]) == ("b", 2)
    first, second = data["measures"]["n_objects"]["lines"]
    assert first == ["5", "12", "11 to 13", ""]
    assert second == ["4", "21.5", "20.8 to 22.2", "+1.00 [+1.00, +1.00]"]


def test_an_image_counts_once_and_one_without_a_value_not_at_all():
    rows = [row("a", n_objects=1), row("b", n_objects=100_000), row("c", n_objects=None)]
    shown, data = groups.compared(rows)
    assert data["names"] == ["all images"]
    assert shown["n"] == 1
    (line,) = data["measures"]["n_objects"]["lines"]
    assert line[0] == "2"


def test_few_images_have_an_effect_without_an_interval():
    rows = [row("a", "x", n_objects=1), row("b", "y", n_objects=2), row("c", "z")]
    _, data = groups.compared(rows)
    lines = data["measures"]["n_objects"]["lines"]
    assert lines[1][-1] == "+1.00, too few images"
    assert lines[2] == ["0", "–", "–", "–"]


def test_sizes_are_in_micrometers_where_the_pixel_is_known():
    rows = [row(k, median_area_px=100.0, pixel_um=[0.5, 0.5]) for k in "ab"]
    _, data = groups.compared(rows)
    assert data["measures"]["median_area_um2"]["values"] == [25.0, 25.0]


def test_nothing_to_compare_is_nothing():
    assert groups.compared([]) is None
    assert groups.compared([row("a", n_objects=3)]) is None


def test_the_same_rows_give_the_same_text():
    rows = [row(str(k), f"g{k % 30}", n_objects=k) for k in range(120)]
    assert json.dumps(groups.compared(rows)[1]) == json.dumps(groups.compared(rows)[1])


def test_numbers_that_no_one_measures_are_none():
    wild = [float("nan"), float("inf"), 10**400, "12", [3]]
    rows = [row(str(k), n_objects=value) for k, value in enumerate(wild)]
    rows += [row("a", n_objects=3, pixel_um=["x", None]), row("b", n_objects=4)]
    _, data = groups.compared(rows)
    assert data["measures"]["n_objects"]["values"] == [None] * 5 + [3.0, 4.0]
