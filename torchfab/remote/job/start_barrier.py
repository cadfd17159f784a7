"""Between the two halves of phase two: every supervisor is up, and no process of the job has begun.

So a launch that fails on one node has run nothing of the user's on any, and the processes of all nodes begin together.
A supervisor says that it is there, and waits until the conversation that opened its window lets it go; where that ends
without, nothing begins.
"""

from __future__ import annotations

import os
import signal

from torchfab.remote import files, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NEVER_LET_GO = "never begun: its launch was cut off before all nodes were ready"


def holder() -> dict[str, int]:
    """Return what names this process in the specs of those that it holds."""
    return {"pid": os.getpid(), "start_time": procfs.start_time(os.getpid())}


def say_ready(folder: str) -> None:
    """Say, as the supervisor of the process whose folder this is, that it may be let go."""
    beside = os.path.join(folder, files.READY + ".new")
    with open(beside, "w", opener=_private) as file:  # not flushed to the disk: it matters for this moment alone
        file.write(str(os.getpid()))
    os.replace(beside, os.path.join(folder, files.READY))


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC, 0o600)


def release(folder: str, names: list[str]) -> None:
    """Let the processes of a job on this node begin, all that are ready."""
    with open(os.path.join(folder, files.GO), "w", opener=_private):
        pass
    for name in names:
        pid = files.read_json(os.path.join(folder, name, files.READY))
        try:
            # To look around: supervisors wake up for it, and do nothing else about it.
            os.kill(pid, signal.SIGCHLD)
        except (OSError, TypeError):  # it has ended meanwhile, or never came
            pass


def end_of(held_by: dict[str, Any] | None) -> list[int]:
    """Return a handle that can be read once the process that holds has ended; none where the kernel gives none."""
    try:
        return [os.pidfd_open(held_by["pid"])] if held_by else []  # type: ignore[attr-defined,unused-ignore]
    except (OSError, AttributeError):  # it has ended; or a kernel before 5.3
        return []


def verdict(folder: str, held_by: dict[str, Any] | None) -> bool | None:
    """Say whether a process of the job in this folder may begin; None: not yet, False: never.

    Parameters
    ----------
    folder : str
        The job's folder on this node.
    held_by : dict, optional
        As `holder` gives it; None where nobody holds the process.
    """
    holds = held_by is not None and procfs.is_alive(held_by["pid"], held_by["start_time"])  # before we look: no gap
    if os.path.exists(os.path.join(folder, files.STOP)):
        return False
    if held_by is None or os.path.exists(os.path.join(folder, files.GO)):
        return True
    return None if holds else False
