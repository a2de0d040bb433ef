import numpy as np
import pytest

from iaunet import grid, quarantine
from iaunet.errors import InputError


def failed(*boxes):
    return [
        quarantine.failure(grid.Tile(k, tuple(slice(*s) for s in box)), k, "infer", "why")
        for k, box in enumerate(boxes)
    ]


def test_what_works_at_the_second_try_counts():
    tries = []

    def work():
        tries.append(1)
        if len(tries) == 1:
            raise RuntimeError("once")
        return "done"

    assert quarantine.attempt(work, "tile 3") == "done"
    assert len(tries) == 2


def test_what_fails_twice_says_why_in_one_line(caplog):
    def work():
        raise RuntimeError("first line\nsecond line" + 999 * "x")

    found = quarantine.attempt(work, "tile 3")
    assert found.cause.startswith("RuntimeError: first line second line")
    assert len(found.cause) <= quarantine.LONGEST_CAUSE
    assert "tile 3 failed, once more" in caplog.text
    assert "tile 3 failed, twice" in caplog.text


@pytest.mark.parametrize("error", [InputError("damaged store"), OSError(28, "No space left")])
def test_what_concerns_the_whole_image_passes(error):
    def work():
        raise error

    with pytest.raises(type(error)):
        quarantine.attempt(work, "tile 3")


def test_a_batch_without_any_tile_left_is_an_error_but_not_one_tile_of_several():
    some = failed([(0, 4)], [(4, 8)])
    quarantine.check_some_left([], 2, 2)
    quarantine.check_some_left(some[:1], 2, 2)
    quarantine.check_some_left(some[:1], 1, 2)
    for found, n_tiles, n_in_image in ((some, 2, 9), (some[:1], 1, 1)):
        with pytest.raises(InputError, match=f"all {n_tiles} tiles of batch 0 failed twice"):
            quarantine.check_some_left(found, n_tiles, n_in_image)


def test_objects_are_near_when_their_box_comes_within_the_margin_of_any_region():
    low, high = np.array([[0, 0], [0, 7], [9, 9]]), np.array([[3, 2], [3, 8], [9, 9]])
    where = failed([(4, 6), (0, 3)], [(20, 30), (20, 30)])
    assert quarantine.within(low, high, where, [1, 1]).tolist() == [True, False, False]
    assert quarantine.within(low, high, where, [1, 5]).tolist() == [True, True, False]
    assert quarantine.within(low, high, where, [11, 11]).tolist() == [True, True, True]
    assert not quarantine.within(low[:0], high[:0], where, [1, 1]).size
    assert not quarantine.within(low, high, [], [9, 9]).any()


def test_voxels_that_point_into_a_region_are_counted():
    lost = np.array([[1, 1, 0, 1]], dtype=bool)
    off = np.zeros((2, 1, 4))
    off[1] = [3, 30, 3, -1]
    where = failed([(5, 6), (12, 16)])
    assert quarantine.pointing_in(lost, off, (5, 10), where) == 2
    assert quarantine.pointing_in(np.zeros_like(lost), off, (5, 10), where) == 0


def test_regions_come_to_the_grid_of_the_image_whole():
    (found,) = quarantine.on_grid(failed([(10, 20), (0, 15)]), (20, 15), (30, 60))
    assert found["box"] == [[15, 30], [0, 60]]
