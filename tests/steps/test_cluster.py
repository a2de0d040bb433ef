import functools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch

import cluster
import drawn_outputs
from iaunet import clustering, grid, network, outputs, tables, tensorkernels
from iaunet.errors import InputError, OptionError
from runs import REPOSITORY, write_header_model

CASES = {
    2: ((90, 70), (4, 4), 40, [((96, 96), 1), ((32, 32), 3), ((16, 48), 4)]),
    3: ((12, 40, 36), (1, 4, 4), 30, [((16, 64, 64), 1), ((4, 16, 16), 3), ((8, 24, 8), 7)]),
}


def write_model(path, ndim, **changes):
    return write_header_model(path, ndim, clustering={"seed": 0.3, "min_size": 5}, **changes)


def prepare(folder, ndim, core_px, n_batches, drawn=None):
    """Store outputs, tiling and model in a folder; return what all batches are called with."""
    shape, id_stride, n_objects, _ = CASES[ndim]
    rng = np.random.default_rng(0)
    drawn = drawn or drawn_outputs.ellipsoids(shape, id_stride, rng, n=n_objects)
    (folder / "outputs").mkdir(parents=True)
    paths, tiles = drawn_outputs.store(folder / "outputs", drawn, core_px, id_stride, n_batches)
    (folder / "tiles.json").write_text(json.dumps(tiles))
    model = write_model(folder / "drawn.safetensors", ndim)
    words = ["--tiles", folder / "tiles.json", "--model", model, "--outputs", *paths]
    return [str(word) for word in words], drawn, tiles


def run_batch(folder, words, batch, *more):
    cluster.main(
        [
            *words,
            f"--batch={batch}",
            f"--output={folder / f'{batch}.zarr'}",
            f"--table={folder / f'{batch}.parquet'}",
            f"--sightings={folder / f'{batch}.sightings.parquet'}",
            f"--contacts={folder / f'{batch}.contacts.parquet'}",
            *more,
        ]
    )


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def run_all(folder, ndim, core_px, n_batches, *more, drawn=None):
    words, drawn, tiles = prepare(folder, ndim, core_px, n_batches, drawn)
    for batch in range(n_batches):
        run_batch(folder, words, batch, *more)
    reader = outputs.Reader([folder / f"{k}.zarr" for k in range(n_batches)], tiles)
    labels = reader.read(outputs.LABELS, tuple(slice(0, n) for n in tiles["shape"]))
    found = [tables.read_parquet(folder / f"{k}.parquet") for k in range(n_batches)]
    seen = [tables.read_parquet(folder / f"{k}.sightings.parquet") for k in range(n_batches)]
    return labels, found, seen, drawn


def joined(frames):
    columns = {
        name: np.concatenate([frame[name].to_numpy() for frame in frames]) for name in frames[0]
    }
    order = np.argsort(columns["gid"], kind="stable")
    return {name: column[order] for name, column in columns.items()}


@pytest.mark.parametrize("ndim", CASES)
def test_labels_and_objects_are_the_same_for_any_tiling_and_number_of_batches(ndim, tmp_path):
    _, id_stride, _, tilings = CASES[ndim]
    runs = [
        run_all(tmp_path / str(k), ndim, core, n_batches)
        for k, (core, n_batches) in enumerate(tilings)
    ]
    labels, objects, _, drawn = runs[0]
    chosen = clustering.Settings.from_dict({"seed": 0.3, "min_size": 5}, ndim)
    np.testing.assert_array_equal(labels, clustering.label_array(drawn, chosen, id_stride))
    assert len(objects[0]) > 5
    for other_labels, others, seen, _ in runs:
        np.testing.assert_array_equal(other_labels, labels)
        for name, column in joined(objects).items():
            np.testing.assert_array_equal(joined(others)[name], column)
        sightings = joined(seen)
        gid, first = np.unique(sightings["gid"], return_index=True)
        counted = np.add.reduceat(sightings["voxels_in_core"], first)
        np.testing.assert_array_equal(counted, sightings["area"][first])
        np.testing.assert_array_equal(gid, np.unique(labels[labels > 0]) - np.uint64(1))


def test_sightings_name_the_tile_that_saw_the_object(tmp_path):
    labels, _, seen, _ = run_all(tmp_path, 2, (32, 32), 3)
    for tile in grid.tiles(labels.shape, (32, 32)):
        inside = labels[tile.core]
        expected = np.unique(inside[inside > 0]) - np.uint64(1)
        found = [frame.loc[frame["tile"] == tile.index, "gid"].to_numpy() for frame in seen]
        np.testing.assert_array_equal(np.concatenate(found), expected)


def test_an_image_without_objects_gives_tables_without_rows(tmp_path):
    shape, id_stride, _, _ = CASES[2]
    nothing = drawn_outputs.empty(shape, id_stride)
    labels, found, seen, _ = run_all(tmp_path / "0", 2, (32, 32), 20, drawn=nothing)
    _, full, full_seen, _ = run_all(tmp_path / "1", 2, (32, 32), 1)
    assert not labels.any()
    assert all(frame.empty for frame in found + seen)
    assert found[0].dtypes.equals(full[0].dtypes)
    assert seen[0].dtypes.equals(full_seen[0].dtypes)


def test_the_same_batch_gives_the_same_bytes_with_any_number_of_threads(tmp_path):
    words, _, _ = prepare(tmp_path / "in", 2, (32, 32), 2)
    for name, threads in (("one", 1), ("two", 3)):
        run_batch(tmp_path / name, words, 1, f"--threads={threads}")
    files = contents(tmp_path / "one")
    assert files == contents(tmp_path / "two")
    assert len(files) > 3


def test_overrides_beat_the_thresholds_of_the_model(tmp_path):
    words, _, _ = prepare(tmp_path / "in", 2, (96, 96), 1)
    run_batch(tmp_path / "a", words, 0)
    record = tmp_path / "record.json"
    more = ["--set", "min_size=200", "seed_window=2,3", "--record", str(record)]
    run_batch(tmp_path / "b", words, 0, *more)
    few = tables.read_parquet(tmp_path / "b" / "0.parquet")
    assert len(few) < len(tables.read_parquet(tmp_path / "a" / "0.parquet"))
    facts = json.loads(record.read_text())
    assert facts["clustering"]["min_size"] == 200
    assert facts["clustering"]["seed_window"] == [2, 3]
    assert facts["n_objects"] == len(few)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "seeds=1"], "unknown key 'seeds'; did you mean 'seed'"),
        (["--set", "fg=0.01"], r"fg is 0.01, needs a number from 0.1 to 1"),
        (["--set", "phi=x"], "phi is 'x', needs a number"),
        (["--set", "phi"], "found 'phi', needs KEY=VALUE"),
        (["--set", "phi=0.5", "phi=0.6"], "'phi' is given twice"),
    ],
)
def test_a_wrong_override_leaves_a_message_and_no_output(more, message, tmp_path):
    words, _, _ = prepare(tmp_path / "in", 2, (96, 96), 1)
    with pytest.raises(InputError, match=message):
        run_batch(tmp_path / "out", words, 0, *more)
    assert not (tmp_path / "out").exists()


def test_a_batch_that_is_not_there_is_an_error(tmp_path):
    words, _, _ = prepare(tmp_path / "in", 2, (96, 96), 1)
    with pytest.raises(InputError, match=r"found 1, .* has batches 0 to 0"):
        run_batch(tmp_path / "out", words, 1)


def test_a_model_of_the_wrong_dimension_is_an_error(tmp_path):
    words, _, _ = prepare(tmp_path / "in", 2, (96, 96), 1)
    write_model(tmp_path / "in" / "drawn.safetensors", 3)
    with pytest.raises(InputError, match="the model is 3D, the image is 2D"):
        run_batch(tmp_path / "out", words, 0)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"batches": 3, "shape": [1]}'])
def test_a_damaged_tiling_is_an_error(text, tmp_path):
    words, _, _ = prepare(tmp_path / "in", 2, (96, 96), 1)
    (tmp_path / "in" / "tiles.json").write_text(text)
    with pytest.raises(InputError, match=r"not a tiles\.json of tile\.py"):
        run_batch(tmp_path / "out", words, 0)


def test_a_missing_tile_of_a_neighbour_leaves_nothing_half_written(tmp_path):
    words, _, _ = prepare(tmp_path / "in", 2, (32, 32), 3)
    (tmp_path / "in" / "outputs" / "1.zarr" / "fg" / "c" / "1" / "0").unlink()
    with pytest.raises(InputError, match="array 'fg' has no data for tile 3"):
        run_batch(tmp_path / "out", words, 0)
    assert list((tmp_path / "out").iterdir()) == []


MEAN_SHIFT = {"mode": "meanshift", "unit_px": 3, "min_size": 3}


def shifted(folder, core_px, n_batches, drawn, emb_dim):
    """Label stored outputs by mean-shift; return the labels."""
    words, _, tiles = prepare(folder, 2, core_px, n_batches, drawn)
    write_model(folder / "drawn.safetensors", 2, net={"emb_dim": emb_dim})
    for batch in range(n_batches):
        chosen = [f"{key}={value}" for key, value in MEAN_SHIFT.items()]
        run_batch(folder, words, batch, "--set", *chosen)
    reader = outputs.Reader([folder / f"{k}.zarr" for k in range(n_batches)], tiles)
    return reader.read(outputs.LABELS, tuple(slice(0, n) for n in tiles["shape"]))


def test_mean_shift_gives_the_same_labels_for_any_tiling_and_number_of_batches(tmp_path, rng):
    drawn = drawn_outputs.sticks((90, 70), (4, 4), rng, n=25, emb_dim=3)
    whole = shifted(tmp_path / "whole", (96, 96), 1, drawn, 3)
    tiled = shifted(tmp_path / "tiled", (32, 16), 4, drawn, 3)
    np.testing.assert_array_equal(tiled, whole)
    settings = clustering.Settings.from_dict(MEAN_SHIFT, 2)
    np.testing.assert_array_equal(whole, clustering.label_array(drawn, settings, (4, 4)))
    assert len(np.unique(whole)) > 5


def test_a_model_without_embeddings_is_named_when_they_are_compared(tmp_path):
    with pytest.raises(InputError, match="compares embeddings, which the model has not; use vec"):
        shifted(tmp_path, (96, 96), 1, None, 0)


@pytest.fixture
def on_tensors(monkeypatch):
    """Have tiles labelled by the loops of a device, which is the CPU."""
    compute = functools.partial(tensorkernels.on_device, torch.device("cpu"))
    monkeypatch.setattr(cluster, "on_device", lambda *_: (compute, 10**4))


@pytest.mark.parametrize("ndim", CASES)
def test_the_loops_of_a_device_give_the_same_bytes(ndim, tmp_path, request):
    core, n_batches = CASES[ndim][3][1]
    words, _, _ = prepare(tmp_path / "in", ndim, core, n_batches)
    more = ["--set", "join=0.5", "identity=0.3"]
    run_batch(tmp_path / "compiled", words, 1, *more)
    request.getfixturevalue("on_tensors")
    run_batch(tmp_path / "tensors", words, 1, *more, "--threads=2")
    found = contents(tmp_path / "tensors")
    assert found == contents(tmp_path / "compiled")
    assert len(found) > 3


def test_a_device_without_memory_gives_the_same_bytes_and_a_warning(
    tmp_path, monkeypatch, caplog, on_tensors
):
    def no_memory(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    words, _, _ = prepare(tmp_path / "in", 2, (32, 32), 2)
    run_batch(tmp_path / "enough", words, 1)
    monkeypatch.setattr(tensorkernels.TensorKernels, "keep_component", no_memory)
    run_batch(tmp_path / "short", words, 1)
    assert contents(tmp_path / "short") == contents(tmp_path / "enough")
    assert "tiles 5, 6, 7, 8: out of memory on cpu, labelled on the CPU" in caplog.text


@pytest.mark.parametrize(("wanted", "message"), [("cuda:99", "not there"), ("gpu", "use auto")])
def test_a_device_that_is_not_there_is_an_error(wanted, message, tmp_path):
    words, _, _ = prepare(tmp_path / "in", 2, (96, 96), 1)
    with pytest.raises(OptionError, match=rf"--device: .*{message}"):
        run_batch(tmp_path / "out", words, 0, f"--device={wanted}")
    assert not (tmp_path / "out").exists()


def alone(code):
    """Run code in a process of its own, beside the steps; return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", f"import sys, cluster; {code}"],
        cwd=REPOSITORY / "workflow/scripts",
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.mark.parametrize("wanted", ["cpu", "auto"])
def test_without_a_gpu_pytorch_is_not_imported(wanted):
    no_driver = "cluster.machine.has_cuda = lambda: False"
    code = f"{no_driver}; print(cluster.on_device('{wanted}', 'local', 1) == cluster.ON_CPU)"
    assert alone(f"{code}; print('torch' in sys.modules)").split() == ["True", "False"]


def test_where_pytorch_is_missing_auto_is_the_cpu_and_cuda_an_error():
    missing = "sys.modules['torch'] = None; cluster.machine.has_cuda = lambda: True"
    auto = "print(cluster.on_device('auto', 'local', 1) == cluster.ON_CPU)"
    assert alone(f"{missing}; {auto}") == "True"
    code = "try: cluster.on_device('cuda', 'local', 1)"
    said = alone(f"{missing}\n{code}\nexcept cluster.OptionError as error: print(error)")
    assert said.startswith("--device: cuda needs PyTorch, which is not installed here")


def test_mean_shift_is_computed_on_the_cpu(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(network, "pick_device", lambda _: torch.device("cuda"))
    assert cluster.on_device("cuda", "meanshift", 1) == cluster.ON_CPU
    assert "mode meanshift is computed on the CPU" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("ndim", CASES)
def test_a_gpu_gives_the_bytes_of_the_cpu(ndim, tmp_path):
    words, _, _ = prepare(tmp_path / "in", ndim, CASES[ndim][3][1][0], 1)
    for device in ("cpu", "cuda"):
        run_batch(tmp_path / device, words, 0, f"--device={device}")
    assert contents(tmp_path / "cuda") == contents(tmp_path / "cpu")
