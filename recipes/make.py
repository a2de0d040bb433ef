r"""Make a shipped model again: its training table, then one training per line of its options.

Example
-------
    python recipes/make.py --model mito-em --data DATA

The model, its card and its curves appear in training/MODEL/; what a stage leaves in
training/MODEL/STAGE/. An interrupted training goes on when the command is given again.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import prepare

RECIPES = Path(__file__).resolve().parent
MODELS = RECIPES.parent / "resources/models"
TRAIN = RECIPES.parent / "workflow/scripts/train.py"


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table and run the stages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=tuple(prepare.TABLES), required=True, help="which")
    parser.add_argument("--data", type=Path, required=True, help="folder of the sets")
    parser.add_argument("--work", type=Path, default=Path("training"), help="folder to write to")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the training")
    args = parser.parse_args(argv)
    folder = args.work / args.model
    table = prepare.write(args.model, args.data, folder)
    start: list[str] = []
    for stage, options in enumerate(stages(args.model), start=1):
        here = folder / str(stage)
        model = here / f"{args.model}.safetensors"
        if not model.exists():
            command = [sys.executable, str(TRAIN), f"--table={table}", f"--name={args.model}"]
            command += [*options, *start, f"--output={model}", f"--card={here / args.model}.md"]
            command += [f"--curves-csv={here}/curves.csv", f"--curves-png={here}/curves.png"]
            command += [f"--work={here}", f"--threads={args.threads}", "--max-minutes=0"]
            subprocess.run(command, check=True)
        start = [f"--start={model}"]
    for suffix in (".safetensors", ".md"):
        (folder / f"{args.model}{suffix}").write_bytes(model.with_suffix(suffix).read_bytes())


def stages(model: str) -> list[list[str]]:
    """Return the options of every stage; `--start` names a shipped model."""
    lines = (RECIPES / f"{model}.options").read_text().splitlines()
    found = [shlex.split(line) for line in lines if line and not line.startswith("#")]
    for words in found:
        if "--start" in words:
            place = words.index("--start") + 1
            words[place] = str(MODELS / f"{words[place]}.safetensors")
    return found


if __name__ == "__main__":
    main()
