"""Windows that are segmented again get the same labels; a changed voxel is found."""

import numpy as np
import pytest

from iaunet import clustering, grid, predict, verify
from iaunet.net import dependency_radius
from nets import BLOCK, small_net

SHAPES = {2: (130, 150), 3: (20, 60, 70)}


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr(verify, "WINDOW_PX", {2: (48, 48), 3: (10, 40, 40)})


@pytest.mark.parametrize("ndim", SHAPES)
def test_windows_lie_where_tiles_meet_and_are_no_tiles(ndim, rng):
    core = {2: (32, 48), 3: (8, 32, 32)}[ndim]
    boxes = verify.windows(SHAPES[ndim], core, 5, rng)
    assert len({grid.origin(box) for box in boxes}) == len(boxes) == 5
    for box in boxes:
        for side, length, size in zip(box, SHAPES[ndim], core, strict=True):
            assert 0 <= side.start < side.stop <= length
            assert any(side.start < at < side.stop for at in range(size, length, size))


def test_an_image_that_is_smaller_than_a_window_is_one(rng):
    assert verify.windows((40, 45), (64, 64), 3, rng) == [(slice(0, 40), slice(0, 45))]


@pytest.mark.parametrize("ndim", SHAPES)
def test_no_voxel_of_any_window_differs_and_one_that_was_changed_is_found(ndim, rng):
    net, shape = small_net(ndim), SHAPES[ndim]
    image = rng.normal(0.4, 0.4, shape).astype(np.float32)
    stride = net.stride
    halo = [-(-r // s) * s for r, s in zip(dependency_radius(net), stride, strict=True)]
    blocks = predict.Blocks(
        net, lambda box: image[box], shape=shape, block_px=BLOCK[ndim], halo_px=halo, threads=1
    )
    everywhere = tuple(slice(0, n) for n in shape)
    (outputs,) = blocks.of_cores([everywhere])
    chosen = clustering.Settings.from_dict({"min_size": 4, "seed": 0.05, "fg": 0.2}, ndim)
    bounds = clustering.largest(outputs, chosen)
    labels = clustering.label_array(outputs, chosen, net.id_stride)
    assert labels.any()
    for box in verify.windows(shape, BLOCK[ndim], 4, rng):
        differ = verify.differing_voxels(box, blocks, labels.__getitem__, chosen, bounds)
        assert differ == 0
        wrong = labels.copy()
        wrong[tuple(side.start + 2 for side in box)] += np.uint64(7)
        assert verify.differing_voxels(box, blocks, wrong.__getitem__, chosen, bounds) == 1
