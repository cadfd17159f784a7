"""Hold launcher processes (torchrun, deepspeed, mpirun, orted, ...) so that they do not act while their ranks end.

A launcher that sees one rank end, or gets SIGTERM, signals the others and all processes below them, and kills them
after a time of its own. Held, it does neither. Only its main thread is held, with ptrace(2): torchrun's agent serves
the store of the rendezvous from another thread, and ranks that save may need it. The kernel ends such a hold when the
process that holds ends, so a killed supervisor leaves no stopped process. Where ptrace is not permitted, SIGSTOP takes
its place; it stops the store too.
"""

from __future__ import annotations

import os
import time

from torchfab.remote import lean, procfs
from torchfab.remote.lean import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PTRACE_DETACH, _PTRACE_SEIZE, _PTRACE_INTERRUPT = 17, 0x4206, 0x4207
_WALL = 0x40000000
# A thread stops at once unless it waits for a disk; the end of the job does not wait longer for it.
_STOP_TIMEOUT_S = 0.5


class Hold:
    """The processes that are held; all calls come from one thread, as ptrace requires.

    Parameters
    ----------
    may_stop : bool
        Whether SIGSTOP may take the place of ptrace. A process stopped so stays stopped if this one is killed.

    Attributes
    ----------
    traced : set of int
        Pids held by ptrace.
    stopped : set of int
        Pids held by SIGSTOP.
    """

    def __init__(self, may_stop: bool = True) -> None:
        self.may_stop = may_stop
        self.traced: set[int] = set()
        self.stopped: set[int] = set()

    def hold(self, pids: Iterable[int]) -> None:
        """Hold processes; those that are held already, or have ended, are skipped.

        Parameters
        ----------
        pids : iterable of int
            The processes.
        """
        for pid in pids:
            if pid in self.traced or pid in self.stopped:
                continue
            if _trace(pid):
                self.traced.add(pid)
            elif self.may_stop and _signal(pid, signal.SIGSTOP):
                self.stopped.add(pid)

    def release(self, pids: Iterable[int] | None = None) -> None:
        """Let processes continue: signals that they got meanwhile are the first thing they see.

        Parameters
        ----------
        pids : iterable of int, optional
            Default: all that are held.
        """
        for pid in list(self.traced | self.stopped) if pids is None else pids:
            if pid in self.traced:
                self.traced.discard(pid)
                _detach(pid)
            if pid in self.stopped:
                self.stopped.discard(pid)
                _signal(pid, signal.SIGCONT)


def _trace(pid: int) -> bool:
    """Stop the main thread of a process; return whether that was possible."""
    if _ptrace(_PTRACE_SEIZE, pid) != 0:
        return False
    _ptrace(_PTRACE_INTERRUPT, pid)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while time.monotonic() < deadline and _event(pid) == 0:
        time.sleep(0.001)
    return True


def _detach(pid: int) -> None:
    # The kernel keeps a traced process that has ended from its parent until the tracer has reaped it.
    if _ptrace(_PTRACE_DETACH, pid) != 0 and not _is_child(pid):
        _event(pid)


def _is_child(pid: int) -> bool:
    fields = procfs.stat_fields(pid)
    return bool(fields) and int(fields[1]) == os.getpid()


def _event(pid: int) -> int:
    """Take what waitpid reports of a traced process; return 0 if that is nothing."""
    try:
        return os.waitpid(pid, os.WNOHANG | _WALL)[0]
    except ChildProcessError:
        return pid


def _ptrace(request: int, pid: int) -> int:
    return lean.c_function("ptrace")(request, pid)


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except OSError:  # gone meanwhile, or of another user
        return False
    return True
