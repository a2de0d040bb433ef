"""The pages: their blocks of commands, and whether such a command can be right."""

import argparse
import ast
import importlib.util
import re
import shlex
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

import plan
from iaunet.schema import Schema
from runs import REPOSITORY

DOCS = REPOSITORY / "docs"
PAGES = sorted(
    path
    for path in (
        REPOSITORY / "README.md",
        REPOSITORY / "recipes/README.md",
        REPOSITORY / "comparison/README.md",
        *REPOSITORY.glob("benchmarks/*/README.md"),
        *DOCS.rglob("*.md"),
    )
    if "_build" not in path.parts
)
RUN = "bash"
"""Blocks of this kind are run, in order, in a folder of their own for each page."""
CHECKED = "sh"
"""Blocks of this kind are not, as they need a cluster, hours or data: their options must exist.

So must those of other blocks that begin with one of `PROGRAMS`.
"""
PLAIN = {"cd", "cp", "git", "mkdir", "pip", "pytest", "ruff", "scancel", "squeue"}
PROGRAMS = {"python", "python3.11", "snakemake", "torchrun", "make", *PLAIN}
FENCE = re.compile(r"^( *)```(\S*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^    .*\n)+", re.MULTILINE)
RULES = re.compile(r"^rule (\w+):", re.MULTILINE)


def blocks(path: Path) -> list[tuple[str, str]]:
    """Return kind and text of every block of code of a page; indented ones have no kind."""
    text = path.read_text(encoding="utf-8")
    found = [(kind, textwrap.dedent(body)) for _, kind, body in FENCE.findall(text)]
    rest = FENCE.sub("", text)
    examples = [body for kind, body in found if kind == "text" and "--help" in body]
    return found + [
        ("", textwrap.dedent(block))
        for part in (rest, *examples)
        for block in INDENTED.findall(part)
    ]


def is_of_commands(kind: str, text: str) -> bool:
    """Tell whether a block is of commands that are looked at without running them."""
    first = text.split() or [""]
    return kind == CHECKED or (kind == "" and first[0].rpartition("/")[2] in PROGRAMS)


def commands(text: str) -> list[list[str]]:
    """Return the words of every command of a block, without variables before it."""
    found = []
    for line in re.sub(r"\\\n", " ", text).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|<>"):
                found.append(words)
                words = ["cd"] if word in "<>" else []  # a file, no program
            elif words or not re.match(r"[A-Z_]+=", word):
                words.append(word)
    return [words for words in found if words]


class WrongCommand(Exception):
    """Say what of a command is not as the repository has it."""


def check(words: list[str]) -> None:
    """Raise `WrongCommand` where a command has a program, script, target or option that is not."""
    program = words[0].rpartition("/")[2]
    scripts = [word for word in words[1:] if word.endswith(".py") and not word.startswith("--")]
    if program in ("python", "python3.11", "torchrun") and words[1:2] != ["-m"]:
        if not scripts:
            raise WrongCommand(f"no script in: {shlex.join(words)}")
        check_script(script(scripts[0]), words[words.index(scripts[0]) + 1 :])
    elif program == "snakemake":
        check_snakemake(words[1:])
    elif program == "make":
        check_make(words[1:])
    elif program not in PROGRAMS:
        raise WrongCommand(f"unknown program: {program}")


def script(name: str) -> Path:
    """Return a script that is named as seen from the repository, or by its name alone."""
    for folder in (REPOSITORY, REPOSITORY / "workflow/scripts"):
        if (folder / name).is_file():
            return folder / name
    raise WrongCommand(f"no script {name}")


def check_script(path: Path, words: list[str]) -> None:
    """Raise when the parser of a script refuses the words; with `...` only names are looked at."""

    class Parsed(BaseException):
        pass

    original = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        known = self._option_string_actions
        unknown = [word for word in words if word[:2] == "--" and word.split("=")[0] not in known]
        if unknown:
            raise WrongCommand(f"{path.name} has no option {', '.join(unknown)}")
        if "..." not in words:
            original(self, words, namespace)
        raise Parsed

    spec = importlib.util.spec_from_file_location(f"of_page_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(path.parent)
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [path.name, *words])
        before = set(sys.modules)
        try:
            spec.loader.exec_module(module)
            module.main()
        except Parsed:
            return
        except SystemExit:
            raise WrongCommand(f"{path.name} refuses {shlex.join(words)}") from None
        except ModuleNotFoundError:  # the peers have environments of their own
            check_names(path, words)
            return
        finally:
            # Two benchmarks may have modules of one name.
            for name in set(sys.modules) - before:
                if (path.parent / f"{name}.py").is_file():
                    del sys.modules[name]
    raise WrongCommand(f"{path.name} takes no options")


def check_names(path: Path, words: list[str]) -> None:
    """Raise when a script does not mention the options."""
    texts = {
        node.value
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    for word in words:
        if word[:2] == "--" and word.split("=")[0] not in texts:
            raise WrongCommand(f"{path.name} has no option {word}")


def check_snakemake(words: list[str]) -> None:
    """Raise when Snakemake refuses the options, or the Snakefile has no such target or setting."""
    from snakemake.cli import get_argument_parser

    try:
        args = get_argument_parser().parse_args(words)
    except SystemExit:
        raise WrongCommand(f"snakemake refuses {shlex.join(words)}") from None
    files = [REPOSITORY / "Snakefile", *REPOSITORY.glob("workflow/rules/*.smk")]
    rules = {name for path in files for name in RULES.findall(path.read_text(encoding="utf-8"))}
    wrong = {target for target in args.targets if "/" not in target} - rules
    if wrong:
        raise WrongCommand(f"no rule {', '.join(sorted(wrong))}")
    for name in args.profile or []:
        if not (REPOSITORY / name / "config.yaml").is_file():
            raise WrongCommand(f"no profile {name}")
    given = dict(word.split("=", 1) for word in args.config or [])
    schema = Schema(REPOSITORY / "workflow/schemas/config.schema.yaml")
    defaults = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    values = {key: yaml.safe_load(text) for key, text in given.items()}
    for key, problem in schema.problems(plan.merged(defaults, values)):
        raise WrongCommand(f"config, {key}: {problem}")


def check_make(words: list[str]) -> None:
    """Raise when the Makefile has no such target or variable."""
    text = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = {
        name for line in re.findall(r"^([a-z ]+):", text, re.MULTILINE) for name in line.split()
    }
    for word in words:
        name = word.partition("=")[0]
        if not (f"$({name})" in text if "=" in word else name in targets):
            raise WrongCommand(f"make knows no {name}")
