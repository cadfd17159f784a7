"""Find and end the processes of a rehearsal cluster, and no others: a pid counts only together with its start time."""

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
    """One process: its pid, and its start in clock ticks since boot (proc(5), field 22), because pids are reused."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the living process with this pid; None if there is none, or only a zombie."""
        fields = _stat(pid)
        return None if fields is None or fields[0] in "ZX" else cls(pid, int(fields[19]))

    def alive(self) -> bool:
        """Return whether it still runs."""
        return Process.of(self.pid) == self

    def signal(self, number: int) -> None:
        """Send a signal to exactly this process; do nothing if it has ended."""
        try:
            handle = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            if self.alive():  # checked after pidfd_open, so that a later owner of the pid is safe
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
    return text.rpartition(")")[2].split()  # the name before it may contain blanks and brackets


def _pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def living(pids: Iterable[int]) -> set[Process]:
    """Return the living processes among the pids."""
    return {process for process in map(Process.of, pids) if process}


def descendants(roots: set[Process]) -> set[Process]:
    """Return the roots that are alive, their children, grandchildren and so on."""
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
    """Return all processes that carry the cluster's mark in their environment."""
    entry = f"{MARK}={token}".encode()
    return living(pid for pid in _pids() if pid != os.getpid() and entry in _environment(pid))


def _environment(pid: int) -> list[bytes]:
    try:
        return (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or belongs to another user and so is not ours
        return []


def end(find: Callable[[], set[Process]], grace_s: float = 2.0) -> None:
    """End all processes that `find` returns; call it again until it returns none.

    Parameters
    ----------
    find : Callable
        Returns the processes to end.
    grace_s : float
        Seconds between TERM and KILL, default 2; after three times as long, give up.

    Raises
    ------
    RehearsalError
        Some are still alive.
    """
    begun = time.monotonic()
    signalled: set[tuple[Process, int]] = set()
    while left := find():
        waited = time.monotonic() - begun
        if waited > 3 * grace_s:
            raise RehearsalError(f"processes would not end: {', '.join(str(process.pid) for process in sorted(left))}")
        number = signal.SIGTERM if waited < grace_s else signal.SIGKILL
        for process in left:
            if (process, number) not in signalled:
                process.signal(number)
                signalled.add((process, number))
        time.sleep(POLL_S)
