"""Log lines for people: rank and host before each, equal lines folded into one, nothing that moves a cursor."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torchfab.inventory import fold, fold_ranks

# ECMA-48: control sequences (CSI), strings (OSC, DCS, SOS, PM, APC) up to their end, and all shorter escapes.
_ESCAPES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]?")
_CONTROLS = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Line:
    """One log line: who wrote it, where, when (seconds since the epoch), and its text."""

    host: str
    label: int | str
    time: float
    text: str


@dataclass(frozen=True)
class FoldedLine:
    """One text, and all who wrote it at about the same time."""

    hosts: tuple[str, ...]
    labels: tuple[int | str, ...]
    text: str

    def __str__(self) -> str:
        ranks = [label for label in self.labels if isinstance(label, int)]
        others = sorted({label for label in self.labels if isinstance(label, str)})
        label = ",".join(([fold_ranks(ranks)] if ranks else []) + others)
        return f"{fold(self.hosts)} [{label}] {clean(self.text)}"


def clean(text: str) -> str:
    """Return `text` without escape sequences and control characters: a log line must not steer a terminal."""
    return _CONTROLS.sub("", _ESCAPES.sub("", text)) if not text.isprintable() else text


def fold_lines(lines: Iterable[Line], folding: bool = True) -> list[FoldedLine]:
    """Return lines for printing, equal ones of different ranks as one, where the first of them stood.

    The n-th time that a rank writes a text is folded with the n-th time of the other ranks, so that nothing is
    swallowed. Output of launchers (`agent`) and of ranks is not folded together.
    """
    counts: dict[tuple[str, int | str, str], int] = {}
    groups: dict[tuple[object, ...], list[Line]] = {}
    for index, line in enumerate(lines):
        who = (line.host, line.label, line.text)
        counts[who] = nth = counts.get(who, 0) + 1
        key: tuple[object, ...] = (line.text, nth, isinstance(line.label, int)) if folding else (index,)
        groups.setdefault(key, []).append(line)
    return [_folded(group) for group in groups.values()]


def _folded(group: Sequence[Line]) -> FoldedLine:
    hosts = tuple(dict.fromkeys(line.host for line in group))
    return FoldedLine(hosts, tuple(line.label for line in group), group[0].text)


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
