"""Read the logs of a job on a node: first the backlog in chronological order, then new lines until the job has ended.

A line is `[label, time, text]`: the rank (or `agent`, or `local N`), seconds since the epoch, and the text without the
line ending.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque

from torchfab.remote import job_files
from torchfab.remote.job import log_files, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from torchfab.remote.server import Server

    Line = list[Any]

_BLOCK_BYTES = 256 * 1024
_MAX_LINE_BYTES = 64 * 1024
_FRAME_LINES = 500
_FRAME_CHARACTERS = 4 * 1024 * 1024  # JSON can take six bytes per character; the reader accepts 64 MiB
_POLL_S = 0.1
_PARTIAL_LINE_S = 1.0  # how long an incomplete line is held back


class Reader:
    """Read the log files of one job on one node.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    request : dict
        `lines` (number of last lines of each file; None for all), `ranks` (labels to keep; None for all), `grep`
        (a regular expression that a line must match; None for all), and optionally `offsets` (bytes already read, by
        file).
    """

    def __init__(self, folder: str, request: dict[str, Any]) -> None:
        self.folder = folder
        self.lines: int | None = request["lines"]
        self.labels: set[Any] | None = set(request["ranks"]) if request["ranks"] is not None else None
        self.grep = re.compile(request["grep"]) if request["grep"] else None
        self.offsets: dict[str, int] = dict(request.get("offsets") or {})
        self.partial: dict[str, tuple[int, float]] = {}  # file -> (size, since when its last line is incomplete)
        self.write_times: dict[str, log_files.WriteTimes] = {}

    def files(self) -> list[tuple[log_files.LogFile, int | str]]:
        """Return the log files of the requested ranks.

        Returns
        -------
        list of (LogFile, int or str)
            Each with its label.
        """
        found = []
        for name in job_files.processes(self.folder):
            folder = os.path.join(self.folder, name)
            ranks = job_files.read_json(os.path.join(folder, job_files.RANKS)) or []
            spec = job_files.read_json(os.path.join(folder, job_files.SPEC)) or {}
            found += [(log, log.label(ranks)) for log in log_files.find(folder, spec)]
        return [(log, label) for log, label in found if self.labels is None or label in self.labels]

    def read_backlog(self) -> list[Line]:
        """Return the lines written so far, and continue after them.

        Returns
        -------
        list of [label, time, text]
            In the order in which they were written.
        """
        self.write_times = {}
        lines: list[Line] = []
        for log, label in self.files():
            if log.full_path not in self.offsets:
                lines += self._read_backlog_of(log, label)
        lines.sort(key=lambda line: line[1])  # stable: lines of one file keep their order
        return lines

    def _read_backlog_of(self, log: log_files.LogFile, label: int | str) -> list[Line]:
        write_times = self.write_times.setdefault(log.folder, log_files.WriteTimes(log.folder))
        kept: deque[tuple[int, str]] = deque(maxlen=self.lines)
        end = log_files.size(log.full_path)
        start = 0 if self.grep or self.lines is None else _last_lines_offset(log.full_path, end, self.lines)
        for offset, text in self._complete_lines(log.full_path, start, end, final=False):
            kept.append((offset, text))
        return [[label, write_times.time_of(log, offset), text] for offset, text in kept]

    def read_new(self, final: bool) -> list[Line]:
        """Return the lines written since the last call.

        Parameters
        ----------
        final : bool
            Whether to also return a last line without a line ending.

        Returns
        -------
        list of [label, time, text]
            At most one block of 256 KiB per file.
        """
        lines: list[Line] = []
        for log, label in self.files():
            start, size = self.offsets.get(log.full_path, 0), log_files.size(log.full_path)
            end = min(size, start + _BLOCK_BYTES)
            if end > start:
                # If the block ends before the file does, its last line continues in the next block.
                last = end == size and (final or self._is_stale(log.full_path, end))
                now = time.time()
                lines += [[label, now, text] for _, text in self._complete_lines(log.full_path, start, end, last)]
        return lines

    def sizes(self) -> dict[str, int]:
        """Return the size of each file of the requested ranks.

        Returns
        -------
        dict of str to int
            Bytes by path.
        """
        return {log.full_path: log_files.size(log.full_path) for log, _ in self.files()}

    def has_read(self, sizes: dict[str, int]) -> bool:
        """Check whether every file has been read up to a size.

        Parameters
        ----------
        sizes : dict of str to int
            As `sizes` returns them.

        Returns
        -------
        bool
            False while bytes are missing.
        """
        return all(self.offsets.get(path, 0) >= size for path, size in sizes.items())

    def _is_stale(self, path: str, end: int) -> bool:
        size, since = self.partial.get(path, (-1, 0.0))
        if size != end:
            self.partial[path] = (end, time.monotonic())
            return False
        return time.monotonic() - since > _PARTIAL_LINE_S

    def _complete_lines(self, path: str, start: int, end: int, final: bool) -> Iterator[tuple[int, str]]:
        """Yield the end offset and text of each matching line between two offsets; record how far the file is read."""
        for offset, text in read_lines(path, start, end, final):
            self.offsets[path] = offset
            if self.grep is None or self.grep.search(text):
                yield offset, text
        self.offsets.setdefault(path, start)


def read_lines(path: str, start: int, end: int, final: bool) -> Iterator[tuple[int, str]]:
    """Yield each line between two offsets of a file.

    Of a line that was overwritten with carriage returns (a progress bar), only the last state is kept. A line of more
    than 64 KiB is cut into pieces. A last line without a line ending is yielded only if `final`, or if it is that long.

    Parameters
    ----------
    path : str
        The file.
    start, end : int
        Offsets in bytes.
    final : bool
        Whether to also yield a last line without a line ending.

    Yields
    ------
    tuple of (int, str)
        The offset of the end of the line, and its text.
    """
    try:
        file = open(path, "rb")
    except OSError:
        return
    with file:
        file.seek(start)
        offset = start
        while offset < end:
            raw = file.readline(min(_MAX_LINE_BYTES, end - offset))
            if not raw:
                return
            complete = raw.endswith(b"\n") or len(raw) == _MAX_LINE_BYTES
            if not complete and not final:
                return
            offset += len(raw)
            yield offset, _last_state(raw).decode(errors="replace")


def _last_state(raw: bytes) -> bytes:
    return raw.rstrip(b"\r\n").rsplit(b"\r", 1)[-1]


def _last_lines_offset(path: str, end: int, lines: int) -> int:
    """Return the offset of the last `lines` lines before `end`."""
    if lines <= 0:
        return end
    missing, position = lines + 1, end
    try:
        file = open(path, "rb")
    except OSError:
        return 0
    with file:
        while position > 0:
            block = min(_BLOCK_BYTES, position)
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


def handle(request: dict[str, Any], server: Server) -> dict[str, Any]:
    """Stream the job's logs of this node.

    Parameters
    ----------
    request : dict
        `node_dir`, `job_id`, `node_rank`; `follow`, and the keys that `Reader` takes.
    server : Server
        Sends the frames.

    Returns
    -------
    dict
        Empty.
    """
    folder, job_id, node_rank = job_files.folder_of(request), request["job_id"], request["node_rank"]
    stream(folder, job_id, node_rank, request, server.send, server.is_disconnected)
    return {}


def stream(
    folder: str,
    job_id: str,
    node_rank: int,
    request: dict[str, Any],
    send: Callable[[Any], None],
    is_disconnected: Callable[[], bool],
) -> None:
    """Send the logs in frames.

    `{"lines": [...]}` and `{"offsets": {...}}`; `{"past": True}` after the backlog; with `follow`, `{"failed": status}`
    when a process has failed while others run; `{"end": status}` at the end.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    job_id : str
        Id of the job.
    node_rank : int
        Rank of this node in the job.
    request : dict
        `follow`: continue until the job has ended; and the keys that `Reader` takes.
    send : callable
        Sends one frame.
    is_disconnected : callable
        Returns whether the launch machine has disconnected.
    """
    reader = Reader(folder, request)
    _send_lines(reader, reader.read_backlog() if not request.get("offsets") else [], send)
    send({"past": True})
    sizes, failed = reader.sizes(), 0
    while not is_disconnected():
        ended = status.has_ended(folder)
        # Once the job has ended, read the files once more: everything written before is complete by then.
        before = dict(reader.offsets)
        _send_lines(reader, reader.read_new(final=ended), send)
        idle = reader.offsets == before  # nothing was read; lines that the request filters out count as read
        # Without `follow`, stop at the sizes found at the start, even if the job never stops writing.
        if (idle and (ended or not request["follow"])) or (not request["follow"] and reader.has_read(sizes)):
            break
        if idle:
            failed_before, failed = failed, _count_failed(folder)
            if failed > failed_before:  # the other ranks here may wait for it forever
                send({"failed": status.status(folder, job_id, node_rank)})
            time.sleep(_POLL_S)
    send({"end": status.status(folder, job_id, node_rank)})


def _count_failed(folder: str) -> int:
    return sum(state in ("failed", "lost") for state in status.process_states(folder).values())


def split_into_frames(lines: list[Line]) -> Iterator[list[Line]]:
    """Divide lines into parts that fit into one frame each.

    Parameters
    ----------
    lines : list of [label, time, text]
        The lines.

    Yields
    ------
    list of [label, time, text]
        At most 500 lines and 4 MiB of text.
    """
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
    for part in split_into_frames(lines):
        send({"lines": part})
    if lines:
        send({"offsets": reader.offsets})
