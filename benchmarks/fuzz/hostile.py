"""Strategies of hostile files: real ones altered where it hurts, and texts that attack."""

import copy
import io
import json
import zipfile
from collections.abc import Mapping, Sequence

import yaml
from hypothesis import strategies as st

import originals
from originals import Files

NUMBERS = (0, 1, 2, 3, -1, 7, 8, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31)
NUMBERS += (2**32 - 1, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 10**30, 65000, 100000)
MARKUP = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "</td></table><iframe src=javascript:alert(1)>",
    "</style><script>alert(1)</script>",
    "</pre><b onmouseover=alert(1)>x",
    "javascript:alert(1)",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;script&gt;",
)
FORMULAS = ("=1+1", '=cmd|" /C calc"!A0', "+1+1", "-1+1", "@SUM(1)", "\t=1", "\r=1", "=HYPERLINK()")
PLACES = ("../x", "../../etc/passwd", "/etc/passwd", "..", ".", "a/../../b", "beside/secret.tif")
PLACES += ("../beside/secret.tif", "../beside", "a\\b", "C:\\x", "~", "$HOME", "$(touch x)", "`id`")
PLACES += ("; touch x", "| touch x", "a b", "-rf", "--help", "a\0b", "\n", "x" * 300, "con", "{x}")
ODD = ("", " ", "é", "\u202eabc", "\ud83d\ude00", "\x1b[2J", "\x07", "NaN", "inf", "1e999", "0x10")
ODD += (
    "null",
    "true",
    "٣",
    "²",
    "１２",
    "1_000",
    "00",
    "-0",
    "1e3",
    "0.5.5",
    "日本",
    "\ufeff",
    "a\u0000",
)
LONG = ("a" * 20_000, "9" * 5000, "(" * 5000, "," * 3000)
TEXTS = (*MARKUP, *FORMULAS, *PLACES, *ODD, *LONG)


def deep(n: int) -> list:
    """Return lists within lists."""
    found: list = []
    for _ in range(n):
        found = [found]
    return found


VALUES = (None, True, False, 0.5, -1.0, 1e308, float("nan"), float("inf"), [], {}, [None], [[]])
VALUES += ({"a": 1}, [1] * 50, deep(90), {"": ""}, [{}], [-1, 2**70], ["x", 1, None])

texts = st.sampled_from(TEXTS) | st.text(max_size=20)
words = st.text("abcXYZ0189._-/\\ =+@,;\"'\n\té", max_size=12)
values = st.one_of(
    st.sampled_from(VALUES).map(copy.deepcopy),
    st.sampled_from(NUMBERS),
    texts,
    st.integers(),
    st.floats(),
    st.recursive(
        st.none() | st.booleans() | st.integers() | texts,
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=5), x, max_size=3),
        max_leaves=6,
    ),
)


@st.composite
def damaged(draw, content: bytes, places: Sequence[int] = (), most: int = 4) -> bytes:
    """Draw the bytes with some changed, at `places` rather than elsewhere."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, most))):
        if not data:
            break
        near = st.integers(0, min(len(data) - 1, 400))
        at = draw(st.integers(0, len(data) - 1) | near)
        if places and draw(st.integers(0, 3)):
            at = min(draw(st.sampled_from(places)), len(data) - 1)
        kind = draw(st.sampled_from(["number", "number", "number", "byte", "cut", "drop", "twice"]))
        if kind == "byte":
            data[at] = draw(st.integers(0, 255))
        elif kind == "number":
            size = draw(st.sampled_from([1, 2, 4, 8]))
            order = draw(st.sampled_from(["little", "big"]))
            number = draw(st.sampled_from(NUMBERS) | st.integers(0, len(data)))
            data[at : at + size] = (number % 256**size).to_bytes(size, order)
        elif kind == "cut":
            del data[at:]
        elif kind == "drop":
            del data[at : at + draw(st.integers(1, 64))]
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


def paths_of(tree: object, here: tuple = ()) -> list[tuple]:
    """Return the way to every value of a tree, the tree itself first."""
    found = [here]
    pairs = tree.items() if isinstance(tree, Mapping) else ()
    pairs = enumerate(tree) if isinstance(tree, list) else pairs
    for key, value in pairs:
        found += paths_of(value, (*here, key))
    return found


@st.composite
def altered(draw, tree: object, most: int = 3) -> object:
    """Draw the tree with some values exchanged, dropped, renamed, doubled or nested."""
    tree = json.loads(json.dumps(tree))
    for _ in range(draw(st.integers(1, most))):
        ways = paths_of(tree)[1:]
        if not ways:
            return draw(values)
        *way, last = draw(st.sampled_from(ways))
        parent = tree
        for key in way:
            parent = parent[key]
        kind = draw(st.sampled_from(["value", "value", "value", "number", "drop", "add", "swap"]))
        if kind == "value":
            parent[last] = draw(values)
        elif kind == "number":
            parent[last] = draw(st.sampled_from(NUMBERS))
        elif kind == "drop":
            del parent[last]
        elif kind == "add":
            extra = draw(values)
            if isinstance(parent, list):
                parent.append(extra)
            else:
                parent[draw(words)] = extra
        elif isinstance(parent[last], list):
            parent[last] = draw(st.permutations(parent[last])) * draw(st.integers(0, 2))
        else:
            parent[last] = [parent[last]]
    return tree


def json_bytes(tree: object) -> bytes:
    """Return JSON as Python writes it, NaN included."""
    return json.dumps(tree).encode("utf-8", "surrogatepass")


def encoded(tree: st.SearchStrategy) -> st.SearchStrategy[bytes]:
    """Draw a tree as JSON, or JSON that is none, or too deep."""
    return st.one_of(
        tree.map(json_bytes),
        tree.map(json_bytes),
        tree.map(json_bytes).flatmap(lambda text: damaged(text, most=2)),
        st.sampled_from([b"", b"null", b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"1e999"]),
    )


# --- tables ---------------------------------------------------------------------------------


@st.composite
def csv_bytes(draw, rows: list[dict[str, str]], columns: Sequence[str]) -> bytes:
    """Draw a table: cells exchanged, columns dropped, doubled and misnamed, odd encodings."""
    rows = [dict(row) for row in rows]
    for _ in range(draw(st.integers(1, 4))):
        draw(st.sampled_from(rows))[draw(st.sampled_from(list(columns)))] = draw(texts)
    header = list(dict.fromkeys(key for row in rows for key in row))
    body = [[row.get(key, "") for key in header] for row in rows]
    kind = draw(st.integers(0, 9))
    if kind == 0:
        header.append(draw(texts))
        body = [[*row, draw(texts)] for row in body]
    elif kind == 1:
        header[draw(st.integers(0, len(header) - 1))] = draw(texts)
    elif kind == 2:
        body.append(draw(st.lists(texts, max_size=6)))
    quote = draw(st.sampled_from(['"', '"', '"', "", "'"]))
    separator = draw(st.sampled_from([",", ",", ",", ",", ";", "\t"]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    lines = [
        separator.join(
            f'"{cell.replace(chr(34), chr(34) * 2)}"' if quote == '"' else f"{quote}{cell}{quote}"
            for cell in row
        )
        for row in (header, *body)
    ]
    text = end.join(lines) + draw(st.sampled_from([end, "", end * 3]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    content = text.encode(encoding, "replace")
    return draw(st.just(content) | damaged(content)) if draw(st.integers(0, 3)) == 0 else content


IMAGE_COLUMNS = [
    "image",
    "path",
    "model",
    "channel",
    "scene",
    "frame",
    "pixel_um_x",
    "diameter_px",
    "reference",
    "group",
]


def tables() -> st.SearchStrategy[Files]:
    """Draw a table of images beside an image, a reference and a model."""
    rows = [
        {"image": name, "path": "a.tif", "group": "x", "reference": "mask.tif", "model": ""}
        for name in ("a", "b", "c")
    ]
    huge = b"image,path\na," + b"x" * 200_000 + b"\n"
    many = b"image,path\n" + b"".join(b"i%d,a.tif\n" % k for k in range(300))
    wide = b"image,path," + b",".join(b"c%d" % k for k in range(5000)) + b"\n"
    found = csv_bytes(rows, IMAGE_COLUMNS) | st.sampled_from([huge, many, wide, b"\0" * 1000])
    plain = json.dumps(originals.config()).encode()
    return found.map(
        lambda text: {**originals.run_folder(), "images.csv": text, "config.json": plain}
    )


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi")  # noqa: B905
)
ATTACKS = (
    LAUGHS + "clustering: *i\n",
    LAUGHS + "training: {classes: *i}\n",
    "clustering: " + "[" * 300 + "]" * 300,
    "clustering: " + "{a: " * 400 + "1" + "}" * 400,
    "clustering: &x {a: *x}\n",
    "model: !!python/object/apply:os.system ['touch x']\n",
    "model: !!python/name:os.system\n",
    "images: !!binary gIGC\n",
    "diameter_px: " + "9" * 6000,
    "diameter_px: .nan\ntiling: {core_px: [.inf, .nan]}\n",
    "device: 2001-12-14\n",
    "? [a, b]\n: c\n",
    "1: 2\n",
    "\0",
    "- a\n- b\n",
    "model: ''\n",
    "<<: {model: x}\n",
    "stitching: {jobs: 1e400}\n",
    "tiling: {core_px: [65536, 65536], tiles_per_batch: 100000000000000000000}\n",
)


def configs() -> st.SearchStrategy[Files]:
    """Draw a config as YAML, beside the run that it is for."""
    tree = altered(originals.config(), most=4)
    text = tree.map(lambda found: yaml.dump(found, allow_unicode=True).encode("utf-8", "replace"))
    attack = st.sampled_from(ATTACKS).map(str.encode)
    found = text | text | text | attack | text.flatmap(lambda some: damaged(some, most=2))
    table = b"image,path\na,a.tif\n"
    return found.map(
        lambda some: {**originals.run_folder(), "images.csv": table, "config.yaml": some}
    )


# --- images ---------------------------------------------------------------------------------


def tiffs() -> st.SearchStrategy[Files]:
    """Draw a TIFF with damaged headers or pixels; or one that a real folder has."""

    def of(name: str) -> st.SearchStrategy[bytes]:
        content = originals.tiffs()[name]
        return st.just(content) | damaged(content, originals.tiff_places(name, content), most=6)

    names = st.sampled_from(sorted(originals.tiffs()))
    return names.flatmap(of).map(lambda content: {"a.tif": content})


XML_ATTACKS = (
    '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>',
    '<!DOCTYPE x [<!ENTITY e SYSTEM "http://127.0.0.1:9/x">]>',
    '<!DOCTYPE x SYSTEM "../beside/secret.dtd">',
    '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefgh", "bcdefghi"))  # noqa: B905
    + "]>",
)
ATTRIBUTES = [
    "SizeX",
    "SizeY",
    "SizeC",
    "SizeZ",
    "SizeT",
    "DimensionOrder",
    "Type",
    "IFD",
    "FirstC",
    "FirstZ",
    "FirstT",
    "PlaneCount",
    "Name",
    "FileName",
    "PhysicalSizeX",
    "PhysicalSizeXUnit",
    "SamplesPerPixel",
    "BigEndian",
    "SignificantBits",
    "UUID",
    "ID",
]
ORDERS = ("XYZCT", "XYCZT", "XYTZC", "ZYX", "XYX", "", "XYCZTS", "TCZYX", "XYZZZ")


@st.composite
def ome_xml(draw) -> str:
    """Draw OME-XML with other attributes, elements and declarations."""
    import re

    text = originals.OME
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.integers(0, 7))
        if kind <= 4:
            name = draw(st.sampled_from(ATTRIBUTES))
            value = draw(
                st.sampled_from([str(n) for n in NUMBERS]) | st.sampled_from(ORDERS) | texts
            )
            value = value.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
            count = draw(st.integers(0, 1))
            text = re.sub(rf'\b{name}="[^"]*"', lambda _: f'{name}="{value}"', text, count=count)  # noqa: B023
        elif kind == 5:
            attack = draw(st.sampled_from(XML_ATTACKS))
            text = text.replace("?>\n", f"?>{attack}\n").replace("DAPI", "&e;&i;")
        elif kind == 6:
            element = draw(st.sampled_from(["<Image", "<Pixels", "<Channel", "<TiffData", "<UUID"]))
            text = text.replace(element, f"{element}{draw(st.sampled_from(['X', ' ', ':a']))}")
        else:
            found = re.findall(r"<(?:Channel|TiffData|Image)[^>]*>", text)
            if found:
                text = text.replace(found[0], found[0] * draw(st.sampled_from([0, 2, 5, 500])))
    return text


def omes() -> st.SearchStrategy[Files]:
    """Draw an OME-TIFF whose XML lies."""
    return ome_xml().map(lambda text: {"a.ome.tif": originals.with_xml(text)})


@st.composite
def pngs(draw) -> Files:
    """Draw a PNG whose checksums are right, or that is damaged."""
    import zlib

    small = st.sampled_from([1, 4, 16, 17])
    large = st.sampled_from([0, 1000, 46340, 65535, 2**31 - 1, 2**32 - 1])
    size = small if draw(st.integers(0, 2)) else large
    header = (
        draw(size),
        draw(size),
        draw(st.sampled_from([1, 2, 4, 8, 16, 0, 3, 255])),
        draw(st.sampled_from([0, 2, 3, 4, 6, 1, 5, 255])),
        *(draw(st.sampled_from([0, 0, 0, 1, 255])) for _ in range(3)),
    )
    if draw(st.integers(0, 2)) == 0:
        header = (16, 17, 8, 0, 0, 0, 0)
    packed = draw(
        st.sampled_from([zlib.compress(bytes(n)) for n in (16, 68, 289, 289, 1000, 100_000)])
        | st.sampled_from([b"", originals.bomb("zlib")])
        | st.binary(max_size=50)
    )
    more = [
        (kind, draw(st.binary(max_size=30) | st.just(b"\0" * 5000)))
        for kind in draw(st.lists(st.sampled_from([b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"acTL"])))
    ]
    content = originals.png(header, packed, more[:3])
    if draw(st.integers(0, 4)) == 0:
        content = draw(damaged(content))
    return {"a.png": content}


def zarrs() -> st.SearchStrategy[Files]:
    """Draw a Zarr store with other metadata, other chunks or a bomb in a chunk."""

    @st.composite
    def changed(draw, name: str) -> Files:
        files = dict(originals.zarrs()[name])
        meta = [
            key for key in files if key.endswith(("zarr.json", ".zarray", ".zattrs", ".zgroup"))
        ]
        chunks = [key for key in files if key not in meta]
        for _ in range(draw(st.integers(1, 2))):
            key = draw(st.sampled_from(meta))
            if key in files:
                files[key] = draw(encoded(altered(json.loads(originals.zarrs()[name][key]))))
        kind = draw(st.integers(0, 5))
        if kind <= 1:
            key = draw(st.sampled_from(chunks))
            files[key] = draw(damaged(files[key]) | st.sampled_from([b"", b"\0" * 100]))
        elif kind == 2:
            del files[draw(st.sampled_from(sorted(files)))]
        return {f"a.zarr/{key}": content for key, content in files.items()}

    bombs = st.builds(
        originals.bomb_store, st.sampled_from(originals.BOMBS), st.sampled_from([2, 3])
    )
    bombs = bombs.map(lambda files: {f"a.zarr/{key}": content for key, content in files.items()})
    some = st.sampled_from(sorted(originals.zarrs())).flatmap(changed)
    return st.integers(0, 24).flatmap(lambda pick: bombs if pick == 0 else some)


def stores() -> st.SearchStrategy[Files]:
    """Draw the results of a run of ours with a damaged store."""
    files = originals.finished_run()
    meta = [name for name in files if name.endswith("zarr.json")]

    @st.composite
    def changed(draw) -> Files:
        name = draw(st.sampled_from(meta))
        return {**files, name: draw(encoded(altered(json.loads(files[name]))))}

    return changed()


# --- models ---------------------------------------------------------------------------------


@st.composite
def models(draw) -> Files:
    """Draw a model file: header, metadata or weights altered, checksums made right again."""
    import hashlib

    ndim = draw(st.sampled_from([2, 3]))
    content = originals.model(ndim)
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return {"m.safetensors": draw(damaged(content))}
    header, weights = originals.parsed_model(content)
    meta = json.loads(header["__metadata__"]["iaunet"])
    if kind <= 2:
        header = draw(altered(header))
    elif kind == 3:
        weights = draw(damaged(weights))
    else:
        changed = draw(altered(meta["net"] if kind < 7 else meta, most=2))
        meta = {**meta, "net": changed} if kind < 7 else changed
        text = draw(st.just(json.dumps(meta)) | st.just("[" * 100_000)) if kind == 9 else None
        header["__metadata__"]["iaunet"] = text or json.dumps(meta)
    if kind == 3 and draw(st.booleans()):
        digest = hashlib.sha256()
        for name, entry in sorted(header.items()):
            if name != "__metadata__":
                first, end = entry["data_offsets"]
                shape = tuple(entry["shape"])
                kinds = {"F32": "torch.float32", "I64": "torch.int64"}
                digest.update(f"{name} {kinds.get(entry['dtype'], '')} {shape}".encode())
                digest.update(weights[first:end])
        meta["weights_sha256"] = digest.hexdigest()
        header["__metadata__"]["iaunet"] = json.dumps(meta)
    deep_header = kind == 1 and draw(st.integers(0, 9)) == 0
    return {
        "m.safetensors": originals.built_model(b"[" * 90_000 if deep_header else header, weights)
    }


def zipped(files: Files) -> bytes:
    """Return a zip file of these files."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("\0", "") or "x", content)
    return file.getvalue()


def zip_files(content: bytes) -> Files:
    """Return the files of a zip file."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@st.composite
def packages(draw) -> Files:
    """Draw a BioImage.IO package or a TorchScript file of a stranger."""
    kind = draw(st.integers(0, 7))
    network = originals.scripted()
    if kind <= 1:  # the file of the network, the zip file repaired or not
        inner = zip_files(network)
        name = draw(st.sampled_from(sorted(inner)))
        inner[name] = draw(damaged(inner[name]) | st.sampled_from([b"", b"\x80\x02cos\nsystem\n"]))
        content = zipped(inner) if draw(st.booleans()) else draw(damaged(network))
        return {"a.pt": content}
    described = draw(altered(originals.description()))
    text = yaml.safe_dump(described) if kind < 7 else draw(st.sampled_from(ATTACKS))
    if kind == 6 and isinstance(described, dict):
        described["weights"] = {"torchscript": {"source": draw(st.sampled_from(PLACES))}}
        text = yaml.safe_dump(described)
    raw = text.encode("utf-8", "replace")
    if draw(st.integers(0, 5)) == 0:
        raw = draw(damaged(raw))
    files = {"rdf.yaml": raw, "net.pt": network}
    if draw(st.booleans()):
        return {f"a/{name}": content for name, content in files.items()}
    content = zipped(files)
    return {"a.zip": content if draw(st.integers(0, 3)) else draw(damaged(content))}


# --- labels and pages -----------------------------------------------------------------------


@st.composite
def positions(draw) -> Files:
    """Draw a table of positions with its tiles, one of which may be damaged."""
    files = dict(originals.tiles())
    names = ("0_0", "0_16", "16_0", "16_16")
    rows = [
        {"tile": f"{name}.tif", "y": name.split("_")[0], "x": name.split("_")[1]} for name in names
    ]
    if draw(st.integers(0, 3)):
        cell = st.sampled_from([str(n) for n in NUMBERS]) | texts
        draw(st.sampled_from(rows))[draw(st.sampled_from(["y", "x"]))] = draw(cell)
        text = "tile,y,x\n" + "".join(
            ",".join('"' + value.replace('"', '""') + '"' for value in row.values()) + "\n"
            for row in rows
        )
        files["positions.csv"] = text.encode("utf-8", "replace")
    else:
        files["positions.csv"] = draw(csv_bytes(rows, ("tile", "y", "x", "z")))
    if draw(st.integers(0, 3)) == 0:
        name = draw(st.sampled_from(sorted(files)[1:]))
        places = originals.tiff_places(name, files[name])
        files[name] = draw(damaged(files[name], places))
    return files


@st.composite
def pairs(draw) -> Files:
    """Draw a table of pairs, or damaged labels."""
    labels = originals.labels()
    places = originals.tiff_places("labels", labels)
    rows = [{"image": "a", "predicted": "p.tif", "reference": "r.tif"}] * 2
    rows[1] = {**rows[1], "image": "b"}
    first = draw(st.integers(0, 2))
    return {
        "p.tif": draw(damaged(labels, places, most=6)) if first else labels,
        "r.tif": labels,
        "pairs.csv": draw(csv_bytes(rows, tuple(rows[0]))) if first != 1 else
        b"image,predicted,reference\na,p.tif,r.tif\n",
    }  # fmt: skip


@st.composite
def pages(draw) -> Files:
    """Draw the results of a run in which every text may be markup or a formula."""
    files = dict(originals.finished_run())
    home = "results/a/"
    for name in ("metrics.json", "provenance.json", "tiles.json"):
        tree = json.loads(files[home + name])
        for _ in range(draw(st.integers(0, 3))):
            leaf = draw(st.sampled_from([way for way in paths_of(tree) if way]))
            parent = tree
            for key in leaf[:-1]:
                parent = parent[key]
            if isinstance(parent[leaf[-1]], str) and leaf != ("dtype",):
                parent[leaf[-1]] = draw(texts)
        if name == "metrics.json":
            tree["warnings"] = draw(st.lists(texts, max_size=2))
            if draw(st.integers(0, 4)) == 0:  # one image must not stop the page of the run
                tree = draw(altered(tree))
        files[home + name] = json_bytes(tree)
        if draw(st.integers(0, 19)) == 0:
            files[home + name] = draw(st.sampled_from([b"", b"null", b"[1]", b"[" * 9999, b"\xff"]))
    group, model, reason = draw(texts), draw(texts), draw(texts)
    cells = [f'"{text.replace(chr(34), chr(34) * 2)}"' for text in (group, model)]
    table = f"image,path,group,model\na,a.tif,{cells[0]},{cells[1]}\nb,b.tif,,\n"
    files["images.csv"] = table.encode("utf-8", "replace").replace(b"\0", b"")
    files["logs/tile/b.log"] = f"error: {reason}\n".encode("utf-8", "replace")
    files["reasons.json"] = json_bytes({"b": reason})
    return files
