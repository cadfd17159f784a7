"""Find the log files of a process of the job, the rank that writes each file, and the time of each line.

Log lines have no time. The supervisor, which checks the files a few times per second anyway, records in the `timeline`
when each file reached which size. So the logs of many ranks can be merged by time, even much later.
"""

from __future__ import annotations

import os

from torchfab.remote import job_files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

AGENT = "agent"
_RANK_LOGS = "logs"  # every launcher has its ranks' logs in this folder, where nothing else is
_HOOKS = ((job_files.BEFORE_LOG, "before"), (job_files.AFTER_LOG, "after"))
_MAX_TIME = 1e11  # seconds since the epoch; larger numbers are not a time and are skipped


class LogFile:
    """One log file of a process.

    Parameters
    ----------
    folder : str
        The process's folder.
    path : str
        The file, relative to `folder`.
    local_rank, attempt : int or None
        The rank that writes it, as far as the path contains it; None for the process's own output.
    rank : int or None
        The global rank, if the path contains it.
    title : str
        The label of its lines if it is not written by a rank. Default: `agent`.
    """

    def __init__(
        self,
        folder: str,
        path: str,
        rank: int | None = None,
        local_rank: int | None = None,
        attempt: int = 0,
        title: str = AGENT,
    ) -> None:
        self.title = title
        self.folder, self.path = folder, path
        self.rank, self.local_rank, self.attempt = rank, local_rank, attempt
        self.full_path = os.path.join(folder, path)

    def label(self, ranks: list[dict[str, Any]]) -> int | str:
        """Return the label of the lines in this file.

        Parameters
        ----------
        ranks : list of dict
            The ranks found so far, as in ranks.json.

        Returns
        -------
        int or str
            The rank that writes the file; `agent` for the launcher itself, `before` and `after` for hooks; `local N`
            while the rank is not known.
        """
        if self.rank is not None:
            return self.rank
        if self.local_rank is None:
            return self.title
        for rank in ranks:
            if (rank["local_rank"], rank["attempt"]) == (self.local_rank, self.attempt) and rank["rank"] is not None:
                return int(rank["rank"])
        return f"local {self.local_rank}"


def find(folder: str, spec: dict[str, Any]) -> list[LogFile]:
    """Return the log files that a process has so far.

    Parameters
    ----------
    folder : str
        The process's folder.
    spec : dict
        Its spec. `rank`: the rank of a process that is itself a rank. `rank_logs`: a regular expression for paths
        relative to the folder, below `logs/`, with groups `rank`, or `local_rank` and `attempt`. `first_rank`: the
        rank of local rank 0, if it is known in advance.

    Returns
    -------
    list of LogFile
        The process's own output first.
    """
    found = [LogFile(folder, job_files.OUTPUT, rank=spec.get("rank"))]
    found += [LogFile(folder, name, title=title) for name, title in _HOOKS if os.path.exists(f"{folder}/{name}")]
    for path in _paths(folder) if spec.get("rank_logs") else ():
        import re  # imported here: the supervisor starts before there are such files

        match = re.fullmatch(spec["rank_logs"], path)
        if match:
            groups = {name: int(text) for name, text in match.groupdict().items() if text is not None}
            if "first_rank" in spec:
                groups["rank"] = spec["first_rank"] + groups["local_rank"]
            attempt = groups.get("attempt", 0)
            found.append(LogFile(folder, path, groups.get("rank"), groups.get("local_rank"), attempt))
    return found


def _paths(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(os.path.join(folder, _RANK_LOGS)):
        folders.sort()
        for name in sorted(names):
            yield os.path.relpath(os.path.join(parent, name), folder)


def size(path: str) -> int:
    """Return the size of a file.

    Parameters
    ----------
    path : str
        The file.

    Returns
    -------
    int
        Bytes; 0 when there is no such file.
    """
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


class Timeline:
    """Record when each log file of a process reached which size.

    One line per growth: seconds since the epoch, size in bytes, path. At most one line per file and second, and only
    if the file has grown: less than the log itself in the worst case.

    Parameters
    ----------
    folder : str
        The process's folder.
    """

    MIN_INTERVAL_S = 1.0

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, job_files.TIMELINE)
        self.recorded: dict[str, tuple[float, int]] = {}

    def record(self, logs: list[LogFile], now: float, force: bool = False) -> None:
        """Record the files that have grown since they were last recorded.

        Parameters
        ----------
        logs : list of LogFile
            The log files of the process.
        now : float
            Seconds since the epoch.
        force : bool
            Ignore the minimum interval between two lines of a file. Default False.
        """
        lines = []
        for log in logs:
            bytes_now, (when, bytes_then) = size(log.full_path), self.recorded.get(log.path, (0.0, 0))
            if bytes_now > bytes_then and (force or now - when >= self.MIN_INTERVAL_S):
                lines.append(f"{now:.2f} {bytes_now} {log.path}\n")
                self.recorded[log.path] = (now, bytes_now)
        if lines:
            self._append("".join(lines))

    def _append(self, text: str) -> None:
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w", errors="surrogateescape") as file:
                file.write(text)
        except OSError:  # on a full disk, only the order of lines is lost
            pass


class WriteTimes:
    """Look up in the timeline when each byte of a log file was written.

    Parameters
    ----------
    folder : str
        The process's folder.
    """

    def __init__(self, folder: str) -> None:
        self.sizes: dict[str, list[int]] = {}
        self.times: dict[str, list[float]] = {}
        try:
            with open(os.path.join(folder, job_files.TIMELINE), errors="surrogateescape") as file:
                for line in file:
                    self._parse(line)
        except OSError:
            pass

    def _parse(self, line: str) -> None:
        try:
            when, bytes_then, path = line.rstrip("\n").split(" ", 2)
            size_then, time_then = int(bytes_then), float(when)
        except ValueError:  # a full disk has cut a line short, and the next line was appended to it
            return
        if 0 <= time_then < _MAX_TIME:
            self.sizes.setdefault(path, []).append(size_then)
            self.times.setdefault(path, []).append(time_then)

    def time_of(self, log: LogFile, offset: int) -> float:
        """Return when the byte before an offset was written.

        Parameters
        ----------
        log : LogFile
            The log file.
        offset : int
            Bytes from the beginning of the file.

        Returns
        -------
        float
            Seconds since the epoch; the time of the last growth for an offset beyond the end of the timeline.
        """
        sizes, times = self.sizes.get(log.path, []), self.times.get(log.path, [])
        from bisect import bisect_left

        index = bisect_left(sizes, offset)
        if index < len(sizes):
            return times[index]
        # File times lag by some milliseconds; max() keeps a line from being sorted before older ones.
        last = times[-1] if times else 0.0
        try:
            return max(last, os.stat(log.full_path).st_mtime)
        except OSError:
            return last
