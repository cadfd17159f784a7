"""Find and end the processes of a rehearsal cluster, and no others: a pid is trusted only with its start time."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.layout import MARK, RehearsalError

PROC = Path("/proc")
POLL_S = 0.01


@dataclass(frozen=True, order=True)
class Process:
    """One process: its pid, and its start in clock ticks since boot (proc(5), field 22), as pids are used again."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Give the living process with this pid; None when there is none, or only its zombie."""
        fields = _stat(pid)
        return None if fields is None or fields[0] in "ZX" else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        """Tell whether it still runs."""
        return Process.of(self.pid) == self

    def signal(self, number: int) -> None:
        """Send a signal to this very process; do nothing when it has ended."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():  # asked after the handle is held: a later owner of the pid cannot be hit
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            pass
        finally:
            os.close(handle)


def _stat(pid: int) -> list[str] | None:
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the name before it may hold blanks and brackets


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def living(pids: Iterable[int]) -> set[Process]:
    """Give those of the pids that run."""
    return {process for process in map(Process.of, pids) if process}


def descendants(roots: set[Process]) -> set[Process]:
    """Give the roots that are alive, their children, grandchildren and so on."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        if fields := _stat(pid):
            children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    waiting = [root.pid for root in roots if root.alive()]
    while waiting:
        pid = waiting.pop()
        found.add(pid)
        waiting += [child for child in children.get(pid, []) if child not in found]
    return living(found)


def marked(token: str) -> set[Process]:
    """Give all processes that carry the cluster's mark in their environment."""
    entry = f"{MARK}={token}".encode()
    return living(pid for pid in _pids() if pid != os.getpid() and entry in _environment(pid))


def _environment(pid: int) -> list[bytes]:
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or is another user's and so not ours
        return []


def end(find: Callable[[], set[Process]], grace_s: float = 2.0) -> None:
    """End all that `find` finds, asking it again until it finds nothing.

    Parameters
    ----------
    find : Callable
        Gives the processes that must go.
    grace_s : float
        Seconds between TERM and KILL, default 2; after three times as long, some are beyond killing.

    Raises
    ------
    RehearsalError
        Some are still there.
    """
    begun = time.monotonic()
    told: set[tuple[Process, int]] = set()
    while left := find():
        waited = time.monotonic() - begun
        if waited > 3 * grace_s:
            raise RehearsalError(f"processes would not end: {', '.join(str(process.pid) for process in sorted(left))}")
        number = signal.SIGTERM if waited < grace_s else signal.SIGKILL
        for process in left:
            if (process, number) not in told:
                process.signal(number)
                told.add((process, number))
        time.sleep(POLL_S)
