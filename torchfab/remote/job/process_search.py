"""Search /proc, as this user, for the processes of a job on this node.

A process belongs to the job if it has the job's mark (`torchfab.remote.job.containment`), was started with the job's id
in its environment, is in a control group of the job, or descends from a process that belongs to it.
"""

from __future__ import annotations

import os
import time

from torchfab.remote import procfs
from torchfab.remote.job import containment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from torchfab.remote.host.cgroup import Group

# A process that ended while it was examined may have forked one that is missing from the listing of /proc.
_SCANS = 3
_CHASE_S = 0.05
_SIGKILL = 9  # importing `signal` takes a tenth of a supervisor's start-up


class Search:
    """Find the processes of a job, as often as necessary.

    Parameters
    ----------
    job_id : str
        Id of the job.
    node_rank : int
        Rank of this node in the job.
    groups : sequence of Group
        The job's control groups.
    """

    def __init__(self, job_id: str, node_rank: int, groups: Sequence[Group] = ()) -> None:
        self.marks = (
            f"\0{procfs.JOB_ID}={job_id}\0".encode(),
            f"\0{procfs.NODE_RANK}={node_rank}\0".encode(),
        )
        self.number = containment.number_of(job_id, node_rank)
        self.groups = groups
        self.missed = False  # whether a process ended while it was examined

    def find(self) -> list[int]:
        """Return the processes of the job, without this process itself.

        Returns
        -------
        list of int
            Their pids. The list is empty only if every process was examined, or if the newest processes of the machine,
            watched for a moment, did not belong to the job either.
        """
        for _ in range(_SCANS):
            if found := self._scan():
                return found
            if not self.missed:
                return []
        newest = self.chase(_CHASE_S)
        return [newest] if newest else []

    def _scan(self) -> list[int]:
        self.missed = False
        own_pid = os.getpid()
        own = [pid for pid in procfs.all_pids() if pid != own_pid and self._belongs(pid)]
        own += [pid for group in self.groups for pid in group.members()]
        if not own:  # the proof that no process is left needs one scan over all processes, not two
            return []
        candidates = dict.fromkeys(own + procfs.descendants(own))
        found = [pid for pid in candidates if pid != own_pid and procfs.is_running(pid)]
        self.missed = self.missed or not found
        return found

    def _belongs(self, pid: int) -> bool:
        try:
            if containment.has_mark(pid, self.number):
                return True
        except PermissionError:  # /proc is mounted with hidepid
            return False
        except OSError:
            self.missed = True
            return False
        raw = b"\0" + procfs.raw_environment(pid)
        return all(mark in raw for mark in self.marks)

    def is_grouped(self, pid: int) -> bool:
        """Return whether a process is in a control group of the job.

        Parameters
        ----------
        pid : int
            The process.

        Returns
        -------
        bool
        """
        return any(pid in group.members() for group in self.groups)

    def chase(self, seconds: float, kill: bool = False) -> int:
        """Watch the newest processes of the machine: a chain of processes may fork and exit faster than a scan takes.

        Parameters
        ----------
        seconds : float
            Duration in seconds.
        kill : bool
            Whether to send SIGKILL to those that have the job's mark.

        Returns
        -------
        int
            The pid of the last one that has the mark; 0 for none.
        """
        found, deadline = 0, time.monotonic() + seconds
        with open("/proc/loadavg", "rb", buffering=0) as file:
            while time.monotonic() < deadline:
                newest = int(os.pread(file.fileno(), 100, 0).split()[-1])
                for pid in range(newest, max(0, newest - 3), -1):
                    if self._is_marked(pid):
                        found = pid
                        _signal(pid, _SIGKILL if kill else 0)
        return found

    def _is_marked(self, pid: int) -> bool:
        try:
            return pid != os.getpid() and containment.has_mark(pid, self.number)
        except OSError:
            return False


def job_processes(job_id: str, node_rank: int, groups: Sequence[Group] = ()) -> list[int]:
    """Return every process of the job on this node.

    Parameters
    ----------
    job_id : str
        Id of the job.
    node_rank : int
        Rank of this node in the job.
    groups : sequence of Group
        The job's control groups.

    Returns
    -------
    list of int
        Their pids, without this process itself.
    """
    return Search(job_id, node_rank, groups).find()


def identify(pid: int) -> dict[str, Any]:
    """Describe a process that cannot be ended.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    dict
        `pid`, `start_time`, and `text`: pid, command, user, and the kind of wait that prevents its end, if any.
    """
    text = f"{procfs.describe(pid)} of user {procfs.owner(pid)}"
    if procfs.stat_fields(pid)[:1] == ["D"]:
        text += ", which waits for a disk or a device (state D)"
    return {"pid": pid, "start_time": procfs.start_time(pid), "text": text}


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:  # it has ended, or belongs to another user
        pass
