"""Panoptic segments: every voxel has one, objects before stuff, and the table says which."""

import json

import numpy as np
import pandas as pd
import pytest

import panoptic
from iaunet import omezarr, tables

CLASSES = [
    {"name": "nucleus", "thing": True},
    {"name": "tissue", "thing": False},
    {"name": "glass", "thing": False},
]


def finished(folder, labels, classes):
    """Write a store and a table of objects, of the class nucleus but for the second."""
    axes = "zyx"[-labels.ndim :]
    store = folder / "a.ome.zarr"
    omezarr.create_image(store, labels.shape, axes, np.uint8, None, "a", {"channel": "0"})
    omezarr.add_labels(store, "instances", np.uint32)[...] = labels
    if classes is not None:
        array = omezarr.add_labels(store, "semantic", np.uint8, {"classes": CLASSES})
        array[...] = classes
    rows = []
    for label in range(1, labels.max() + 1):
        where = np.argwhere(labels == label)
        row = {"label": label, "area_px" if labels.ndim == 2 else "volume_px": len(where)}
        for k, axis in enumerate(axes):
            row |= {
                f"bbox_{axis}_min": where[:, k].min(),
                f"bbox_{axis}_max": where[:, k].max() + 1,
            }
        rows.append(row | ({} if classes is None else {"class": "" if label == 2 else "nucleus"}))
    tables.write_csv(pd.DataFrame(rows), folder / "objects.csv")
    options = ["--store", store, "--objects", folder / "objects.csv"]
    options += ["--output", folder / "p.json", "--labels", folder / "p.zarr"]
    panoptic.main([str(word) for word in options])
    (annotation,) = (found := json.loads((folder / "p.json").read_text()))["annotations"]
    assert annotation["file_name"] == "p.zarr"
    level = omezarr.open_level(folder / "p.zarr")[...]
    return level, annotation["segments_info"], found["categories"]


@pytest.mark.parametrize("shape", [(40, 1500), (20, 30, 600)], ids=["2d", "3d"])
def test_the_table_says_what_the_label_image_holds(tmp_path, rng, shape):
    labels = np.zeros(shape, np.uint32)
    for k in range(3):
        labels[..., 5:15, 10 + 40 * k : 30 + 40 * k] = k + 1
    classes = rng.integers(0, 3, shape).astype(np.uint8)
    found, segments, categories = finished(tmp_path, labels, classes)
    tissue = (classes == 2) & (labels == 0)
    np.testing.assert_array_equal(found, np.where(tissue, 3 + 2, labels))
    assert [one["name"] for one in categories] == ["nucleus", "tissue", "glass", "object"]
    assert [one["isthing"] for one in categories] == [1, 0, 0, 1]
    assert [(one["id"], one["category_id"]) for one in segments] == [(1, 1), (2, 4), (3, 1), (5, 2)]
    for one in segments:
        where = np.argwhere(found == one["id"])[:, ::-1]
        assert one["area"] == len(where)
        sides = np.ptp(where, axis=0) + 1
        assert one["bbox"] == [*where.min(axis=0), *sides]


def test_without_classes_every_object_is_a_segment(tmp_path):
    labels = np.array([[0, 1, 1], [2, 0, 1]], np.uint32)
    found, segments, categories = finished(tmp_path, labels, None)
    np.testing.assert_array_equal(found, labels)
    assert [one["category_id"] for one in segments] == [1, 1]
    assert categories == [{"id": 1, "name": "object", "isthing": 1}]
