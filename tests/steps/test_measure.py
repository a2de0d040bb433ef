"""What measure.py writes about a finished image."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage
from skimage.measure import regionprops

import measure
from iaunet import checksums, features, metrics, omezarr, synthetic, tables
from iaunet.errors import InputError, OptionError

PIXEL_UM = {2: (0.5, 0.5), 3: (2.0, 0.5, 0.5)}


def make(folder):
    """Create a folder and return it."""
    folder.mkdir()
    return folder


def nuclei(rng, shape):
    """Draw separate boxes of several sizes, numbered in raster order."""
    labels = np.zeros(shape, np.uint32)
    for count, corner in enumerate(np.ndindex(*(n // 9 for n in shape)), start=1):
        start = [9 * place for place in corner]
        sides = rng.integers(2, 8, size=len(shape))
        labels[tuple(slice(a + 1, a + 1 + n) for a, n in zip(start, sides, strict=True))] = count
    return labels


def finish(folder, image, labels, pixel_um, seams=()):
    """Write what the steps before measure.py leave; return the command line."""
    store, axes = folder / "a.ome.zarr", tuple("zyx"[-image.ndim :])
    group = omezarr.create_image(
        store, image.shape, axes, image.dtype, pixel_um, "a", {"channel": "DAPI"}
    )
    group["0"][...] = image
    omezarr.write_pyramid(store)
    omezarr.add_labels(store, "instances", labels.dtype)[...] = labels
    omezarr.write_label_pyramid(store)
    ids, areas = np.unique(labels[labels > 0], return_counts=True)
    crossing = np.isin(ids, list(seams))
    identities = pd.DataFrame(
        {
            "label": ids.astype(np.int64),
            "confidence": np.linspace(1, 0.5, len(ids), dtype=np.float32),
            "crosses_seam": crossing,
            "n_tiles": 1 + crossing.astype(np.int64),
            "verdict": np.full(len(ids), "agreed", dtype=object),
        }
    )
    tables.write_parquet(identities, folder / "identities.parquet")
    size = "area_px" if image.ndim == 2 else "volume_px"
    table = pd.DataFrame({"label": ids, size: areas, "verdict": "agreed"})[crossing]
    tables.write_csv(table, folder / "seams.csv")
    tiles = {
        "version": "0",
        "image": "a",
        "shape": image.shape,
        "axes": axes,
        "channel": "DAPI",
        "pixel_um": pixel_um,
        "core": [64] * image.ndim,
        "halo": [8] * image.ndim,
        "exact_halo": True,
        "n_tiles": 4,
        "n_batches": 2,
        "model": {"name": "drawn", "sha256": "0"},
        "source": {"path": "a.tif", "bytes": 7, "sha256": "1"},
        "warnings": ["drawn by hand"],
    }
    (folder / "tiles.json").write_text(json.dumps(tiles))
    records = {
        "tile": {"step": "tile", "seconds": 1, "peak_memory_mb": 10, "options": {"core": [64]}},
        "infer0": {
            "step": "infer",
            "seconds": 2,
            "cpu_seconds": 3,
            "peak_memory_mb": 30,
            "host": "n1",
            "device": "cpu",
            "voxels": 70,
            "cpu": "fast",
            "code": {"commit": "1a", "dirty": False},
            "packages": {"numpy": "2.1", "torch": "2.6"},
            "options": {"batch": 0, "device": "auto"},
        },
        "infer1": {
            "step": "infer",
            "seconds": 3,
            "cpu_seconds": 3,
            "peak_memory_mb": 20,
            "host": "n2",
            "device": "cpu",
            "voxels": 30,
            "cpu": "slow",
            "code": {"commit": "2b", "dirty": False},
            "packages": {"numpy": "2.1", "torch": "2.7"},
            "options": {"batch": 1, "device": "auto"},
        },
    }
    options = ["--records"]
    for name, record in records.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
        options.append(str(folder / f"{name}.json"))
    for option, name in (
        ("store", "a.ome.zarr"),
        ("tiles", "tiles.json"),
        ("identities", "identities.parquet"),
        ("seams", "seams.csv"),
        ("output-csv", "objects.csv"),
        ("output-parquet", "objects.parquet"),
        ("metrics", "metrics.json"),
        ("provenance", "provenance.json"),
        ("record", "measure.json"),
    ):
        options += [f"--{option}", str(folder / name)]
    return options


def read(folder, name):
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("shape", [(60, 70), (20, 40, 30)], ids=["2d", "3d"])
def test_objects_are_those_of_regionprops_in_both_formats(rng, tmp_path, shape):
    labels = nuclei(rng, shape)
    image = rng.integers(0, 65_535, size=shape).astype(np.uint16)
    pixel_um = PIXEL_UM[len(shape)]
    measure.main(finish(tmp_path, image, labels, pixel_um, seams=(2, 3)))
    objects = tables.read_parquet(tmp_path / "objects.parquet")
    columns = features.object_columns(len(shape), "DAPI", image.dtype)
    pd.testing.assert_frame_equal(tables.read_csv(tmp_path / "objects.csv", columns), objects)
    assert list(objects.columns) == list(columns)
    props = regionprops(labels, image)
    size = "area_px" if len(shape) == 2 else "volume_px"
    assert objects["label"].tolist() == [p.label for p in props]
    assert objects[size].tolist() == [p.area for p in props]
    assert objects["mean_intensity_DAPI"].tolist() == [p.intensity_mean for p in props]
    assert objects["y_px"].tolist() == [p.centroid[-2] for p in props]
    assert objects["y_um"].tolist() == [p.centroid[-2] * 0.5 for p in props]
    assert objects["label"][objects["crosses_seam"]].tolist() == [2, 3]
    assert objects["n_tiles"].tolist()[:4] == [1, 2, 2, 1]
    assert objects["confidence"].iloc[0] == 1
    assert set(objects["image"]) == {"a"}


@pytest.mark.parametrize("shape", [(60, 70), (20, 40, 30)], ids=["2d", "3d"])
def test_objects_have_the_class_of_most_of_their_voxels_and_stuff_has_a_size(rng, tmp_path, shape):
    labels = nuclei(rng, shape)
    n = int(labels.max())
    wanted = rng.integers(1, 3, size=n + 1)
    classes = np.where(labels > 0, wanted[labels], 3).astype(np.uint8)
    classes[rng.random(shape) < 0.3] = 0  # background, which no object can be
    classes[labels == 1] = 3  # nor stuff
    options = finish(tmp_path, labels.astype(np.uint8), labels, PIXEL_UM[len(shape)])
    store = tmp_path / "a.ome.zarr"
    known = [{"name": n, "thing": n != "tissue"} for n in ("round", "long", "tissue")]
    array = omezarr.add_labels(store, "semantic", np.uint8, {"classes": known})
    array[...] = classes
    measure.main(options)
    objects = tables.read_parquet(tmp_path / "objects.parquet")
    names = np.array(["", "round", "long"])
    assert objects["class"].tolist() == ["", *names[wanted[2:]]]
    share = [(classes[labels == k] == wanted[k]).mean() for k in range(2, n + 1)]
    np.testing.assert_allclose(objects["class_share"], [0, *share])
    found = read(tmp_path, "metrics.json")["classes"]
    size, unit = ("area", "um2") if len(shape) == 2 else ("volume", "um3")
    assert [one["name"] for one in found] == ["round", "long", "tissue"]
    assert [one["kind"] for one in found] == ["thing", "thing", "stuff"]
    assert [one[f"{size}_px"] for one in found] == np.bincount(classes.ravel())[1:].tolist()
    voxel = np.prod(PIXEL_UM[len(shape)])
    assert found[2][f"{size}_{unit}"] == pytest.approx((classes == 3).sum() * voxel)
    assert found[2]["fraction"] == (classes == 3).mean()
    counts = np.bincount(wanted[2:], minlength=3)[1:].tolist()
    assert [one["n_objects"] for one in found] == [*counts, None]


def test_metrics_count_and_provenance_joins_the_jobs_of_a_step(rng, tmp_path):
    labels = nuclei(rng, (60, 70))
    measure.main(finish(tmp_path, labels.astype(np.uint8), labels, (0.5, 0.25), seams=(1,)))
    found = read(tmp_path, "metrics.json")
    n, areas = int(labels.max()), np.bincount(labels.ravel())[1:]
    assert found["n_objects"] == n
    assert found["density_per_mm2"] == pytest.approx(n / (60 * 0.5e-3 * 70 * 0.25e-3))
    assert found["foreground_fraction"] == (labels > 0).mean()
    assert found["median_area_px"] == np.median(areas)
    assert (found["n_crossing_seams"], found["seam_conflicts"]) == (1, 0)
    assert (found["n_tiles"], found["n_batches"], found["shape"]) == (4, 2, [60, 70])
    assert found["mpx_per_s"] == pytest.approx(60 * 70 / 1e6 / 5)
    assert found["seconds"] >= 6
    assert found["warnings"] == ["drawn by hand"]
    assert "ap50" not in found
    found = read(tmp_path, "provenance.json")
    assert found["input"]["sha256"] == "1"
    assert found["model"]["name"] == "drawn"
    tile, infer, own = found["steps"]
    assert (tile["step"], infer["step"], own["step"]) == ("tile", "infer", "measure")
    assert infer == {
        "step": "infer",
        "n_jobs": 2,
        "seconds": 5,
        "cpu_seconds": 6,
        "peak_memory_mb": 30,
        "host": "n1, n2",
        "cpu": "fast, slow",
        "jobs": [
            {"host": "n1", "seconds": 2, "cpu_seconds": 3, "peak_memory_mb": 30},
            {"host": "n2", "seconds": 3, "cpu_seconds": 3, "peak_memory_mb": 20},
        ],
        "device": "cpu",
        "voxels": 100,
        "packages": {"numpy": "2.1", "torch": "2.6, 2.7"},
        "options": {"device": "auto"},
    }
    assert own["peak_memory_mb"] > 0
    assert read(tmp_path, "measure.json")["n_objects"] == n


def test_provenance_holds_checksums_of_all_that_went_in_and_came_out(rng, tmp_path):
    labels = nuclei(rng, (60, 70))
    tifffile.imwrite(tmp_path / "true.tif", labels)
    config = {"image": {"path": "a.tif", "model": "m.safetensors"}, "device": "auto"}
    options = ["--reference", f"{tmp_path / 'true.tif'}", "--config", json.dumps(config)]
    measure.main(finish(tmp_path, labels.astype(np.uint8), labels, None) + options)
    found = read(tmp_path, "provenance.json")
    assert found["config"] == config
    assert found["folder"] == str(Path.cwd())
    assert found["model"] == {"name": "drawn", "sha256": "0", "path": "m.safetensors"}
    assert found["reference"] == found["reference_source"]["path"] == str(tmp_path / "true.tif")
    assert found["reference_source"]["sha256"] == checksums.sha256(tmp_path / "true.tif")
    assert {"1a", "2b"} <= set(found["code"]["commit"].split(", "))
    assert set(found["outputs"]) == {
        "a.ome.zarr", "objects.csv", "objects.parquet", "seams.csv", "metrics.json"
    }  # fmt: skip
    for name, facts in found["outputs"].items():
        assert facts == checksums.facts(tmp_path / name)
    with pytest.raises(OptionError, match="--config: not JSON"):
        measure.main(
            [*finish(make(tmp_path / "b"), labels.astype(np.uint8), labels, None), "--config", "x"]
        )


@pytest.mark.parametrize("shape", [(60, 70), (20, 40, 30)], ids=["2d", "3d"])
def test_a_reference_gives_the_accuracy_of_the_whole_arrays(rng, tmp_path, shape):
    true = nuclei(rng, shape)
    labels = np.roll(true, 1, axis=-1) * (true != 5)
    _, dense = np.unique(labels, return_inverse=True)
    labels = dense.reshape(shape).astype(np.uint32)
    image = np.zeros(shape, np.uint16)
    options = finish(tmp_path, image, labels, None)
    tifffile.imwrite(
        tmp_path / "true.tif",
        true.astype(np.uint16),
        metadata={"axes": "zyx"[-len(shape) :].upper()},
        ome=True,
    )
    measure.main([*options, "--reference", str(tmp_path / "true.tif")])
    found = read(tmp_path, "metrics.json")
    expected = metrics.accuracy(metrics.overlap(true, labels))
    assert {key: found[key] for key in expected} == json.loads(json.dumps(expected))
    assert 0 < found["ap50"] < 1
    assert list(found)[-len(expected) :] == list(expected)


@pytest.mark.parametrize("shape", [(60, 70), (8, 20, 30)], ids=["2d", "3d"])
def test_no_objects_is_a_result(tmp_path, shape):
    nothing = np.zeros(shape, np.uint32)
    options = finish(tmp_path, np.zeros(shape, np.float32), nothing, None)
    measure.main([*options, "--reference", str(tmp_path / "a.ome.zarr")])
    objects = tables.read_parquet(tmp_path / "objects.parquet")
    assert len(objects) == 0
    text = (tmp_path / "objects.csv").read_text()
    assert text == ",".join(objects.columns) + "\n"
    found = read(tmp_path, "metrics.json")
    assert found["n_objects"] == found["foreground_fraction"] == 0
    assert found["median_area_px" if len(shape) == 2 else "median_volume_px"] is None
    assert found["density_per_mm2" if len(shape) == 2 else "density_per_mm3"] is None
    assert found["ap50"] is None
    assert found["warnings"][1:] == [
        "pixel size unknown: no values in micrometres",
        "no objects",
    ]


def test_the_same_input_gives_the_same_bytes(rng, tmp_path):
    labels = nuclei(rng, (40, 40))
    options = finish(tmp_path, labels.astype(np.uint16), labels, None)
    written = []
    for _ in range(2):
        measure.main(options)
        written.append([(tmp_path / f"objects.{kind}").read_bytes() for kind in ("csv", "parquet")])
    assert written[0] == written[1]


def test_a_mask_as_reference_is_noticed(rng, tmp_path):
    labels = nuclei(rng, (40, 40))
    options = finish(tmp_path, labels.astype(np.uint16), labels, None)
    tifffile.imwrite(tmp_path / "mask.tif", (labels > 0).astype(np.uint8))
    measure.main([*options, "--reference", str(tmp_path / "mask.tif")])
    assert "a mask instead of labels" in " ".join(read(tmp_path, "metrics.json")["warnings"])


def test_labels_that_are_not_those_of_the_tables_are_our_bug(rng, tmp_path):
    labels = nuclei(rng, (40, 40))
    image = np.zeros((40, 40), np.uint16)
    (tmp_path / "one").mkdir()
    options = finish(tmp_path / "one", image, labels, None)
    identities = tables.read_parquet(tmp_path / "one" / "identities.parquet")
    tables.write_parquet(identities.iloc[1:], tmp_path / "one" / "identities.parquet")
    with pytest.raises(RuntimeError, match=r"disagree on 1 objects: \[1\]"):
        measure.main(options)
    (tmp_path / "two").mkdir()
    options = finish(tmp_path / "two", image, labels, None, seams=(4,))
    seams = tables.read_csv(
        tmp_path / "two" / "seams.csv", {"label": "int64", "area_px": "int64", "verdict": "str"}
    )
    tables.write_csv(seams.assign(area_px=math.prod(labels.shape)), tmp_path / "two" / "seams.csv")
    with pytest.raises(RuntimeError, match=r"1 objects were painted wrongly: \[4\]"):
        measure.main(options)


def test_a_reference_that_does_not_fit_says_why(rng, tmp_path):
    labels = nuclei(rng, (40, 40))
    options = finish(tmp_path, labels.astype(np.uint16), labels, None)
    for values, message in (
        (labels[:20].astype(np.uint16), "true.tif: the reference has 20 x 40 px, .* has 40 x 40"),
        (labels.astype(np.float32), "true.tif: holds float32 values; needs labels"),
        (labels.astype(np.int16) - 1, "true.tif: holds the negative value -1; needs labels"),
    ):
        tifffile.imwrite(tmp_path / "true.tif", values)
        with pytest.raises(InputError, match=message):
            measure.main([*options, "--reference", str(tmp_path / "true.tif")])
    assert not (tmp_path / "metrics.json").exists()


def warned(folder, image, labels, **more):
    """Return what a reader is told of a picture, beside what the finished run has anyway."""
    folder.mkdir()
    options = finish(folder, image, labels, None)
    told = json.loads((folder / "tiles.json").read_text())
    told |= {"range": [int(image.min()), int(image.max())], "warnings": [], **more}
    (folder / "tiles.json").write_text(json.dumps(told))
    measure.main(options)
    found = read(folder, "metrics.json")
    return [text for text in found["warnings"] if "pixel size" not in text], found


@pytest.mark.parametrize("shape", [(220, 260), (20, 96, 110)])
def test_what_is_wrong_with_a_picture_is_told_with_its_number(tmp_path, shape):
    spacing = (2.0, 1.0, 1.0)[-len(shape) :]
    rng = np.random.default_rng(5)
    image, labels = synthetic.draw_nuclei(shape, rng, diameter_px=20, spacing=spacing)
    image, labels = image.astype(np.uint16), labels.astype(np.uint32)
    said, found = warned(tmp_path / "fine", image, labels)
    assert said == []
    assert found["focus"] > 0.25
    assert found["saturated_fraction"] < 0.01

    blur = [6 / step for step in spacing]
    said, found = warned(
        tmp_path / "blurred", ndimage.gaussian_filter(image.astype(float), blur), labels
    )
    assert len(said) == 1
    assert f"blurred: focus {found['focus']:.2f}, below 0.2" in said[0]

    top = int(np.percentile(image[labels > 0], 70))
    said, found = warned(tmp_path / "bright", np.minimum(image, top), labels)
    assert 0.2 < found["saturated_fraction"] < 0.4
    share = f"{100 * found['saturated_fraction']:.2g} %"
    assert f"saturated: {share} of the objects'" in said[0]

    trained = {"smallest": [60.0] * len(shape), "largest": [90.0] * len(shape)}
    (said,), _ = warned(tmp_path / "other", image, labels, model_diameter_px=trained)
    assert "unlike the training data" in said
    assert "trained with 60 to 90" in said


@pytest.mark.parametrize(
    ("side", "text"), [((3, 3), "below 6: sizes"), ((1, 30, 30), "1 section(s) only, below 3")]
)
def test_objects_of_few_pixels_are_told(tmp_path, side, text):
    labels = np.zeros([4 * n for n in side], np.uint32)
    labels[tuple(slice(n, 2 * n) for n in side)] = 1
    (said,), _ = warned(tmp_path / "a", (labels * 90).astype(np.uint8), labels)
    assert text in said


def test_the_picture_of_a_large_image_is_judged_from_a_coarse_level(tmp_path):
    at = np.indices((1800, 2200)) - np.array([900, 1100])[:, None, None]
    labels = ((at**2).sum(axis=0) < 700**2).astype(np.uint32)
    said, found = warned(tmp_path / "a", (labels * 90).astype(np.uint8), labels)
    assert found["focus"] > 0.2
    assert not [text for text in said if "blurred" in text]
