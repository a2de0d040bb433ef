"""What fuzzing found: files that crashed, hung or unpacked without end are refused in one line."""

import json
import os
import signal
import struct
import zlib

import numcodecs
import numpy as np
import pytest
import tifffile
import torch
import yaml
import zarr

import check
import drives
import foreign_nets
import originals
import reconcile
import summarize
from iaunet import bioimageio, checkpoint, foreign, images, omezarr, tables, unpacking
from iaunet.errors import LONGEST, InputError, one_line
from runs import REPOSITORY, write_image, write_table

MB = 1 << 20


@pytest.fixture
def small_chunks(monkeypatch):
    """Let chunks unpack to a MB only, so that a bomb may be small."""
    monkeypatch.setattr(unpacking, "LARGEST_CHUNK", MB)


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("codec", ["gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4"])
def test_a_chunk_that_is_a_bomb_is_refused(tmp_path, monkeypatch, small_chunks, codec, version):
    packed = numcodecs.get_codec({"id": codec}).encode(bytes(3 * MB))
    monkeypatch.setattr(originals, "bomb", lambda kind: packed)
    store = write(tmp_path / "a.zarr", originals.bomb_store(codec, version))
    with pytest.raises(InputError, match=r"unpacks to (more than )?[0-9,]+ ?bytes|too small"):
        images.open_image(store).read()


@pytest.mark.parametrize("codec", ["gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4"])
@pytest.mark.parametrize("n", [1, 5000])
def test_bounded_codecs_give_back_what_was_packed(codec, n):
    values = np.random.default_rng(0).integers(0, 9, n).astype("u1")
    ours = numcodecs.get_codec({"id": codec})
    assert bytes(ours.decode(ours.encode(values))) == values.tobytes()


def test_a_zstd_frame_without_its_size_is_read(small_chunks):
    content = bytes(1000)
    # A frame of one raw block (RFC 8878): no content size, window of 1 kB.
    block = (len(content) << 3 | 1).to_bytes(3, "little")
    frame = unpacking.ZSTD_MAGIC + bytes([0, 0]) + block + content
    assert bytes(numcodecs.get_codec({"id": "zstd"}).decode(frame)) == content


def test_a_codec_that_may_run_code_or_unpack_anything_is_named(tmp_path):
    files = originals.bomb_store("lz4", 2)
    meta = json.loads(files[".zarray"]) | {"filters": [{"id": "base64"}]}
    store = write(tmp_path / "a.zarr", {**files, ".zarray": json.dumps(meta).encode()})
    with pytest.raises(InputError, match="packed with base64, which is not read"):
        images.open_image(store)


def test_chunks_larger_than_memory_are_refused_unread(tmp_path):
    zarr.create_array(tmp_path / "a.zarr", shape=(64, 64), chunks=(1 << 20, 1 << 20), dtype="u2")
    with pytest.raises(InputError, match=r"chunks of .* have 2,199,023,255,552 bytes"):
        images.open_image(tmp_path / "a.zarr")


def test_millions_of_tiny_chunks_are_refused(tmp_path):
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(1 << 15, 1 << 15), chunks=(16, 16), dtype="u2"
    )
    array[:16, :16] = 1
    with pytest.raises(InputError, match="4,194,304 chunks of 512 bytes"):
        images.open_image(tmp_path / "a.zarr")


def test_a_png_with_more_data_than_pixels_is_refused(tmp_path):
    packed = b"\0" * 300_000
    (tmp_path / "a.png").write_bytes(originals.png((16, 16, 8, 0, 0, 0, 0), packed))
    with pytest.raises(InputError, match="more data than 16 x 16 px have"):
        images.open_image(tmp_path / "a.png")


def test_a_png_of_16_bits_counts_its_bytes(tmp_path):
    header = (40_000, 40_000, 16, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(originals.png(header, zlib.compress(b"")))
    with pytest.raises(InputError, match=r"at most 2,147,483,648 bytes"):
        images.open_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('SizeC="2"', 'SizeC="2147483647"', "which the file cannot have"),
        ('SizeX="32"', 'SizeX="4294967296"', "which the file cannot have"),
        ('PlaneCount="6"', 'PlaneCount="9007199254740992"', "tells of planes 0, 9007"),
        ('IFD="0"', 'IFD="4294967295"', "tells of planes"),
        ('SizeT="1"', 'SizeT="-1"', "which the file cannot have"),
        ("a.ome.tif", "../beside/secret.tif", "must lie in one"),
        ("a.ome.tif", "/etc/secret.tif", "must lie in one"),
        ("a.ome.tif", "..\\secret.tif", "must lie in one"),
        ("?>\n", '?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>', "declares entities"),
    ],
)
def test_ome_xml_that_lies_is_refused(tmp_path, old, new, message):
    (tmp_path / "a.ome.tif").write_bytes(originals.with_xml(originals.OME.replace(old, new)))
    with pytest.raises(InputError, match=message):
        images.open_image(tmp_path / "a.ome.tif", 0)


@pytest.mark.parametrize("back_to", [0, 2, 4])
def test_pages_that_form_a_circle_are_refused(tmp_path, back_to):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((5, 8, 8), "u1"), photometric="minisblack", metadata=None)
    with tifffile.TiffFile(path) as file:
        pages = list(file.pages)
    content = bytearray(path.read_bytes())
    last = pages[4].offset + 2 + 12 * len(pages[4].tags)
    content[last : last + 4] = struct.pack("<I", pages[back_to].offset)
    path.write_bytes(content)
    with pytest.raises(InputError, match="pages form a circle"):
        images.open_image(path)


def endless():
    found = {}
    found["a"] = found
    return found


def laughs():
    found = ["x"] * 9
    for _ in range(8):
        found = [found] * 9
    return found


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"clustering": endless()}, "more than 50 lists"),
        ({"clustering": laughs()}, "more than 100,000 values"),
        ({"training": {1: 2}}, "the key 1 is no text"),
    ],
)
def test_a_config_without_end_is_refused(config, message):
    with pytest.raises(InputError, match=message):
        drives.of_workflow("check_tree")(config)


def test_the_shipped_config_has_an_end():
    text = (REPOSITORY / "config.yaml").read_text()
    drives.of_workflow("check_tree")(yaml.safe_load(text))


def test_json_nested_without_end_is_refused(tmp_path):
    deep = b"[" * 100_000
    (tmp_path / "config.json").write_bytes(deep)
    with pytest.raises(InputError, match="not JSON"):
        check.main(["--config", str(tmp_path / "config.json"), "--repository", str(REPOSITORY)])
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(deep)) + deep)
    with pytest.raises(InputError, match="not a model file"):
        checkpoint.read_meta(tmp_path / "m.safetensors")
    (tmp_path / "metrics.json").write_bytes(deep)
    assert summarize.read_metrics(tmp_path / "metrics.json") is None


def test_thousands_of_unknown_columns_are_told_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, originals.run_folder())
    columns = {f"c{k}": "" for k in range(5000)}
    write_table(tmp_path / "images.csv", [{"image": "a", "path": "a.tif", **columns}])
    (tmp_path / "config.json").write_text(json.dumps(originals.config()))
    with pytest.raises(SystemExit):
        check.main(["--config", "config.json", "--repository", str(REPOSITORY)])
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith("4980 more unknown columns")
    assert len(lines) == 21


@pytest.mark.parametrize(
    "described",
    [
        b"version: " + b"9" * 6000,
        yaml.safe_dump(
            {**originals.description(), "inputs": [{"name": "x", "axes": "bcyx",
             "shape": {"min": [1, 1, float("inf"), 16], "step": [0, 0, 8, 8]}}]}
        ).encode(),
    ],
    ids=["digits", "infinity"],
)  # fmt: skip
def test_a_description_with_senseless_numbers_is_refused(tmp_path, described):
    write(tmp_path / "p", {"rdf.yaml": described, "net.pt": b""})
    with pytest.raises(InputError, match=r"rdf\.yaml"):
        bioimageio.read(tmp_path / "p")


def test_damaged_deflate_data_in_an_archive_are_refused(tmp_path):
    path = foreign_nets.package(tmp_path / "p.zip", b"x" * 5000, originals.description())
    content = bytearray(path.read_bytes())
    at = content.index(b"net.pt") + len("net.pt")
    content[at : at + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        bioimageio.read(path)


def test_a_network_that_crashes_pytorch_is_refused(monkeypatch):
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(InputError, match="PyTorch crashes"):
        foreign.load(originals.scripted(), "net.pt")


@pytest.mark.parametrize(
    ("width", "message"),
    [(-(2**40), "no network has the sizes"), (10**6, "weights of another architecture")],
)
def test_a_model_of_absurd_size_takes_no_memory(tmp_path, width, message):
    header, weights = originals.parsed_model(originals.model())
    meta = json.loads(header["__metadata__"]["iaunet"])
    meta["net"]["widths"][0] = width
    header["__metadata__"]["iaunet"] = json.dumps(meta)
    (tmp_path / "m.safetensors").write_bytes(originals.built_model(header, weights))
    with pytest.raises(InputError, match=message):
        checkpoint.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("x", ["9" * 5000, "18446744073709551615", "²", "999999999"])
def test_senseless_places_of_tiles_are_refused(tmp_path, x):
    write(tmp_path, originals.tiles())
    (tmp_path / "p.csv").write_text(f"tile,y,x\n0_0.tif,0,0\n0_16.tif,999999999,{x}\n")
    words = ["--tiles", tmp_path / "tiles", "--positions", tmp_path / "p.csv"]
    words += ["--output", tmp_path / "labels.tif", "--links", tmp_path / "links.csv"]
    with pytest.raises(InputError, match=r"needs a whole number|nearly all of it empty"):
        reconcile.main([str(word) for word in words])
    assert not (tmp_path / "labels.tif").exists()


def test_a_damaged_image_does_not_stop_the_page_of_the_run(tmp_path):
    write(tmp_path, originals.finished_run())
    home = tmp_path / "results/a"
    assert summarize.thumbnail(home / "a.ome.zarr", 96) is not None
    (home / "a.ome.zarr/0/zarr.json").write_text("{}")
    assert summarize.thumbnail(home / "a.ome.zarr", 96) is None
    metrics = json.loads((home / "metrics.json").read_text())
    assert summarize.is_sound(metrics)
    for name, value in (
        ("shape", ["<b>", 1]),
        ("n_objects", "1"),
        ("n_objects", 0.5),
        ("n_tiles", 2**63),
        ("warnings", "x"),
        ("fn_50", None),
        ("ap50", "1"),
    ):
        assert not summarize.is_sound(metrics | {name: value})


def test_texts_of_strangers_are_no_formulas_in_the_summary(tmp_path):
    write(tmp_path, originals.finished_run())
    rows = [{"image": "a", "path": "a.tif", "group": "=1+1", "model": "@x\r=1"}]
    write_table(tmp_path / "images.csv", [*rows, {"image": "b", "path": "b", "group": "-drug"}])
    words = ["--table", tmp_path / "images.csv", "--results", tmp_path / "results"]
    words += ["--output-csv", tmp_path / "s.csv", "--output-html", tmp_path / "s.html"]
    summarize.main([str(word) for word in words])
    found = tables.read_text(tmp_path / "s.csv")
    assert list(found["model"]) == ["'@x =1", ""]
    assert list(found["group"]) == ["'=1+1", "'-drug"]
    drives.check_cells(tmp_path / "s.csv")


@pytest.mark.parametrize("text", ["{}", "[", '{"node_type": "group", "zarr_format": 3}'])
def test_a_damaged_store_of_ours_is_told(tmp_path, text):
    write(tmp_path, originals.finished_run())
    store = tmp_path / "results/a/a.ome.zarr"
    (store / "0/zarr.json").write_text(text)
    with pytest.raises(InputError, match=r"a\.ome\.zarr"):
        omezarr.read_meta(store)
    with pytest.raises(InputError, match="has no array '0'"):
        omezarr.open_level(store)


def test_an_error_is_one_line_that_no_terminal_obeys():
    assert one_line("a\nb\x1b[2J\u202ec") == "a b\\x1b[2J\\u202ec"
    assert len(one_line("x" * 100_000)) < LONGEST + 10


def test_a_hostile_name_of_a_file_is_shown_by_codes(tmp_path):
    write_image(tmp_path / "a.tif")
    with pytest.raises(InputError) as found:
        images.open_image(tmp_path / "\x1b[2J.tif")
    assert one_line(str(found.value)).isprintable()
