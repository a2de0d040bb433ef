"""What is driven: the ways by which files of strangers come in, as the steps open them."""

import contextlib
import html.parser
import json
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hypothesis import strategies as st

import adopt
import check
import evaluate
import hostile
import originals
import reconcile
import report
import summarize
import tile
from iaunet import checkpoint, foreign, images, labelfiles, omezarr
from iaunet.errors import InputError
from originals import REPOSITORY, Files

MOST_READ = 64 << 20
"""Bytes of an image that are read: a large image is none of the defects looked for."""
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_run(config: Path) -> None:
    """Check a table and a config as Snakemake does before it plans."""
    check.main(["--config", str(config), "--repository", str(REPOSITORY), "--record", "plan.json"])


def drive_table() -> None:
    """Check a table of images; what is planned lies within the results."""
    check_run(Path("config.json"))


def drive_config() -> None:
    """Load a config as Snakemake does; check it."""
    from snakemake.common.configfile import load_configfile
    from snakemake.exceptions import WorkflowError

    text = Path("config.yaml").read_bytes()
    if b"__use_yte__" in text or b"__variables__" in text:
        return  # Snakemake runs such a file as a program: whoever writes it may do all
    try:
        found = load_configfile("config.yaml")
    except (WorkflowError, ValueError, RecursionError, TypeError) as error:
        raise InputError(f"Snakemake: {type(error).__name__}") from None
    config = {**originals.config(), **found}
    of_workflow("check_tree")(config)
    numbers = of_workflow("with_numbers")
    for section in ("tiling", "normalize", "clustering", "stitching", "diameter_px"):
        config[section] = numbers(config[section])
    Path("config.json").write_text(json.dumps(config, sort_keys=True, default=str))
    check_run(Path("config.json"))


def of_workflow(name: str) -> Callable:
    """Return a function of `common.smk`, which is no Python that could be imported."""
    text = (REPOSITORY / "workflow/rules/common.smk").read_text(encoding="utf-8")
    found = re.search(rf"^def {name}\(.*?(?=^\S)", text, re.MULTILINE | re.DOTALL)[0]
    names: dict = {"WorkflowError": InputError}
    exec(found, names)
    return names[name]


def drive_image() -> None:
    """Describe an image, open its first channel, scene and frame, and read it."""
    (path,) = Path().glob("a.*")
    with contextlib.suppress(InputError):
        images.describe(path)
    image = images.open_image(path, *first_choice(path))
    n_bytes = 0
    for box in image.blocks((64,) * image.ndim):
        n_bytes += image.read(box).nbytes
        if n_bytes > MOST_READ:
            return
    if path.is_file() and zlib.crc32(path.read_bytes()) % 8 == 0:  # it takes ten times as long
        tile_image(path)


def first_choice(path: Path) -> tuple[int | None, int | None, int | None]:
    """Return channel, scene and frame 0, where there are several."""
    facts = images.describe(path)
    several = (len(facts["channels"]), len(facts["scenes"]), facts["n_frames"])
    channel, scene, frame = (0 if n > 1 else None for n in several)
    return channel, scene, frame


def tile_image(path: Path) -> None:
    """Run the whole step tile.py; refused, it leaves nothing under the final name."""
    channel, scene, frame = first_choice(path)
    words = ["--image", path, "--name", "a", "--model", "../model.safetensors", "--batches", "1"]
    words += ["--core-px", "auto", "--halo", "exact", "--diameter-px", "native"]
    words += ["--percentiles", "1", "99.8", "--output", "out/a.zarr", "--tiles", "out/tiles.json"]
    for name, value in (("channel", channel), ("scene", scene), ("frame", frame)):
        words += [f"--{name}", value] if value is not None else []
    facts = images.describe(path)
    if len(facts["spatial_shape"]) != 2:
        return
    try:
        tile.main([str(word) for word in words])
    except InputError:
        assert not Path("out/a.zarr").exists(), "half a store has its final name"
        assert not Path("out/tiles.json").exists(), "a refused image has tiles"
        raise


def drive_store() -> None:
    """Open a store of ours as the later steps do."""
    store = Path("results/a/a.ome.zarr")
    with contextlib.suppress(InputError):
        summarize.thumbnail(store, 96)
    with contextlib.suppress(InputError):
        labelfiles.read(labelfiles.open_labels(store))
    meta = omezarr.read_meta(store)
    for level in range(len(meta.levels)):
        omezarr.open_level(store, level)
        omezarr.open_labels(store, level=level)
    labelfiles.classes(store)


def drive_model() -> None:
    """Load a model and let it see a window."""
    import torch

    path = Path("m.safetensors")
    with contextlib.suppress(InputError):
        check.Run({}, REPOSITORY).model(str(path), Path())
    net, meta = checkpoint.load(path)
    from iaunet import clustering

    clustering.Settings.from_dict(meta["clustering"], meta["ndim"])
    with torch.inference_mode():
        net(torch.rand(1, 1, *(2 * n for n in net.stride)))


def drive_package() -> None:
    """Read a package or a network of a stranger and let it see a window."""
    import torch

    (path,) = (p for p in Path().iterdir() if p.name in ("a", "a.pt", "a.zip"))
    package = adopt.read_source(path)
    options = {"ndim": 2, "stride": [2], "heads": {"fg": "0:0", "seed": "0:1", "off": "0:2-3"}}
    options |= {"scores": "logits", "percentiles": [1.0, 99.8], "max_offset": [20.0]}
    options |= {"max_sigma": [9.0], "sigma": [4.0]}
    facts = adopt.checked(options | package.facts, path)
    facts["heads"] = adopt.with_indices(facts["heads"], package.outputs)
    names = foreign.Contract.__dataclass_fields__
    contract = foreign.Contract(**{name: facts[name] for name in names if name in facts})
    adopt.clustering.Settings.from_dict(facts.get("clustering", {}), contract.ndim)
    net = foreign.Foreign(package.content, contract, str(path))
    if max(net.stride) < 512:
        net(torch.rand(1, 1, *(2 * n for n in net.stride)))


def drive_positions() -> None:
    """Join tiles at places of a table."""
    words = ["--tiles", "tiles", "--positions", "positions.csv", "--output", "out/labels.tif"]
    try:
        reconcile.main([*words, "--links", "out/links.csv"])
    except InputError:
        assert not Path("out/labels.tif").exists(), "a refused table has labels"
        raise


def drive_pairs() -> None:
    """Score the label images of a table."""
    evaluate.main(["--pairs", "pairs.csv", "--output-csv", "s.csv", "--output-json", "s.json"])


def drive_pages() -> None:
    """Write the page of the run and of the image; nothing of the data becomes markup or formula."""
    words = ["--table", "images.csv", "--results", "results", "--logs", "logs"]
    words += ["--failures", "reasons.json", "--output-csv", "s.csv", "--output-html", "s.html"]
    with contextlib.suppress(InputError):
        summarize.main(words)
        check_page(Path("s.html"), n_scripts=(2, 4))
        check_cells(Path("s.csv"))
    home = Path("results/a")
    metrics = (home / "metrics.json").read_bytes()
    drawn = summarize.read_metrics(home / "metrics.json")
    whole = json.loads(originals.finished_run()["results/a/metrics.json"])
    sound = drawn is not None and set(drawn) == set(whole) and summarize.is_sound(drawn)
    if zlib.crc32(metrics) % 8 or not sound:
        return  # a page of an image takes seconds, and is made from files of ours
    files = {"objects": "objects.parquet", "seams": "seams.csv", "store": "a.ome.zarr"}
    files |= {name: f"{name}.json" for name in ("metrics", "provenance", "tiles")}
    options = [word for name, file in files.items() for word in (f"--{name}", str(home / file))]
    report.main([*options, "--output", "r.html"])
    check_page(Path("r.html"), n_scripts=(4,))


KNOWN = frozenset(
    [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "p",
        "div",
        "ul",
        "li",
        "b",
        "small",
        "label",
        "input",
        "span",
        "table",
        "tr",
        "th",
        "td",
        "thead",
        "tbody",
        "details",
        "summary",
        "a",
        "img",
        "footer",
        "script",
        "pre",
        "code",
        "figure",
        "figcaption",
        "svg",
        "image",
        "g",
        "path",
        "br",
        "button",
        "caption",
        "noscript",
        "option",
        "output",
        "select",
    ]
)
"""Elements that our templates have."""


class _Page(html.parser.HTMLParser):
    """Counts scripts; notes elements, attributes and links that no template of ours has."""

    def __init__(self) -> None:
        super().__init__()
        self.n_scripts = 0
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.n_scripts += tag == "script"
        if tag not in KNOWN:
            self.wrong.append(f"element {tag}")
        for name, value in attrs:
            link = name in ("href", "src") and not re.match(
                r"(data:image/|#?[A-Za-z0-9_./%-]+\Z)", value or ""
            )
            if name.startswith("on") or name == "srcdoc" or link:
                self.wrong.append(f"{tag} {name}={value!r:.80}")


def check_page(path: Path, n_scripts: tuple[int, ...]) -> None:
    """Raise where a page has markup that came from data."""
    page = _Page()
    page.feed(path.read_text(encoding="utf-8", errors="strict"))
    assert not page.wrong, f"{path.name}: {page.wrong[:3]}"
    assert page.n_scripts in n_scripts, f"{path.name}: {page.n_scripts} scripts"


def check_cells(path: Path) -> None:
    """Raise where a spreadsheet would take a text for a formula."""
    import csv

    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.reader(file):
            for cell in row:
                if cell.startswith(("=", "+", "-", "@", "\t", "\r")):
                    assert re.fullmatch(r"-?[0-9.]+(e[-+]?[0-9]+)?", cell), f"formula {cell!r:.80}"


def run_of(config: str) -> Files:
    """Return a run of one image."""
    text = json.dumps(originals.config()).encode()
    return {**originals.run_folder(), "images.csv": b"image,path\na,a.tif\n", config: text}


def image(name: str) -> Files:
    """Return an image."""
    return {name: originals.tiffs()["plain"]}


def tiles_of() -> Files:
    """Return tiles and their places."""
    return {**originals.tiles(), "positions.csv": originals.POSITIONS.encode()}


def pair_of() -> Files:
    """Return a table of one pair."""
    table = b"image,predicted,reference\na,p.tif,r.tif\n"
    return {"p.tif": originals.labels(), "r.tif": originals.labels(), "pairs.csv": table}


def pages_of() -> Files:
    """Return the results of a run."""
    table = b"image,path\na,a.tif\n"
    return {**originals.finished_run(), "images.csv": table, "reasons.json": b"{}"}


@dataclass(frozen=True)
class Target:
    """One way in: what is drawn, how it is driven, its share of all cases, and a harmless case."""

    cases: Callable[[], st.SearchStrategy[Files]]
    drive: Callable[[], None]
    share: int
    harmless: Callable[[], Files]


TARGETS = {
    "table of images": Target(hostile.tables, drive_table, 10, lambda: run_of("config.json")),
    "config": Target(hostile.configs, drive_config, 10, lambda: run_of("config.yaml")),
    "TIFF": Target(hostile.tiffs, drive_image, 20, lambda: image("a.tif")),
    "OME-XML": Target(hostile.omes, drive_image, 10, lambda: image("a.tif")),
    "PNG": Target(hostile.pngs, drive_image, 8, lambda: image("a.tif")),
    "Zarr": Target(hostile.zarrs, drive_image, 15, lambda: image("a.tif")),
    "store of ours": Target(hostile.stores, drive_store, 5, originals.finished_run),
    "model": Target(hostile.models, drive_model, 8, lambda: {"m.safetensors": originals.model()}),
    "package, TorchScript": Target(
        hostile.packages, drive_package, 6, lambda: {"a.pt": originals.scripted()}
    ),
    "tile positions": Target(hostile.positions, drive_positions, 5, tiles_of),
    "labels, pairs": Target(hostile.pairs, drive_pairs, 5, pair_of),
    "pages": Target(hostile.pages, drive_pages, 4, pages_of),
}


def warm() -> None:
    """Keep to one thread, as threads do not outlive a fork."""
    import torch

    torch.set_num_threads(1)
