"""Find and track the ranks below a process of the job in /proc, whichever launcher started them.

A rank is the topmost process that has RANK in its environment (its data loaders, below it, have it, too). A pidfd
reports its end to the millisecond. Its exit code is read before its parent reaps it, because the launchers above it
always report 1.
"""

from __future__ import annotations

import os
import time

from torchfab.remote import job_files, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# How long after its end a rank is reaped at the latest.
_REAPED_WITHIN_S = 60.0
# `torchfab.remote.shims.rank`: if it is killed, the kernel sends SIGTERM to the rank below it.
_SHIM = "rank.py"

# Lines of "RANK LOCAL_RANK WORLD_SIZE ATTEMPT PID", which the ranks write about themselves.
NOTES = os.path.join("logs", "ranks")
_NOTED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
_MAX_NOTES_BYTES = 1024 * 1024


class RankTracker:
    """Keep the `ranks.json` of one process up to date.

    Parameters
    ----------
    folder : str
        The process's folder.
    root : int
        Pid of the process that the supervisor started.
    """

    def __init__(self, folder: str, root: int) -> None:
        self.path = os.path.join(folder, job_files.RANKS)
        self.root = root
        self.ranks: list[dict[str, Any]] = []
        self.pidfds: dict[int, int] = {}  # pidfd -> index into ranks
        self.below_shims: set[int] = set()  # pids of ranks
        self.is_saved = True
        self.notes = os.path.join(folder, NOTES)
        self.notes_read = 0  # bytes

    def find_new(self) -> bool:
        """Find ranks that have started since the last call.

        Returns
        -------
        bool
            Whether there are any.
        """
        is_noted = self._add_noted()
        known = self._known()
        found = procfs.find_below(self.root, self.is_rank)
        # The first read of a process that has just forked may still return its parent's environment, so it is read
        # again. The second read also skips processes that have ended since.
        reread = {pid: procfs.environment(pid) for pid in found if (pid, procfs.start_time(pid)) not in known}
        new = {pid: env for pid, env in reread.items() if "RANK" in env}
        for pid, env in new.items():
            self._add(pid, env)
        if new or is_noted:
            self._save()
        return bool(new) or is_noted

    def is_rank(self, pid: int) -> bool:
        """Return whether a process is a rank, or below one.

        Parameters
        ----------
        pid : int
            The process.

        Returns
        -------
        bool
            True also for a known rank that has overwritten its environment (as setproctitle does), so that its children
            are not mistaken for ranks.
        """
        return (pid, procfs.start_time(pid)) in self._known() or "RANK" in procfs.environment(pid)

    def _add_noted(self) -> bool:
        """Add the ranks that have recorded their processes since the last call; return whether there are any.

        A rank may live for a few milliseconds only. Then it is a zombie, without an environment, or already reaped by
        its launcher.
        """
        known = {(each["pid"], each["local_rank"], each["attempt"]) for each in self.ranks}
        found = False
        for words in self._new_notes():
            rank, local_rank, _, attempt, pid = map(_number, words)
            if rank is None or pid is None or (pid, local_rank, attempt or 0) in known:
                continue
            self._add(pid, dict(zip(_NOTED, words)))
            found = True
        return found

    def _new_notes(self) -> list[list[str]]:
        try:
            with open(self.notes, "rb") as file:
                file.seek(self.notes_read)
                raw = file.read(_MAX_NOTES_BYTES)
        except OSError:  # with other launchers, ranks do not record themselves
            return []
        whole = raw[: raw.rfind(b"\n") + 1]
        self.notes_read += len(whole)
        lines = [line.split() for line in whole.decode(errors="replace").splitlines()]
        return [words for words in lines if len(words) == 5]

    def _known(self) -> set[tuple[int, int]]:
        return {(rank["pid"], rank["start_time"]) for rank in self.ranks}

    def _add(self, pid: int, env: dict[str, str]) -> None:
        rank = {
            "rank": _number(env.get("RANK")),
            "local_rank": _number(env.get("LOCAL_RANK")),
            "world_size": _number(env.get("WORLD_SIZE")),
            "attempt": _number(env.get("TORCHELASTIC_RESTART_COUNT")) or 0,
            "pid": pid,
            "start_time": procfs.start_time(pid),
            "started": time.time(),
            "ended": None,
            "code": None,
        }
        self.ranks.append(rank)
        if any(os.path.basename(word) == _SHIM for word in procfs.command_line(_parent_of(pid))):
            self.below_shims.add(pid)
        try:
            self.pidfds[os.pidfd_open(pid)] = len(self.ranks) - 1  # type: ignore[attr-defined,unused-ignore]
        except (OSError, AttributeError):  # it has ended, or a kernel before 5.3: `sweep` notices its end
            pass

    def on_pidfd(self, pidfd: int) -> None:
        """Record the end and the exit code of the rank whose pidfd became readable.

        Parameters
        ----------
        pidfd : int
            A key of `pidfds`; it is closed.
        """
        index = self.pidfds.pop(pidfd)
        os.close(pidfd)
        self._record_end(self.ranks[index])

    def record_ends(self) -> None:
        """Record the ends of ranks whose pidfds have become readable since the last poll."""
        for pidfd, index in list(self.pidfds.items()):
            rank = self.ranks[index]
            if not procfs.is_alive(rank["pid"], rank["start_time"]):
                self.on_pidfd(pidfd)

    def _save(self) -> None:
        try:
            job_files.write_json(self.path, self.ranks)
            self.is_saved = True
        except OSError:  # on a full disk only this record fails, not the job; `sweep` tries again
            self.is_saved = False

    def sweep(self) -> None:
        """Record the end of ranks that have no pidfd and no longer run."""
        if not self.is_saved:
            self._save()
        watched = set(self.pidfds.values())
        for index, rank in enumerate(self.ranks):
            gone = not procfs.is_alive(rank["pid"], rank["start_time"])
            if index not in watched and rank["ended"] is None and gone:
                self._record_end(rank)

    def _record_end(self, rank: dict[str, Any]) -> None:
        code = procfs.exit_code_of_zombie(rank["pid"])
        rank.update(ended=time.time(), code=code)
        self._save()

    def set_code(self, pid: int, code: int) -> None:
        """Record the exit code of a rank that the supervisor itself has reaped.

        Parameters
        ----------
        pid : int
            Its pid; nothing happens if it is not a rank.
        code : int
            Its exit code, negative for a signal.
        """
        now = time.time()
        for rank in self.ranks:
            # Much later, another process may have the pid.
            if rank["pid"] == pid and rank["code"] is None and now - (rank["ended"] or now) < _REAPED_WITHIN_S:
                rank.update(ended=rank["ended"] or now, code=code)
                self._save()

    def complete(self, output: str, ended: float, has_failed: bool = True) -> None:
        """Add the ranks that ended before they could be found, from the launcher's own report.

        Parameters
        ----------
        output : str
            The output of torchrun.
        ended : float
            When torchrun ended, in seconds since the epoch.
        has_failed : bool
            Whether its output contains a report. Default True.
        """
        is_noted = self._add_noted()
        self.sweep()
        last = max((rank["attempt"] for rank in self.ranks), default=0)
        known = {(rank["local_rank"], rank["attempt"]) for rank in self.ranks}
        missing = [each for each in _reported(output) if (each["local_rank"], last) not in known] if has_failed else []
        for each in missing:
            times = {"start_time": 0, "started": None, "ended": ended}
            self.ranks.append({**each, "pid": each["pid"] or 0, "world_size": None, "attempt": last, **times})
        if missing or is_noted:
            self._save()

    def close(self) -> None:
        """Close the pidfds of ranks whose end was not seen."""
        for pidfd in self.pidfds:
            os.close(pidfd)
        self.pidfds.clear()

    def orphans(self) -> list[int]:
        """Return the running ranks whose shims were killed; the kernel has sent them SIGTERM.

        Returns
        -------
        list of int
            Their pids.
        """
        return [pid for pid in self.running() if pid in self.below_shims and _parent_of(pid) == os.getpid()]

    def running(self) -> list[int]:
        """Return the ranks that still run.

        Returns
        -------
        list of int
            Their pids.
        """
        return [rank["pid"] for rank in self.ranks if procfs.is_alive(rank["pid"], rank["start_time"])]


def _parent_of(pid: int) -> int:
    fields = procfs.stat_fields(pid)
    return int(fields[1]) if fields else 0


def _reported(output: str) -> list[dict[str, Any]]:
    from torchfab.remote.job import status  # imported here: most processes do not fail

    return [each for each in status.reported_ranks(status.tail(output)) if each["local_rank"] is not None]


def _number(text: str | None) -> int | None:
    # A process may have any text in its environment: `²` is a digit, too, and int() rejects thousands of digits.
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None
