import shutil

import numpy as np
import pytest

import drawn_outputs
from iaunet import clustering, grid, outputs
from iaunet.errors import InputError

CASES = [
    pytest.param((70, 53), (16, 32), (4, 4), 3, id="2d"),
    pytest.param((9, 30, 33), (4, 8, 16), (1, 4, 4), 4, id="3d"),
    pytest.param((5, 6), (16, 16), (4, 4), 2, id="image smaller than a tile, empty batch"),
]


def draw(shape, id_stride):
    return drawn_outputs.noise(shape, id_stride, np.random.default_rng(0))


@pytest.mark.parametrize(("shape", "core", "id_stride", "n_batches"), CASES)
def test_boxes_across_batches_are_those_of_the_whole_image(
    shape, core, id_stride, n_batches, tmp_path, rng
):
    drawn = draw(shape, id_stride)
    paths, tiles = drawn_outputs.store(tmp_path, drawn, core, id_stride, n_batches)
    reader = outputs.Reader(paths, tiles)
    assert reader.stride("id") == id_stride
    for name, values in drawn.items():
        space = values.shape[-len(shape) :]
        for _ in range(8):
            ends = [np.sort(rng.choice(length + 1, 2, replace=False)) for length in space]
            box = tuple(slice(int(start), int(stop)) for start, stop in ends)
            found = reader.read(name, box)
            assert found.dtype == values.dtype
            np.testing.assert_array_equal(found, values[(..., *box)])


@pytest.mark.parametrize("fg_least", [26, 100, 128, 255])
@pytest.mark.parametrize(("shape", "core", "id_stride", "n_batches"), CASES)
def test_bounds_are_those_of_the_whole_image(shape, core, id_stride, n_batches, fg_least, tmp_path):
    drawn = draw(shape, id_stride)
    paths, tiles = drawn_outputs.store(tmp_path, drawn, core, id_stride, n_batches)
    chosen = clustering.Settings.from_dict({"fg": fg_least / 255}, len(shape))
    expected = clustering.largest(drawn, chosen)
    found = outputs.Reader(paths, tiles).largest(fg_least)
    assert found == (expected.off, expected.lsig)


def test_a_batch_has_files_of_its_own_tiles_only(tmp_path):
    paths, tiles = drawn_outputs.store(tmp_path, draw((64, 64), (4, 4)), (32, 32), (4, 4), 2)
    shards = [
        {path.relative_to(store) for path in store.glob("fg/c/**/*") if path.is_file()}
        for store in paths
    ]
    assert [len(found) for found in shards] == [2, 2]
    assert not shards[0] & shards[1]
    assert tiles["batches"] == [[0, 2], [2, 4]]


def stored(tmp_path):
    return drawn_outputs.store(tmp_path, draw((64, 64), (4, 4)), (32, 32), (4, 4), 2)


def test_a_missing_tile_is_an_error_and_not_background(tmp_path):
    paths, tiles = stored(tmp_path)
    (paths[1] / "fg" / "c" / "1" / "0").unlink()
    reader = outputs.Reader(paths, tiles)
    reader.read("fg", (slice(0, 32), slice(0, 64)))
    with pytest.raises(InputError, match="array 'fg' has no data for tile 2; the store is damaged"):
        reader.read("fg", (slice(0, 33), slice(0, 64)))


@pytest.mark.parametrize("keep_bytes", [0, 10, 400])
def test_a_truncated_tile_is_an_error(keep_bytes, tmp_path):
    paths, tiles = stored(tmp_path)
    shard = paths[0] / "off" / "c" / "0" / "0" / "1"
    shard.write_bytes(shard.read_bytes()[:keep_bytes])
    with pytest.raises(InputError, match=r"array 'off' .* damaged.* run the step of batch 0"):
        outputs.Reader(paths, tiles).read("off", (slice(0, 32), slice(0, 64)))


def test_a_flipped_bit_is_an_error(tmp_path):
    paths, tiles = stored(tmp_path)
    shard = paths[0] / "off" / "c" / "0" / "0" / "1"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(bytes(content))
    with pytest.raises(InputError, match="array 'off' is damaged"):
        outputs.Reader(paths, tiles).read("off", (slice(0, 32), slice(0, 64)))


def test_an_unfinished_store_is_an_error(tmp_path):
    paths, tiles = stored(tmp_path)
    shutil.rmtree(paths[1])
    with pytest.raises(InputError, match="not a finished store of batch 1"):
        outputs.Reader(paths, tiles).largest(26)
    outputs.create(paths[1], (64, 64), (32, 32), (4, 4))
    with pytest.raises(InputError, match="not a finished store of batch 1"):
        outputs.Reader(paths, tiles).largest(26)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": [64, 65]}, "image shape .64, 64., needs .64, 65."),
        ({"core": [16, 32]}, "core .32, 32., needs .16, 32."),
        ({"batches": [[0, 1], [1, 4]]}, "tiles 0..1, needs 0..0"),
    ],
)
def test_a_store_of_another_tiling_is_an_error(change, message, tmp_path):
    paths, tiles = stored(tmp_path)
    with pytest.raises(InputError, match=message):
        outputs.Reader(paths, {**tiles, **change}).largest(26)


def test_the_number_of_stores_must_be_that_of_the_batches(tmp_path):
    paths, tiles = stored(tmp_path)
    with pytest.raises(InputError, match="found 1 stores, needs 2, one per batch"):
        outputs.Reader(paths[:1], tiles)


def test_an_unknown_array_is_an_error(tmp_path):
    paths, tiles = stored(tmp_path)
    with pytest.raises(InputError, match="no array 'emb'"):
        outputs.Reader(paths, tiles).read("emb", (slice(0, 1), slice(0, 1)))


def test_labels_are_read_as_they_were_written(tmp_path, rng):
    shape, core = (50, 40), (32, 16)
    labels = rng.integers(0, 2**64, shape, dtype=np.uint64)
    writer = outputs.create_labels(tmp_path / "0.zarr", shape, core)
    for tile in grid.tiles(shape, core):
        writer.write(tile, {outputs.LABELS: labels[tile.core]})
    writer.close()
    tiles = {"shape": shape, "core": core, "batches": [[0, grid.n_tiles(shape, core)]]}
    found = outputs.Reader([tmp_path / "0.zarr"], tiles).read(
        outputs.LABELS, (slice(3, 50), slice(0, 33))
    )
    np.testing.assert_array_equal(found, labels[3:, :33])


def test_arrays_of_the_wrong_kind_are_not_written(tmp_path):
    writer = outputs.create_labels(tmp_path / "0.zarr", (8, 8), (8, 8))
    tile = grid.tile((8, 8), (8, 8), 0)
    with pytest.raises(ValueError, match="found int64"):
        writer.write(tile, {outputs.LABELS: np.zeros((8, 8), dtype=np.int64)})
    with pytest.raises(ValueError, match=r"needs \['labels'\]"):
        writer.write(tile, {"fg": np.zeros((8, 8), dtype=np.uint8)})


def test_the_same_arrays_give_the_same_bytes(tmp_path):
    drawn = draw((64, 64), (4, 4))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        drawn_outputs.store(tmp_path / name, drawn, (32, 32), (4, 4), 1)
    files = {
        name: {
            path.relative_to(tmp_path / name): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "two")
    }
    assert files["one"] == files["two"]


def test_embeddings_are_stored_when_there_are_some(tmp_path, rng):
    drawn = drawn_outputs.sticks((40, 30), (4, 4), rng, n=9)
    paths, tiles = drawn_outputs.store(tmp_path, drawn, (16, 16), (4, 4), 2)
    found = outputs.Reader(paths, tiles).read("emb", (slice(3, 40), slice(0, 29)))
    np.testing.assert_array_equal(found, drawn["emb"][:, 3:, :29])
