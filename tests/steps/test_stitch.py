import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from ome_zarr_models.v05 import Image, ImageLabel

import cluster
import drawn_outputs
import number
import paint
import stitch
from iaunet import (
    checksums,
    cli,
    grid,
    identity,
    joining,
    omezarr,
    outputs,
    relabelling,
    scale,
    synthetic,
    tables,
)
from iaunet.errors import InputError
from runs import write_header_model

TILINGS = [
    pytest.param((96, 130), (96, 132), 1, id="2d, one tile"),
    pytest.param((96, 130), (32, 64), 2, id="2d, many tiles"),
    pytest.param((96, 130), (16, 48), 4, id="2d, small tiles"),
    pytest.param((12, 40, 44), (12, 40, 44), 1, id="3d, one tile"),
    pytest.param((12, 40, 44), (4, 16, 32), 5, id="3d, many tiles"),
    pytest.param((12, 40, 44), (8, 24, 8), 30, id="3d, more batches than tiles"),
]


def drawn(shape, seed=0):
    rng = np.random.default_rng(seed)
    return synthetic.draw_nuclei(shape, rng, diameter_px=12, coverage=0.3)[1]


class Run:
    """What tile.py and cluster.py leave of an image, from true labels."""

    def __init__(self, folder, labels, core, n_batches, dtype=np.uint16):
        self.folder, self.labels, self.core = Path(folder), labels, core
        self.folder.mkdir(parents=True, exist_ok=True)
        axes = "zyx"[-labels.ndim :]
        self.store = self.folder / "image.zarr"
        omezarr.create_image(
            self.store, labels.shape, axes, dtype, None, "cells", {"channel": "0", "version": "1"}
        )
        omezarr.open_level(self.store, 0, "r+")[...] = (labels % 250).astype(dtype)
        omezarr.write_pyramid(self.store)
        n_tiles = grid.n_tiles(labels.shape, core)
        self.tiles = {
            "image": "cells",
            "shape": labels.shape,
            "axes": list(axes),
            "core": core,
            "batches": grid.batches(n_tiles, n_batches),
            "model": {"name": "m", "sha256": "0" * 64},
        }
        ids, first, areas = np.unique(labels, return_index=True, return_counts=True)
        self.gid = dict(zip(ids.tolist(), first.tolist(), strict=True))
        self.area = dict(zip(ids.tolist(), areas.tolist(), strict=True))
        self.settings = [{"seed": 0.5}] * n_batches
        self.classes = None
        self.batches = [self.batch(k) for k in range(n_batches)]

    def batch(self, k):
        seeds, sightings, written = [], [], {}
        for index in range(*self.tiles["batches"][k]):
            tile = grid.tile(self.labels.shape, self.core, index)
            core = self.labels[tile.core]
            written[index] = np.zeros(core.shape, np.uint64)
            for label, count in zip(*np.unique(core, return_counts=True), strict=True):
                if label == 0:
                    continue
                gid = self.gid[int(label)]
                written[index][core == label] = gid + 1
                sightings.append((index, gid, count, self.area[int(label)], gid * 7 + 1))
                seed = np.unravel_index(gid, self.labels.shape)
                if all(s.start <= p < s.stop for s, p in zip(tile.core, seed, strict=True)):
                    seeds.append((gid, *seed, self.area[int(label)], 0.5, gid / 10))
        axes = self.tiles["axes"]
        columns = ["gid", *(f"seed_{axis}" for axis in axes), "area", "confidence", "id_0"]
        table = pd.DataFrame(seeds, columns=columns).astype(
            {"gid": np.uint64, "confidence": np.float32, "id_0": np.float32}
        )
        seen = pd.DataFrame(
            sightings, columns=["tile", "gid", "voxels_in_core", "area", "checksum"]
        )
        return written, table, seen.astype({"gid": np.uint64, "checksum": np.uint64})

    def write(self):
        """Write the files of all batches; return the options of stitch.py."""
        (self.folder / "tiles.json").write_text(json.dumps(self.tiles))
        paths = {"labels": [], "tables": [], "sightings": [], "contacts": []}
        for k, (written, table, seen) in enumerate(self.batches):
            store = self.folder / f"{k}.zarr"
            cli.remove(store)
            has_classes = self.classes is not None
            writer = outputs.create_labels(store, self.labels.shape, self.core, classes=has_classes)
            for index, values in written.items():
                tile = grid.tile(self.labels.shape, self.core, index)
                arrays = {outputs.LABELS: values}
                if has_classes:
                    arrays[outputs.CLASSES] = self.classes[tile.core]
                writer.write(tile, arrays)
            writer.close(settings=self.settings[k], classes=[{"name": "a", "thing": True}])
            tables.write_parquet(table, self.folder / f"{k}.parquet")
            tables.write_parquet(seen, self.folder / f"{k}.sightings.parquet")
            none = joining.contacts(*np.zeros((2, 0)), np.zeros((0, 2), np.int64))
            tables.write_parquet(none, self.folder / f"{k}.contacts.parquet")
            paths["labels"].append(store)
            paths["tables"].append(self.folder / f"{k}.parquet")
            paths["sightings"].append(self.folder / f"{k}.sightings.parquet")
            paths["contacts"].append(self.folder / f"{k}.contacts.parquet")
        options = ["--store", self.store, "--tiles", self.folder / "tiles.json"]
        for name, found in paths.items():
            options += [f"--{name}", *found]
        for name in ("output", "identities", "seams", "record"):
            options += [f"--{name}", self.path(name)]
        return [str(option) for option in options]

    def path(self, name):
        names = {"output": "cells.ome.zarr", "identities": "identities.parquet"}
        return self.folder / "out" / names.get(name, f"{name}.txt")

    def stitch(self):
        stitch.main(self.write())
        return (
            omezarr.open_labels(self.path("output"))[...],
            tables.read_parquet(self.path("identities")),
            pd.read_csv(self.path("seams")),
        )


def by_rank(labels):
    """Number labels by their first voxel in raster order."""
    ids, first = np.unique(labels, return_index=True)
    ranks = {label: k for k, label in enumerate(ids[ids > 0][np.argsort(first[ids > 0])], start=1)}
    return np.vectorize(lambda label: ranks.get(label, 0))(labels)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(("shape", "core", "n_batches"), TILINGS)
def test_ids_are_ranks_of_the_seed_voxels_whatever_the_tiling(tmp_path, shape, core, n_batches):
    truth = drawn(shape)
    run = Run(tmp_path, truth, core, n_batches)
    labels, table, seams = run.stitch()
    np.testing.assert_array_equal(labels, by_rank(truth))
    assert labels.dtype == np.uint32
    np.testing.assert_array_equal(table["label"], np.arange(1, truth.max() + 1))
    seeds = np.ravel_multi_index([table[f"seed_{axis}"] for axis in run.tiles["axes"]], shape)
    np.testing.assert_array_equal(table["gid"], seeds)
    np.testing.assert_array_equal(labels.ravel()[seeds], table["label"])
    assert (table["verdict"] == "agreed").all()
    n_tiles = [
        len({t.index for t in grid.tiles(shape, core) if (labels[t.core] == label).any()})
        for label in table["label"]
    ]
    np.testing.assert_array_equal(table["n_tiles"], n_tiles)
    np.testing.assert_array_equal(table["crosses_seam"], np.array(n_tiles) > 1)
    assert list(seams["label"]) == list(table["label"][table["crosses_seam"]])
    assert (seams["agreement"] == 1).all()
    assert [len(tiles.split()) for tiles in seams["tiles"].astype(str)] == list(seams["n_tiles"])
    size = "area_px" if len(shape) == 2 else "volume_px"
    areas = np.bincount(labels.ravel())
    np.testing.assert_array_equal(seams[size], areas[seams["label"]])


@pytest.mark.parametrize("shape", [(96, 130), (12, 40, 44)])
def test_the_label_store_has_the_same_bytes_for_any_tiling(tmp_path, shape):
    stores = []
    for k, (core, n_batches) in enumerate([((96,) * len(shape), 1), ((16,) * len(shape), 3)]):
        run = Run(tmp_path / str(k), drawn(shape), core, n_batches)
        run.stitch()
        stores.append(files(run.path("output") / "labels"))
    assert stores[0] == stores[1]


def cluster_and_stitch(folder, drawn, core, n_batches, **more):
    """Run both steps on drawn network outputs; return the folder of the results."""
    folder.mkdir()
    shape, ndim = drawn["fg"].shape, drawn["fg"].ndim
    run = Run(folder, np.zeros(shape, np.uint32), core, n_batches)
    values = {"seed": 0.3, "min_size": 3, **more.pop("clustering", {})}
    write_header_model(folder / "m.safetensors", ndim, clustering=values, **more)
    run.tiles["model"] = {"name": "m", "sha256": checksums.sha256(folder / "m.safetensors")}
    options = run.write()
    (folder / "outputs").mkdir()
    paths, _ = drawn_outputs.store(folder / "outputs", drawn, core, (4,) * ndim, n_batches)
    for k in range(n_batches):
        words = ["--tiles", folder / "tiles.json", "--model", folder / "m.safetensors"]
        words += ["--outputs", *paths, "--batch", k, "--output", folder / f"{k}.zarr"]
        words += ["--table", folder / f"{k}.parquet"]
        words += ["--sightings", folder / f"{k}.sightings.parquet"]
        words += ["--contacts", folder / f"{k}.contacts.parquet"]
        cluster.main([str(word) for word in words])
    stitch.main(options)
    return run


@pytest.mark.parametrize("draw", ["ellipsoids", "rings"])
@pytest.mark.parametrize(
    ("shape", "cores"),
    [
        ((96, 132), [((96, 132), 1), ((48, 52), 4)]),
        ((16, 44, 40), [((16, 44, 40), 1), ((8, 24, 20), 3)]),
    ],
)
def test_clustered_outputs_give_the_same_labels_whatever_the_tiling(
    tmp_path, rng, draw, shape, cores
):
    drawn = getattr(drawn_outputs, draw)(shape, (4,) * len(shape), rng, n=40)
    results = []
    for k, (core, n_batches) in enumerate(cores):
        run = cluster_and_stitch(tmp_path / str(k), drawn, core, n_batches)
        table = tables.read_parquet(run.path("identities"))
        assert (table["verdict"] == "agreed").all()
        fixed = table.drop(columns=["crosses_seam", "n_tiles", "n_batches"])
        results.append((files(run.path("output") / "labels"), fixed))
    assert len(results[0][1]) > 2
    for stored, table in results[1:]:
        assert stored == results[0][0]
        pd.testing.assert_frame_equal(table, results[0][1])


def test_output_shards_are_cut_differently_than_tiles(tmp_path):
    truth = np.kron(drawn((55, 60)), np.ones((28, 28), np.uint32))
    labels, _, _ = Run(tmp_path, truth, (768, 1280), 2).stitch()
    np.testing.assert_array_equal(labels, by_rank(truth))
    array = omezarr.open_labels(tmp_path / "out" / "cells.ome.zarr")
    assert 1280 % array.shards[1] != 0
    assert array.nchunks > 1


@pytest.mark.parametrize("image_shape", [(96, 130), (40, 51)])
def test_classes_of_voxels_come_to_the_grid_of_the_image_with_their_names(tmp_path, image_shape):
    shape = (96, 130)
    run = Run(tmp_path, drawn(shape), (32, 32), 2)
    run.classes = (run.labels % 2).astype(np.uint8)
    if image_shape != shape:
        resample(run, image_shape)
    run.stitch()
    found = omezarr.open_labels(run.path("output"), "semantic")
    assert found.dtype == np.uint8
    at = scale.nearest(shape, image_shape, tuple(slice(0, n) for n in image_shape))
    np.testing.assert_array_equal(found[...], run.classes[np.ix_(*at)])
    group = zarr.open_group(run.path("output") / "labels/semantic", mode="r")
    ImageLabel.from_zarr(group)
    shown = group.attrs["ome"]["image-label"]
    assert shown["properties"] == [{"label-value": 1, "class": "a"}]
    assert [colour["label-value"] for colour in shown["colors"]] == [1]


@pytest.mark.parametrize("shape", [(60, 530), (12, 40, 44)])
def test_validator_accepts_image_and_labels(tmp_path, shape):
    run = Run(tmp_path, drawn(shape), (32,) * len(shape), 2)
    labels, table, _ = run.stitch()
    group = zarr.open_group(run.path("output"), mode="r")
    image = Image.from_zarr(group)
    assert image.labels.attributes.ome.labels == ["instances"]
    found = ImageLabel.from_zarr(group["labels/instances"])
    paths = [dataset.path for dataset in found.attributes.ome.multiscales[0].datasets]
    level = labels
    for path in paths[1:]:
        coarse = group[f"labels/instances/{path}"][...]
        factors = [1 if a == b else 2 for a, b in zip(level.shape, coarse.shape, strict=True)]
        level = level[tuple(slice(None, None, factor) for factor in factors)]
        np.testing.assert_array_equal(coarse, level)
    attrs = group["labels/instances"].attrs["iaunet"]
    assert attrs["n_objects"] == len(table)
    assert attrs["model"] == {"name": "m", "sha256": "0" * 64}
    assert attrs["clustering"] == {"seed": 0.5}


def test_image_part_is_linked_not_copied_and_the_source_stays(tmp_path):
    run = Run(tmp_path, drawn((64, 64)), (32, 32), 1)
    before = files(run.store)
    run.stitch()
    assert files(run.store) == before
    chunk = next(path for path in (run.store / "0" / "c").rglob("*") if path.is_file())
    assert chunk.samefile(run.path("output") / chunk.relative_to(run.store))


@pytest.mark.parametrize("shape", [(40, 50), (6, 40, 50)])
def test_no_objects_give_empty_labels_and_tables_with_a_header(tmp_path, shape):
    run = Run(tmp_path, np.zeros(shape, np.uint32), (16,) * len(shape), 3)
    labels, table, seams = run.stitch()
    assert not labels.any()
    assert len(table) == len(seams) == 0
    assert {"label", "gid", "seed_y", "crosses_seam", "verdict", "id_0"} <= set(table.columns)
    assert list(seams.columns)[:4] == ["image", "label", "gid", "n_tiles"]
    Image.from_zarr(zarr.open_group(run.path("output"), mode="r"))


def test_one_object_fills_the_image(tmp_path):
    labels, table, seams = Run(tmp_path, np.ones((40, 50), np.uint32), (16, 16), 2).stitch()
    assert (labels == 1).all()
    assert table["n_tiles"].tolist() == [12]
    assert seams["n_batches"].tolist() == [2]
    assert seams["min_voxels_in_a_core"].tolist() == [16]


def crossing(run):
    """Return a gid that several batches saw."""
    gids = np.concatenate([seen["gid"].unique() for _, _, seen in run.batches])
    found, counts = np.unique(gids, return_counts=True)
    return found[counts > 1][0]


@pytest.mark.parametrize("column", ["area", "checksum"])
def test_tiles_that_disagree_are_a_conflict_and_the_object_is_kept(tmp_path, column):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 3)
    gid = crossing(run)
    seen = next(seen for _, _, seen in run.batches[::-1] if (seen["gid"] == gid).any())
    seen.loc[(seen["gid"] == gid).idxmax(), column] += 1
    labels, table, seams = run.stitch()
    np.testing.assert_array_equal(labels, by_rank(run.labels))
    assert table.loc[table["gid"] == gid, "verdict"].tolist() == ["conflict"]
    row = seams[seams["gid"] == gid].iloc[0]
    assert row["verdict"] == "conflict"
    assert row["agreement"] < 1
    assert "reported in cores" in row["evidence"]
    assert (table["verdict"] == "agreed").sum() == len(table) - 1


def test_voxels_that_are_not_where_a_tile_reported_them_are_a_conflict(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 3)
    gid = crossing(run)
    for written, _, _ in run.batches:
        for values in written.values():
            where = np.argwhere(values == gid + 1)
            if len(where) > 1:
                values[tuple(where[-1])] = 0
    _, table, _ = run.stitch()
    assert table.loc[table["gid"] == gid, "verdict"].tolist() == ["conflict"]


def test_an_object_that_no_table_owns_is_kept_and_flagged(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 2)
    written, table, seen = run.batches[0]
    gid = table["gid"].iloc[3]
    run.batches[0] = (written, table[table["gid"] != gid], seen)
    labels, found, seams = run.stitch()
    np.testing.assert_array_equal(labels, by_rank(run.labels))
    row = found[found["gid"] == gid].iloc[0]
    assert row["verdict"] == "orphan"
    assert np.isnan(row["confidence"])
    assert seams.loc[seams["gid"] == gid, "verdict"].tolist() == ["orphan"]


def test_voxels_that_neither_table_nor_sighting_knows_are_kept_and_flagged(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 2)
    written, _, _ = run.batches[1]
    values = written[max(written)]
    free = tuple(np.argwhere(values == 0)[-1])
    gid = 96 * 130 - 1
    values[free] = gid + 1
    labels, table, seams = run.stitch()
    assert np.count_nonzero(labels == table["label"].max()) == 1
    assert table["verdict"].tolist() == ["agreed"] * (len(table) - 1) + ["orphan"]
    assert len(np.unique(labels)) == len(table) + 1
    assert seams.iloc[-1][["gid", "n_tiles", "verdict"]].tolist() == [gid, 0, "orphan"]
    attrs = zarr.open_group(run.path("output"), mode="r")["labels/instances"].attrs["iaunet"]
    assert attrs["n_objects"] == len(table)


def test_an_object_without_voxels_gets_no_id_and_is_flagged(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 2)
    gid = run.batches[0][1]["gid"].iloc[2]
    for written, _, _ in run.batches:
        for values in written.values():
            values[values == gid + 1] = 0
    labels, table, seams = run.stitch()
    np.testing.assert_array_equal(np.unique(labels), np.arange(len(table) + 1))
    assert len(table) == run.labels.max() - 1
    row = seams[seams["gid"] == gid].iloc[0]
    assert row[["label", "verdict"]].tolist() == [0, "empty"]


def test_an_object_that_two_batches_own_is_a_conflict(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 2)
    (written, table, seen), other = run.batches
    run.batches[0] = (written, pd.concat([table, other[1].iloc[:1]]), seen)
    _, found, _ = run.stitch()
    assert found["label"].is_unique
    gid = other[1]["gid"].iloc[0]
    assert found.loc[found["gid"] == gid, "verdict"].tolist() == ["conflict"]


def test_missing_batches_are_named(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 3)
    options = run.write()
    cli.remove(run.folder / "1.zarr")
    (run.folder / "2.sightings.parquet").unlink()
    with pytest.raises(InputError, match=r"1\.zarr \(batch 1\), .*2\.sightings.* \(batch 2\)"):
        stitch.main(options)
    assert not run.path("output").exists()


def test_one_path_per_batch_is_needed(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 3)
    options = run.write()
    options.remove(str(run.folder / "2.parquet"))
    with pytest.raises(InputError, match=r"--tables: found 2 paths, .* has 3 batches"):
        stitch.main(options)


def test_a_lost_tile_is_an_error_and_leaves_no_output(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 2)
    options = run.write()
    next(
        path for path in (run.folder / "1.zarr" / "labels" / "c").rglob("*") if path.is_file()
    ).unlink()
    with pytest.raises(InputError, match=r"1\.zarr.* no data for tile"):
        stitch.main(options)
    assert list((run.folder / "out").iterdir()) == []


def test_labels_beyond_the_image_are_refused(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 2)
    run.batches[0][0][0][0, 0] = 10**9
    with pytest.raises(InputError, match=r"hold 1000000000, needs at most 12480"):
        run.stitch()


def test_batches_with_other_settings_are_refused(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 2)
    run.settings[1] = {"seed": 0.4}
    with pytest.raises(InputError, match="batch 1 was clustered with"):
        run.stitch()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shape": 3}'])
def test_damaged_list_of_tiles_is_refused(tmp_path, text):
    run = Run(tmp_path, drawn((40, 40)), (32, 32), 1)
    options = run.write()
    (run.folder / "tiles.json").write_text(text)
    with pytest.raises(InputError, match=r"not a tiles\.json"):
        stitch.main(options)


def test_store_of_another_shape_is_refused(tmp_path):
    run = Run(tmp_path, drawn((40, 40)), (32, 32), 1)
    run.store = Run(tmp_path / "other", drawn((40, 41)), (32, 32), 1).store
    with pytest.raises(InputError, match=r"shape \(40, 41\)"):
        run.stitch()


def test_running_again_gives_the_same_bytes(tmp_path):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 2)
    run.stitch()
    run.path("record").unlink()
    before = files(run.folder / "out")
    run.stitch()
    run.path("record").unlink()
    assert files(run.folder / "out") == before


@pytest.fixture
def small_shards(monkeypatch):
    """Store labels in shards of 32 px, so that small images have many."""
    monkeypatch.setattr(omezarr, "SHARD_PX", {2: (32, 32), 3: (4, 32, 32)})
    monkeypatch.setattr(omezarr, "INNER_PX", {2: (16, 16), 3: (4, 16, 16)})
    monkeypatch.setattr(outputs, "LABELS_PX", {2: (16, 16), 3: (4, 16, 16)})


def in_parts(run, n_parts):
    """Write the labels in parts; return the options of stitch.py that take them."""
    options = run.write()
    paths = {words[0]: words[1:] for words in split_options(options)}
    tables_ = [w for name in ("tables", "sightings", "contacts") for w in option(paths, name)]
    labels = [*option(paths, "tiles"), *option(paths, "labels")]
    numbers = str(run.folder / "numbers.parquet")
    number.main([*labels, *tables_, "--output", numbers])
    painted, counts = [], []
    for k in range(n_parts):
        painted.append(str(run.folder / f"part-{k}.zarr"))
        counts.append(str(run.folder / f"part-{k}.parquet"))
        words = ["--part", str(k), "--parts", str(n_parts), "--numbers", numbers]
        paint.main([*labels, *words, "--output", painted[-1], "--counts", counts[-1]])
    return [*options, "--painted", *painted, "--counts", *counts]


def split_options(options):
    starts = [k for k, word in enumerate(options) if word.startswith("--")]
    return [options[a:b] for a, b in itertools.pairwise([*starts, len(options)])]


def option(paths, name):
    return [f"--{name}", *paths[f"--{name}"]]


@pytest.mark.parametrize("n_parts", [2, 5, 40])
@pytest.mark.parametrize("shape", [(96, 130), (12, 40, 44)])
def test_labels_written_in_parts_have_the_same_bytes(tmp_path, small_shards, shape, n_parts):
    run = Run(tmp_path, drawn(shape), tuple(n // 4 for n in shape), 3)
    run.classes = (run.labels % 2).astype(np.uint8)
    run.stitch()
    run.path("record").unlink()
    before = files(run.folder / "out")
    cli.remove(run.folder / "out")
    stitch.main(in_parts(run, n_parts))
    run.path("record").unlink()
    assert files(run.folder / "out") == before


def test_a_number_that_vanishes_on_the_grid_of_the_image_is_given_again(tmp_path, small_shards):
    run = Run(tmp_path, drawn((96, 130)), (48, 65), 2)
    resample(run, (8, 10))
    _, table, _ = run.stitch()
    before = files(run.folder / "out")
    assert len(table) < run.labels.max()
    cli.remove(run.folder / "out")
    stitch.main(in_parts(run, 3))
    after = files(run.folder / "out")
    del before["record.txt"], after["record.txt"]
    assert after == before


def test_a_lost_shard_or_one_of_other_labels_is_an_error(tmp_path, small_shards):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 2)
    options = in_parts(run, 2)
    shard = run.folder / "part-1.zarr/instances/0/c/2/3"
    moved = shard.rename(tmp_path / "aside")
    with pytest.raises(InputError, match="1 shards of the labels are in none of the parts"):
        stitch.main(options)
    moved.rename(shard)
    meta = run.folder / "part-0.zarr/instances/0/zarr.json"
    meta.write_text(meta.read_text().replace("uint32", "uint64"))
    with pytest.raises(InputError, match=r"part-0\.zarr: not a part of these labels"):
        stitch.main(options)
    assert not run.path("output").exists()


def test_labels_become_64_bit_when_32_do_not_suffice():
    assert relabelling.label_dtype(2**32 - 1) == np.uint32
    assert relabelling.label_dtype(2**32) == np.uint64


def test_64_bit_labels_are_the_same_numbers(tmp_path, monkeypatch):
    run = Run(tmp_path, drawn((96, 130)), (32, 32), 2)
    narrow = run.stitch()[0]
    monkeypatch.setattr(relabelling, "label_dtype", lambda n_objects: np.dtype(np.uint64))
    wide = run.stitch()[0]
    assert (narrow.dtype, wide.dtype) == (np.uint32, np.uint64)
    np.testing.assert_array_equal(wide, narrow)


@pytest.mark.parametrize("values", [[], [0, 0], [5, 5, 0, 2**64 - 1, 5], [3, 4, 3, 4]])
def test_relabelling_by_runs_equals_numpy(values):
    labels = np.array(values, dtype=np.uint64)
    known = np.unique(np.append(labels, np.uint64(0)))
    ranks, found, counts = identity.relabel(labels, known, np.arange(len(known)))
    np.testing.assert_array_equal(known[ranks], labels)
    expected = np.unique(labels[labels > 0], return_counts=True)
    np.testing.assert_array_equal(found, expected[0])
    np.testing.assert_array_equal(counts, expected[1])


def test_values_that_are_not_known_become_background_and_are_reported():
    labels = np.array([[7, 9], [9, 0]], dtype=np.uint64)
    ranks, found, counts = identity.relabel(labels, np.array([0, 7], dtype=np.uint64), np.arange(2))
    np.testing.assert_array_equal(ranks, [[1, 0], [0, 0]])
    assert (found.tolist(), counts.tolist()) == ([7, 9], [1, 2])


@pytest.mark.parametrize(
    ("shape", "image_shape"),
    [((96, 130), (40, 51)), ((96, 130), (200, 333)), ((12, 40, 44), (12, 90, 20))],
    ids=["shrunk", "enlarged", "3d, one axis each way"],
)
def test_labels_come_back_to_the_grid_of_the_image(tmp_path, shape, image_shape):
    run = Run(tmp_path, drawn(shape), tuple(n // 2 for n in shape), 2)
    resample(run, image_shape)
    labels, table, seams = run.stitch()
    everywhere = tuple(slice(0, n) for n in image_shape)
    at = scale.nearest(shape, image_shape, everywhere)
    np.testing.assert_array_equal(labels, by_rank(run.labels)[np.ix_(*at)])
    on_grid = np.unravel_index(table["gid"], shape)
    for axis, seed, n, m in zip(run.tiles["axes"], on_grid, image_shape, shape, strict=True):
        np.testing.assert_array_equal(table[f"seed_{axis}"], np.floor((seed + 0.5) * n / m))
    assert (table["verdict"] == "agreed").all()
    size = "area_px" if len(shape) == 2 else "volume_px"
    np.testing.assert_array_equal(seams[size], np.bincount(labels.ravel())[seams["label"]])


def test_an_object_too_small_for_the_grid_of_the_image_is_told(tmp_path):
    truth = np.zeros((64, 64), np.uint32)
    truth[4:30, 4:30], truth[41, 41], truth[50:60, 50:60] = 1, 2, 3
    run = Run(tmp_path, truth, (32, 32), 2)
    resample(run, (16, 16))
    labels, table, seams = run.stitch()
    np.testing.assert_array_equal(np.unique(labels), [0, 1, 2])
    assert list(table["gid"]) == [run.gid[1], run.gid[3]]
    lost = seams[seams["label"] == 0]
    assert list(lost["gid"]) == [run.gid[2]]
    assert list(lost["verdict"]) == [identity.EMPTY]


def resample(run, image_shape):
    """Say that the labels of a run are on another grid than its image."""
    axes = run.tiles["axes"]
    cli.remove(run.store)
    omezarr.create_image(run.store, image_shape, axes, np.uint16, None, "cells", {"channel": "0"})
    omezarr.open_level(run.store, 0, "r+")[...] = 1
    omezarr.write_pyramid(run.store)
    run.tiles |= {"grid_shape": run.tiles["shape"], "shape": image_shape}


@pytest.mark.parametrize(
    ("shape", "cores"),
    [
        ((48, 132), [((48, 132), 1), ((16, 20), 4), ((48, 44), 2)]),
        ((16, 48, 80), [((16, 48, 80), 1), ((8, 16, 20), 3)]),
    ],
)
def test_fragments_become_the_same_objects_whatever_the_tiling(tmp_path, rng, shape, cores):
    drawn = drawn_outputs.fibres(shape, rng)
    n = len(joining.FEATURES)
    weights = {"features": list(joining.FEATURES), "mean": [0] * n, "spread": [1] * n}
    more = {
        "clustering": {"join": 0.5, "min_size": 60},
        "joining": {**weights, "weight": [9.0] + [0.0] * n},
    }
    results = []
    for k, (core, n_batches) in enumerate(cores):
        run = cluster_and_stitch(tmp_path / str(k), drawn, core, n_batches, **more)
        table = tables.read_parquet(run.path("identities"))
        seams = pd.read_csv(run.path("seams"))
        assert (table["verdict"] == "agreed").all()
        assert table["label"].tolist() == [1, 2]
        contacts = seams["verdict"] == "joined"
        assert contacts.sum() > 10
        labels = omezarr.open_labels(run.path("output"))[...]
        sizes = np.bincount(labels.ravel())[1:]
        if k:
            seen = seams[~contacts]["tiles"].str.split().str.len().tolist()
            assert len(seen) == 2
            assert seams[~contacts]["n_tiles"].tolist() == seen
            size = "area_px" if len(shape) == 2 else "volume_px"
            assert seams[~contacts][size].tolist() == sizes.tolist()
        fixed = table.drop(columns=["crosses_seam", "n_tiles", "n_batches"])
        links = seams.loc[contacts, ["label", "gid", "evidence", "probability", "verdict"]]
        results.append((files(run.path("output") / "labels"), fixed, links.to_csv(index=False)))
    for stored, table, contacts in results[1:]:
        assert stored == results[0][0]
        pd.testing.assert_frame_equal(table, results[0][1])
        assert contacts == results[0][2]


def test_contacts_of_objects_that_no_table_knows_are_told(tmp_path, rng):
    n = len(joining.FEATURES)
    weights = {"features": list(joining.FEATURES), "mean": [0] * n, "spread": [1] * n}
    more = {"clustering": {"join": 0.5}, "joining": {**weights, "weight": [9.0] + [0.0] * n}}
    drawn = drawn_outputs.fibres((48, 60), rng)
    run = cluster_and_stitch(tmp_path / "run", drawn, (48, 60), 1, **more)
    strange = joining.contacts(np.array([1]), np.array([2]), np.array([[3, 4]]))
    tables.write_parquet(strange, run.folder / "0.contacts.parquet")
    options = ["--store", run.store, "--tiles", run.folder / "tiles.json"]
    for name, suffix in (
        ("labels", "zarr"),
        ("tables", "parquet"),
        ("sightings", "sightings.parquet"),
        ("contacts", "contacts.parquet"),
    ):
        options += [f"--{name}", run.folder / f"0.{suffix}"]
    for name in ("output", "identities", "seams"):
        options += [f"--{name}", run.path(name)]
    with pytest.raises(InputError, match="contacts name object 1, which no table"):
        stitch.main([str(option) for option in options])
