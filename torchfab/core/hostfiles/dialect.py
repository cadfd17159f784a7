"""Define a dialect of hosts files: a format test, and a translation into lines of our own grammar."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field
from functools import cached_property

from torchfab.core.errors import InventoryError
from torchfab.core.hostlines import words
from torchfab.core.hostlines.words import Line
from torchfab.core.lazy_dataclass import dataclass


@dataclass(frozen=True)
class Source:
    """The text of a hosts file.

    Parameters
    ----------
    text : str
        The text.
    origin : str
        Name of the file, for messages; or a flag.
    groups : tuple of str
        The groups to select, in a file that has groups; empty for all hosts.
    """

    text: str
    origin: str
    groups: tuple[str, ...] = ()

    @cached_property
    def lines(self) -> tuple[tuple[int, tuple[str, ...]], ...]:
        """The number, from 1, and the words of each line that is not blank or a comment."""
        found = words.significant_lines(self.text)
        return tuple((number, words.split_line(line)) for number, line in found)

    def line(self, number: int, *line_words: str) -> Line:
        """Return the line of our own grammar for a line of the file.

        Parameters
        ----------
        number : int
            Number of the line in the file, from 1.
        line_words : str
            The words of the new line.

        Returns
        -------
        Line
        """
        return Line(words.place(self.origin, number), line_words)

    def error(self, number: int, problem: str, fix: str) -> InventoryError:
        """Return the error about a line of the file.

        Parameters
        ----------
        number : int
            Number of the line, from 1; 0 for the whole file.
        problem : str
            What is wrong, and what was expected.
        fix : str
            What to write instead.

        Returns
        -------
        InventoryError
        """
        place = words.place(self.origin, number) if number else self.origin
        return InventoryError(f"{place}: {problem}", fix)


@dataclass(frozen=True)
class Translation:
    """The hosts of a file in another dialect, as lines of our own grammar.

    Parameters
    ----------
    lines : sequence of Line
        The lines.
    notes : sequence of str
        What was not converted, one line each.
    groups : sequence of str
        Names of the groups of hosts in the file.
    repeats : bool
        Whether a host may occur on several lines, once per process.
    """

    lines: Sequence[Line]
    notes: Sequence[str] = field(default_factory=tuple)
    groups: Sequence[str] = field(default_factory=tuple)
    repeats: bool = False


@dataclass(frozen=True)
class Dialect:
    """A dialect.

    Parameters
    ----------
    formats : tuple of str
        The values of `--hostfile-format` that select it; empty for a format that is always rejected.
    title : str
        Description of the format, with an article.
    matches : callable
        Returns whether a text is certainly of this dialect.
    translate : callable
        Translates a text, or raises InventoryError with the line to write instead.
    """

    formats: tuple[str, ...]
    title: str
    matches: Callable[[Source], bool]
    translate: Callable[[Source], Translation]
