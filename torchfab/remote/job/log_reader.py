"""Reading the logs of a job on a node: the past in the order of time, then what comes, until the job has ended here.

A line is `[label, time, text]`: the rank (or `agent`, or `local N`), seconds since the epoch, and the text without its
end.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque

from torchfab.remote import files
from torchfab.remote.job import log_files, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from torchfab.remote.server import Conversation

    Line = list[Any]

_BLOCK = 256 * 1024
_LONGEST_LINE = 64 * 1024
_FRAME_LINES = 500
_FRAME_CHARACTERS = 4 * 1024 * 1024  # JSON may write six bytes for one, and who reads it takes 64 MiB
_POLL_S = 0.1
_PATIENCE_S = 1.0  # how long a line without its end is held back


class Reader:
    """Read the log files of one job on one node.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    request : dict
        `lines` (how many of the last lines of each file; None for all), `ranks` (labels to keep; None for all), `grep`
        (a regular expression that a line must match; None for all).
    """

    def __init__(self, folder: str, request: dict[str, Any]) -> None:
        self.folder = folder
        self.lines: int | None = request["lines"]
        self.wanted: set[Any] | None = set(request["ranks"]) if request["ranks"] is not None else None
        self.grep = re.compile(request["grep"]) if request["grep"] else None
        self.offsets: dict[str, int] = dict(request.get("offsets") or {})
        self.waiting: dict[str, tuple[int, float]] = {}  # file -> its size, and since when it ends without a line's end
        self.clocks: dict[str, log_files.Clock] = {}

    def files(self) -> list[tuple[log_files.LogFile, int | str]]:
        """Return the log files that are wanted, each with its label."""
        found = []
        for name in files.processes(self.folder):
            folder = os.path.join(self.folder, name)
            ranks = files.read_json(os.path.join(folder, files.RANKS)) or []
            spec = files.read_json(os.path.join(folder, files.SPEC)) or {}
            found += [(log, log.label(ranks)) for log in log_files.find(folder, spec)]
        return [(log, label) for log, label in found if self.wanted is None or label in self.wanted]

    def past(self) -> list[Line]:
        """Return the lines written so far, in the order in which they were written, and go on behind them."""
        self.clocks = {}
        lines: list[Line] = []
        for log, label in self.files():
            if log.full_path not in self.offsets:
                lines += self._past_of(log, label)
        lines.sort(key=lambda line: line[1])  # stable: lines of one file keep their order
        return lines

    def _past_of(self, log: log_files.LogFile, label: int | str) -> list[Line]:
        clock = self.clocks.setdefault(log.folder, log_files.Clock(log.folder))
        kept: deque[tuple[int, str]] = deque(maxlen=self.lines)
        end = log_files.size(log.full_path)
        start = 0 if self.grep or self.lines is None else _start_of_last(log.full_path, end, self.lines)
        for offset, text in self._complete_lines(log.full_path, start, end, final=False):
            kept.append((offset, text))
        return [[label, clock.time_of(log, offset), text] for offset, text in kept]

    def news(self, final: bool) -> list[Line]:
        """Return the lines written since the last call; `final`: also a last one without its end."""
        lines: list[Line] = []
        for log, label in self.files():
            start, size = self.offsets.get(log.full_path, 0), log_files.size(log.full_path)
            end = min(size, start + _BLOCK)
            if end > start:
                # Where the block ends before the file does, its last line goes on in the next one.
                last = end == size and (final or self._is_stale(log.full_path, end))
                now = time.time()
                lines += [[label, now, text] for _, text in self._complete_lines(log.full_path, start, end, last)]
        return lines

    def sizes(self) -> dict[str, int]:
        """Return the size of each wanted file, in bytes."""
        return {log.full_path: log_files.size(log.full_path) for log, _ in self.files()}

    def has_read(self, sizes: dict[str, int]) -> bool:
        """Say whether every file was read up to its size."""
        return all(self.offsets.get(path, 0) >= size for path, size in sizes.items())

    def _is_stale(self, path: str, end: int) -> bool:
        size, since = self.waiting.get(path, (-1, 0.0))
        if size != end:
            self.waiting[path] = (end, time.monotonic())
            return False
        return time.monotonic() - since > _PATIENCE_S

    def _complete_lines(self, path: str, start: int, end: int, final: bool) -> Iterator[tuple[int, str]]:
        """Yield the offset behind each line between two offsets, and its text; note how far the file is read."""
        for offset, text in read_lines(path, start, end, final):
            self.offsets[path] = offset
            if self.grep is None or self.grep.search(text):
                yield offset, text
        self.offsets.setdefault(path, start)


def read_lines(path: str, start: int, end: int, final: bool) -> Iterator[tuple[int, str]]:
    """Yield each line between two offsets of a file, with the offset behind it.

    Of a line that was overwritten with carriage returns (a progress bar) the last state is kept. A line of more than 64
    KiB is cut into pieces. A last line without its end is yielded only if `final`, or if it is that long.
    """
    try:
        file = open(path, "rb")
    except OSError:
        return
    with file:
        file.seek(start)
        offset = start
        while offset < end:
            raw = file.readline(min(_LONGEST_LINE, end - offset))
            if not raw:
                return
            whole = raw.endswith(b"\n") or len(raw) == _LONGEST_LINE
            if not whole and not final:
                return
            offset += len(raw)
            yield offset, _last_state(raw).decode(errors="replace")


def _last_state(raw: bytes) -> bytes:
    return raw.rstrip(b"\r\n").rsplit(b"\r", 1)[-1]


def _start_of_last(path: str, end: int, lines: int) -> int:
    """Return the offset at which the last `lines` lines before `end` begin."""
    if lines <= 0:
        return end
    missing, position = lines + 1, end
    try:
        file = open(path, "rb")
    except OSError:
        return 0
    with file:
        while position > 0:
            block = min(_BLOCK, position)
            position -= block
            file.seek(position)
            data = file.read(block)
            if position + block == end and not data.endswith(b"\n"):
                missing -= 1
            for index in range(len(data) - 1, -1, -1):
                if data[index] == 0x0A:
                    missing -= 1
                    if missing == 0:
                        return position + index + 1
    return 0


def answer_logs(request: dict[str, Any], link: Conversation) -> dict[str, Any]:
    """Stream the job's logs of this node."""
    stream(files.folder_of(request), request["job_id"], request["node_rank"], request, link.send, link.hung_up)
    return {}


def stream(
    folder: str,
    job_id: str,
    node_rank: int,
    request: dict[str, Any],
    send: Callable[[Any], None],
    gone: Callable[[], bool],
) -> None:
    """Send the logs in frames: `{"lines": [...], "offsets": {...}}`, and at the end `{"end": status}`.

    Parameters
    ----------
    send : callable
        Sends one frame.
    gone : callable
        Says whether the launch machine has hung up.
    """
    reader = Reader(folder, request)
    _send_lines(reader, reader.past() if not request.get("offsets") else [], send)
    send({"past": True})
    sizes = reader.sizes()
    while not gone():
        ended = status.has_ended(folder)
        # The files are read once more after the end was seen: what was written before it is all there.
        before = dict(reader.offsets)
        _send_lines(reader, reader.news(final=ended), send)
        idle = reader.offsets == before  # nothing was read; whether a line of it was wanted is another matter
        # Unless it is followed, a job that never stops to write is not read for ever.
        if (idle and (ended or not request["follow"])) or (not request["follow"] and reader.has_read(sizes)):
            break
        if idle:
            time.sleep(_POLL_S)
    send({"end": status.status(folder, job_id, node_rank)})


def in_frames(lines: list[Line]) -> Iterator[list[Line]]:
    """Divide lines into as many as one frame takes."""
    part: list[Line] = []
    room = _FRAME_CHARACTERS
    for line in lines:
        if part and (len(part) == _FRAME_LINES or len(line[2]) > room):
            yield part
            part, room = [], _FRAME_CHARACTERS
        part.append(line)
        room -= len(line[2])
    if part:
        yield part


def _send_lines(reader: Reader, lines: list[Line], send: Callable[[Any], None]) -> None:
    for part in in_frames(lines):
        send({"lines": part})
    if lines:
        send({"offsets": reader.offsets})
