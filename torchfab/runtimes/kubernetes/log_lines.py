"""Parse pod logs: split blocks into lines, assign each line to a rank, and drop duplicates after a reconnection."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torchfab.runtimes.kubernetes.status import parse_time

Line = list[Any]
AGENT = "agent"
# The first is the log line prefix template that our manifest sets; torchrun before 2.6 has no template and writes the
# second.
_RANK = re.compile(r"\[rank(?P<rank>[0-9]{1,9})\]:|\[default(?P<local>[0-9]{1,9})\]:")
_LONGEST_LINE = 64 * 1024
# The two streams of a container may be slightly out of order. Lines older than this were certainly read before.
_OVERLAP_S = 5.0


def split_label(text: str, first_rank: int) -> tuple[int | str, str]:
    """Split a line into its label and its text.

    Parameters
    ----------
    text : str
        The line, without its time.
    first_rank : int
        Rank of the pod's first process.

    Returns
    -------
    tuple
        The rank that wrote it, or `agent`, and the text without the prefix.
    """
    match = _RANK.match(text)
    if not match:
        return AGENT, text
    rank = int(match["rank"]) if match["rank"] else first_rank + int(match["local"])
    return rank, text[match.end() :]


def split_lines(blocks: Iterable[bytes]) -> Iterator[str]:
    """Split blocks into lines. Of a progress bar (carriage returns), only the last state remains.

    Parameters
    ----------
    blocks : iterable of bytes
        The log, cut anywhere.

    Returns
    -------
    iterator of str
        The lines, without line ends.
    """
    rest = b""
    for block in blocks:
        *complete, rest = (rest + block).split(b"\n")
        yield from map(_decode, complete)
        if len(rest) > _LONGEST_LINE:
            yield _decode(rest)
            rest = b""
    if rest:
        yield _decode(rest)


def _decode(raw: bytes) -> str:
    stamp, blank, text = raw.partition(b" ")
    return (stamp + blank + text.rstrip(b"\r").rsplit(b"\r", 1)[-1]).decode(errors="replace")


class PodLogReader:
    """Read the log of one pod as `[label, time, text]`, over any number of connections, without duplicates.

    Parameters
    ----------
    first_rank : int
        Rank of the pod's first process.
    request : Mapping
        `ranks`, `grep`, `lines`: as `torchfab.remote.job.log_reader.Reader` takes them.
    """

    def __init__(self, first_rank: int, request: Mapping[str, Any]) -> None:
        self.first_rank = first_rank
        self.ranks = set(request["ranks"]) if request["ranks"] is not None else None
        self.grep = re.compile(request["grep"]) if request["grep"] else None
        self.count: int | None = request["lines"]
        self.newest = 0.0
        self.recent: deque[tuple[float, str]] = deque()
        self.known: set[tuple[float, str]] = set()

    def new_lines(self, blocks: Iterable[bytes]) -> Iterator[Line]:
        """Read the log of one connection.

        Parameters
        ----------
        blocks : iterable of bytes
            The log, cut anywhere.

        Returns
        -------
        iterator of list
            The lines that are new and match the request.
        """
        for line in split_lines(blocks):
            stamp, _, rest = line.partition(" ")
            when = parse_time(stamp)
            if when is None:  # no timestamp: an error message of the node, inside the stream
                when, rest = self.newest, line
            elif not self._is_new(when, line):
                continue
            label, text = split_label(rest, self.first_rank)
            if (self.ranks is None or label in self.ranks) and (self.grep is None or self.grep.search(text)):
                yield [label, when, text]

    def read_backlog(self, blocks: Iterable[bytes]) -> list[Line]:
        """Read the log up to now.

        Parameters
        ----------
        blocks : iterable of bytes
            The log, cut anywhere.

        Returns
        -------
        list of list
            The last lines of each rank, at most `lines` of the request per rank, in the order of the log.
        """
        by_label: dict[Any, deque[tuple[int, Line]]] = {}
        for position, line in enumerate(self.new_lines(blocks)):
            by_label.setdefault(line[0], deque(maxlen=self.count)).append((position, line))
        numbered = (each for own in by_label.values() for each in own)
        return [line for _, line in sorted(numbered, key=lambda each: each[0])]

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
    """Return the last line of a log that is not blank.

    Parameters
    ----------
    blocks : iterable of bytes
        The log, cut anywhere.
    first_rank : int
        Rank of the pod's first process.

    Returns
    -------
    dict, optional
        `time`, `text` and `label`; None if there is no such line.
    """
    found = None
    for label, when, text in PodLogReader(first_rank, {"ranks": None, "grep": None, "lines": None}).new_lines(blocks):
        if text.strip():
            found = {"time": when, "text": text[-500:], "label": label}
    return found
