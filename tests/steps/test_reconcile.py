"""Tiles in files give the labels of tiles in arrays; wrong tables are told as sentences."""

import json

import numpy as np
import pytest
import tifffile
import zarr

import reconcile
from cutting import cut, same_objects, windows
from iaunet import labelfiles, tables
from iaunet import reconcile as reconciling
from iaunet.errors import InputError, OptionError


@pytest.fixture(params=[2, 3])
def truth(request, rng):
    """Boxes of cells that touch."""
    side = np.arange({2: 90, 3: 40}[request.param])
    cells = [side // 13] * request.param
    where = np.meshgrid(*cells, indexing="ij")
    return (sum(part * 8**axis for axis, part in enumerate(where)) + 1).astype(np.uint32)


def write_tiles(folder, tiles, starts, suffix=".tif"):
    """Write tiles and their table; return the options that name them."""
    folder.mkdir()
    axes = "zyx"[-len(starts[0]) :]
    lines = [",".join(["tile", *axes])]
    for k, (tile, start) in enumerate(zip(tiles, starts, strict=True)):
        name = f"t{k}{suffix}"
        if suffix == ".tif":
            tifffile.imwrite(folder / name, tile, metadata={"axes": axes.upper()})
        else:
            zarr.save_array(str(folder / name), tile)
        lines.append(",".join([name, *map(str, start)]))
    (folder / "positions.csv").write_text("\n".join(lines) + "\n")
    return [f"--tiles={folder}", f"--positions={folder}/positions.csv"]


def run(tmp_path, options, output="labels.ome.zarr"):
    """Run the step; return the labels and the links."""
    out = tmp_path / output
    reconcile.main([*options, f"--output={out}", f"--links={tmp_path}/links.csv"])
    links = tables.read_csv(tmp_path / "links.csv", reconcile.LINK_COLUMNS)
    return labelfiles.read(labelfiles.open_labels(out)), links


@pytest.mark.parametrize(
    ("suffix", "output"), [(".tif", "l.ome.zarr"), (".zarr", "l.tif"), (".zarr", "l.zarr")]
)
def test_tiles_in_files_give_the_untiled_labels(truth, rng, tmp_path, suffix, output):
    boxes = windows(truth.shape, (24,) * truth.ndim, (5,) * truth.ndim)
    tiles, starts = cut(truth, boxes, rng)
    record, ids = tmp_path / "record.json", tmp_path / "ids.csv"
    options = write_tiles(tmp_path / "tiles", tiles, starts, suffix)
    found, links = run(tmp_path, [*options, f"--record={record}", f"--identities={ids}"], output)
    assert same_objects(truth, found)
    assert np.array_equal(found, reconciling.reconciled(tiles, starts))
    assert set(links["verdict"]) == {"linked"}
    assert (links["iou"] == 1).all()
    facts = json.loads(record.read_text())
    assert facts["n_objects"] == found.max()
    assert facts["voxels_in_no_tile"] == 0
    table = tables.read_csv(ids, {"tile": "str", "label": "uint64", "object": "int64"})
    row = table.iloc[int(rng.integers(len(table)))]
    k = int(row["tile"].removeprefix("t").removesuffix(suffix))
    where = np.argwhere(tiles[k] == row["label"])[0] + starts[k]
    assert found[tuple(where)] == row["object"]


def test_the_result_is_the_same_bytes_when_files_are_read_again(truth, rng, tmp_path, monkeypatch):
    boxes = windows(truth.shape, (24,) * truth.ndim, (5,) * truth.ndim)
    options = write_tiles(tmp_path / "tiles", *cut(truth, boxes, rng))
    whole, links = run(tmp_path, options)
    monkeypatch.setattr(reconcile, "CACHE_BYTES", 1)
    again, links_again = run(tmp_path, options, "again.zarr")
    assert np.array_equal(whole, again)
    assert links.equals(links_again)


def test_no_object_in_any_tile_gives_empty_labels_and_an_empty_table(tmp_path):
    tiles = [np.zeros((20, 20), np.uint8)] * 2
    found, links = run(tmp_path, write_tiles(tmp_path / "tiles", tiles, [(0, 0), (0, 12)]))
    assert found.shape == (20, 32)
    assert not found.any()
    assert len(links) == 0


def test_holes_between_tiles_are_counted(tmp_path):
    tiles = [np.ones((20, 20), np.uint8)] * 2
    options = write_tiles(tmp_path / "tiles", tiles, [(0, 0), (0, 50)])
    found, links = run(tmp_path, [*options, f"--record={tmp_path}/r.json"])
    assert json.loads((tmp_path / "r.json").read_text())["voxels_in_no_tile"] == 600
    assert found.max() == 2
    assert links["verdict"].tolist() == ["open", "open"]


@pytest.mark.parametrize("kind", ["vectors", "intensity"])
def test_a_second_vote_chooses_between_equal_matches(tmp_path, kind):
    upper, lower = np.zeros((6, 8), np.uint8), np.zeros((6, 8), np.uint8)
    upper[2:, :8] = 1
    lower[:3, :4], lower[:3, 4:] = 5, 8
    options = write_tiles(tmp_path / "tiles", [upper, lower], [(0, 0), (6, 0)])
    if kind == "vectors":
        table = tmp_path / "v.csv"
        table.write_text("tile,label,a,b\nt0.tif,1,1,0\nt1.tif,5,-1,0\nt1.tif,8,1,0.1\n")
        options.append(f"--vectors={table}")
    else:
        image = np.concatenate([upper * 100, (lower == 5) * 20 + (lower == 8) * np.uint8(90)])
        tifffile.imwrite(tmp_path / "i.tif", image.astype(np.uint8))
        options.append(f"--intensity={tmp_path}/i.tif")
    found, _ = run(tmp_path, options)
    assert found[4, 0] == found[7, 6] != found[7, 1]


BAD_TABLES = {
    "tile,y,x\n": "no rows",
    "tile,y\nt0.tif,0\n": "no column 'x'",
    "tile,y,x\nt0.tif,0,0\nt0.tif,0,9\n": "line 3: the same tile or place as line 2",
    "tile,y,x\nt0.tif,0,0\nt1.tif,0,0\n": "line 3: the same tile or place as line 2",
    "tile,y,x\nt0.tif,0,0\nt9.tif,0,9\n": "t9.tif: no such file",
    "tile,y,x\n../t0.tif,0,0\n": "is not inside",
    "tile,y,x\nt0.tif,0,-3\n": "x is '-3', needs a whole number",
    "tile,z,y,x\nt0.tif,0,0,0\n": "has 2 axes",
}


@pytest.mark.parametrize("table", BAD_TABLES)
def test_a_wrong_table_is_told(tmp_path, table):
    tiles = [np.ones((20, 20), np.uint8)] * 2
    options = write_tiles(tmp_path / "tiles", tiles, [(0, 0), (0, 12)])
    (tmp_path / "tiles" / "positions.csv").write_text(table)
    with pytest.raises(InputError, match=BAD_TABLES[table]):
        run(tmp_path, options)
    assert not (tmp_path / "labels.ome.zarr").exists()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((20, 20), 0.5, np.float32), "holds float32 values"),
        (np.full((20, 20), -1, np.int16), "negative value -1"),
        (np.ones((5, 20, 20), np.uint8), "has 3 axes"),
    ],
)
def test_a_tile_that_holds_no_labels_is_told(tmp_path, labels, message):
    tiles = [np.ones((20, 20), np.uint8), labels]
    options = write_tiles(tmp_path / "tiles", tiles, [(0, 0), (0, 12)])
    with pytest.raises(InputError, match=message):
        run(tmp_path, options)


def test_a_margin_wider_than_the_overlap_is_refused(tmp_path):
    tiles = [np.ones((20, 20), np.uint8)] * 2
    options = write_tiles(tmp_path / "tiles", tiles, [(0, 0), (0, 12)])
    with pytest.raises(OptionError, match="smallest overlap there is 8 px"):
        run(tmp_path, [*options, "--margin-px", "0", "5"])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("tile,label,a\nt0.tif,1,2\n", "label 1 of t1.tif has no row"),
        ("tile,label,a\nt0.tif,1,2\nt0.tif,1,2\nt1.tif,1,2\n", "label 1 of t0.tif stands twice"),
        ("tile,label,a\nt0.tif,1,2\nt1.tif,1,2\nt1.tif,7,2\n", "label 7 of t1.tif is in no tile"),
        ("tile,label,a\nt0.tif,1,x\nt1.tif,1,2\n", "numbers of a vector"),
        ("tile,label\nt0.tif,1\nt1.tif,1\n", "columns of finite numbers"),
    ],
)
def test_a_wrong_table_of_vectors_is_told(tmp_path, table, message):
    tiles = [np.ones((20, 20), np.uint8)] * 2
    options = write_tiles(tmp_path / "tiles", tiles, [(0, 0), (0, 12)])
    (tmp_path / "v.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        run(tmp_path, [*options, f"--vectors={tmp_path}/v.csv"])


def test_an_output_of_another_kind_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"needs NAME.zarr or NAME.tif"):
        run(tmp_path, ["--tiles=a", "--positions=b"], "labels.png")
