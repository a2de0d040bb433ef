"""Boxes of sharded arrays are what zarr reads, and damage is an error."""

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, ZstdCodec

from iaunet.shards import Shards

CASES = {
    "2d": ((70, 53), (32, 16), (16, 8)),
    "2d, leading axis": ((2, 70, 53), (2, 32, 16), (2, 16, 8)),
    "3d, leading axis": ((16, 9, 30, 33), (16, 4, 16, 16), (16, 4, 8, 8)),
    "one part per shard": ((40, 40), (16, 16), (16, 16)),
}


def written(path, shape, shard, part, rng, codec=None):
    array = zarr.create_array(
        path,
        shape=shape,
        dtype="int16",
        shards=shard,
        chunks=part,
        compressors=[codec or ZstdCodec(level=1, checksum=True)],
        config={"write_empty_chunks": True},
    )
    array[:] = rng.integers(-300, 300, shape) // 100
    return array


@pytest.mark.parametrize("case", CASES)
def test_boxes_are_those_that_zarr_reads(case, tmp_path, rng):
    shape, shard, part = CASES[case]
    array = written(tmp_path / "a", shape, shard, part, rng)
    shards = Shards(tmp_path / "a", array)
    n_axes = len(shape) - (part[0] == shape[0])
    for _ in range(30):
        ends = [np.sort(rng.choice(n + 1, 2, replace=False)) for n in shape[-n_axes:]]
        box = tuple(slice(int(first), int(last)) for first, last in ends)
        found = shards.read(box)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array[(..., *box)])


def test_every_flipped_bit_is_an_error_or_changes_nothing(tmp_path, rng):
    shape, shard, part = (16, 16), (16, 16), (8, 8)
    array = written(tmp_path / "a", shape, shard, part, rng)
    file = tmp_path / "a" / "c" / "0" / "0"
    content, expected = file.read_bytes(), array[:]
    box = (slice(0, 16), slice(0, 16))
    n_refused = 0
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(rng.integers(8))
        file.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(Shards(tmp_path / "a", array).read(box), expected)
        except (ValueError, RuntimeError):
            n_refused += 1
    assert n_refused > 0.9 * len(content)


def test_a_part_that_was_never_written_is_an_error(tmp_path, rng):
    array = zarr.create_array(
        tmp_path / "a",
        shape=(16, 16),
        dtype="u1",
        shards=(16, 16),
        chunks=(8, 8),
        compressors=[ZstdCodec()],
    )
    array[:8, :8] = 1
    shards = Shards(tmp_path / "a", array)
    assert shards.read((slice(0, 8), slice(0, 8))).all()
    with pytest.raises(ValueError, match=r"part \(0, 1\) is absent"):
        shards.read((slice(0, 8), slice(0, 9)))


def test_other_arrays_are_refused(tmp_path, rng):
    with pytest.raises(ValueError, match="compression"):
        Shards(tmp_path, written(tmp_path / "a", (16, 16), (16, 16), (8, 8), rng, BloscCodec()))
    plain = zarr.create_array(tmp_path / "b", shape=(16, 16), dtype="u1", chunks=(8, 8))
    with pytest.raises(ValueError, match="shards None"):
        Shards(tmp_path / "b", plain)
