"""A line of a hosts file, without its comment, as words."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torchfab.core.errors import InventoryError
from torchfab.core.lazy_dataclass import dataclass

EXPECTED = (
    "expected [user@]host[:port] [slots=N] [gpus=0,1] [address=A], ranges such as node[01-16], IPv6 such as [fd00::1]"
)
# A quoted part may contain blanks and '#'. An unclosed quote is an ordinary character.
_WORD = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s#])+""")
_SPACED_COMMA = re.compile(r"\s*,\s+|\s+,\s*")


@dataclass(frozen=True)
class Line:
    """One line that is not blank or a comment: its `file:line`, and its words."""

    origin: str
    words: tuple[str, ...]

    def error(self, problem: str, fix: str = EXPECTED) -> InventoryError:
        """Return the error about this line.

        Parameters
        ----------
        problem : str
            What is wrong, and what was given.
        fix : str
            What to write instead. Default: the form of a line.

        Returns
        -------
        InventoryError
        """
        return InventoryError(f"{self.origin}: {problem}", fix)


def split_words(text: str) -> tuple[str, ...]:
    """Split a line into words.

    Parameters
    ----------
    text : str
        The line. A comment begins with `#`, or with `;` at the beginning of a word.

    Returns
    -------
    tuple of str
        Quotes are kept; empty for a blank line or a comment.
    """
    words: list[str] = []
    position = 0
    while position < len(text):
        if text[position].isspace():
            position += 1
            continue
        match = _WORD.match(text, position)
        if match is None or match[0].startswith(";"):
            break
        words.append(match[0])
        position = match.end()
    return tuple(words)


def significant_lines(text: str) -> Iterator[tuple[int, str]]:
    """Yield the number, from 1, and the text of each line that is not blank or a comment.

    Parameters
    ----------
    text : str
        The text of a file.

    Yields
    ------
    int, str
        The number and the text of a line.
    """
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
        if split_words(line):
            yield number, line


def lines_of(text: str, origin: str) -> Iterator[Line]:
    """Yield the lines of a text that are not blank or comments.

    Parameters
    ----------
    text : str
        The text of a file, or of a flag.
    origin : str
        The name of the file, or of a flag (`-H`), which has no line numbers.

    Yields
    ------
    Line
    """
    for number, line in significant_lines(text):
        yield Line(place(origin, number), split_line(line))


def split_line(text: str) -> tuple[str, ...]:
    """Split a line into words; a list such as `a, b` is one word, and a quoted value keeps its blanks.

    Parameters
    ----------
    text : str
        The line.

    Returns
    -------
    tuple of str
        Empty for a blank line or a comment.
    """
    names, equals, values = text.partition("=")
    return split_words(_SPACED_COMMA.sub(",", names) + equals + values)


def place(origin: str, number: int) -> str:
    """Return `file:line`, or the name of a flag.

    Parameters
    ----------
    origin : str
        Name of the file or of the flag.
    number : int
        Number of the line, from 1.

    Returns
    -------
    str
    """
    return origin if origin.startswith("-") else f"{origin}:{number}"


def unquote(value: str) -> str:
    """Return a value without the quotes around it.

    Parameters
    ----------
    value : str
        The value, with or without quotes.

    Returns
    -------
    str
    """
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value
