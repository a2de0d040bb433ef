import argparse
from pathlib import Path

from iaunet import modelcard


def test_the_command_repeats_the_options_that_were_given():
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", type=Path)
    parser.add_argument("--crop-px", type=int, nargs="+")
    parser.add_argument("--validate", action=argparse.BooleanOptionalAction, default=True)
    words = ["--table", "a b.csv", "--crop-px", "32", "48", "--no-validate"]
    given = parser.parse_args(["--table", "x/a b.csv", *words[2:]])
    found = modelcard.command(vars(given), 1)
    assert found == "python train.py --table 'a b.csv' --crop-px 32 48 --no-validate"
