"""Messages about files that are copied from nodes to the launch machine."""

from __future__ import annotations

from msgspec import Struct

from torchfab.core.bounded_types import Whole
from torchfab.transport.messages import Request


class FileMatch(Struct, frozen=True, kw_only=True):
    """A path that a pattern matches on a node.

    Parameters
    ----------
    pattern : int
        Index of the pattern.
    base : str
        The folder that the names are relative to.
    name : str
        The path that matched.
    files : list of tuple of str and int
        Names and sizes of the files below it.
    links : list of tuple of str
        Names and targets of the symbolic links below it that lead to one of the files.
    """

    pattern: Whole
    base: str
    name: str
    files: list[tuple[str, Whole]]
    links: list[tuple[str, str]]


class FindFilesAnswer(Struct, frozen=True, kw_only=True):
    """The files that patterns match on a node, and the paths without read permission."""

    matches: list[FileMatch]
    unreadable: list[str]


class FindFilesRequest(Request[FindFilesAnswer], frozen=True, tag="find_files"):
    """Find files by paths and patterns; relative ones are relative to `workdir`."""

    workdir: str
    patterns: list[str]
    ANSWER = FindFilesAnswer


class FileDigestsAnswer(Struct, frozen=True):
    """Digests of files, in their order; those at the end that were not reached in time are left out."""

    digests: list[str]


class FileDigestsRequest(Request[FileDigestsAnswer], frozen=True, tag="file_digests"):
    """Compute the digests of files, each a pair of base and name, within `within_s` seconds."""

    files: list[tuple[str, str]]
    within_s: float
    ANSWER = FileDigestsAnswer
