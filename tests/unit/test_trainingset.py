import numpy as np
import pytest
import tifffile

from iaunet import trainingset
from iaunet.errors import InputError
from runs import write_table


@pytest.fixture
def folder(tmp_path, rng):
    tifffile.imwrite(tmp_path / "image.tif", rng.integers(0, 999, (20, 30)).astype(np.uint16))
    tifffile.imwrite(tmp_path / "mask.tif", rng.integers(0, 3, (20, 30)).astype(np.uint8))
    return tmp_path


def table(folder, **columns):
    row = {"image": "a", "path": "image.tif", "reference": "mask.tif", **columns}
    return write_table(folder / "table.csv", [row])


def test_a_row_names_files_side_and_weight(folder):
    (entry,) = trainingset.read_table(table(folder, split="train", weight="2.5", group="g"))
    assert (entry.name, entry.group, entry.side, entry.weight) == ("a", "g", "train", 2.5)
    image, labels, annotated = entry.read()
    assert image.shape == labels.shape == (20, 30)
    assert annotated is None
    (entry,) = trainingset.read_table(table(folder, roi="mask.tif"))
    assert entry.weight is None
    assert entry.side == trainingset.side_of("a")
    np.testing.assert_array_equal(entry.read()[2], labels > 0)


@pytest.mark.parametrize("weight", ["0", "-1", "much", "inf", "nan"])
def test_a_weight_is_a_number_above_0(folder, weight):
    with pytest.raises(InputError, match=f"row 2: weight is '{weight}', needs a number above 0"):
        trainingset.read_table(table(folder, weight=weight))


def test_images_that_do_not_fit_into_memory_are_refused_before_they_are_read(folder, monkeypatch):
    path = table(folder, split="train")
    entries = trainingset.read_table(path)
    trainingset.check_memory(entries, path)
    trainingset.check_memory([], None)
    monkeypatch.setattr(trainingset, "free_bytes", lambda: 600 * 16 - 1)
    with pytest.raises(InputError, match=r"needs 0.0 GB of memory for 600 voxels, .* leave images"):
        trainingset.check_memory(entries, path)
    monkeypatch.setattr(trainingset, "free_bytes", lambda: 600 * 16)
    trainingset.check_memory(entries, path)
    validation = trainingset.read_table(table(folder, split="validation"))
    with pytest.raises(InputError, match=r"needs 0\.0 GB"):
        trainingset.check_memory(validation, path)


def test_an_image_to_validate_with_goes_through_the_network_at_once(folder, monkeypatch):
    monkeypatch.setattr(trainingset, "VALIDATION_VOXELS", 599)
    trainingset.read_table(table(folder, split="train"))
    with pytest.raises(InputError, match="600 voxels, at most 599 to validate with; cut it"):
        trainingset.read_table(table(folder, split="validation"))
