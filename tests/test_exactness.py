"""The promise of the project: the tiled result is the untiled result, with the shipped models."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

import cluster
import infer
import measure
import nets
import stitch
import tile
from iaunet import backends, clustering, omezarr, predict, synthetic, tables
from iaunet import checkpoint as model_files

MODELS = Path(__file__).resolve().parents[1] / "resources" / "models"
OF_THE_TILING = ["crosses_seam", "n_tiles"]


def segment(folder, image, model, core_px, n_batches, threads=1, diameter="native", verify=0):
    """Run all steps on an image with one tiling; return the folder of the results."""
    folder.mkdir()
    core = ["auto"] if core_px is None else [str(size) for size in core_px]
    common = [f"--tiles={folder}/tiles.json", f"--model={model}"]
    tile.main(
        [
            *common,
            f"--image={image}",
            "--name=image",
            *("--core-px", *core, "--halo", "exact", "--percentiles", "1", "99.8"),
            f"--diameter-px={diameter}",
            f"--batches={n_batches}",
            f"--output={folder}/image.zarr",
            f"--record={folder}/tile.json",
        ]
    )
    batches = range(n_batches)
    for k in batches:
        infer.main(
            [
                *common,
                f"--store={folder}/image.zarr",
                f"--batch={k}",
                *("--device=cpu", "--backend=auto", f"--threads={threads}"),
                f"--output={folder}/outputs-{k}.zarr",
                f"--record={folder}/infer-{k}.json",
            ]
        )
    for k in reversed(batches):  # the order of the jobs must not matter
        cluster.main(
            [
                *common,
                *("--outputs", *(f"{folder}/outputs-{j}.zarr" for j in batches)),
                f"--batch={k}",
                f"--output={folder}/labels-{k}.zarr",
                f"--table={folder}/objects-{k}.parquet",
                f"--sightings={folder}/sightings-{k}.parquet",
                f"--contacts={folder}/contacts-{k}.parquet",
                f"--record={folder}/cluster-{k}.json",
            ]
        )
    stitch.main(
        [
            common[0],
            f"--store={folder}/image.zarr",
            *("--labels", *(f"{folder}/labels-{k}.zarr" for k in batches)),
            *("--tables", *(f"{folder}/objects-{k}.parquet" for k in batches)),
            *("--sightings", *(f"{folder}/sightings-{k}.parquet" for k in batches)),
            *("--contacts", *(f"{folder}/contacts-{k}.parquet" for k in batches)),
            *(f"--verify={verify}", f"--model={model}"),
            f"--output={folder}/image.ome.zarr",
            f"--identities={folder}/identities.parquet",
            f"--seams={folder}/seams.csv",
            f"--record={folder}/stitch.json",
        ]
    )
    steps = ["tile", "stitch", *(f"{s}-{k}" for s in ("infer", "cluster") for k in batches)]
    measure.main(
        [
            common[0],
            f"--store={folder}/image.ome.zarr",
            f"--identities={folder}/identities.parquet",
            f"--seams={folder}/seams.csv",
            *("--records", *(f"{folder}/{name}.json" for name in steps)),
            f"--output-csv={folder}/objects.csv",
            f"--output-parquet={folder}/objects.parquet",
            f"--metrics={folder}/metrics.json",
            f"--provenance={folder}/provenance.json",
        ]
    )
    return folder


def label_files(folder):
    """Return the checksum of every file of the labels, metadata and pyramid included."""
    root = folder / "image.ome.zarr" / "labels"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def objects(folder):
    """Return the bytes of the object table without the columns that tell of the tiling."""
    frame = tables.read_text(folder / "objects.csv")
    return frame.drop(columns=OF_THE_TILING).to_csv().encode()


@pytest.mark.parametrize(
    ("shape", "cores"),
    [((150, 190), [(152, 192), (64, 48)]), ((24, 60, 70), [(24, 64, 72), (8, 16, 40)])],
    ids=["2d", "3d"],
)
def test_classes_of_voxels_are_the_same_for_any_tiling(tmp_path, shape, cores, rng):
    image = tmp_path / "image.tif"
    tifffile.imwrite(image, rng.integers(0, 60_000, shape).astype(np.uint16))
    names = (("nucleus", True), ("tissue", False))
    seed = {2: 8, 3: 7}[len(shape)]  # with these, all classes occur
    model = nets.save_model(tmp_path / "m.safetensors", len(shape), seed, classes=names)
    found = [
        segment(tmp_path / str(k), image, model, core, 1 + 2 * k) for k, core in enumerate(cores)
    ]
    assert label_files(found[0]) == label_files(found[1])
    assert objects(found[0]) == objects(found[1])
    store = omezarr.open_labels(found[0] / "image.ome.zarr", "semantic")
    counts = np.bincount(store[...].ravel(), minlength=3)
    assert (counts > 0).all()
    report = json.loads((found[0] / "metrics.json").read_text())["classes"]
    size = "area_px" if len(shape) == 2 else "volume_px"
    assert [one[size] for one in report] == counts[1:].tolist()


def real_nuclei():
    """A real image of crowded nuclei, from a test dependency, larger than a network block."""
    stardist = pytest.importorskip("stardist.data")
    image = stardist.test_image_nuclei_2d()
    return np.concatenate([image, image[::-1], image])[:1090, :400]


def drawn_large_nuclei():
    """Nuclei of 90 px, larger than the small tiles, some in every corner of a tile."""
    options = {"coverage": 0.4, "clustered": 0.8}
    return synthetic.draw_nuclei((330, 310), np.random.default_rng(2), diameter_px=90, **options)[0]


def drawn_volume():
    """Touching nuclei in a volume that is longer than a network block."""
    options = {"diameter_px": 22, "spacing": (2.0, 1.0, 1.0), "coverage": 0.3, "clustered": 0.8}
    return synthetic.draw_nuclei((18, 266, 52), np.random.default_rng(3), **options)[0]


def real_volume():
    """A real confocal volume of nuclei, from a test dependency, longer than a network block."""
    stardist = pytest.importorskip("stardist.data")
    volume = stardist.test_image_nuclei_3d()
    return np.concatenate([volume, volume[:, ::-1]] * 2 + [volume], axis=1)[:20, :266, :48]


CASES = {
    "real nuclei": (
        "nuclei-2d",
        real_nuclei,
        [((1104, 400), 1), (None, 2), ((512, 256), 3), ((160, 208), 5)],
    ),
    "drawn nuclei larger than a tile": (
        "nuclei-2d",
        drawn_large_nuclei,
        [((336, 320), 1), ((128, 128), 1), ((96, 64), 4), ((32, 48), 2)],
    ),
    "drawn volume": (
        "nuclei-3d",
        drawn_volume,
        [((20, 272, 56), 1), ((12, 128, 32), 2), ((8, 64, 24), 3), ((20, 48, 56), 4)],
    ),
    "real volume, nuclei larger than a tile": (
        "nuclei-3d",
        real_volume,
        [((20, 272, 48), 1), ((12, 96, 32), 2), ((8, 16, 16), 2), ((20, 40, 48), 1)],
    ),
}


RESAMPLED = [
    pytest.param("nuclei-2d", drawn_large_nuclei, "auto", [(None, 1), ((32, 48), 3)], id="shrunk"),
    pytest.param("nuclei-2d", drawn_large_nuclei, 16, [(None, 1), ((256, 176), 2)], id="enlarged"),
    pytest.param(
        "nuclei-3d", drawn_volume, 44, [((12, 136, 32), 1), ((8, 40, 16), 2)], id="volume"
    ),
]


@pytest.mark.parametrize(("name", "draw", "diameter", "tilings"), RESAMPLED)
def test_labels_of_a_resampled_image_are_the_same_bytes(tmp_path, name, draw, diameter, tilings):
    image = draw()
    tifffile.imwrite(tmp_path / "image.tif", image)
    net, meta = model_files.load(MODELS / f"{name}.safetensors")
    model = tmp_path / "model.safetensors"
    sizes = {"smallest": [20.0] * image.ndim, "largest": [30.0] * image.ndim}
    model_files.save(model, net.state_dict(), meta | {"diameter_px": sizes})
    whole, tiled = (
        segment(
            tmp_path / str(k), tmp_path / "image.tif", model, core, n, diameter=diameter, verify=k
        )
        for k, (core, n) in enumerate(tilings)
    )
    tiles = json.loads((whole / "tiles.json").read_text())
    assert tiles["grid_shape"] != tiles["shape"] == list(image.shape)
    assert omezarr.open_labels(whole / "image.ome.zarr").shape == image.shape
    assert len(tables.read_text(whole / "objects.csv")) > 4
    assert label_files(tiled) == label_files(whole)
    assert objects(tiled) == objects(whole)
    assert len(tables.read_text(tiled / "seams.csv")) > 2
    proof = json.loads((tiled / "metrics.json").read_text())
    assert (proof["verified_windows"], proof["verified_differ"]) == (1, 0)


@pytest.fixture(scope="module", params=CASES, ids=str)
def results(request, tmp_path_factory):
    """The results of one image for one tile and for several tilings."""
    model, draw, tilings = CASES[request.param]
    folder = tmp_path_factory.mktemp("exact")
    tifffile.imwrite(folder / "image.tif", draw())
    path = MODELS / f"{model}.safetensors"
    return [
        segment(folder / str(k), folder / "image.tif", path, core, n, threads=1 + k % 2)
        for k, (core, n) in enumerate(tilings)
    ]


def test_labels_are_the_same_bytes_for_one_tile_and_for_many(results):
    whole, *tiled = results
    assert json.loads((whole / "tiles.json").read_text())["n_tiles"] == 1
    for folder in tiled:
        assert json.loads((folder / "tiles.json").read_text())["n_tiles"] > 1
        assert label_files(folder) == label_files(whole)


def test_object_tables_are_the_same_bytes_for_one_tile_and_for_many(results):
    whole, *tiled = results
    assert len(tables.read_text(whole / "objects.csv")) > 5
    for folder in tiled:
        assert objects(folder) == objects(whole)


def test_the_tilings_do_cut_objects_and_all_tiles_agree_on_them(results):
    for folder in results[1:]:
        seams = tables.read_text(folder / "seams.csv")
        assert len(seams) > 3
        assert set(seams["verdict"]) == {"agreed"}
    most_tiles = tables.read_text(results[2] / "seams.csv")["n_tiles"].astype(int).max()
    assert most_tiles >= 4  # an object on a tile corner


def test_some_objects_are_larger_than_a_tile(results, request):
    if "larger than a tile" not in request.node.callspec.id:
        pytest.skip("tiles of this case are larger than its objects")
    sizes = tables.read_parquet(results[0] / "objects.parquet").filter(regex="^(area|volume)_px$")
    cores = [json.loads((folder / "tiles.json").read_text())["core"] for folder in results]
    assert int(sizes.to_numpy().max()) > min(np.prod(core) for core in cores)


def test_blocks_of_the_network_give_the_labels_of_one_pass_over_the_whole_image(results):
    tiles = json.loads((results[0] / "tiles.json").read_text())
    model = MODELS / f"{tiles['model']['name']}.safetensors"
    net, meta = model_files.load(model)
    image = omezarr.open_level(results[0] / "image.zarr")[:].astype(np.float32)
    low, high = tiles["limits"]
    scaled = ((image - np.float32(low)) * np.float32(1 / (high - low))).clip(*predict.CLIP)
    engine = backends.prepare(net, "auto", "auto", torch.device("cpu"), 1)
    outputs = predict.whole(engine, scaled)
    settings = clustering.Settings.from_dict(meta["clustering"], image.ndim)
    expected = clustering.label_array(outputs, settings, net.id_stride)
    found = omezarr.open_labels(results[0] / "image.ome.zarr")[:]
    # A float may differ in its last bit between the two, and a threshold lie in between.
    assert np.mean((found > 0) != (expected > 0)) < 1e-5
    assert len(np.unique(found)) == len(np.unique(expected))
