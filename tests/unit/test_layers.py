"""Who may import whom, and which file owns which outside format."""

import ast
import re
import subprocess
import sys

import pytest

from runs import REPOSITORY

SCRIPTS = REPOSITORY / "workflow/scripts"
STEPS = {path.stem: path for path in SCRIPTS.glob("*.py")}
MODULES = {path.stem: path for path in (SCRIPTS / "iaunet").glob("*.py")}
LAYERS = {
    "ground": {
        "__init__",
        "checksums",
        "errors",
        "extras",
        "fixedpoint",
        "grid",
        "halving",
        "labels",
        "normalize",
        "quarantine",
        "sealed",
        "wording",
    },
    "arrays": {
        "assignment",
        "baselines",
        "bounds",
        "classes",
        "clustering",
        "comparison",
        "cost",
        "effects",
        "enclosure",
        "features",
        "growth",
        "hardness",
        "hulls",
        "identity",
        "joining",
        "kernels",
        "layout",
        "linking",
        "logistic",
        "matching",
        "meanshift",
        "metrics",
        "mosaics",
        "painting",
        "pairs",
        "plan",
        "quality",
        "reconcile",
        "rings",
        "scale",
        "seams",
        "seeds",
        "settings",
        "shapes",
        "sizing",
        "splitting",
        "sticks",
        "synthetic",
        "tuning",
        "ways",
        "windows",
    },
    "torch": {
        "backends",
        "calibration",
        "checkpoint",
        "embedding",
        "foreign",
        "groundtruth",
        "int8",
        "losses",
        "net",
        "network",
        "objective",
        "objectsize",
        "patches",
        "pieces",
        "predict",
        "probing",
        "ranks",
        "recipes",
        "safety",
        "tensorkernels",
        "training",
        "verify",
    },
    "files": {
        "bioimageio",
        "chunks",
        "fragments",
        "geojson",
        "h5ad",
        "images",
        "imaris",
        "labelfiles",
        "ngff",
        "numbering",
        "olympus",
        "omezarr",
        "outputs",
        "plugins",
        "records",
        "relabelling",
        "rois",
        "scenes",
        "schema",
    }
    | {"tables", "tiff", "tiling", "trainingset", "unpacking", "vendors"},
    "reports": {
        "ablation",
        "bokeh_once",
        "figures",
        "gallery",
        "groups",
        "look",
        "modelcard",
        "page",
        "planes",
        "plots",
    }
    | {"regions", "views"},
    "command line": {"cli", "machine"},
}
ALSO = {
    "checkpoint": {"cli"},  # whole files
    "training": {"cli"},
    "calibration": {"tuning"},
    "patches": {"scale", "splitting", "synthetic"},
    "objectsize": {"clustering", "scale", "settings", "sizing"},
    "fragments": {"identity", "joining"},
    "network": {"omezarr", "scale", "tiling"},
    "numbering": {"fragments", "identity", "joining", "outputs"},
    "relabelling": {"identity", "scale"},
    "verify": {"bounds", "clustering", "settings"},
    "vendors": {"mosaics"},
    "geojson": {"rings"},
    "groups": {"effects"},
    "rois": {"rings"},
    "tensorkernels": {"enclosure", "kernels"},
    "labelfiles": {"classes", "metrics"},  # counts overlaps block by block
}
OWNERS = {
    "torch": {*LAYERS["torch"], "ablation_score", "export", "infer", "preview", "sticks", "train"},
    "safetensors": {"checkpoint", "training"},
    "tifffile": {"tiff", "ablation_images", "demo", "warm"},
    "zarr": {"chunks", "ngff", "omezarr", "outputs", "unpacking"},
    "anndata": {"h5ad"},
    "roifile": {"rois"},
    "pylibCZIrw": {"vendors"},
    "liffile": {"vendors"},
    "nd2": {"vendors"},
    "oiffile": {"olympus"},
    "h5py": {"imaris"},
    "bioio": {"plugins"},
    "bioio_base": {"plugins"},
    "pandas": {
        "h5ad",
        "fragments",
        "numbering",
        "tables",
        "summarize",
        "report",
        "stitch",
        "gallery",
        "look",
    },
    "bokeh": {"plots", "bokeh_once"},
    "pyarrow": {"tables"},
    "matplotlib": {"figures"},
    "jinja2": {"page"},
    "rocrate": {"crate"},
    "snakemake": set(),
}


def imports(path):
    """Return the modules of ours, and the packages, that a file imports anywhere in it."""
    ours, packages = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            first, *rest = name.split(".")
            if first == "iaunet":
                ours.add("__init__" if rest[0] == "__version__" else rest[0])
            else:
                packages.add(first)
    return ours, packages


def layer_of(module):
    return next(name for name, modules in LAYERS.items() if module in modules)


def test_every_module_has_one_layer():
    placed = [module for modules in LAYERS.values() for module in modules]
    assert len(placed) == len(set(placed))
    assert set(MODULES) <= set(placed), "place the new module in LAYERS"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_library_modules_import_the_ground_and_their_own_layer_only(module):
    ours, _ = imports(MODULES[module])
    layer = layer_of(module)
    allowed = LAYERS["ground"] | ALSO.get(module, set())
    if layer != "ground":
        allowed = allowed | LAYERS[layer]
    assert ours <= allowed


@pytest.mark.parametrize("step", sorted(STEPS))
def test_steps_import_the_library_and_no_other_step(step):
    ours, packages = imports(STEPS[step])
    assert ours <= set(MODULES)
    assert not packages & set(STEPS)


@pytest.mark.parametrize("name", sorted({**STEPS, **MODULES}))
def test_each_outside_format_has_its_owners(name):
    _, packages = imports({**STEPS, **MODULES}[name])
    for package in packages & set(OWNERS):
        assert name in OWNERS[package], f"{name} imports {package}"


@pytest.mark.parametrize("path", [REPOSITORY / "Snakefile", *REPOSITORY.glob("workflow/rules/*")])
def test_rules_do_not_import_the_library(path):
    assert not re.search(r"^\s*(from|import)\s+iaunet", path.read_text(), re.MULTILINE)


@pytest.mark.parametrize("package", ["numba", "scipy", "torch"])
def test_stitching_starts_without(package):
    code = f"import sys, stitch; sys.exit({package!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, check=False).returncode == 0
