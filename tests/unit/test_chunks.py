"""Chunks packed one by one are those of Zarr's own way."""

import numpy as np
import pytest
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, TransposeCodec, ZstdCodec

from iaunet import chunks, grid

KINDS = {
    "shards": {"chunks": (4, 8), "shards": (8, 16), "compressors": [ZstdCodec(), Crc32cCodec()]},
    "chunks": {"chunks": (8, 8), "compressors": [ZstdCodec(level=1, checksum=True)]},
    "no compression": {"chunks": (8, 8), "shards": (16, 8), "compressors": None},
    "turned axes": {"chunks": (4, 8), "filters": [TransposeCodec(order=(1, 0))]},
    "big endian": {"chunks": (4, 8), "serializer": BytesCodec(endian="big")},
    "Zarr v2": {"chunks": (4, 8), "zarr_format": 2},
}
BOXES = [np.s_[:], np.s_[8:16, 16:32], np.s_[3:19, 5:29], np.s_[7], np.s_[::3, 4:5], np.s_[20:]]


def written(path, way, kind, empty_too):
    """Write some boxes in one of the two ways; return the bytes of all files."""
    rng = np.random.default_rng(0)
    with zarr.config.set(way):
        array = zarr.create_array(
            path, shape=(21, 37), dtype="u2", fill_value=0, **KINDS[kind],
            config={"write_empty_chunks": empty_too},
        )  # fmt: skip
        for box in (np.s_[0:16, 0:32], np.s_[16:, 3:], np.s_[2:5, 1:9], np.s_[20, :]):
            shape = np.empty(array.shape)[box].shape
            array[box] = rng.integers(0, 9, shape) * (rng.random(shape) < 0.5)
        array[8:16, 16:32] = np.zeros((8, 16), "u2")
        array[0:8, 0:16] = 5
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("empty_too", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_packed_as_zarr_does_it(tmp_path, kind, empty_too):
    expected = written(tmp_path / "own", chunks.ZARRS_OWN, kind, empty_too)
    assert written(tmp_path / "ours", chunks.SETTINGS, kind, empty_too) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_unpacked_as_zarr_does_it(tmp_path, kind):
    written(tmp_path / "array", chunks.ZARRS_OWN, kind, False)
    for box in BOXES:
        found = []
        for way in (chunks.ZARRS_OWN, chunks.SETTINGS):
            with zarr.config.set(way):
                found.append(zarr.open_array(tmp_path / "array", mode="r")[box])
        np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("empty_too", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_a_chunk_that_is_written_whole_is_the_file_that_zarr_writes(tmp_path, kind, empty_too):
    values = np.random.default_rng(0).integers(0, 9, (21, 37)).astype("u2")
    values[8:16, 16:32] = 0
    found = []
    for way, write in ((chunks.ZARRS_OWN, zarr.Array.__setitem__), (chunks.SETTINGS, chunks.write)):
        path = tmp_path / write.__name__
        with zarr.config.set(way):
            array = zarr.create_array(
                path, shape=values.shape, dtype="u2", fill_value=7, **KINDS[kind],
                config={"write_empty_chunks": empty_too},
            )  # fmt: skip
            for tile in grid.tiles(array.shape, array.shards or array.chunks):
                write(array, tile.core, values[tile.core])
            write(array, np.s_[3:9, 2:11], values[3:9, 2:11].astype("u1"))  # no whole chunk
            np.testing.assert_array_equal(array[:], values)
        files = [file for file in path.rglob("*") if file.is_file()]
        found.append({file.relative_to(path): file.read_bytes() for file in files})
    assert found[0] == found[1]


def test_a_chunk_that_is_written_again_leaves_linked_files_alone(tmp_path):
    with zarr.config.set(chunks.SETTINGS):
        config = {"write_empty_chunks": True}
        array = zarr.create_array(
            tmp_path / "a", shape=(8,), chunks=(8,), dtype="u1", config=config
        )
        chunks.write(array, np.s_[0:8,], np.ones(8, "u1"))
        (tmp_path / "linked").hardlink_to(tmp_path / "a/c/0")
        before = (tmp_path / "linked").read_bytes()
        chunks.write(array, np.s_[0:8,], np.zeros(8, "u1"))
    assert (tmp_path / "linked").read_bytes() == before
    assert not array[:].any()
