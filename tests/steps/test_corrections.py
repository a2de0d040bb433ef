"""Labels that a person corrected and saved come back as reference and as masks of a training."""

import json

import numpy as np
import pytest
import tifffile
import zarr

import evaluate
from iaunet import omezarr, trainingset
from runs import write_table


def result(folder, labels):
    """Write the OME-Zarr of a result."""
    store = folder / "a.ome.zarr"
    omezarr.create_image(store, labels.shape, "yx", np.uint8, (0.5, 0.5), "a", {"channel": "0"})
    omezarr.add_labels(store, "instances", np.uint32)[...] = labels
    return store


def save(path, labels, dtype):
    """Save a label layer as napari does: a compressed TIFF of its own type, or Zarr."""
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".tif":
        tifffile.imwrite(path, labels.astype(dtype), compression="zlib")
    else:
        zarr.create_array(path, data=labels.astype(dtype), chunks=(16, 16))
    return path


@pytest.mark.parametrize("name", ["a.tif", "a.zarr"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.uint64])
def test_a_saved_label_layer_is_a_reference_and_a_mask(tmp_path, rng, name, dtype):
    labels = np.zeros((40, 60), np.uint32)
    labels[5:15, 5:20], labels[20:35, 30:50] = 1, 2
    corrected = labels.copy()
    corrected[20:35, 45:50] = 3  # cut in two
    path = save(tmp_path / "corrections" / name, corrected, dtype)
    scores = tmp_path / "scores.json"
    store = result(tmp_path, labels)
    words = ["--predicted", store, "--reference", path, "--output-json", scores]
    evaluate.main([str(word) for word in words])
    found = json.loads(scores.read_text())
    assert [found[name] for name in ("n_true", "tp_50", "fp_50", "fn_50")] == [3, 2, 0, 1]
    tifffile.imwrite(tmp_path / "a.tif", rng.integers(0, 99, labels.shape).astype(np.uint8))
    rows = [
        {"image": k, "path": "a.tif", "reference": f"corrections/{name}", "split": split}
        for k, split in (("a", "train"), ("b", "validation"))
    ]
    entries = trainingset.read_table(write_table(tmp_path / "images.csv", rows))
    _, masks, _ = entries[0].read()
    np.testing.assert_array_equal(masks, corrected)
