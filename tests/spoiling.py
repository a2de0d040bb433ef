"""A network or a kernel that fails on some tiles, in this process or in those of a run."""

import functools
import os
from pathlib import Path

from iaunet import quarantine

SPOILT = "TEST_SPOILT"
"""Variable with what fails, as `quarantine.attempt` names it, separated by commas."""

HOOK = """
import builtins, sys
plain = builtins.__import__
def hooked(name, *args, **more):
    found = plain(name, *args, **more)
    module = sys.modules.get("iaunet.quarantine")
    if hasattr(module, "attempt") and not hasattr(module, "whole_attempt"):
        module.whole_attempt = module.attempt
        sys.path.append({tests!r})
        plain("spoiling").spoil(module)
    return found
builtins.__import__ = hooked
"""


def fail(work):
    raise RuntimeError("this tile is cursed")


def spoil(module=quarantine):
    """Let the work fail that the variable names; everything else is done."""
    module.attempt = functools.partial(spoilt, module.attempt)


def spoilt(attempt, work, what):
    names = os.environ.get(SPOILT, "").split(",")
    kind, _, numbers = what.partition(" ")  # "tile 3", or "tiles 3, 4" that are labelled together
    here = {f"{kind.removesuffix('s')} {number}" for number in numbers.split(", ")}
    return attempt((lambda: fail(work)) if here & set(names) else work, what)


def environment(folder, *names):
    """Return the environment of a run in whose steps the named work fails."""
    (folder / "sitecustomize.py").write_text(HOOK.format(tests=str(Path(__file__).parent)))
    return {**os.environ, "PYTHONPATH": str(folder), SPOILT: ",".join(names)}
