"""Format log lines for the terminal: prefix rank and host, fold equal lines, strip control characters."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

# ECMA-48: control sequences (CSI), strings (OSC, DCS, SOS, PM, APC) up to their end, and all shorter escapes.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


class Line(NamedTuple):
    """One log line: the host, the rank or other label that wrote it, the time (seconds since the epoch), the text."""

    host: str
    label: int | str
    time: float
    text: str


class FoldedLine(NamedTuple):
    """One text, with the hosts and labels of all processes that wrote it at about the same time."""

    hosts: tuple[str, ...]
    labels: tuple[int | str, ...]
    text: str

    def __str__(self) -> str:
        if len(self.labels) == 1:
            return f"{self.hosts[0]} [{self.labels[0]}] {strip_controls(self.text)}"
        return f"{_prefix(self.hosts, self.labels)} {strip_controls(self.text)}"


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


def fold_lines(lines: Iterable[Line], folding: bool = True) -> list[FoldedLine]:
    """Fold equal lines of different ranks into one.

    The n-th occurrence of a text in one rank's log is folded with the n-th occurrence in the others', so that no
    repetition is lost. Output of launchers (`agent`) and of ranks is not folded together.

    Parameters
    ----------
    lines : iterable of Line
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
    lines = list(lines)
    counts = Counter([line.text for line in lines])
    equal: dict[tuple[str, bool], list[tuple[int, Line]]] = {}
    folded: list[tuple[int, FoldedLine]] = []
    for position, line in enumerate(lines):
        if counts[line.text] == 1:  # the common case: every rank logs its own values
            folded.append((position, _single(line)))
        else:
            equal.setdefault((line.text, isinstance(line.label, int)), []).append((position, line))
    for group in equal.values():
        folded += _fold_equal(group)
    folded.sort(key=itemgetter(0))
    return [line for _, line in folded]


def _single(line: Line) -> FoldedLine:
    return FoldedLine((line.host,), (line.label,), line.text)


def _fold_equal(lines: Sequence[tuple[int, Line]]) -> list[tuple[int, FoldedLine]]:
    """Return one line per repetition of a text, with the position of its first line."""
    if len({line[:2] for _, line in lines}) == len(lines):  # each rank wrote it once
        return [(lines[0][0], _merge([line for _, line in lines]))]
    repetitions: list[list[tuple[int, Line]]] = []
    counts: dict[tuple[str, int | str], int] = {}
    for position, line in lines:
        writer = (line.host, line.label)
        repetition = counts.get(writer, 0)
        counts[writer] = repetition + 1
        if repetition == len(repetitions):
            repetitions.append([])
        repetitions[repetition].append((position, line))
    return [(group[0][0], _merge([line for _, line in group])) for group in repetitions]


def _merge(group: Sequence[Line]) -> FoldedLine:
    hosts = tuple(dict.fromkeys([line.host for line in group]))
    return FoldedLine(hosts, tuple([line.label for line in group]), group[0].text)


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
    batch: list[Line] = []
    for line in sorted(lines, key=lambda line: line.time):
        if batch and line.time - batch[0].time > window_s:
            yield batch
            batch = []
        batch.append(line)
    if batch:
        yield batch
