"""Libraries that only some users need: installed by a line of their own."""

import importlib
from types import ModuleType

from iaunet.errors import InputError


def imported(name: str, extra: str) -> ModuleType:
    """Return an optional library, of ``requirements-{extra}.txt``.

    Raises
    ------
    InputError
        It is not there; the message has the line to type.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"'{name}' is not installed ({error}); type make {extra} in the repository, or "
            f"python -m pip install --requirement requirements-{extra}.txt"
        ) from error
