import numpy as np
import pytest
import tifffile
from scipy import ndimage

import demo
from iaunet import images, tables
from iaunet.errors import InputError

NAMES = ["empty", "mosaic", "nuclei", "volume"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    demo.main(["--output", str(folder)])
    return folder


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_image_is_drawn_with_its_true_labels(drawn):
    assert sorted(path.stem for path in drawn.glob("*.tif")) == sorted(
        NAMES + [f"{name}_mask" for name in NAMES]
    )
    assert len(list(drawn.iterdir())) == 2 * len(NAMES)
    for name in NAMES:
        image = images.open_image(drawn / f"{name}.tif")
        truth = images.open_image(drawn / f"{name}_mask.tif")
        assert image.shape == truth.shape
        assert image.dtype.kind == truth.dtype.kind == "u"
        assert image.warnings == truth.warnings == []
        assert truth.read().any() == (name != "empty")


def test_only_the_drawn_volume_has_a_pixel_size(drawn):
    sizes = {name: images.open_image(drawn / f"{name}.tif").pixel_um for name in NAMES}
    np.testing.assert_allclose(sizes.pop("volume"), demo.VOLUME_PIXEL_UM)
    assert set(sizes.values()) == {None}


def test_drawing_again_gives_the_same_bytes(drawn, tmp_path):
    demo.main(["--output", str(tmp_path)])
    assert contents(tmp_path) == contents(drawn)


def test_files_that_are_there_stay_and_missing_ones_come_back(drawn, tmp_path, monkeypatch):
    for path in drawn.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "empty_mask.tif").unlink()
    kept = (tmp_path / "mosaic.tif").stat().st_mtime_ns
    demo.main(["--output", str(tmp_path)])
    assert contents(tmp_path) == contents(drawn)
    assert (tmp_path / "mosaic.tif").stat().st_mtime_ns == kept


def test_mosaic_is_tiled_bigtiff_and_needs_many_tiles(drawn):
    with tifffile.TiffFile(drawn / "mosaic.tif") as file:
        assert file.is_bigtiff
        assert file.pages[0].is_tiled
        assert min(file.pages[0].shape) >= 3000


def test_table_names_the_drawn_files(drawn):
    table = tables.read_images(demo.Path(demo.__file__).parents[2] / "resources" / "images.csv")
    assert sorted(table["image"]) == NAMES
    for row in table.itertuples():
        assert row.path == f"demo/{row.image}.tif"
        assert row.reference == f"demo/{row.image}_mask.tif"
        assert row.model == ("nuclei-3d" if row.image == "volume" else "nuclei-2d")
        assert row.group


def test_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(demo.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="'stardist' is not installed"):
        demo.main(["--output", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tiles", [(1, 1), (1, 3), (2, 2), (3, 4)])
def test_mirrored_copies_meet_without_a_step(rng, tiles):
    plane = rng.integers(0, 9, (5, 7))
    whole = demo.mirrored(plane, tiles)
    assert whole.shape == (5 * tiles[0], 7 * tiles[1])
    np.testing.assert_array_equal(whole[:5, :7], plane)
    for row in range(1, tiles[0]):
        np.testing.assert_array_equal(whole[5 * row], whole[5 * row - 1])
    for column in range(1, tiles[1]):
        np.testing.assert_array_equal(whole[:, 7 * column], whole[:, 7 * column - 1])


def test_an_object_cut_by_the_border_is_completed_by_its_mirror_image():
    labels = np.zeros((8, 8), np.uint16)
    labels[2:5, 5:] = 4
    whole = demo.mirrored_labels(labels, (1, 2))
    assert whole.max() == 1
    np.testing.assert_array_equal(whole > 0, demo.mirrored(labels, (1, 2)) > 0)


def test_an_object_that_only_touches_the_border_stays_itself():
    labels = np.zeros((9, 9), np.uint16)
    labels[1:8, 3:8] = 1
    labels[4, 8] = 1
    whole = demo.mirrored_labels(labels, (1, 2))
    assert whole.max() == 2
    assert len(np.unique(whole[:, :9])) == 2


def test_an_object_in_a_corner_is_completed_by_three_mirror_images():
    labels = np.zeros((6, 6), np.uint16)
    labels[4:, 3:] = 9
    labels[0, 0] = 2
    whole = demo.mirrored_labels(labels, (2, 2))
    assert len(np.unique(whole[4:8, 3:9])) == 1
    assert len(np.unique(whole)) == 1 + 1 + 4


def test_labels_of_the_mosaic_are_connected_and_true(drawn):
    mosaic, plane = (tifffile.imread(drawn / f"{name}_mask.tif") for name in ("mosaic", "nuclei"))
    np.testing.assert_array_equal(mosaic > 0, demo.mirrored(plane, demo.MOSAIC_TILES) > 0)
    corner = mosaic[: plane.shape[0], : plane.shape[1]]
    pairs = np.unique(np.stack([corner[plane > 0], plane[plane > 0]]), axis=1)
    assert len(pairs[0]) == len(np.unique(pairs[0])) == np.count_nonzero(np.unique(plane))
    for label, box in enumerate(ndimage.find_objects(mosaic.astype(np.int32))[:200], start=1):
        assert ndimage.label(mosaic[box] == label, np.ones((3, 3)))[1] == 1
