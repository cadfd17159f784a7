"""Read the values of command-line flags: whole numbers with bounds, seconds, ports; a wrong one is a UsageError."""

from __future__ import annotations

from torchfab.core.errors import UsageError

_MOST_SECONDS = 1e6


def is_whole(text: str, digits: int = 11) -> bool:
    """Say whether a text is a whole number in ASCII digits, with at most `digits` of them. Default 11."""
    return text.isascii() and text.isdigit() and len(text) <= digits


def whole_number(text: str, expected: str, low: int = 0, high: int = 999_999) -> int:
    """Return the whole number that a flag was given.

    Parameters
    ----------
    text : str
        What was given.
    expected : str
        The flag and what it takes, as the error says it: `--nodes is a number of at least 1`.
    low, high : int
        The bounds, both included. Defaults 0 and 999,999.

    Raises
    ------
    UsageError
        It is no whole number, or out of bounds.
    """
    if not (is_whole(text) and low <= int(text) <= high):
        raise UsageError(f"{expected}, got {text!r}")
    return int(text)


def port(text: str) -> int:
    """Return the port that `--port` was given; 0 means a free one. Whether it is at most 65535, the job checks.

    Raises
    ------
    UsageError
        It is no number.
    """
    if not is_whole(text):
        raise UsageError(f"--port is a number from 1 to 65535, or 0 for a free one; got {text!r}")
    return int(text)


def seconds(flag: str, text: str) -> float:
    """Return the seconds that a flag was given.

    Parameters
    ----------
    flag : str
        Its name, with dashes.
    text : str
        What was given.

    Raises
    ------
    UsageError
        It is no number, or not between 0 and 1,000,000.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < _MOST_SECONDS:
        raise UsageError(f"{flag} is a number of seconds, got {text!r}")
    return value
