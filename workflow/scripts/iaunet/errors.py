"""The mistakes a user can fix."""


class InputError(Exception):
    """Say what was found, what is needed and what to do; shown as one line, exit status 1."""


class OptionError(InputError):
    """The same about an option of the command line; exit status 2, as argparse has."""
