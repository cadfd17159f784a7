"""Find tracebacks in the whole log of a pod, in bounded memory and time, as the cluster streams it.

The cluster gives the end of a log by lines, and the rest only from its begin or from a time on. So of a log longer than
a part, the begin, the middle and the end are searched.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone

from torchfab.core.lazy_dataclass import dataclass
from torchfab.remote.job.log_search import JSON_HEADS, TRACEBACK_HEADS
from torchfab.runtimes.kubernetes.status import parse_time

PART_BYTES = 64 * 1024 * 1024
SEARCH_S = 8.0
_HEADS = (*TRACEBACK_HEADS, *JSON_HEADS)
_FIRST_WINDOWS, _LAST_WINDOWS = 4, 12
# Of what is kept around a head; the lines of all ranks of a pod are mixed.
_LINES_BEFORE, _LINES_AFTER, _MAX_WINDOW_BYTES = 20, 250, 256 * 1024
_LONGEST_LINE, _RECENT_BYTES = 64 * 1024, 4096

# Opens a log with parameters of the cluster's API, such as `limitBytes`.
OpenLog = Callable[..., Iterable[bytes]]


@dataclass(frozen=True)
class _Part:
    """What was found in a part of a log, and the times of its first and its last line."""

    windows: list[bytes]
    first: float
    last: float
    is_cut: bool


class _Windows:
    """Collect the surroundings of the first and of the last heads of tracebacks."""

    def __init__(self) -> None:
        self._first: list[bytearray] = []
        self._last: deque[bytearray] = deque(maxlen=_LAST_WINDOWS)
        self._recent: deque[bytes] = deque(maxlen=_LINES_BEFORE)
        self._open, self._left = bytearray(), 0

    def add(self, chunk: bytes) -> None:
        """Search whole lines."""
        if not self._left and not any(head in chunk for head in _HEADS):
            self._recent.extend(chunk[-_RECENT_BYTES:].split(b"\n")[1:-1])
            return
        for line in chunk.split(b"\n")[:-1]:
            self._add_line(line)

    def found(self) -> list[bytes]:
        """Return the windows in the order of the log."""
        return [bytes(window) for window in (*self._first, *self._last)]

    def _add_line(self, line: bytes) -> None:
        if any(head in line for head in _HEADS):
            if not self._left:
                self._begin()
            self._left = _LINES_AFTER
        if not self._left:
            self._recent.append(line)
            return
        self._open += line + b"\n"
        self._left = self._left - 1 if len(self._open) < _MAX_WINDOW_BYTES else 0

    def _begin(self) -> None:
        self._open = bytearray(b"".join(line + b"\n" for line in self._recent))
        self._recent.clear()
        (self._first if len(self._first) < _FIRST_WINDOWS else self._last).append(self._open)


def find_tracebacks(open_log: OpenLog, until: float, search_s: float = SEARCH_S) -> list[bytes]:
    """Return the surroundings of the tracebacks in a log.

    Parameters
    ----------
    open_log : callable
        Opens the log, each line with its time in RFC 3339 format, with parameters of the cluster's API.
    until : float
        Time of the lines that need no search, in seconds since the epoch.
    search_s : float
        How long to search, in seconds. Default 8.

    Returns
    -------
    list of bytes
        Whole lines, in the order of the log.
    """
    deadline = time.monotonic() + search_s
    begin = _search(open_log(limitBytes=PART_BYTES), until, deadline)
    if not begin.is_cut:
        return begin.windows
    # The end, and then the middle: each as long as the begin, if lines come at the same rate.
    end_from = max(begin.last, until - (begin.last - begin.first))
    end = _search_since(open_log, end_from, until, deadline)
    middle = _search_since(open_log, (begin.last + end_from) / 2, end_from, deadline)
    return [*begin.windows, *middle, *end]


def _search_since(open_log: OpenLog, since: float, until: float, deadline: float) -> list[bytes]:
    if since >= until or time.monotonic() > deadline:
        return []
    stamp = datetime.fromtimestamp(since, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return _search(open_log(limitBytes=PART_BYTES, sinceTime=stamp), until, deadline).windows


def _search(blocks: Iterable[bytes], until: float, deadline: float) -> _Part:
    windows, first, last, size = _Windows(), 0.0, 0.0, 0
    for chunk in _whole_lines(blocks):
        windows.add(chunk)
        size += len(chunk)
        first = first or _time_of(chunk[: chunk.find(b"\n")]) or 0.0
        last = _time_of(chunk[chunk.rfind(b"\n", 0, -1) + 1 :]) or last
        if last > until or time.monotonic() > deadline:
            break
    # The cluster ends a stream inside a line at the limit, and that piece is left out.
    is_cut = last < until and size > PART_BYTES - _LONGEST_LINE
    return _Part(windows.found(), first, last, is_cut)


def _whole_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        complete, end, rest = (rest + block).rpartition(b"\n")
        if end:
            yield complete + end
        elif len(rest) > _LONGEST_LINE:
            yield rest + b"\n"
            rest = b""


def _time_of(line: bytes) -> float | None:
    return parse_time(line.partition(b" ")[0].decode(errors="replace"))
