"""Logs of pods: lines out of blocks, whose they are, nothing twice after a connection was lost."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torchfab.runtimes.kubernetes.status import seconds

Line = list[Any]
AGENT = "agent"
# As our manifest asks for it; as torchrun before 2.6 writes it, which knows no template.
_RANK = re.compile(r"\[rank(?P<rank>[0-9]{1,9})\]:|\[default(?P<local>[0-9]{1,9})\]:")
_LONGEST_LINE = 64 * 1024
_OVERLAP_S = 5.0  # the two streams of a container may be mixed by a little; what is older was surely read


def label_of(text: str, first_rank: int) -> tuple[int | str, str]:
    """Return whose a line is, a rank or `agent`, and its text without that mark.

    Parameters
    ----------
    first_rank : int
        Rank of the pod's first process.
    """
    match = _RANK.match(text)
    if not match:
        return AGENT, text
    rank = int(match["rank"]) if match["rank"] else first_rank + int(match["local"])
    return rank, text[match.end() :]


def lines_of(blocks: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a stream of blocks, without their ends; of a progress bar its last state."""
    rest = b""
    for block in blocks:
        *whole, rest = (rest + block).split(b"\n")
        yield from map(_text, whole)
        if len(rest) > _LONGEST_LINE:
            yield _text(rest)
            rest = b""
    if rest:
        yield _text(rest)


def _text(raw: bytes) -> str:
    stamp, blank, text = raw.partition(b" ")
    return (stamp + blank + text.rstrip(b"\r").rsplit(b"\r", 1)[-1]).decode(errors="replace")


class Reader:
    """Make `[label, time, text]` of one pod's log, over any number of connections, no line twice.

    Parameters
    ----------
    first_rank : int
        Rank of the pod's first process.
    request : Mapping
        `ranks`, `grep`, `lines`: as `torchfab.remote.job.log_reader.Reader` takes them.
    """

    def __init__(self, first_rank: int, request: Mapping[str, Any]) -> None:
        self.first_rank = first_rank
        self.wanted = set(request["ranks"]) if request["ranks"] is not None else None
        self.grep = re.compile(request["grep"]) if request["grep"] else None
        self.count: int | None = request["lines"]
        self.newest = 0.0
        self.recent: deque[tuple[float, str]] = deque()
        self.known: set[tuple[float, str]] = set()

    def take(self, blocks: Iterable[bytes]) -> Iterator[Line]:
        """Yield the lines of a connection that are new and wanted."""
        for line in lines_of(blocks):
            stamp, _, rest = line.partition(" ")
            when = seconds(stamp)
            if when is None:  # not a log line: an error of the node's, in the midst of the stream
                when, rest = self.newest, line
            elif not self._is_new(when, line):
                continue
            label, text = label_of(rest, self.first_rank)
            if (self.wanted is None or label in self.wanted) and (self.grep is None or self.grep.search(text)):
                yield [label, when, text]

    def past(self, blocks: Iterable[bytes]) -> list[Line]:
        """Return the last lines of each rank, as many as were asked for."""
        kept: dict[Any, deque[tuple[int, Line]]] = {}
        for position, line in enumerate(self.take(blocks)):
            kept.setdefault(line[0], deque(maxlen=self.count)).append((position, line))
        return [line for _, line in sorted((each for own in kept.values() for each in own), key=lambda each: each[0])]

    def _is_new(self, when: float, line: str) -> bool:
        if when < self.newest - _OVERLAP_S or (when, line) in self.known:
            return False
        self.newest = max(self.newest, when)
        self.recent.append((when, line))
        self.known.add((when, line))
        while self.recent and self.recent[0][0] < self.newest - _OVERLAP_S:
            self.known.discard(self.recent.popleft())
        return True


def last_line(blocks: Iterable[bytes], first_rank: int) -> dict[str, Any] | None:
    """Return time, text and label of the last line that says something."""
    found = None
    for label, when, text in Reader(first_rank, {"ranks": None, "grep": None, "lines": None}).take(blocks):
        if text.strip():
            found = {"time": when, "text": text[-500:], "label": label}
    return found
