import json
import shlex

import numpy as np
import pytest
import tifffile

import train
from iaunet import checkpoint, checksums, losses, patches, trainingset
from iaunet.errors import InputError, OptionError
from nets import save_model
from small_training import draw_table, make_small

VOLUME = {"imagej": True, "metadata": {"axes": "ZYX"}}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A table of three small drawn images with masks; crops and drawings small, too."""
    make_small(monkeypatch.setattr)
    return draw_table(tmp_path)


def run(folder, *more, steps=4, table=None):
    options = ["--name", "m", "--output", folder / "m.safetensors", "--work", folder / "work"]
    options += ["--max-minutes", 0, "--max-steps", steps, "--threads", 1, "--seed", 1]
    options += ["--table", table] if table else []
    train.main([str(word) for word in (*options, *more)])
    return folder / "m.safetensors"


def test_training_leaves_a_usable_model_with_card_and_curves(table):
    folder = table.parent
    more = ["--card", folder / "m.md", "--curves-csv", folder / "c.csv"]
    more += ["--curves-png", folder / "c.png", "--record", folder / "r.json"]
    path = run(folder, *more, table=table)
    net, meta = checkpoint.load(path)
    assert meta["ndim"] == net.ndim == 2
    assert meta["training"]["steps"] == 4
    assert meta["training"]["train"]["images"] == 2
    assert meta["clustering"]["fg"] in (0.4, 0.5, 0.6)
    assert "fitted to | 2 images" in (folder / "m.md").read_text()
    assert (folder / "c.csv").read_text().startswith("step,")
    assert (folder / "c.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "r.json").read_text())["steps"] == 4


def with_roi(table, roi):
    """Give the table a column roi that names this mask in the row of image a."""
    tifffile.imwrite(table.parent / "roi.tif", roi)
    head, *rows = table.read_text().splitlines()
    rows = [f"{row},{'roi.tif' if row.startswith('a,') else ''}" for row in rows]
    table.write_text("\n".join([f"{head},roi", *rows]) + "\n")


def with_classes(table, top=2):
    """Give the table a column of classes: bright and other nuclei, and the right half is stuff."""
    head, *rows = table.read_text().splitlines()
    for name in "abc":
        labels = tifffile.imread(table.parent / f"{name}_mask.tif")
        classes = np.where(labels > 0, 1, 0).astype(np.uint8)
        classes[:, 48:][labels[:, 48:] == 0] = top
        classes[:5] = 255
        tifffile.imwrite(table.parent / f"{name}_classes.tif", classes)
    rows = [f"{row},{row[0]}_classes.tif" for row in rows]
    table.write_text("\n".join([f"{head},classes", *rows]) + "\n")


def test_classes_are_learned_and_named_in_the_model(table):
    with_classes(table)
    path = run(table.parent, "--classes", "nucleus", "tissue:stuff", table=table)
    net, meta = checkpoint.load(path)
    assert net.n_classes == 2
    assert meta["classes"] == [
        {"name": "nucleus", "thing": True},
        {"name": "tissue", "thing": False},
    ]
    assert len(meta["scores"]["class_iou"]) == 2
    assert meta["training"]["weights"]["semantic"] == 1
    plain = checkpoint.read_meta(run(table.parent / "plain", table=table))
    assert (plain["classes"], plain["net"]["n_classes"]) == ([], 0)


def test_classes_that_do_not_fit_are_named(table):
    with pytest.raises(OptionError, match="needs NAME, NAME:thing or NAME:stuff"):
        run(table.parent, "--classes", "tissue:staff", table=table)
    with pytest.raises(OptionError, match="each once"):
        run(table.parent, "--classes", "a", "a:stuff", table=table)
    with pytest.raises(OptionError, match="semantic needs --classes"):
        run(table.parent, "--weights", "semantic=1", table=table)
    with pytest.raises(InputError, match="needs a column classes"):
        run(table.parent, "--classes", "a", table=table)
    with_classes(table, top=3)
    with pytest.raises(InputError, match=r"a_classes\.tif: class 3; --classes names 2"):
        run(table.parent, "--classes", "a", "b", table=table)


def test_what_lies_outside_the_roi_does_not_count(table):
    roi = np.zeros((96, 96), np.uint8)
    roi[:, :40] = 255
    with_roi(table, roi)
    options = f"--name m --output m --work w --max-minutes 0 --max-steps 1 --table={table}"
    args = train.parse_args(f"{options} --threads 1 --seed 1".split())
    _, (a, b), (c,) = train.load_data(args)
    np.testing.assert_array_equal(a.labels >= 0, roi > 0)
    assert (b.labels >= 0).all()
    assert (c.labels >= 0).all()
    assert (a.weight, b.weight) == (None, None)
    assert checkpoint.read_meta(run(table.parent, table=table))["training"]["steps"] == 4


def test_instances_that_are_mostly_outside_the_roi_are_not_scored():
    labels, roi = np.zeros((20, 20), np.int32), np.zeros((20, 20), bool)
    labels[2:6, 2:12], labels[9:13, 6:16], roi[:, :10] = 1, 2, True
    image = patches.annotate("a", "a", np.ones((20, 20)), labels, (1.0, 1.0), roi)
    scored = image.scored()
    assert set(np.unique(scored[labels == 1])) == {-1, 1}
    assert set(np.unique(scored[labels == 2])) == {-1}


@pytest.mark.parametrize(
    ("roi", "message"),
    [
        (np.ones((9, 9), np.uint8), r"roi.tif: shape \(9, 9\), its image .* needs a mask"),
        (np.zeros((96, 96), np.uint8), "roi.tif: 0 everywhere: nothing is annotated"),
    ],
)
def test_a_roi_that_does_not_fit_is_named(table, roi, message):
    with_roi(table, roi)
    with pytest.raises(InputError, match=message):
        run(table.parent, table=table)


def test_a_run_that_was_stopped_goes_on_to_the_model_of_an_unbroken_one(table):
    folder = table.parent
    whole, broken = folder / "whole", folder / "broken"
    one = checkpoint.load(run(whole, steps=6, table=table))[0].state_dict()

    def killed(trainer, *rest, real=train.validate):
        real(trainer, *rest)
        if trainer.step == 3:
            trainer.save(broken / "work" / "checkpoint.safetensors")
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "validate", killed)
        with pytest.raises(KeyboardInterrupt):
            run(broken, steps=6, table=table)
    assert not (broken / "m.safetensors").exists()
    other = checkpoint.load(run(broken, steps=6, table=table))[0].state_dict()
    for key, value in one.items():
        assert bool((value == other[key]).all()), key


def test_training_starts_from_the_network_and_weights_of_a_model(table):
    first = save_model(table.parent / "first.safetensors", 2)
    path = run(table.parent, "--start", first, steps=1, table=table)
    meta = checkpoint.read_meta(path)
    assert meta["training"]["start"] == checksums.sha256(first)
    assert meta["net"] == meta["net"] | checkpoint.read_meta(first)["net"]
    before, after = (checkpoint.load(file)[0].stem.weight for file in (first, path))
    assert 0 < float((after - before).detach().abs().max()) < 0.01
    with pytest.raises(InputError, match="a 2D model, the images are 3D"):
        run(table.parent / "other", "--start", first, "--drawn", 5, "--ndim", 3, steps=1)


def test_terms_are_chosen_by_name_and_what_only_training_needs_is_not_in_the_model(table):
    words = ["--weights", "contrastive=0.1", "boundary=1", "discriminative=0.5", "triplet=0"]
    words += ["--overlap", "lovasz", "--negatives", "hard", "--vectors", "conv"]
    path = run(table.parent, *words, steps=2, table=table)
    net, meta = checkpoint.load(path)
    assert set(net.heads) == {"emb", "bnd"}
    assert meta["training"]["weights"]["contrastive"] == 0.1
    assert "triplet" not in meta["training"]["weights"]
    assert (meta["training"]["overlap"], meta["training"]["vectors"]) == ("lovasz", "conv")
    more = run(table.parent / "more", "--start", path, steps=1, table=table)
    assert not set(checkpoint.load(more)[0].heads)
    for wrong in ("tripplet=1", "mask", "mask=-1", "mask=nan"):
        with pytest.raises(InputError, match=f"--weights: '{wrong}'"):
            run(table.parent, "--weights", wrong, table=table)


def test_a_3d_model_can_be_trained_on_drawn_volumes_alone(table):
    path = run(table.parent, "--drawn", 5, "--ndim", 3, steps=2)
    assert checkpoint.read_meta(path)["ndim"] == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("d,a.tif,,g,train", "row 5: no reference"),
        ("d,a.tif,a_mask.tif,g,test", "split is 'test'"),
        ("d,a.tif,small.tif,g,train", r"small.tif: shape \(9, 9\)"),
        ("d,a.tif,a_float.tif,g,train", "a_float.tif: holds float32"),
        ("d,a.tif,a_minus.tif,g,train", "a_minus.tif: negative labels"),
        ("d,a.tif,a.tif,g,train", "a.tif: the same as its image; needs the mask"),
        ("d,a_nan.tif,a_mask.tif,g,train", "a_nan.tif: 1 values are NaN or infinite; replace"),
        ("d,a.tif,a_mask.tif,g,validation", r"image 'd' \(validation\) has the pixels of 'a'"),
        ("d,v.tif,v_mask.tif,g,train", "needs images of 2 or of 3 axes, found {2, 3}"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_named(table, row, message):
    broken = np.ones((96, 96), np.float32)
    broken[3, 5] = np.nan
    tifffile.imwrite(table.parent / "a_nan.tif", broken)
    for name in ("v", "v_mask"):
        tifffile.imwrite(table.parent / f"{name}.tif", np.ones((3, 9, 9), np.uint8), **VOLUME)
    tifffile.imwrite(table.parent / "small.tif", np.zeros((9, 9), np.uint8))
    tifffile.imwrite(table.parent / "a_float.tif", np.zeros((96, 96), np.float32))
    tifffile.imwrite(table.parent / "a_minus.tif", np.full((96, 96), -1, np.int16))
    table.write_text(table.read_text() + row + "\n")
    with pytest.raises(InputError, match=message):
        run(table.parent, table=table)


def test_a_budget_is_needed(table):
    with pytest.raises(InputError, match="both 0"):
        run(table.parent, steps=0, table=table)


def test_a_group_stays_on_one_side_of_the_split():
    sides = {group: trainingset.side_of(group) for group in map(str, range(400))}
    assert all(trainingset.side_of(group) == side for group, side in sides.items())
    assert 0.08 < sum(side == "validation" for side in sides.values()) / 400 < 0.22


def test_what_is_odd_about_the_masks_is_logged_and_recorded(table, caplog):
    folder = table.parent
    labels = np.zeros((96, 96), np.uint8)
    labels[:9, :9] = labels[50:60, 50:60] = 3
    labels[30, 30] = 4
    tifffile.imwrite(folder / "odd_mask.tif", labels)
    tifffile.imwrite(folder / "odd.tif", np.arange(96 * 96, dtype=np.uint16).reshape(96, 96))
    tifffile.imwrite(folder / "none.tif", np.zeros((96, 96), np.uint8))
    rows = ["odd,odd.tif,odd_mask.tif,o,train", "again,odd.tif,odd_mask.tif,o,train"]
    rows += ["flat,none.tif,none.tif,f,train"]
    table.write_text(table.read_text() + "\n".join(rows) + "\n")
    run(folder, "--record", folder / "r.json", steps=1, table=table)
    found = json.loads((folder / "r.json").read_text())["ground_truth"]
    assert {(row["what"], row["image"], row["count"]) for row in found} == {
        ("fragmented", "odd", 1),
        ("tiny", "odd", 1),
        ("fragmented", "again", 1),
        ("tiny", "again", 1),
        ("duplicate", "again", 1),
        ("empty", "flat", 1),
        ("constant", "flat", 1),
    }
    assert "2 instances are in several pieces" in caplog.text
    assert "(images: 2, most in odd)" in caplog.text


def only(table, *names):
    """Leave only these rows in the table, all to fit."""
    head, *rows = table.read_text().splitlines()
    kept = [row.replace("validation", "train") for row in rows if row.split(",")[0] in names]
    table.write_text("\n".join([head, *kept]) + "\n")


def test_one_image_can_be_learned_from_with_a_warning(table, caplog):
    only(table, "a")
    run(table.parent, steps=1, table=table)
    assert "one image to fit" in caplog.text
    assert "scores are of the training images" in caplog.text


def test_masks_without_any_object_are_refused(table):
    only(table, "a")
    tifffile.imwrite(table.parent / "a_mask.tif", np.zeros((96, 96), np.uint8))
    with pytest.raises(InputError, match="no image with objects to train with"):
        run(table.parent, table=table)


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_checkpoint(table, monkeypatch):
    folder = table.parent
    seed, calls = losses.seed, []

    def broken(*arguments):
        calls.append(1)
        return seed(*arguments) * (float("nan") if len(calls) == 3 else 1)

    monkeypatch.setattr(losses, "seed", broken)
    message = "loss term 'seed' is not finite at step 2; the last good checkpoint is .*safetensors"
    with pytest.raises(InputError, match=message):
        run(folder, steps=4, table=table)
    assert not (folder / "m.safetensors").exists()
    calls.append(1)  # the same command goes on from the checkpoint
    assert checkpoint.read_meta(run(folder, steps=4, table=table))["training"]["steps"] == 4


def test_resuming_with_other_settings_or_from_a_damaged_checkpoint_is_refused(table):
    run(table.parent, steps=2, table=table)
    for more in (["--weights", "vote=2"], ["--pairs", 3], ["--overlap", "lovasz"]):
        with pytest.raises(InputError, match="a training that differs in recipe; delete it"):
            run(table.parent, *more, steps=4, table=table)
    state = table.parent / "work" / "checkpoint.safetensors"
    content = bytearray(state.read_bytes())
    content[-100] ^= 1
    state.write_bytes(content)
    with pytest.raises(InputError, match="damaged checkpoint; delete it to start anew"):
        run(table.parent, steps=4, table=table)


def test_the_model_says_the_command_that_makes_it_without_paths(table):
    path = run(table.parent, "--weights", "vote=2", "seed=1", steps=1, table=table)
    words = shlex.split(checkpoint.read_meta(path)["training"]["command"])
    assert words[:2] == ["python", "train.py"]
    assert not any("/" in word for word in words)
    again = train.parse_args(words[2:])
    assert (again.table.name, again.weights) == ("table.csv", ["vote=2", "seed=1"])
    assert (again.seed, again.max_steps, again.output.name) == (1, 1, "m.safetensors")


def test_a_device_that_is_not_there_is_named(table):
    with pytest.raises(InputError, match="--device: device 'cuda:99' is not there"):
        run(table.parent, "--device", "cuda:99", table=table)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--crop-px", 41, 41], r"--crop-px: found \[41, 41\], needs multiples of"),
        (["--crop-px", 0, 0], "at least two"),
        (["--crop-px", 64], r"--crop-px: found \[64\]"),
        (["--id-gradient", 1.5], "--id-gradient: found 1.5, needs a number from 0 to 1"),
    ],
)
def test_crops_and_gradients_that_do_not_fit_are_named(table, options, message):
    with pytest.raises(OptionError, match=message):
        run(table.parent, *options, table=table)
