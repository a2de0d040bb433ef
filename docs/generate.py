"""Write the pages that the code itself says: every setting, every step.

Example
-------
    python docs/generate.py

`config.md` comes from the comments of `config.yaml`, the descriptions of its schema and the
docstring of the clustering's settings; `asked.md` from the functions that the rules ask; `steps/`
is what ``--help`` says. A test compares them with what is in the repository.
"""

import contextlib
import importlib.util
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = REPOSITORY / "workflow/scripts"
sys.path.insert(0, str(SCRIPTS))

from iaunet import checkpoint, cost, plan, settings  # noqa: E402

HELP_COLUMNS = "96"
GROUPS = {
    "Steps of a run, in order": (
        "tile", "infer", "cluster", "number", "paint", "stitch", "measure", "report",
        "export_labels", "summarize", "crate",
    ),
    "Before a run": ("demo", "plan", "preview"),
    "After a run, and without one": ("view", "rerun", "evaluate", "panoptic", "reconcile"),
    "Models": ("train", "calibrate", "adopt", "export"),
    "Called by the Snakefile": ("check", "preflight"),
    "Experiments": ("sticks", "ablation_images", "ablation_score", "ablation_table"),
}  # fmt: skip
"""Every script that has options, once."""
ASKED = {
    "nuclei-2d": ((2048, 2048), (20_000, 20_000), (100_000, 100_000)),
    "nuclei-3d": ((60, 1024, 1024), (512, 2048, 2048)),
}
"""Images whose jobs are shown, by model."""
VALUES = ("auto", "exact", "local", "hybrid", "px")
"""Words of the config, which are written small."""
MADE = "<!-- Written by docs/generate.py; `make docs` writes it again. -->\n"


def main() -> None:
    """Write all pages that differ."""
    for path, text in pages().items():
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def pages() -> dict[Path, str]:
    """Return the text of every page by its path."""
    docs = REPOSITORY / "docs"
    scripts = {name for names in GROUPS.values() for name in names}
    # A script without options is part of another.
    found = {path.stem for path in SCRIPTS.glob("*.py") if "import argparse" in path.read_text()}
    if scripts != found:
        raise ValueError(f"GROUPS lacks or has too much: {sorted(scripts ^ found)}")
    helps = {name: help_of(name) for name in sorted(scripts)}
    return {
        docs / "config.md": config_page(),
        docs / "asked.md": asked_page(),
        docs / "steps/index.md": steps_page(helps),
        **{docs / f"steps/{name}.md": step_page(name, text) for name, text in helps.items()},
    }


def help_of(name: str) -> str:
    """Return what ``--help`` of a script prints."""
    spec = importlib.util.spec_from_file_location(f"step_{name}", SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    printed = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": HELP_COLUMNS}),
        mock.patch.object(sys, "argv", [f"{name}.py"]),
        contextlib.redirect_stdout(printed),
        contextlib.suppress(SystemExit),
    ):
        module.main(["--help"])
    return printed.getvalue()


def summary(text: str) -> str:
    """Return the first sentence of a help text, on one line."""
    return " ".join(text.split("\n\n")[1].split())


def step_page(name: str, text: str) -> str:
    """Return the page of a script."""
    return f"{MADE}\n# {name}.py\n\n{summary(text)}\n\n```text\n{text.rstrip()}\n```\n"


def steps_page(helps: Mapping[str, str]) -> str:
    """Return the page that lists all scripts."""
    parts = [
        f"{MADE}\n# Every step and its options\n",
        "Each is a program of its own, works from any directory and does without Snakemake. They "
        "exit with\n0 when done, 1 with one line `error: ...` that says what to do, 2 for wrong "
        "options; an output\nappears whole or not at all.\n",
    ]
    for title, names in GROUPS.items():
        rows = "\n".join(f"| [{name}.py]({name}.md) | {summary(helps[name])} |" for name in names)
        parts.append(f"## {title}\n\n| program | what it does |\n|---|---|\n{rows}\n")
    toc = "\n".join(name for names in GROUPS.values() for name in names)
    parts.append(f"```{{toctree}}\n:hidden:\n\n{toc}\n```\n")
    return "\n".join(parts)


def comments() -> dict[str, str]:
    """Return the comment above every key of `config.yaml`, keys joined by dots."""
    found: dict[str, str] = {}
    above: list[str] = []
    section = ""
    for line in (REPOSITORY / "config.yaml").read_text(encoding="utf-8").splitlines():
        key = re.match(r"( *)([a-z_]+):", line)
        if key:
            section = section if key[1] else key[2]
            name = f"{section}.{key[2]}" if key[1] else key[2]
            found[name] = " ".join(above)
            above = []
        elif line.strip().startswith("#"):
            above.append(line.strip().lstrip("# "))
        else:
            above = []
    return found


def of_clustering() -> dict[str, str]:
    """Return what every setting of the clustering means, from the docstring of `Settings`."""
    text = settings.Settings.__doc__.partition("----------\n")[2]
    rows = re.findall(r"^    (\w+) : (.+(?:\n {8}.+)*)", text, re.MULTILINE)
    found = {name: " ".join(words.split()) for name, words in rows}
    if set(found) != set(settings.DEFAULTS):
        raise ValueError(f"docstring of Settings: {sorted(set(found) ^ set(settings.DEFAULTS))}")
    return found


def keys(
    schema: Mapping, defaults: Mapping, prefix: str = ""
) -> Iterator[tuple[str, Mapping, object]]:
    """Yield name, schema and default of every key, sections before what is in them."""
    for key, inner in schema["properties"].items():
        yield f"{prefix}{key}", inner, defaults.get(key)
        if "properties" in inner:
            yield from keys(inner, defaults.get(key) or {}, f"{prefix}{key}.")


def config_page() -> str:
    """Return the page of all settings."""
    schema = yaml.safe_load(
        (REPOSITORY / "workflow/schemas/config.schema.yaml").read_text(encoding="utf-8")
    )
    defaults = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    said = comments() | {f"clustering.{key}": text for key, text in of_clustering().items()}
    parts = [
        f"{MADE}\n# Every setting\n",
        "The defaults stand in `config.yaml` of the repository. A file of your own needs only what "
        "differs; a key\nthat is not on this page is an error, with the nearest that is. In the "
        "order of their weight: defaults,\n`config.yaml` of the working directory, `--configfile`, "
        "`--config`:\n",
        "```sh\n.venv/bin/snakemake --cores all --directory RUN --config "
        "'tiling={core_px: [256, 256]}'\n```\n",
    ]
    for name, inner, default in keys(schema, defaults):
        level = "###" if "." in name else "##"
        text = said.get(name) or ("properties" in inner and inner["description"])
        if not text:
            raise ValueError(f"config.yaml: no comment above {name}")
        parts.append(f"{level} `{name}`\n\n{sentence(text)}\n")
        if "properties" in inner:
            continue
        if name.startswith("clustering."):
            shown = f"that of the model, else `{json.dumps(settings.DEFAULTS[name[11:]])}`"
        else:
            shown = f"`{json.dumps(default)}`"
        parts.append(f"- default: {shown}\n- needs: {inner['description']}\n")
    return "\n".join(parts)


def size_of(shape: tuple[int, ...], meta: Mapping) -> cost.Size:
    """Return what the cost of a 16-bit image depends on, as check.py has it with the defaults."""
    halo = [-(-n // step) * step for n, step in zip(meta["radius"], meta["stride"], strict=True)]
    return cost.Size(
        shape=shape,
        grid_shape=shape,
        itemsize=2,
        core=tuple(meta["block"]),
        block=tuple(meta["block"]),
        halo=tuple(halo),
        width=meta["net"]["widths"][0],
        cuts=True,
        asks=bool(meta.get("diameter_px")),
        n_batches=plan.n_batches(shape, meta["block"], None),
        n_parts=plan.n_parts(shape, None),
    )


def asked_page() -> str:
    """Return the page of what jobs ask for."""
    models = REPOSITORY / "resources/models"
    metas = {name: checkpoint.read_meta(models / f"{name}.safetensors") for name in ASKED}
    sizes = [size_of(shape, metas[name]) for name, shapes in ASKED.items() for shape in shapes]
    head = [" x ".join(f"{n:,}" for n in size.shape) for size in sizes]
    found = [cost.asked(size) for size in sizes]
    rows = []
    for step in cost.STEPS:
        cells = [
            f"{cost.n_jobs(step, size):,} of {one[step]['mem_mb']:,} MB, "
            f"{one[step]['runtime_min']:,} min"
            if step in one
            else ""
            for size, one in zip(sizes, found, strict=True)
        ]
        rows.append(f"| `{step}` | {' | '.join(cells)} |")
    rows += [
        f"| `{step}`, per further thread | "
        + " | ".join(f"{one[step]['mem_mb_per_thread']:,} MB" for one in found)
        + " |"
        for step in ("infer", "cluster")
    ]
    return (
        f"{MADE}\n# What the jobs ask for\n\n"
        "Memory (`mem_mb`) and time (`runtime`) of every job follow from the size of the image and "
        "the model, by\n`workflow/scripts/iaunet/cost.py`: with defaults, one thread, at the first "
        "attempt; the second asks for twice\nas much, the third for three times. "
        "Both have room for a machine that is a few times slower.\n\n"
        f"| jobs of | {' | '.join(head)} |\n|---|{'---|' * len(head)}\n" + "\n".join(rows) + "\n"
        "\n"
        "`summarize`, `crate`: 2,000 MB, 60 minutes; `plan`: 12,000 MB, 60 minutes; `train`: "
        "8,000 MB, 24 hours.\n"
    )


def sentence(text: str) -> str:
    """Return a text that ends with a point, and begins with a capital where that is no value."""
    text = text if text.endswith("...") else text.rstrip(" .;") + "."
    return text if text.startswith(VALUES) else text[:1].upper() + text[1:]


if __name__ == "__main__":
    main()
