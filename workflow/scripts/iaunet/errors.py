"""The mistakes a user can fix."""

LONGEST = 4000


class InputError(Exception):
    """Say what was found, what is needed and what to do; shown as one line, exit status 1."""


class OptionError(InputError):
    """The same about an option of the command line; exit status 2, as argparse has."""


def one_line(text: str) -> str:
    r"""Return a text as one line of at most `LONGEST` characters that no terminal obeys.

    Names of files, columns and channels come from strangers: control characters, and those that
    turn the direction of writing, are shown by their codes.

    Examples
    --------
    >>> one_line("a\nb \x1b[2J")
    'a b \\x1b[2J'
    """
    words = " ".join(text.split())
    if len(words) > LONGEST:
        words = f"{words[: LONGEST // 2]} ... {words[-LONGEST // 2 :]}"
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in words)
