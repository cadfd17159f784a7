"""Format log lines for the terminal: prefix rank and host, fold equal lines, strip control characters."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

# ECMA-48: control sequences (CSI), strings (OSC, DCS, SOS, PM, APC) up to their end, and all shorter escapes.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
_ASCII_CONTROLS = bytes([*range(0x09), *range(0x0A, 0x20), 0x7F])


class Line(NamedTuple):
    """One log line: the host, the rank or other label that wrote it, the time (seconds since the epoch), the text."""

    host: str
    label: int | str
    time: float
    text: str


def lines_of_host(host: str, lines: Iterable[Sequence[Any]]) -> list[Line]:
    """Return log lines of one host as nodes send them, with the host.

    Parameters
    ----------
    host : str
        Its name.
    lines : iterable of sequence
        Each `[label, time, text]`.

    Returns
    -------
    list of Line
    """
    new = tuple.__new__  # the constructor of a named tuple is a Python function: twice the time
    return [new(Line, (host, *line)) for line in lines]


class FoldedLine(NamedTuple):
    """One text, with the hosts and labels of all processes that wrote it at about the same time."""

    hosts: tuple[str, ...]
    labels: tuple[int | str, ...]
    text: str

    def __str__(self) -> str:
        return strip_controls(self.render())

    def render(self) -> str:
        """Return the line as it is printed, but with the control characters of its text."""
        if len(self.labels) == 1:
            return f"{self.hosts[0]} [{self.labels[0]}] {self.text}"
        return f"{_prefix(self.hosts, self.labels)} {self.text}"


@lru_cache(1024)  # the same ranks often write together
def _prefix(hosts: tuple[str, ...], labels: tuple[int | str, ...]) -> str:
    from torchfab.core.inventory import fold, fold_ranks  # what only strips controls needs no hosts files

    ranks = [label for label in labels if isinstance(label, int)]
    others = sorted({label for label in labels if isinstance(label, str)})
    return f"{fold(hosts)} [{','.join(([fold_ranks(ranks)] if ranks else []) + others)}]"


def strip_controls(text: str) -> str:
    """Strip escape sequences and control characters: a log line must not control the terminal.

    Parameters
    ----------
    text : str
        One line.

    Returns
    -------
    str
        The printable text.
    """
    return _CONTROLS.sub("", _ESCAPES.sub("", text)) if not text.isprintable() else text


def has_controls(text: str) -> bool:
    """Check whether a text may hold control characters other than tabs. For many lines joined: 0.7 ns a character.

    Parameters
    ----------
    text : str
        Any number of lines, without line ends.

    Returns
    -------
    bool
        False if `strip_controls` would change nothing in any of them.
    """
    if not text.isascii():
        return not text.isprintable()
    data = text.encode()
    return len(data.translate(None, _ASCII_CONTROLS)) != len(data)


def render_lines(lines: Sequence[Line], folding: bool = True) -> str:
    """Render log lines for the terminal, equal ones of different ranks as one, without control characters.

    Parameters
    ----------
    lines : sequence of Line
        In the order in which they are printed.
    folding : bool
        Whether to fold at all. Default True.

    Returns
    -------
    str
        One line of text for each, without the last line end.
    """
    if folding and len({line.text for line in lines}) < len(lines):
        shown = [folded.render() for folded in fold_lines(lines)]
    else:
        shown = [f"{host} [{label}] {text}" for host, label, _, text in lines]
    return "\n".join(map(strip_controls, shown) if has_controls("".join(shown)) else shown)


def fold_lines(lines: Sequence[Line], folding: bool = True) -> list[FoldedLine]:
    """Fold equal lines of different ranks into one.

    The n-th occurrence of a text in one rank's log is folded with the n-th occurrence in the others', so that no
    repetition is lost. Output of launchers (`agent`) and of ranks is not folded together.

    Parameters
    ----------
    lines : sequence of Line
        In the order in which they are printed.
    folding : bool
        Whether to fold at all. Default True.

    Returns
    -------
    list of FoldedLine
        Each at the position of its first line.
    """
    if not folding:
        return [_single(line) for line in lines]
    positions: dict[str, list[int]] = {}
    for position, line in enumerate(lines):
        positions.setdefault(line.text, []).append(position)
    folded: list[tuple[int, FoldedLine]] = []
    for text, equal in positions.items():
        folded += [(group[0], _merge([lines[each] for each in group], text)) for group in _divide(equal, lines)]
    folded.sort(key=itemgetter(0))
    return [line for _, line in folded]


def _single(line: Line) -> FoldedLine:
    return FoldedLine((line.host,), (line.label,), line.text)


def _divide(equal: list[int], lines: Sequence[Line]) -> Iterable[list[int]]:
    """Divide the positions of equal lines: those of launchers and of ranks, and each repetition by one writer."""
    writers = [lines[each][:2] for each in equal]
    labels = set(map(type, map(itemgetter(1), writers)))
    if len(labels) == 1 and len(set(writers)) == len(writers):  # each rank wrote it once
        return (equal,)
    groups: dict[tuple[bool, int], list[int]] = {}
    counts: dict[tuple[str, int | str], int] = {}
    for position, writer in zip(equal, writers, strict=True):
        counts[writer] = counts.get(writer, 0) + 1
        groups.setdefault((isinstance(writer[1], int), counts[writer]), []).append(position)
    return groups.values()


def _merge(group: Sequence[Line], text: str) -> FoldedLine:
    hosts, labels, _, _ = zip(*group, strict=True)
    return FoldedLine(tuple(dict.fromkeys(hosts)), labels, text)


def batches(lines: Sequence[Line], window_s: float = 1.0) -> Iterable[list[Line]]:
    """Sort log lines by time and group them; equal lines are folded within a group.

    Parameters
    ----------
    lines : sequence of Line
        In any order.
    window_s : float
        The longest time that a group covers, in seconds. Default 1.

    Yields
    ------
    list of Line
        The lines of one group.
    """
    ordered = sorted(lines, key=itemgetter(2))
    times = [line.time for line in ordered]
    start = 0
    while start < len(ordered):
        end = _end_of_window(times, start, window_s)
        yield ordered[start:end]
        start = end


def _end_of_window(times: Sequence[float], start: int, window_s: float) -> int:
    first = times[start]
    return bisect_right(times, window_s, start, key=lambda time: time - first)
