"""Log lines for people: rank and host before each, equal lines folded into one, nothing that moves a cursor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from torchfab.core.inventory import fold, fold_ranks

# ECMA-48: control sequences (CSI), strings (OSC, DCS, SOS, PM, APC) up to their end, and all shorter escapes.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


class Line(NamedTuple):
    """One log line: who wrote it, where, when (seconds since the epoch), and its text."""

    host: str
    label: int | str
    time: float
    text: str


class FoldedLine(NamedTuple):
    """One text, and all who wrote it at about the same time."""

    hosts: tuple[str, ...]
    labels: tuple[int | str, ...]
    text: str

    def __str__(self) -> str:
        if len(self.labels) == 1:
            return f"{self.hosts[0]} [{self.labels[0]}] {clean(self.text)}"
        return f"{_who(self.hosts, self.labels)} {clean(self.text)}"


@lru_cache(1024)  # the same ranks write together again and again
def _who(hosts: tuple[str, ...], labels: tuple[int | str, ...]) -> str:
    ranks = [label for label in labels if isinstance(label, int)]
    others = sorted({label for label in labels if isinstance(label, str)})
    return f"{fold(hosts)} [{','.join(([fold_ranks(ranks)] if ranks else []) + others)}]"


def clean(text: str) -> str:
    """Return `text` without escape sequences and control characters: a log line must not steer a terminal."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text)) if not text.isprintable() else text


def fold_lines(lines: Iterable[Line], folding: bool = True) -> list[FoldedLine]:
    """Return lines for printing, equal ones of different ranks as one, where the first of them stood.

    The n-th time that a rank writes a text is folded with the n-th time of the other ranks, so that nothing is
    swallowed. Output of launchers (`agent`) and of ranks is not folded together.
    """
    if not folding:
        return [_alone(line) for line in lines]
    lines = list(lines)
    count = Counter([line.text for line in lines])
    alike: dict[tuple[str, bool], list[tuple[int, Line]]] = {}
    found: list[tuple[int, FoldedLine]] = []
    for number, line in enumerate(lines):
        if count[line.text] == 1:  # most, where every rank tells its own
            found.append((number, _alone(line)))
        else:
            alike.setdefault((line.text, isinstance(line.label, int)), []).append((number, line))
    for same in alike.values():
        found += _together(same)
    found.sort(key=itemgetter(0))
    return [line for _, line in found]


def _alone(line: Line) -> FoldedLine:
    return FoldedLine((line.host,), (line.label,), line.text)


def _together(same: Sequence[tuple[int, Line]]) -> list[tuple[int, FoldedLine]]:
    """Return one line for each turn in which ranks wrote a text, with the number of the first line of it."""
    if len({line[:2] for _, line in same}) == len(same):  # each wrote it once
        return [(same[0][0], _folded([line for _, line in same]))]
    turns: list[list[tuple[int, Line]]] = []
    counts: dict[tuple[str, int | str], int] = {}
    for number, line in same:
        who = (line.host, line.label)
        turn = counts.get(who, 0)
        counts[who] = turn + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append((number, line))
    return [(group[0][0], _folded([line for _, line in group])) for group in turns]


def _folded(group: Sequence[Line]) -> FoldedLine:
    hosts = tuple(dict.fromkeys([line.host for line in group]))
    return FoldedLine(hosts, tuple([line.label for line in group]), group[0].text)


def batches(lines: Sequence[Line], window_s: float = 1.0) -> Iterable[list[Line]]:
    """Yield lines of the past in the order of time, those of each window together: there equal lines are folded."""
    batch: list[Line] = []
    for line in sorted(lines, key=lambda line: line.time):
        if batch and line.time - batch[0].time > window_s:
            yield batch
            batch = []
        batch.append(line)
    if batch:
        yield batch
