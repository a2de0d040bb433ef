"""The mistake a user can fix."""


class InputError(Exception):
    """Say what was found, what is needed and what to do; shown as one line, exit status 1."""
