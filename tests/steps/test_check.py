"""Everything that can be said before a job runs is said at once."""

import json

import numpy as np
import pytest
import tifffile
import yaml

import check
from runs import REPOSITORY, write_header_model, write_image, write_table


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a run folder with one image and one model, which is the working directory."""
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "a.tif")
    write_image(tmp_path / "mask.tif")
    write_header_model(tmp_path / "m2.safetensors")
    write_header_model(tmp_path / "m3.safetensors", ndim=3)
    return tmp_path


def run(folder, rows=None, **sections):
    """Return the exit status of the check of a table with these rows and config sections."""
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text())
    config.update(images="images.csv", model="m2.safetensors")
    for key, value in sections.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) else value
    if rows is not None:
        write_table(folder / "images.csv", rows)
    (folder / "config.json").write_text(json.dumps(config))
    try:
        check.main(["--config", "config.json", "--repository", str(REPOSITORY)])
    except SystemExit as stop:
        return stop.code
    return 0


def row(**changes):
    return {"image": "a", "path": "a.tif", **changes}


def problems(capsys):
    found = capsys.readouterr()
    assert found.out == ""
    lines = found.err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def test_a_good_run_is_planned(folder, capsys):
    rows = [row(reference="mask.tif", channel="", pixel_um_y="0.5"), row(image="B.b-2")]
    assert run(folder, rows, tiling={"core_px": [32, 32], "tiles_per_batch": 2}) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["images"]) == ["a", "B.b-2"]
    assert found["images"]["a"]["n_batches"] == 3
    assert found["images"]["a"]["reference"] == "mask.tif"
    assert found["images"]["a"]["model"] == "m2.safetensors"
    assert {"a.tif", "mask.tif", "images.csv", "m2.safetensors"} <= set(found["watch"])


def test_all_problems_of_config_and_table_are_listed_at_once(folder, capsys):
    rows = [row(image="../x", path="no.tif", pixel_um_x="-1"), row(reference="gone.tif")]
    assert run(folder, rows, tiling={"cores": 1}, device="gpu", clustering={"sed": 1}) == 1
    text = "\n".join(problems(capsys))
    for part in (
        "config, tiling.cores: unknown key; did you mean 'core_px'?",
        "config, device: found 'gpu'; needs auto, cpu, cuda or cuda:N",
        "config, clustering.sed: unknown key; did you mean 'seed'?",
        "images.csv, row 2, column image: found '../x'; needs an id",
        "images.csv, row 2, column path: no such file 'no.tif'",
        "images.csv, row 2, column pixel_um_x: found '-1'; needs a positive number",
        "images.csv, row 3, column reference: no such file 'gone.tif'",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"image": "a b"}, "column image: found 'a b'; needs an id"),
        ({"image": "$(reboot)"}, "column image: found"),
        ({"image": "-a"}, "column image: found"),
        ({"image": ""}, "column image: found ''; needs an id"),
        ({"image": "x" * 300}, "(302 characters); needs an id of 1 to 128"),
        ({"image": "Summary.csv"}, "is reserved"),
        ({"path": ""}, "column path: found ''; needs the path"),
        ({"path": "x" * 5000}, "column path: no such file"),
        ({"path": "{b}.tif"}, "without braces"),
        ({"pixel_um_y": "0"}, "micrometers above 0"),
        ({"pixel_um_y": "nan"}, "needs a positive number"),
        ({"pixel_um_y": "1e300"}, "at most 100000"),
        ({"pixel_um_y": "."}, "column pixel_um_y"),
        ({"reference": "a.tif"}, "the image itself"),
        ({"path": "/"}, "column path: '/' is a folder that is not an OME-Zarr"),
        ({"model": "no-such"}, "column model: model 'no-such'"),
        ({"model": "a.tif"}, "column model: a.tif"),
        ({"model": "m3.safetensors"}, "is for 3D images, 'a.tif' has 2 axes (50, 70)"),
        ({"channel": "DAPI"}, "column channel: found 'DAPI', the file has 1 channel: 0 (0)"),
        ({"frame": "2"}, "column frame: found '2', the file has 1 frame"),
        ({"chanel": "1"}, "column 'chanel': unknown column; did you mean 'channel'?"),
    ],
)
def test_a_bad_row_is_named_with_row_and_column(folder, capsys, changes, says):
    assert run(folder, [row(**changes)]) == 1
    found = problems(capsys)
    assert says in "\n".join(found)
    assert all("images.csv" in line for line in found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image,path\na,A.tif\n", "no such file 'A.tif' (did you mean 'a.tif'?)"),
        ("image,path\na,a.tiff\n", "no such file 'a.tiff' (did you mean 'a.tif'?)"),
        ("image,path\na,sub\\b.tif\n", "(needs / between folders)"),
        ("image,path\na,*.tif\n", "(patterns are not expanded; give every file a row)"),
        ("image,path\na,~/a.tif\n", "(~ is not expanded; give the whole path)"),
        (
            "Image,Path\na,a.tif\n",
            "no column 'image'; found Image, Path; needs image, path; write ",
        ),
        ("image\tpath\na\ta.tif\n", "fields are separated by tabs, needs commas"),
        ("image;path\na;a.tif\n", "fields are separated by semicolons, needs commas"),
        ('image,path,pixel_um_y\na,a.tif,"0,65"\n', "write a point for the comma"),
        ("image,path,pixel_um_y\na,a.tif,0.65um\n", "needs a positive number of micrometers"),
        ("image,path,group\na,a.tif\n", "line 2: found 2 fields, needs 3"),
        ("image,path\na,a.tif\na,a.tif\n", "row 3, column image: 'a' is also in row 2"),
        ("image,path,model\na,a.tif,nuclei2d\n", "of that name, did you mean 'nuclei-2d'; shipped"),
        ("PK\3\4\n", "not text but a zip file, as XLSX is; save the spreadsheet as CSV UTF-8"),
    ],
)
def test_a_mistake_of_many_says_what_is_meant(folder, capsys, text, says):
    content = text.encode() if text[:2] != "PK" else b"PK\x03\x04\xff\xfe"
    (folder / "images.csv").write_bytes(content)
    assert run(folder) == 1
    (line,) = problems(capsys)
    assert says in line


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"core_px": [256, 256]}, "core_px: unknown key; did you mean 'tiling.core_px'?"),
        ({"seed": 0.4}, "did you mean 'clustering.seed' or 'training.seed'?"),
        ({"tilling": 1}, "did you mean 'tiling'?"),
        (
            {"clustering": {"seed": "0,4"}},
            "needs a number from 0 to 1; write a point for the comma",
        ),
        ({"exports": "geojson"}, "needs a list of geojson"),
        ({"images": "image.csv"}, "image.csv: no such file (did you mean 'images.csv'?)"),
    ],
)
def test_a_mistake_of_many_in_the_config_says_what_is_meant(folder, capsys, change, says):
    write_table(folder / "images.csv", [row()])
    assert run(folder, **change) == 1
    (line,) = problems(capsys)
    assert says in line


def test_what_spreadsheets_add_to_a_table_is_no_mistake(folder, capsys):
    text = "\ufeff image , path ,\r\n a , a.tif ,\r\n\r\n,,\r\n"
    (folder / "images.csv").write_bytes(text.encode())
    assert run(folder) == 0
    assert list(json.loads(capsys.readouterr().out)["images"]) == ["a"]


def test_a_mistake_of_the_config_hides_none_of_the_table(folder, capsys):
    tifffile.imwrite(folder / "two.tif", np.zeros((2, 9, 9), np.uint8), metadata={"axes": "CYX"})
    rows = [
        row(path="two.tif", model="no-such"),
        row(image="b", model="m3.safetensors"),
        row(image="c", frame="1"),
    ]
    assert run(folder, rows, device="gpu", training={"table": "no.csv", "minutes": -1}) == 1
    text = "\n".join(problems(capsys))
    for part in (
        "config, device: found 'gpu'",
        "config, training.minutes: found -1",
        "config, training.table: no such file 'no.csv'",
        "row 2, column model: model 'no-such'",
        "row 2, column channel: found '', the file has 2 channels",
        "row 3, column model: 'm3.safetensors' is for 3D images",
        "row 4, column frame: found '1'",
    ):
        assert part in text


def test_all_scenes_and_frames_become_rows_of_their_own(folder, capsys):
    with tifffile.TiffWriter(folder / "s.ome.tif") as writer:
        for n in (2, 3):
            values = np.zeros((n, 30, 40), np.uint8)
            writer.write(values, photometric="minisblack", metadata={"axes": "TYX"})
    rows = [row(path="s.ome.tif", scene="all", frame="all"), row(image="b")]
    assert run(folder, rows) == 0
    found = json.loads(capsys.readouterr().out)
    names = ["a_s0_t000", "a_s0_t001", "a_s1_t000", "a_s1_t001", "a_s1_t002"]
    assert list(found["images"]) == [*names, "b"]
    assert found["expanded"] == {"a": names}
    last = found["images"]["a_s1_t002"]
    assert (last["scene"], last["frame"]) == ("1", "2")
    assert run(folder, [row(path="s.ome.tif", scene="1", frame="all")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["images"]) == ["a_t000", "a_t001", "a_t002"]


def test_rows_that_all_stands_for_are_checked_as_others_are(folder, capsys):
    with tifffile.TiffWriter(folder / "s.ome.tif") as writer:
        for _ in range(2):
            writer.write(np.zeros((30, 40), np.uint8), metadata={"axes": "YX"})
    rows = [
        row(path="s.ome.tif", scene="all", reference="mask.tif"),
        row(image="a_s1"),
        row(image="c", path="no.tif", frame="all"),
    ]
    assert run(folder, rows) == 1
    text = "\n".join(problems(capsys))
    assert "row 2, column reference: 'mask.tif' cannot be that of several images" in text
    assert "row 3, column image: 'a_s1' is also in row 2" in text
    assert "row 4, column path: 'all' needs a file that can be read" in text


def test_outlines_for_qupath_need_2d_images(folder, capsys):
    write_image(folder / "v.tif", (5, 20, 30))
    rows = [row(), row(image="b", path="v.tif", model="m3.safetensors")]
    assert run(folder, rows, exports=["rois", "geojson"]) == 1
    (line,) = problems(capsys)
    assert "config, exports: geojson" in line
    assert "'v.tif' has 3 axes (5, 20, 30) (images.csv, row 3); needs 2D images" in line
    assert run(folder, rows, exports=["rois", "tiff"]) == 0


def test_axes_and_batches_are_those_of_the_chosen_scene(folder, capsys):
    with tifffile.TiffWriter(folder / "scenes.ome.tif") as writer:
        options = {"photometric": "minisblack"}
        stack = {"axes": "ZYX", "Name": "stack"}
        writer.write(np.zeros((5, 64, 64), np.uint8), metadata=stack, **options)
        writer.write(
            np.zeros((64, 80), np.uint8), metadata={"axes": "YX", "Name": "flat"}, **options
        )
    tiling = {"core_px": [32, 32], "tiles_per_batch": 1}
    assert run(folder, [row(path="scenes.ome.tif", scene="flat")], tiling=tiling) == 0
    assert json.loads(capsys.readouterr().out)["images"]["a"]["n_batches"] == 2 * 3
    assert run(folder, [row(path="scenes.ome.tif", scene="stack")]) == 1
    assert "has 3 axes (5, 64, 64)" in problems(capsys)[0]
    assert run(folder, [row(path="scenes.ome.tif")]) == 1
    assert "needs one of them" in problems(capsys)[0]


def test_ids_that_differ_by_case_only_are_duplicates(folder, capsys):
    assert run(folder, [row(), row(image="A"), row()]) == 1
    assert [line.split(";")[0] for line in problems(capsys)] == [
        "images.csv, row 3, column image: 'A' is also in row 2",
        "images.csv, row 4, column image: 'a' is also in row 2",
    ]


@pytest.mark.parametrize(
    ("tiling", "says"),
    [
        ({"core_px": [30, 32]}, "multiples of the model's stride [4, 4]"),
        ({"halo": [64, 64]}, "less than the core [64, 64]"),
        ({"core_px": [32, 32], "halo": [0, 32]}, "less than the core [32, 32]"),
    ],
)
def test_a_tiling_that_does_not_fit_the_model_is_refused(folder, capsys, tiling, says):
    assert run(folder, [row()], tiling=tiling) == 1
    (line,) = problems(capsys)
    assert line.startswith("config, tiling.")
    assert says in line


@pytest.mark.parametrize("change", [{"model": 3}, {"tiling": 3}, {"clustering": []}])
def test_a_section_of_the_wrong_type_is_told_and_no_traceback(folder, capsys, change):
    assert run(folder, [row()], **change) == 1
    assert problems(capsys)[0].startswith(f"config, {next(iter(change))}: found")


def test_a_bad_default_model_is_named_once(folder, capsys):
    (folder / "cut.safetensors").write_bytes((folder / "m2.safetensors").read_bytes()[:100])
    assert run(folder, [row(), row(image="b")], model="./cut.safetensors") == 1
    (line,) = problems(capsys)
    assert line.startswith("config, model: ")
    assert "truncated" in line


def test_several_channels_must_be_chosen_from(folder, capsys):
    write_image(folder / "c.tif", (3, 20, 20), imagej=True, metadata={"axes": "CYX"})
    assert run(folder, [row(path="c.tif")]) == 1
    (line,) = problems(capsys)
    assert "column channel: found '', the file has 3 channels" in line
    assert run(folder, [row(path="c.tif", channel="2")]) == 0


def test_an_unreadable_image_stops_nothing(folder, capsys):
    (folder / "a.tif").write_bytes(b"II*\0 not really")
    assert run(folder, [row()]) == 0
    assert json.loads(capsys.readouterr().out)["images"]["a"]["n_batches"] == 1


def test_low_percentile_must_be_below_the_high_one(folder, capsys):
    assert run(folder, [row()], normalize={"percentiles": [99, 1]}) == 1
    assert "needs low < high" in problems(capsys)[0]


def test_a_table_without_rows_or_without_a_column_is_refused(folder, capsys):
    (folder / "images.csv").write_text("image,path\n")
    assert run(folder) == 1
    assert "needs one row per image" in problems(capsys)[0]
    (folder / "images.csv").write_text("image;path\n")
    assert run(folder) == 1
    assert "no column 'image'" in problems(capsys)[0]


def test_a_missing_table_is_named(folder, capsys):
    assert run(folder) == 1
    assert "images.csv: no such file" in problems(capsys)[0]


def test_no_table_at_all_is_an_empty_plan(folder, capsys):
    assert run(folder, images=None) == 0
    assert json.loads(capsys.readouterr().out)["images"] == {}


def test_paths_are_relative_to_the_table(folder, capsys):
    (folder / "sub").mkdir()
    write_table(folder / "sub/t.csv", [row(path="../a.tif", model="../m2.safetensors")])
    assert run(folder, images="sub/t.csv") == 0
    found = json.loads(capsys.readouterr().out)["images"]["a"]
    assert found["path"] == "sub/../a.tif"
    assert found["model"] == "sub/../m2.safetensors"


def test_a_network_of_another_program_says_how_it_becomes_a_model(folder, capsys):
    (folder / "their.zip").write_bytes(b"PK\x03\x04 and so on")
    assert run(folder, [row(model="their.zip")]) == 1
    (line,) = problems(capsys)
    assert "column model: their.zip: a folder or zip archive" in line
    assert "adopt.py --source their.zip --output their.safetensors" in line


def test_an_adopted_network_is_planned_as_any_model(folder, capsys):
    meta = {"net": {"torchscript": {}}, "stride": [2, 2], "block": [32, 32], "warnings": ["x"]}
    write_header_model(folder / "their.safetensors", **meta)
    assert run(folder, [row(model="their.safetensors")], tiling={"tiles_per_batch": 1}) == 0
    planned = json.loads(capsys.readouterr().out)["images"]["a"]
    assert planned["model"] == "their.safetensors"
    assert planned["n_batches"] == 2 * 3
