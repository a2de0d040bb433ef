"""Labels leave for other programs and come back, through the readers of those, as they were."""

import json

import anndata
import numpy as np
import pandas as pd
import pytest
import roifile
import shapely
import tifffile

import export_labels
from iaunet import features, images, omezarr, rings, tables
from iaunet.errors import InputError

PIXEL_UM = {2: (0.5, 0.25), 3: (2.0, 0.5, 0.25)}


def scattered(shape, rng, n=40):
    """Draw objects with holes, of several pieces, of one pixel, at the border, touching."""
    labels = np.zeros(shape, np.uint32)
    for label in range(1, n + 1):
        start = [int(rng.integers(0, length)) for length in shape]
        box = tuple(slice(a, a + int(rng.integers(1, 12))) for a in start)
        labels[box] = np.where(rng.random(labels[box].shape) < 0.7, label, labels[box])
    return labels


def finished(folder, labels, pixel_um="known", classes=None):
    """Write the store and the table of a finished image; return the options of the step."""
    axes, store = "zyx"[-labels.ndim :], folder / "a.ome.zarr"
    pixel_um = PIXEL_UM[labels.ndim] if pixel_um == "known" else None
    group = omezarr.create_image(
        store, labels.shape, axes, np.uint8, pixel_um, "a", {"channel": "DAPI"}
    )
    image = np.arange(labels.size).reshape(labels.shape).astype(np.uint8)
    group["0"][...] = image
    omezarr.add_labels(store, "instances", labels.dtype)[...] = labels
    block = (64,) * labels.ndim
    found = features.measure_objects(
        labels, image, block_px=block, pixel_um=pixel_um, channel="DAPI"
    )
    n = len(found["label"])
    found |= {"image": ["a"] * n, "confidence": np.linspace(1, 0, n)}
    found |= {"crosses_seam": np.zeros(n, bool), "n_tiles": np.ones(n, np.int64)}
    objects = tables.conform(found, features.object_columns(labels.ndim, "DAPI", image.dtype))
    if classes is not None:
        objects = objects.assign(**{"class": [classes[k % len(classes)] for k in range(n)]})
    tables.write_parquet(objects, folder / "objects.parquet")
    return {"--store": store, "--objects": folder / "objects.parquet"}


def export(folder, options, to, suffix):
    output = folder / f"out{suffix}"
    words = {**options, "--to": to, "--output": output}
    export_labels.main([str(word) for pair in words.items() for word in pair])
    return output


def painted(shape, features_):
    """Return the labels of GeoJSON features, painted by their polygons."""
    labels = np.zeros(shape, np.uint32)
    for one in features_:
        parts = shapely.geometry.shape(one["geometry"])
        assert parts.is_valid
        found = [
            [np.array(ring.coords)[:-1] for ring in (part.exterior, *part.interiors)]
            for part in getattr(parts, "geoms", [parts])
        ]
        mask = rings.filled(found, shape)
        assert mask.sum() == parts.area == one["properties"]["measurements"]["area_px"]
        assert not labels[mask].any()
        labels[mask] = int(one["properties"]["name"])
    return labels


def test_geojson_gives_the_labels_back_with_classes_and_measurements(tmp_path, rng):
    labels = scattered((150, 210), rng)
    options = finished(tmp_path, labels, classes=["", "tumour <b>", "stroma"])
    output = export(tmp_path, options, "geojson", ".geojson")
    read = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert read["type"] == "FeatureCollection"
    np.testing.assert_array_equal(painted(labels.shape, read["features"]), labels)
    objects = tables.read_parquet(options["--objects"]).set_index("label")
    assert len({one["id"] for one in read["features"]}) == len(objects)
    for one in read["features"]:
        assert one["type"] == "Feature"
        row = objects.loc[int(one["properties"]["name"])]
        assert one["properties"]["objectType"] == "detection"
        assert one["properties"].get("classification", {}).get("name", "") == row["class"]
        measured = one["properties"]["measurements"]
        assert measured["mean_intensity_DAPI"] == row["mean_intensity_DAPI"]
        assert not {"image", "class"} & measured.keys()
    kinds = {one["geometry"]["type"] for one in read["features"]}
    assert kinds == {"Polygon", "MultiPolygon"}


def test_objects_in_many_blocks_and_larger_than_a_block_come_back(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(export_labels, "BLOCK_PX", {2: (32, 16)})
    labels = scattered((90, 100), rng, n=60)
    labels[10:80, 50] = 61
    output = export(tmp_path, finished(tmp_path, labels), "geojson", ".geojson")
    found = json.loads(output.read_text())["features"]
    np.testing.assert_array_equal(painted(labels.shape, found), labels)


@pytest.mark.parametrize("shape", [(150, 210), (5, 60, 70)], ids=["2d", "3d"])
def test_regions_of_imagej_give_the_labels_back(tmp_path, rng, shape):
    labels = scattered(shape, rng)
    output = export(tmp_path, finished(tmp_path, labels), "rois", ".zip")
    read = roifile.roiread(output)
    found = np.zeros_like(labels)
    sections = found[None] if labels.ndim == 2 else found
    for roi in read:
        parts = [np.asarray(part).astype(int) for part in roi.coordinates(multi=True)]
        mask = rings.filled([parts], shape[-2:])
        label, _, section = roi.name.partition("-z")
        assert roi.position == (int(section) if section else 0)
        sections[roi.position - 1 if section else 0][mask] = int(label)
        rows, columns = np.nonzero(mask)
        assert (roi.top, roi.left) == (rows.min(), columns.min())
    np.testing.assert_array_equal(found, labels)
    assert {roi.roitype.name for roi in read} == {"TRACED", "RECT"}


@pytest.mark.parametrize("to", ["tiff", "ome-tiff"])
@pytest.mark.parametrize("shape", [(150, 210), (5, 60, 70)], ids=["2d", "3d"])
@pytest.mark.parametrize("largest", [40, 70_000])
def test_label_tiffs_hold_the_labels_and_the_pixel_size(tmp_path, rng, to, shape, largest):
    labels = scattered(shape, rng)
    labels[labels == labels.max()] = largest
    output = export(tmp_path, finished(tmp_path, labels), to, ".tif")
    with tifffile.TiffFile(output) as file:
        assert file.is_ome == (to == "ome-tiff")
        assert file.is_imagej == (to == "tiff")
        read = file.asarray()
    np.testing.assert_array_equal(read, labels)
    if to == "tiff":
        assert read.dtype == (np.uint16 if largest == 40 else np.float32)
    again = images.open_image(output)
    assert again.pixel_um == pytest.approx(PIXEL_UM[labels.ndim])
    assert again.axes == tuple("zyx"[-labels.ndim :])


@pytest.mark.parametrize("shape", [(150, 210), (5, 60, 70)], ids=["2d", "3d"])
@pytest.mark.parametrize("pixel_um", ["known", None])
def test_anndata_has_every_object_with_its_place_and_measurements(tmp_path, rng, shape, pixel_um):
    labels = scattered(shape, rng)
    options = finished(tmp_path, labels, pixel_um, classes=["x", ""])
    read = anndata.read_h5ad(export(tmp_path, options, "anndata", ".h5ad"))
    objects = tables.read_parquet(options["--objects"])
    np.testing.assert_array_equal(read.obs["label"], objects["label"])
    assert list(read.obs_names) == [str(label) for label in objects["label"]]
    assert read.obs["class"].tolist() == objects["class"].tolist()
    for name in read.var_names:
        np.testing.assert_array_equal(read[:, name].X.ravel(), objects[name].to_numpy(float))
    unit, axes = ("um" if pixel_um else "px"), "zyx"[-labels.ndim :]
    assert read.uns["iaunet"]["spatial_unit"] == unit
    places = objects[[f"{axis}_{unit}" for axis in axes[::-1]]]
    np.testing.assert_array_equal(read.obsm["spatial"], places)
    kept = {*read.obs.columns, *read.var_names}
    assert set(objects.columns) - kept == {f"{a}_{u}" for a in axes for u in ("px", "um")}
    attrs = read.uns["spatialdata_attrs"]
    assert attrs["region"] in read.obs[attrs["region_key"]].unique()
    assert read.obs[attrs["region_key"]].dtype == "category"
    assert read.obs[attrs["instance_key"]].dtype.kind == "i"
    assert read.obs[attrs["instance_key"]].is_unique


def test_labels_and_table_are_a_spatialdata_object_and_come_back(tmp_path):
    reason = "spatialdata needs dask below 2026.1.2, constraints.txt has a newer one"
    spatialdata = pytest.importorskip("spatialdata", reason=reason)
    from spatialdata import models

    labels = np.zeros((40, 50), np.uint32)
    labels[3:9, 4:12], labels[20:30, 20:40] = 1, 2
    options = finished(tmp_path, labels, (0.5, 0.5), classes=["x", ""])
    path = export(tmp_path, options, "anndata", ".h5ad")
    # AnnData 0.12 cannot write the texts of pandas 3 that it reads.
    with pd.option_context("future.infer_string", False):
        table = anndata.read_h5ad(path)
        models.TableModel().validate(table)
        region = table.uns["spatialdata_attrs"]["region"]
        whole = spatialdata.SpatialData(
            labels={region: models.Labels2DModel.parse(labels, dims=("y", "x"))},
            tables={"objects": table},
        )
        whole.write(tmp_path / "a.zarr")
        again = spatialdata.read_zarr(tmp_path / "a.zarr")
    np.testing.assert_array_equal(again.labels[region], labels)
    np.testing.assert_array_equal(again.tables["objects"].X, table.X)
    assert spatialdata.get_element_annotators(again, region) == {"objects"}


@pytest.mark.parametrize("to", export_labels.FORMATS)
def test_an_image_without_objects_gives_an_empty_file_that_opens(tmp_path, to):
    labels = np.zeros((20, 30), np.uint32)
    output = export(tmp_path, finished(tmp_path, labels), to, ".out")
    if to == "geojson":
        assert json.loads(output.read_text())["features"] == []
    elif to == "rois":
        import zipfile

        assert zipfile.ZipFile(output).namelist() == []
    elif to == "anndata":
        assert anndata.read_h5ad(output).n_obs == 0
    else:
        assert not tifffile.imread(output).any()


@pytest.mark.parametrize("to", export_labels.FORMATS)
def test_the_same_labels_give_the_same_bytes(tmp_path, rng, to):
    options = finished(tmp_path, scattered((60, 70), rng))
    once = export(tmp_path, options, to, ".1").read_bytes()
    assert export(tmp_path, options, to, ".2").read_bytes() == once


def test_outlines_of_a_3d_image_are_refused_for_qupath(tmp_path, rng):
    options = finished(tmp_path, scattered((4, 20, 30), rng, n=5))
    with pytest.raises(InputError, match=r"geojson holds outlines in a plane only.*use rois"):
        export(tmp_path, options, "geojson", ".geojson")
    assert not list(tmp_path.glob("*out*"))


def test_a_table_of_another_image_is_refused(tmp_path, rng):
    labels = scattered((60, 70), rng)
    options = finished(tmp_path, labels)
    objects = tables.read_parquet(options["--objects"])
    for change, says in (
        ({"area_px": objects["area_px"] + 1}, "give the table and the store of one run"),
        ({"bbox_x_max": objects["bbox_x_max"] + 100}, "lies outside"),
    ):
        tables.write_parquet(objects.assign(**change), options["--objects"])
        with pytest.raises(InputError, match=says):
            export(tmp_path, options, "rois", ".zip")
    tables.write_parquet(pd.DataFrame({"label": [1]}), options["--objects"])
    with pytest.raises(InputError, match="no column 'image'"):
        export(tmp_path, options, "tiff", ".tif")
    assert not list(tmp_path.glob("*out*"))


def test_more_labels_than_imagej_holds_are_refused(tmp_path):
    labels = np.array([[1, 1 << 25]], np.uint32)
    with pytest.raises(InputError, match="labels up to 33554432; ImageJ holds 16777216 at most"):
        export(tmp_path, finished(tmp_path, labels), "tiff", ".tif")


def test_an_imagej_tiff_beyond_4_gb_is_opened_as_a_whole(tmp_path):
    class Sparse:
        shape = (3, 40_000, 20_000)

        def __getitem__(self, box):
            return np.ones([side.stop - side.start for side in box], np.uint16)

    from iaunet import tiff

    box = (slice(2, 3), slice(39_990, 40_000), slice(19_990, 20_000))
    tiff.write_imagej_labels(tmp_path / "a.tif", Sparse(), np.uint16, None, [box])
    image = images.open_image(tmp_path / "a.tif")
    assert image.shape == Sparse.shape
    np.testing.assert_array_equal(image.read(box), 1)
