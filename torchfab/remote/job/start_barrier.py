"""The start barrier of a job: no process of the job starts before the supervisors of all nodes are ready.

A launch that fails on one node has therefore run no user code on any node, and the processes of all nodes start
together. A supervisor reports that it is ready, then waits until the server process that opened its window releases
it. If that process ends first, nothing starts.
"""

from __future__ import annotations

import os

from torchfab.remote import job_files, procfs
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NEVER_RELEASED = "never started: its launch was interrupted before all nodes were ready"


def server_identity() -> dict[str, Any]:
    """Identify this process in the specs of the processes that it holds at the barrier.

    Returns
    -------
    dict
        `pid`, `start_time` and `boot_id`.
    """
    return {"pid": os.getpid(), "start_time": procfs.start_time(os.getpid()), "boot_id": procfs.boot_id()}


def report_ready(folder: str) -> None:
    """Report that the supervisor of a process is ready to be released.

    Parameters
    ----------
    folder : str
        The process's folder.
    """
    temporary = os.path.join(folder, job_files.READY + ".new")
    with open(temporary, "w", opener=_private) as file:  # no fsync: the file matters only during the launch
        file.write(str(os.getpid()))
    os.replace(temporary, os.path.join(folder, job_files.READY))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def release(folder: str, names: list[str]) -> None:
    """Let the job's processes on this node start.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    names : list of str
        Names of the processes.
    """
    with open(os.path.join(folder, job_files.GO), "w", opener=_private):
        pass
    for name in names:
        pid = job_files.read_json(os.path.join(folder, name, job_files.READY))
        try:
            # Only wakes the supervisor, which then checks the barrier.
            os.kill(pid, signal.SIGCHLD)
        except (OSError, TypeError):  # it has ended, or never became ready
            pass


def open_server_pidfd(held_by: dict[str, Any] | None) -> list[int]:
    """Return a file descriptor that becomes readable when the holding server process ends.

    Parameters
    ----------
    held_by : dict or None
        As `server_identity` returns it.

    Returns
    -------
    list of int
        One pidfd; empty if there is no such process or the kernel has no pidfds.
    """
    try:
        return [os.pidfd_open(held_by["pid"])] if held_by else []  # type: ignore[attr-defined,unused-ignore]
    except (OSError, AttributeError):  # it has ended, or a kernel before 5.3
        return []


def may_start(folder: str, held_by: dict[str, Any] | None) -> bool | None:
    """Check whether a process of the job may start.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    held_by : dict or None
        As `server_identity` returns it; None for a process that is not held at the barrier.

    Returns
    -------
    bool or None
        True: yes. False: never. None: not yet.
    """
    # Checked before the files, so that a server that releases and then ends is not mistaken for one that only ended.
    is_held = held_by is not None and procfs.is_alive(held_by["pid"], held_by["start_time"])
    if os.path.exists(os.path.join(folder, job_files.STOP)):
        return False
    if held_by is None or os.path.exists(os.path.join(folder, job_files.GO)):
        return True
    return None if is_held else False
