import json

import numpy as np
import pytest
import zarr
from ome_zarr_models.v05 import Image as ValidImage
from ome_zarr_models.v05 import Labels as ValidLabels

from iaunet import halving, omezarr
from iaunet.errors import InputError

CASES = [
    pytest.param((700, 530), "yx", (0.5, 0.5), id="2d"),
    pytest.param((1, 1), "yx", None, id="2d, one pixel"),
    pytest.param((1, 3000), "yx", None, id="2d, one row"),
    pytest.param((21, 300, 601), "zyx", (0.5, 0.5, 0.5), id="3d, isotropic"),
    pytest.param((9, 601, 70), "zyx", (2.0, 0.5, 0.5), id="3d, coarse z"),
    pytest.param((1, 300, 300), "zyx", None, id="3d, one plane"),
]


def store(path, image, axes, pixel_um=None, **attrs):
    omezarr.create_image(path, image.shape, tuple(axes), image.dtype, pixel_um, "drawn", attrs)
    level = omezarr.open_level(path, mode="r+")
    omezarr.write_box(level, tuple(slice(0, n) for n in image.shape), image)
    omezarr.write_pyramid(path)
    return path


@pytest.mark.parametrize(("shape", "axes", "pixel_um"), CASES)
def test_what_is_written_is_read_again(tmp_path, shape, axes, pixel_um, rng):
    image = rng.integers(0, 60_000, shape, np.uint16)
    path = store(tmp_path / "a.zarr", image, axes, pixel_um, channel="DAPI")
    np.testing.assert_array_equal(omezarr.open_level(path)[...], image)
    meta = omezarr.read_meta(path)
    assert (meta.shape, meta.axes, meta.dtype) == (shape, tuple(axes), np.uint16)
    assert (meta.pixel_um, meta.channel) == (pixel_um, "DAPI")
    assert max(meta.levels[-1][-2:]) <= 256


@pytest.mark.parametrize(("shape", "axes", "pixel_um"), CASES)
def test_image_and_labels_are_valid_and_have_the_same_levels(tmp_path, shape, axes, pixel_um, rng):
    path = store(tmp_path / "a.zarr", rng.integers(0, 9, shape, np.uint8), axes, pixel_um)
    labels = rng.integers(0, 2**32, shape, np.uint32)
    level = omezarr.add_labels(path, "instances", np.uint32)
    omezarr.write_box(level, tuple(slice(0, n) for n in shape), labels)
    omezarr.write_label_pyramid(path)
    group = zarr.open_group(path, mode="r")
    valid = ValidImage.from_zarr(group)
    assert valid.labels is not None
    assert ValidLabels.from_zarr(group["labels"]).attributes.ome.labels == ["instances"]
    for index, lengths in enumerate(omezarr.read_meta(path).levels):
        assert omezarr.open_labels(path, level=index).shape == lengths
    image_sets, label_sets = (
        one.attrs["ome"]["multiscales"][0]["datasets"] for one in (group, group["labels/instances"])
    )
    assert image_sets == label_sets
    assert group["labels/instances"].attrs["ome"]["image-label"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.float32])
@pytest.mark.parametrize(("shape", "axes", "pixel_um"), CASES[3:5])
def test_a_coarser_pixel_is_the_rounded_mean_of_its_pixels(
    tmp_path, shape, axes, pixel_um, dtype, rng
):
    if dtype == np.float32:
        image = rng.normal(size=shape).astype(dtype)
    else:
        ends = np.iinfo(dtype)
        image = rng.integers(ends.min, ends.max, shape, dtype, endpoint=True)
    path = store(tmp_path / "a.zarr", image, axes, pixel_um)
    coarse = omezarr.open_level(path, 1)
    factors = [1 if a == b else 2 for a, b in zip(shape, coarse.shape, strict=True)]
    assert factors == ([2, 2, 2] if pixel_um[0] == 0.5 else [1, 2, 2])
    for _ in range(50):
        at = tuple(int(rng.integers(0, n)) for n in coarse.shape)
        part = image[tuple(slice(a * f, a * f + f) for a, f in zip(at, factors, strict=True))]
        # The last of an odd number of pixels counts for itself and its missing neighbour.
        mean = part.astype(np.float64).mean()
        expected = mean if dtype == np.float32 else np.floor(mean + 0.5)
        np.testing.assert_allclose(float(coarse[at]), expected, rtol=1e-6, atol=1e-6)


def test_halves_are_rounded_up_without_overflow():
    block = np.array([[255, 255], [255, 254]], np.uint8)
    assert halving.halved_mean(block, (2, 2)) == 255
    assert halving.halved_mean(np.array([[0, 1], [1, 0]], np.uint8), (2, 2)) == 1
    assert halving.halved_mean(np.array([[-1, -2], [-1, -2]], np.int8), (2, 2)) == -1


def test_the_pyramid_does_not_depend_on_the_size_of_the_pieces(tmp_path, rng, monkeypatch):
    image = rng.normal(size=(1100, 1300)).astype(np.float32)
    one = store(tmp_path / "one.zarr", image, "yx")
    monkeypatch.setattr(omezarr, "PIECE_BYTES", 1 << 14)
    other = store(tmp_path / "other.zarr", image, "yx")
    for level in range(len(omezarr.read_meta(one).levels)):
        np.testing.assert_array_equal(
            omezarr.open_level(one, level)[...], omezarr.open_level(other, level)[...]
        )


def test_coarser_labels_are_every_second_voxel(tmp_path, rng):
    path = store(tmp_path / "a.zarr", np.zeros((301, 520), np.uint8), "yx")
    labels = rng.integers(0, 2**63, (301, 520), np.uint64)
    level = omezarr.add_labels(path, "instances", np.uint64)
    omezarr.write_box(level, (slice(0, 301), slice(0, 520)), labels)
    omezarr.write_label_pyramid(path)
    np.testing.assert_array_equal(omezarr.open_labels(path, level=1)[...], labels[::2, ::2])
    np.testing.assert_array_equal(omezarr.open_labels(path, level=2)[...], labels[::4, ::4])


@pytest.mark.parametrize(
    ("shape", "axes", "pixel_um"),
    [
        ((150, 333), "yx", None),
        ((9, 150, 333), "zyx", (1, 1, 1)),
        ((21, 150, 133), "zyx", (3, 1, 1)),
    ],
)
def test_levels_written_together_are_those_written_one_after_the_other(
    tmp_path, shape, axes, pixel_um, rng, monkeypatch
):
    monkeypatch.setattr(omezarr, "SHARD_PX", {2: (32, 32), 3: (4, 32, 32)})
    monkeypatch.setattr(omezarr, "INNER_PX", {2: (16, 16), 3: (4, 16, 16)})
    monkeypatch.setattr(omezarr, "SMALLEST_LEVEL_PX", 32)
    labels = rng.integers(0, 2**32, shape, np.uint32)
    stores = []
    for name in ("together", "after"):
        path = store(tmp_path / name, np.zeros(shape, np.uint8), axes, pixel_um)
        level = omezarr.add_labels(path, "instances", np.uint32)
        writer = omezarr.Levels([level])
        if name == "together":
            writer = omezarr.levels(path)
        for box in writer.ordered(omezarr.shard_boxes(level)):
            writer.write(box, labels[box])
        writer.close()
        if name == "after":
            omezarr.write_label_pyramid(path)
        stores.append(path / "labels")
    files = [sorted(p.relative_to(root) for p in root.rglob("*") if p.is_file()) for root in stores]
    assert files[0] == files[1]
    assert len(files[0]) > 50
    for name in files[0]:
        assert (stores[0] / name).read_bytes() == (stores[1] / name).read_bytes()


def test_a_second_label_image_joins_the_list(tmp_path):
    path = store(tmp_path / "a.zarr", np.zeros((8, 8), np.uint8), "yx")
    omezarr.add_labels(path, "instances", np.uint32)
    omezarr.add_labels(path, "semantic", np.uint8)
    listed = json.loads((path / "labels/zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert listed == ["instances", "semantic"]


def test_every_chunk_of_an_empty_image_is_written(tmp_path):
    path = store(tmp_path / "a.zarr", np.zeros((1500, 1100), np.uint8), "yx")
    chunks = [file for file in (path / "0").rglob("*") if file.is_file()]
    assert len(chunks) == 1 + 2 * 2


def test_a_linked_image_shares_its_pixels_and_not_its_attributes(tmp_path, rng):
    image = rng.integers(0, 99, (300, 300), np.uint8)
    source = store(tmp_path / "a.zarr", image, "yx")
    omezarr.add_labels(source, "instances", np.uint32)
    target = tmp_path / "b.zarr"
    omezarr.link_image(source, target)
    assert (source / "0/c/0/0").samefile(target / "0/c/0/0")
    assert not (target / "labels").exists()
    omezarr.update_attrs(target, {"more": 1})
    assert omezarr.read_meta(source).attrs == {}
    np.testing.assert_array_equal(omezarr.open_level(target)[...], image)
    omezarr.add_labels(target, "instances", np.uint32)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"zarr_format": 3, "node_type": "group"}'])
def test_a_damaged_store_is_told(tmp_path, text):
    (tmp_path / "zarr.json").write_text(text)
    with pytest.raises(InputError, match=r"damaged store|not an image store"):
        omezarr.read_meta(tmp_path)


def test_a_missing_store_is_told(tmp_path):
    with pytest.raises(InputError, match="no OME-Zarr store"):
        omezarr.open_level(tmp_path / "none.zarr")


def test_missing_labels_are_told(tmp_path):
    path = store(tmp_path / "a.zarr", np.zeros((8, 8), np.uint8), "yx")
    with pytest.raises(InputError, match="has no array 'labels/instances/0'"):
        omezarr.open_labels(path)


@pytest.mark.parametrize("labels", [False, True], ids=["image", "labels"])
def test_a_changed_byte_of_a_chunk_is_an_error_that_names_the_store(tmp_path, labels, rng):
    store = tmp_path / "a.zarr"
    values = rng.integers(0, 60_000, (70, 80)).astype(np.uint16)
    group = omezarr.create_image(store, values.shape, tuple("yx"), values.dtype, None, "a", {})
    array = omezarr.add_labels(store, "instances", np.uint32) if labels else group["0"]
    array[...] = values
    (chunk,) = (store / "labels/instances/0/c" if labels else store / "0/c").rglob("0/0")
    reopen = omezarr.open_labels if labels else omezarr.open_level
    content = chunk.read_bytes()
    np.testing.assert_array_equal(reopen(store)[...], values)
    for place in rng.integers(0, len(content), 20).tolist():
        chunk.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.raises(InputError, match=r"a\.zarr: array .* is damaged"):
            reopen(store)[...]
    for length in (0, 5, len(content) // 2):
        chunk.write_bytes(content[:length])
        with pytest.raises(InputError, match=r"a\.zarr: array .* is damaged"):
            reopen(store)[...]


@pytest.mark.parametrize("shape", [(70, 80), (9, 30, 40)])
def test_a_part_of_a_small_array_is_that_of_the_whole_and_the_readers_own(tmp_path, shape, rng):
    image = rng.integers(0, 60_000, shape, np.uint16)
    path = store(tmp_path / "a.zarr", image, "zyx"[-len(shape) :])
    array, plain = omezarr.open_level(path), zarr.open_array(path / "0", mode="r")
    for _ in range(50):
        selection = []
        for length in shape:
            first, last = sorted(rng.integers(0, length + 1, 2).tolist())
            selection += [rng.choice([slice(first, last), slice(None, last), first % length])]
        part = array[tuple(selection)]
        np.testing.assert_array_equal(part, plain[tuple(selection)])
        np.asarray(part)[...] = 0
        np.testing.assert_array_equal(array[...], image)


def test_what_is_opened_for_writing_is_read_as_it_is_now(tmp_path, rng):
    image = rng.integers(1, 60_000, (70, 80), np.uint16)
    path = store(tmp_path / "a.zarr", image, "yx")
    array = omezarr.open_level(path, mode="r+")
    np.testing.assert_array_equal(array[:, :9], image[:, :9])
    array[...] = 0
    assert not array[:, :9].any()
