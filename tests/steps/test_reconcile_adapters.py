"""Tiles as other programs write them: names, types and numbers are theirs."""

import imagecodecs
import numpy as np
import pytest
import tifffile
from skimage import measure as skimage_measure

import reconcile
from cutting import cut, same_objects, windows
from iaunet import labelfiles, synthetic


def cellpose_2d(folder, name, labels):
    """``cellpose.io.save_masks``: 16-bit PNG beside the image, named after it."""
    path = folder / f"{name}_cp_masks.png"
    path.write_bytes(imagecodecs.png_encode(labels.astype(np.uint16)))
    return path.name


def cellpose_3d(folder, name, labels):
    path = folder / f"{name}_cp_masks.tif"
    tifffile.imwrite(path, labels.astype(np.uint16), compression="zlib")
    return path.name


def stardist(folder, name, labels):
    """``csbdeep.io.save_tiff_imagej_compatible`` of int32 labels, which become 16 bit."""
    path = folder / f"{name}.tif"
    axes = "ZYX"[-labels.ndim :]
    tifffile.imwrite(path, labels.astype(np.uint16), imagej=True, metadata={"axes": axes})
    return path.name


def scikit_image(folder, name, labels):
    """``skimage.measure.label`` returns 32 or 64 bit with a sign, saved as they are."""
    path = folder / f"{name}.tif"
    tifffile.imwrite(path, labels.astype(np.int32), metadata={"axes": "ZYX"[-labels.ndim :]})
    return path.name


STYLES = [
    pytest.param(cellpose_2d, (150, 170), id="Cellpose, 2D"),
    pytest.param(cellpose_3d, (16, 60, 70), id="Cellpose, 3D"),
    pytest.param(stardist, (150, 170), id="StarDist, 2D"),
    pytest.param(stardist, (16, 60, 70), id="StarDist, 3D"),
    pytest.param(scikit_image, (150, 170), id="scikit-image, 2D"),
    pytest.param(scikit_image, (16, 60, 70), id="scikit-image, 3D"),
]


def reconciled(folder, write, tiles, starts):
    """Write tiles in a style, run the step, return the labels."""
    axes = "zyx"[-tiles[0].ndim :]
    lines = [f"tile,{','.join(axes)}"]
    for k, (tile, start) in enumerate(zip(tiles, starts, strict=True)):
        lines.append(",".join([write(folder, f"tile{k}", tile), *map(str, start)]))
    (folder / "positions.csv").write_text("\n".join(lines) + "\n")
    words = [f"--tiles={folder}", f"--positions={folder}/positions.csv"]
    reconcile.main([*words, f"--output={folder}/out.zarr", f"--links={folder}/links.csv"])
    return labelfiles.read(labelfiles.open_labels(folder / "out.zarr"))


@pytest.mark.parametrize(("write", "shape"), STYLES)
def test_tiles_as_other_programs_write_them_become_one_image(tmp_path, rng, write, shape):
    truth = synthetic.draw_nuclei(shape, rng, diameter_px=14, coverage=0.4, clustered=0.8)[1]
    truth = skimage_measure.label(truth, connectivity=1)
    core = [max(8, length // 3) for length in shape]
    tiles, starts = cut(truth, windows(shape, core, [5] * len(shape)), rng)
    assert same_objects(truth, reconciled(tmp_path, write, tiles, starts))


@pytest.mark.parametrize("connectivity", [1, 2])
@pytest.mark.parametrize("halo", [2, 9])
def test_connected_components_of_tiles_are_those_of_the_image(tmp_path, rng, connectivity, halo):
    """Of shapes that leave a tile and come back: one component is several labels there."""
    noise = rng.normal(size=(160, 170))
    spectrum = np.fft.fft2(noise)
    y, x = np.meshgrid(*(np.fft.fftfreq(n) for n in noise.shape), indexing="ij")
    smooth = np.fft.ifft2(spectrum * np.exp(-((y**2 + x**2) * 900))).real
    mask = smooth > smooth.std() * 0.3
    boxes = windows(mask.shape, (48, 56), (halo, halo))
    tiles = [
        skimage_measure.label(mask[tuple(slice(*side) for side in box)], connectivity=connectivity)
        for box in boxes
    ]
    starts = [[start for start, _ in box] for box in boxes]
    truth = skimage_measure.label(mask, connectivity=connectivity)
    assert truth.max() > 5
    found = reconciled(tmp_path, scikit_image, tiles, starts)
    assert same_objects(truth, found)
