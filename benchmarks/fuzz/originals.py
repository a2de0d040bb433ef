"""Real small files of every kind that is read: what the cases are made from."""

import functools
import io
import json
import struct
import tempfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tifffile
import yaml
import zarr

import finished
import foreign_nets
import nets
import runs
from iaunet import synthetic

Files = dict[str, bytes]
REPOSITORY = Path(__file__).resolve().parents[2]


def folder_files(folder: Path) -> Files:
    """Return the files of a folder by relative name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@functools.cache
def pixels(shape: tuple[int, ...] = (40, 50), dtype: str = "u2") -> np.ndarray:
    """Return noise."""
    return np.random.default_rng(0).integers(0, 200, shape).astype(dtype)


def _tiff(values: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


@functools.cache
def tiffs() -> dict[str, bytes]:
    """Return TIFF files by what they are."""
    stack, one = pixels((3, 24, 32)), pixels()
    channels = pixels((2, 3, 24, 32))
    size = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm"}
    return {
        "plain": _tiff(one),
        "strips": _tiff(one, rowsperstrip=8),
        "big endian": _tiff(one, byteorder=">", rowsperstrip=8),
        "bigtiff": _tiff(one, bigtiff=True, rowsperstrip=8),
        "tiled deflate": _tiff(one, tile=(16, 16), compression="zlib", predictor=True),
        "lzw": _tiff(one, compression="lzw", rowsperstrip=8),
        "zstd": _tiff(one, compression="zstd"),
        "lzma": _tiff(one, compression="lzma"),
        "packbits": _tiff(one.astype("u1"), compression="packbits"),
        "jpeg": _tiff(pixels((48, 64), "u1"), compression="jpeg", tile=(16, 16)),
        "jpeg 2000": _tiff(one, compression="jpeg2000"),
        "stack": _tiff(stack, photometric="minisblack"),
        "colour": _tiff(pixels((24, 32, 3), "u1"), photometric="rgb"),
        "planar": _tiff(pixels((3, 24, 32), "u1"), photometric="rgb", planarconfig="separate"),
        "volume tiles": _tiff(pixels((16, 32, 32)), tile=(16, 16, 16), volumetric=True),
        "float": _tiff(one.astype("f4"), compression="zlib", predictor=3),
        "bits": _tiff(one > 100),
        "imagej": _tiff(
            channels, imagej=True, metadata={"axes": "ZCYX", "unit": "um", "spacing": 2}
        ),
        "ome": _tiff(channels, ome=True, metadata={"axes": "CZYX", **size}),
        "shaped": _tiff(stack, metadata={"axes": "ZYX"}),
        "bomb": _tiff(np.zeros((2000, 2000), "u1"), compression="zlib", rowsperstrip=2000),
    }


@functools.cache
def tiff_places(name: str, content: bytes) -> tuple[int, ...]:
    """Return where the numbers of the headers of a TIFF stand: entries, counts, next pages."""
    places = [0, 2, 4]
    try:
        with tifffile.TiffFile(io.BytesIO(content)) as file:
            big = file.is_bigtiff
            for page in file.pages:
                places += [page.offset, page.offset + (8 if big else 2) + 20 * len(page.tags)]
                places.append(
                    page.offset + (8 if big else 2) + (20 if big else 12) * len(page.tags)
                )
                for tag in page.tags:
                    places += [tag.offset + k for k in (0, 2, 4, 12 if big else 8)]
                    places.append(tag.valueoffset)
    except Exception:  # a folder of real files may hold what is none
        return (0,)
    return tuple(at for at in places if at < len(content))


OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:1">
<Image ID="Image:0" Name="one"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16"
 SizeX="32" SizeY="24" SizeC="2" SizeZ="3" SizeT="1" PhysicalSizeX="0.5" PhysicalSizeXUnit="µm"
 PhysicalSizeY="0.5" Interleaved="false" BigEndian="false" SignificantBits="16">
<Channel ID="Channel:0:0" Name="DAPI" SamplesPerPixel="1"/>
<Channel ID="Channel:0:1" Name="GFP" SamplesPerPixel="1"/>
<TiffData IFD="0" FirstC="0" FirstZ="0" FirstT="0" PlaneCount="6"><UUID
 FileName="a.ome.tif">urn:uuid:1</UUID></TiffData></Pixels></Image></OME>"""


def with_xml(xml: str) -> bytes:
    """Return an OME-TIFF of 6 planes with this description."""
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for index, plane in enumerate(pixels((6, 24, 32))):
            text = xml.encode("utf-8", "replace") if index == 0 else None
            writer.write(plane, description=text, metadata=None, contiguous=False)
    return file.getvalue()


def png(header: tuple[int, ...], packed: bytes, more: Iterable[tuple[bytes, bytes]] = ()) -> bytes:
    """Return a PNG with right checksums, whatever it says."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", *header)), *more, (b"IDAT", packed), (b"IEND", b"")]
    out = b"\x89PNG\r\n\x1a\n"
    for kind, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        out += struct.pack(">I", len(content)) + kind + content + checksum
    return out


@functools.cache
def bomb(kind: str) -> bytes:
    """Return a few kB that unpack to gigabytes: of one codec."""
    import bz2
    import gzip
    import lzma

    import numcodecs

    zeros, times = bytes(1 << 24), 64
    if kind == "zlib":  # its checksum is wrong, which shows when all is unpacked
        packer = zlib.compressobj(1)
        head = packer.compress(b"") + packer.flush(zlib.Z_FULL_FLUSH)
        block = packer.compress(zeros) + packer.flush(zlib.Z_FULL_FLUSH)
        return head + block * times + packer.flush()
    if kind == "blosc":
        packed = numcodecs.Blosc(cname="zstd").encode(zeros)
        return packed[:4] + struct.pack("<I", 0x7FFFFF00) + packed[8:]
    if kind == "lz4":
        return struct.pack("<i", 0x7FFFFFF0) + numcodecs.LZ4().encode(zeros)[4:]
    packers = {"gzip": gzip.compress, "bz2": bz2.compress, "lzma": lzma.compress}
    return packers.get(kind, numcodecs.Zstd(level=1).encode)(zeros) * times


BOMBS = ("gzip", "zlib", "bz2", "lzma", "zstd", "blosc", "lz4")


@functools.cache
def zarrs() -> dict[str, Files]:
    """Return Zarr stores by what they are, as files."""
    found = {}
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    axes = [{"name": "c", "type": "channel"}, *axes]
    scale = [{"type": "scale", "scale": [1, 2.0, 0.5, 0.5]}]
    data = [{"path": str(k), "coordinateTransformations": scale} for k in range(2)]
    multiscales = [{"version": "0.4", "axes": axes, "datasets": data, "name": "a"}]
    omero = {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}
    values = pixels((2, 4, 32, 32))
    with tempfile.TemporaryDirectory() as folder:
        for name, version, options in (
            ("0.4", 2, {}),
            ("0.5", 3, {}),
            ("0.5 sharded", 3, {"shards": (2, 4, 32, 32)}),
        ):
            group = zarr.create_group(f"{folder}/{name}", zarr_format=version)
            for level, step in ((0, 1), (1, 2)):
                part = values[..., ::step, ::step]
                more = {"shards": part.shape} if options else {}
                array = group.create_array(
                    str(level), shape=part.shape, dtype="u2", chunks=(1, 2, 16, 16), **more
                )
                array[:] = part
            ome = {"multiscales": multiscales, "omero": omero}
            group.attrs.update(ome if version == 2 else {"ome": {"version": "0.5", **ome}})
            found[name] = folder_files(Path(folder, name))
        for version in (2, 3):
            array = zarr.create_array(
                f"{folder}/plain", shape=(32, 32), dtype="u2", chunks=(16, 16), zarr_format=version,
                overwrite=True,
            )  # fmt: skip
            array[:] = values[0, 0]
            found[f"plain v{version}"] = folder_files(Path(folder, "plain"))
    return {name: {k: v for k, v in files.items() if k} for name, files in found.items()}


def bomb_store(kind: str, version: int) -> Files:
    """Return a plain Zarr array whose only chunk is a bomb."""
    chunk = bomb(kind)
    if version == 2:
        codec = {"id": kind, **({"level": 1} if kind in ("gzip", "zlib", "zstd") else {})}
        if kind == "blosc":
            codec |= {"cname": "zstd", "clevel": 5, "shuffle": 1, "blocksize": 0}
        meta = {
            "zarr_format": 2, "shape": [64, 64], "chunks": [64, 64], "dtype": "<u2", "order": "C",
            "fill_value": 0, "filters": None, "compressor": codec,
        }  # fmt: skip
        return {".zarray": json.dumps(meta).encode(), "0.0": chunk}
    name = kind if kind in ("gzip", "zstd", "blosc") else f"numcodecs.{kind}"
    settings: dict[str, object] = {"level": 1} if kind in ("gzip", "zlib", "zstd", "bz2") else {}
    if kind == "zstd":
        settings["checksum"] = False
    if kind == "blosc":
        settings = {"cname": "zstd", "clevel": 5, "shuffle": "noshuffle", "blocksize": 0}
    return {"zarr.json": json.dumps(plain_v3(name, settings)).encode(), "c/0/0": chunk}


def plain_v3(codec: str, settings: dict) -> dict:
    """Return the metadata of a Zarr v3 array of one chunk."""
    grid = {"name": "regular", "configuration": {"chunk_shape": [64, 64]}}
    key = {"name": "default", "configuration": {"separator": "/"}}
    codecs = [{"name": "bytes", "configuration": {"endian": "little"}}]
    return {
        "zarr_format": 3, "node_type": "array", "shape": [64, 64], "data_type": "uint16",
        "chunk_grid": grid, "chunk_key_encoding": key, "fill_value": 0, "attributes": {},
        "codecs": [*codecs, {"name": codec, "configuration": settings}],
    }  # fmt: skip


@functools.cache
def model(ndim: int = 2) -> bytes:
    """Return a small model file."""
    with tempfile.TemporaryDirectory() as folder:
        return nets.save_model(Path(folder, "m.safetensors"), ndim).read_bytes()


def parsed_model(content: bytes) -> tuple[dict, bytes]:
    """Return the header and the weights of a model file."""
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def built_model(header: object, weights: bytes) -> bytes:
    """Return a model file of any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + weights


@functools.cache
def scripted() -> bytes:
    """Return a TorchScript network."""
    return foreign_nets.script(foreign_nets.small())


@functools.cache
def description() -> dict:
    """Return what a package says of its network."""
    ours = {"max_offset": 20, "max_sigma": 9, "sigma": 4, "block": [64, 64], "stride": 2}
    ours |= {"heads": {"fg": "0:0", "seed": "0:1", "off": "0:2-3"}, "scores": "logits"}
    return foreign_nets.description(scripted(), config={"iaunet": ours})


@functools.cache
def config() -> dict:
    """Return the shipped config for a table beside it."""
    found = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    return {**found, "images": "images.csv", "model": "m.safetensors"}


@functools.cache
def run_folder() -> Files:
    """Return the images and the model of a run, without its table."""
    with tempfile.TemporaryDirectory() as folder:
        runs.write_image(Path(folder, "a.tif"))
        runs.write_image(Path(folder, "mask.tif"))
        runs.write_header_model(Path(folder, "m.safetensors"))
        return folder_files(Path(folder))


@functools.cache
def tiles() -> Files:
    """Return label images of four tiles that overlap."""
    labels = np.zeros((40, 40), "u2")
    labels[5:12, 5:12], labels[15:25, 15:25], labels[30:38, 30:38] = 1, 2, 3
    places = {f"{y}_{x}": (y, x) for y in (0, 16) for x in (0, 16)}
    return {
        f"tiles/{name}.tif": _tiff(labels[y : y + 24, x : x + 24])
        for name, (y, x) in places.items()
    }


POSITIONS = "tile,y,x\n" + "".join(f"{y}_{x}.tif,{y},{x}\n" for y in (0, 16) for x in (0, 16))


@functools.cache
def labels() -> bytes:
    """Return a label image."""
    return _tiff(np.arange(1, 5, dtype="u2").repeat(200).reshape(20, 40))


@functools.cache
def finished_run() -> Files:
    """Return the results of an image, all that the pages are made from."""
    rng = np.random.default_rng(0)
    image, true = synthetic.draw_nuclei((96, 112), rng, diameter_px=18)
    with tempfile.TemporaryDirectory() as folder:
        found = true.astype(np.uint32)
        finished.write(Path(folder), image, found, core=(64, 64), pixel_um=(0.5, 0.5), true=true)
        return folder_files(Path(folder))
