"""The log files of a process of the job: which there are, whose they are, and when their lines were written.

Log lines carry no time of their own. The supervisor looks at the files a few times a second anyway, and notes in the
`timeline` when each had grown to which size; so the logs of many ranks can be merged in the order of time long after.
"""

from __future__ import annotations

import bisect
import os
import re

from torchfab.remote import files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

AGENT = "agent"
_END_OF_TIME = 1e11  # seconds since the epoch: what is no time is left out


class LogFile:
    """One log file of a process.

    Parameters
    ----------
    folder : str
        The process's folder.
    path : str
        The file, relative to `folder`.
    local_rank, attempt : int or None
        Which rank's it is, as the path tells; None for the process's own output.
    rank : int or None
        The rank, where the path tells it.
    """

    def __init__(
        self, folder: str, path: str, rank: int | None = None, local_rank: int | None = None, attempt: int = 0
    ) -> None:
        self.folder, self.path = folder, path
        self.rank, self.local_rank, self.attempt = rank, local_rank, attempt
        self.full_path = os.path.join(folder, path)

    def label(self, ranks: list[dict[str, Any]]) -> int | str:
        """Return the rank that wrote the file, `agent` for the launcher itself, `local N` while it is not known."""
        if self.rank is not None:
            return self.rank
        if self.local_rank is None:
            return AGENT
        for rank in ranks:
            if (rank["local_rank"], rank["attempt"]) == (self.local_rank, self.attempt) and rank["rank"] is not None:
                return int(rank["rank"])
        return f"local {self.local_rank}"


def find(folder: str, spec: dict[str, Any]) -> list[LogFile]:
    """Return the log files that a process has so far, its own output first.

    `spec["rank"]` is the rank of a process that is a rank itself; `spec["rank_logs"]` is a regular expression over
    paths relative to the folder, with groups `rank`, or `local_rank` and `attempt`; `spec["first_rank"]` is the rank of
    local rank 0, where that is known beforehand.
    """
    found = [LogFile(folder, files.OUTPUT, rank=spec.get("rank"))]
    pattern = re.compile(spec["rank_logs"]) if spec.get("rank_logs") else None
    for path in _paths(folder) if pattern else ():
        match = pattern.fullmatch(path) if pattern else None
        if match:
            groups = {name: int(text) for name, text in match.groupdict().items() if text is not None}
            if "first_rank" in spec:
                groups["rank"] = spec["first_rank"] + groups["local_rank"]
            found.append(LogFile(folder, path, **groups))
    return found


def _paths(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            yield os.path.relpath(os.path.join(parent, name), folder)


def size(path: str) -> int:
    """Return the size of a file in bytes, 0 when there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


class Timeline:
    """When each log file of a process had grown to which size, as the supervisor saw it.

    One line a growth: seconds since the epoch, size in bytes, path. At most one per file and second, and only where the
    file grew: less than the log itself in the worst case.
    """

    STEP_S = 1.0

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, files.TIMELINE)
        self.noted: dict[str, tuple[float, int]] = {}

    def note(self, logs: list[LogFile], now: float) -> None:
        """Note the files that have grown since they were last noted."""
        lines = []
        for log in logs:
            bytes_now, (when, bytes_then) = size(log.full_path), self.noted.get(log.path, (0.0, 0))
            if bytes_now > bytes_then and now - when >= self.STEP_S:
                lines.append(f"{now:.2f} {bytes_now} {log.path}\n")
                self.noted[log.path] = (now, bytes_now)
        if lines:
            self._append("".join(lines))

    def _append(self, text: str) -> None:
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w", errors="surrogateescape") as file:
                file.write(text)
        except OSError:  # a full disk costs the order of lines, never the job
            pass


class Clock:
    """Tells when a byte of a log file was written, from the timeline; the time of the last growth beyond its end."""

    def __init__(self, folder: str) -> None:
        self.sizes: dict[str, list[int]] = {}
        self.times: dict[str, list[float]] = {}
        try:
            with open(os.path.join(folder, files.TIMELINE), errors="surrogateescape") as file:
                for line in file:
                    self._read(line)
        except OSError:
            pass

    def _read(self, line: str) -> None:
        try:
            when, bytes_then, path = line.rstrip("\n").split(" ", 2)
            size_then, time_then = int(bytes_then), float(when)
        except ValueError:  # a line cut short by a full disk, and the next one behind it
            return
        if 0 <= time_then < _END_OF_TIME:
            self.sizes.setdefault(path, []).append(size_then)
            self.times.setdefault(path, []).append(time_then)

    def time_of(self, log: LogFile, offset: int) -> float:
        """Return when the byte before `offset` was written, in seconds since the epoch."""
        sizes, times = self.sizes.get(log.path, []), self.times.get(log.path, [])
        index = bisect.bisect_left(sizes, offset)
        if index < len(sizes):
            return times[index]
        # The kernel stamps files with a clock that is some milliseconds behind: a line must not come before older ones.
        last = times[-1] if times else 0.0
        try:
            return max(last, os.stat(log.full_path).st_mtime)
        except OSError:
            return last
