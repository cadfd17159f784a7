"""Attributes that the processes of a job inherit and cannot lose by accident, so that all of them can be found.

1. A control group (`torchfab.remote.host.cgroup`), if this user may create one: the kernel's own list.
2. A mark: the soft limit RLIMIT_LOCKS. Linux has not used this limit since 2.4.25, but children inherit it through
   fork, exec, setsid, an empty environment and a change of the user, and every user can read it in /proc/<pid>/limits.
   A process loses it only by setting that limit itself.

A supervisor has both only while it starts a process, which inherits them: it must not end itself. Each process of the
job has a group and a mark of its own, so that the supervisor, which adopts the orphans of all, can tell from which
process each orphan descends.
"""

from __future__ import annotations

import os

from torchfab.remote import job_files, light_stdlib, procfs
from torchfab.remote.host import cgroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_RLIMIT_LOCKS = 10
_LIMIT_LINE = b"Max file locks"
# The lowest bits of a mark are the number of the process, the others are the same for all of the job on this node.
_PROCESSES = 2**12


class Containment:
    """The control group and the mark of one process of the job and its descendants; enter it to start the process.

    Parameters
    ----------
    folder : str
        The process's folder.
    env : dict of str to str
        The environment of the process, which contains the job's id; without it, nothing is contained.
    number : int
        A different one for each process of the job on this node. Default 0.
    with_group : bool
        False if another program (Slurm) has a control group for the job, and searches it for the job's processes.
    """

    def __init__(self, folder: str, env: dict[str, str], number: int = 0, with_group: bool = True) -> None:
        self.folder, self.with_group = folder, with_group
        self.job_id = env.get(procfs.JOB_ID, "")
        self.node_rank = procfs.int_or_none(env.get(procfs.NODE_RANK, "")) or 0
        self.mark = number_of(self.job_id, self.node_rank) + number % _PROCESSES
        self.group: cgroup.Group | None = None

    def __enter__(self) -> Containment:
        if self.job_id:
            self._join()
            _set_mark(self.mark)
        return self

    def _join(self) -> None:
        if self.group is None and self.with_group:
            self.group = cgroup.make(f"torchfab-{self.job_id}-{self.node_rank}-{os.path.basename(self.folder)}")
        try:
            # Written first: if the supervisor is killed now, it leaves a group that `stop` must find.
            if self.group is not None and self._record(False):
                self.group.join()
                return
        except OSError:
            pass
        self.group = None
        self._record(False)

    def _record(self, is_removed: bool) -> bool:
        record = {"path": self.group.path if self.group else "", "removed": is_removed}
        path = os.path.join(self.folder, job_files.CGROUP)
        try:  # no fsync: after a power cut no process is left to find
            with open(path + ".new", "w", opener=_private) as file:
                file.write(light_stdlib.dumps(record))
            os.replace(path + ".new", path)
        except OSError:  # a full disk: then the group proves nothing
            return False
        return True

    def __exit__(self, *_: object) -> None:
        if self.job_id:
            _set_mark(-1)
        if self.group is not None:
            try:
                cgroup.Group(os.path.dirname(self.group.path)).join()
            except OSError:  # this process is still in the group, and must not end itself
                self.group = None
                self._record(False)

    def members(self) -> list[int]:
        """Return the processes in the group; empty without a group."""
        return self.group.members() if self.group is not None else []

    def holds(self, pid: int) -> bool:
        """Return whether a process has the mark, or is in the group.

        Parameters
        ----------
        pid : int
            The process.

        Returns
        -------
        bool
        """
        try:
            return (bool(self.job_id) and mark_of(pid) == self.mark) or pid in self.members()
        except OSError:  # it has ended, or this user may not see it
            return False

    def kill(self) -> None:
        """Kill all processes in the group."""
        if self.group is not None:
            self.group.kill()

    def close(self) -> None:
        """Remove the group, if no process is in it."""
        if self.group is not None and self.group.remove():
            self._record(True)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


# ---- the mark


def number_of(job_id: str, node_rank: int) -> int:
    """Return the number that marks the processes of a job on a node (FNV-1a, 62 bits, the lowest 12 of which are 0).

    Parameters
    ----------
    job_id : str
        Id of the job.
    node_rank : int
        Rank of the node in the job.

    Returns
    -------
    int
        Between 2**61 and 2**62.
    """
    number = 0xCBF29CE484222325
    for byte in f"{job_id}/{node_rank}".encode("utf-8", "surrogateescape"):
        number = ((number ^ byte) * 0x100000001B3) % 2**64
    number = number % 2**61 + 2**61
    return number - number % _PROCESSES


def _set_mark(number: int) -> None:
    import resource

    try:
        resource.setrlimit(_RLIMIT_LOCKS, (number, resource.getrlimit(_RLIMIT_LOCKS)[1]))
    except (OSError, ValueError, OverflowError):  # a lower hard limit: only the other attributes identify the process
        pass


def has_mark(pid: int, number: int) -> bool:
    """Return whether a process has the mark of any process of a job on a node.

    Parameters
    ----------
    pid : int
        The process.
    number : int
        As `number_of` returns it.

    Returns
    -------
    bool

    Raises
    ------
    OSError
        There is no such process, or this user may not see it.
    """
    mark = mark_of(pid)
    return mark is not None and mark - mark % _PROCESSES == number


def mark_of(pid: int) -> int | None:
    """Return the mark of a process.

    Parameters
    ----------
    pid : int
        The process.

    Returns
    -------
    int or None
        None for a process without this limit, and for one that has ended and is not reaped.

    Raises
    ------
    OSError
        There is no such process, or this user may not see it.
    """
    with open(f"/proc/{pid}/limits", "rb") as file:
        raw = file.read()
    start = raw.find(_LIMIT_LINE) + len(_LIMIT_LINE)
    words = raw[start : start + 60].split()[:1]
    return int(words[0]) if words and words[0].isdigit() else None


# ---- the groups of a job, used to stop it


def groups(folder: str) -> list[cgroup.Group]:
    """Return the control groups of a job on this node that still exist.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    list of Group
    """
    found = [cgroup.Group(record["path"]) for record in _records(folder) if record.get("path")]
    return [group for group in found if group.exists()]


def remove_groups(folder: str) -> None:
    """Remove the control groups of a job that has ended on this node.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    """
    for group in groups(folder):
        group.remove()


def is_proof(folder: str) -> bool:
    """Return whether all processes started on this node were in control groups, and these are empty now.

    Parameters
    ----------
    folder : str
        The job's folder on this node.

    Returns
    -------
    bool
        False also if a group may exist that this process cannot see.
    """
    started = [
        name for name in job_files.processes(folder) if os.path.exists(os.path.join(folder, name, job_files.STARTED))
    ]
    records = _records(folder)
    if not started or (len(records) < len(started) and not os.path.exists(os.path.join(folder, job_files.CGROUP))):
        return False
    return all(record.get("path") and _is_empty(record) for record in records)


def _is_empty(record: dict[str, Any]) -> bool:
    group = cgroup.Group(record["path"])
    if group.exists():
        return group.is_empty()
    return bool(record.get("removed")) or _is_visible(group.path)


def _is_visible(path: str) -> bool:
    """Return whether the hierarchy of a group is mounted here, that is, a group above it exists."""
    parent = os.path.dirname(path)
    return path != parent and (os.path.exists(os.path.join(parent, "cgroup.procs")) or _is_visible(parent))


def _records(folder: str) -> list[dict[str, Any]]:
    folders = [folder, *(os.path.join(folder, name) for name in job_files.processes(folder))]
    found = (job_files.read_json(os.path.join(each, job_files.CGROUP)) for each in folders)
    return [record for record in found if isinstance(record, dict)]
