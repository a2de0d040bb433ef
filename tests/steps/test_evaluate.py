"""Scores of files equal those of the arrays in them."""

import json

import numpy as np
import pytest
import tifffile
import zarr

import evaluate
from iaunet import metrics, omezarr, tables
from iaunet.errors import InputError


@pytest.fixture
def pair(rng):
    """Two label images that differ: shifted, one object less."""
    true = np.zeros((60, 80), np.int64)
    for label, (y, x) in enumerate(np.ndindex(6, 8), start=1):
        true[10 * y + 1 : 10 * y + 8, 10 * x + 1 : 10 * x + rng.integers(5, 9)] = label
    return true, np.roll(true, 1, axis=1) * (true != 5)


def write(path, labels):
    """Write a TIFF, a plain Zarr array or a store of ours."""
    if path.suffix == ".tif":
        tifffile.imwrite(path, labels.astype(np.uint16))
    elif path.name.endswith(".ome.zarr"):
        omezarr.create_image(path, labels.shape, ("y", "x"), np.uint16, None, "a", {})
        omezarr.write_pyramid(path)
        omezarr.add_labels(path, "instances", np.uint64)[...] = labels
    else:
        zarr.save_array(str(path), labels.astype(np.uint32))
    return path


@pytest.mark.parametrize("name", ["p.tif", "p.zarr", "p.ome.zarr"])
def test_scores_of_files_are_those_of_arrays(pair, tmp_path, name):
    true, predicted = pair
    out = tmp_path / "scores.json"
    options = [
        "--predicted", write(tmp_path / name, predicted),
        "--reference", write(tmp_path / "t.tif", true),
        "--output-json", out,
        "--output-csv", tmp_path / "scores.csv",
    ]  # fmt: skip
    evaluate.main([str(option) for option in options])
    expected = metrics.accuracy(metrics.overlap(true, predicted))
    assert json.loads(out.read_text()) == {"image": name, **expected}
    row = tables.read_csv(tmp_path / "scores.csv", evaluate.COLUMNS).iloc[0]
    assert row[evaluate.AP].tolist() == expected["ap"]


def test_scores_do_not_depend_on_the_blocks(pair, tmp_path, monkeypatch):
    true, predicted = pair
    write(tmp_path / "p.tif", predicted)
    write(tmp_path / "t.tif", true)
    monkeypatch.setattr(evaluate.labelfiles, "ALIGN_PX", {2: (7, 16)})
    monkeypatch.setattr(evaluate.labelfiles, "BLOCK_BYTES", 500)
    monkeypatch.setattr(evaluate.labelfiles, "BLOCKS_PER_MERGE", 3)
    images = [evaluate.labelfiles.open_labels(tmp_path / f"{name}.tif") for name in "tp"]
    assert metrics.accuracy(evaluate.labelfiles.overlap(*images)) == metrics.accuracy(
        metrics.overlap(true, predicted)
    )


def test_pairs_are_scored_one_by_one_and_together(pair, tmp_path, capsys):
    true, predicted = pair
    empty = np.zeros_like(true)
    for name, arrays in (("a", (true, predicted)), ("b", (true, empty)), ("c", (empty, empty))):
        write(tmp_path / f"{name}t.tif", arrays[0])
        write(tmp_path / f"{name}p.tif", arrays[1])
    rows = [f"{name},{name}p.tif,{name}t.tif" for name in "abc"]
    (tmp_path / "pairs.csv").write_text("\n".join(["image,predicted,reference", *rows]))
    evaluate.main(["--pairs", str(tmp_path / "pairs.csv")])
    found = json.loads(capsys.readouterr().out)
    one = metrics.accuracy(metrics.overlap(true, predicted))
    tp, fp, fn = one["tp_50"], one["fp_50"], one["fn_50"] + one["n_true"]
    assert found["ap50_pooled"] == tp / (tp + fp + fn)
    assert found["ap50_mean"] == pytest.approx(one["ap50"] / 2)
    assert found["f1_50_pooled"] == 2 * tp / (2 * tp + fp + fn)
    assert found["pq_pooled"] == pytest.approx(
        one["pq"] * (tp + fp / 2 + one["fn_50"] / 2) / (tp + fp / 2 + fn / 2)
    )
    assert [image["ap50"] for image in found["images"]] == [one["ap50"], 0, None]
    assert found["n_images"] == 3
    evaluate.main(["--pairs", str(tmp_path / "pairs.csv"), "--output-csv", str(tmp_path / "s.csv")])
    table = tables.read_csv(tmp_path / "s.csv", evaluate.COLUMNS)
    assert table["image"].tolist() == ["a", "b", "c"]
    assert np.isnan(table["ap50"].iloc[2])


BAD_PAIRS = [
    ("image,predicted\n", "no column 'reference'"),
    ("image,predicted,reference\n", "the table has no rows"),
    ("image,predicted,reference\na,,b\n", "line 2: column 'predicted' is empty"),
    ("image,predicted,reference\na,b,c\na,d,e\n", "line 3: image 'a' stands twice"),
    ("image,predicted,reference\na,none.tif,none.tif\n", "none.tif"),
]


@pytest.mark.parametrize(("text", "message"), BAD_PAIRS)
def test_a_bad_table_of_pairs_says_what_is_wrong(tmp_path, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        evaluate.main(["--pairs", str(tmp_path / "pairs.csv")])


def test_labels_that_cannot_be_compared_say_why(pair, tmp_path):
    true, _ = pair
    whole, half = write(tmp_path / "t.tif", true), write(tmp_path / "p.tif", true[:30])
    with pytest.raises(
        InputError, match=r"t\.tif: the reference has 60 x 80 px, .* has 30 x 80 px"
    ):
        evaluate.main(["--predicted", str(half), "--reference", str(whole)])
    image = tmp_path / "image.ome.zarr"
    omezarr.create_image(image, (60, 80), ("y", "x"), np.uint16, None, "a", {})
    (image / "labels").mkdir()
    with pytest.raises(InputError, match="an image with labels; give the path of the labels"):
        evaluate.main(["--predicted", str(image), "--reference", str(whole)])


@pytest.mark.parametrize(
    "options", [[], ["--predicted", "a"], ["--pairs", "a", "--reference", "b"]]
)
def test_one_pair_or_a_table_is_needed(options, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main(options)
    assert stop.value.code == 2
    assert "needs --predicted and --reference, or --pairs" in capsys.readouterr().err
