"""Hold launcher processes (torchrun, deepspeed, mpirun, orted, ...) so that they do not act while their ranks end.

A launcher that detects the end of one rank, or gets SIGTERM, signals the others and all processes below them, and kills
them after its own timeout. While held, it does neither. Only its main thread is held, with ptrace(2): torchrun's agent
serves the store of the rendezvous from another thread, and ranks that save may need it. The kernel releases a traced
process when the tracer ends, so a killed supervisor leaves no stopped process. If ptrace is not permitted, SIGSTOP is
used instead; it stops the store, too.

A watched launcher runs, but each signal to it, even an ignored one, stops it before the signal takes effect: so it can
be held before SIGCHLD reports the end of a rank to it.
"""

from __future__ import annotations

import os
import time

from torchfab.remote import light_stdlib, procfs
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_PTRACE_CONT, _PTRACE_DETACH = 7, 17
_PTRACE_SEIZE, _PTRACE_INTERRUPT, _PTRACE_LISTEN = 0x4206, 0x4207, 0x4208
_EVENT_STOP = 128  # a ptrace stop that is not the delivery of a signal
_STOPPING = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_WALL = 0x40000000
# A thread stops at once unless it waits for a disk; the end of the job waits no longer than this.
_STOP_TIMEOUT_S = 0.5


class Hold:
    """The processes that are held; all calls come from one thread, as ptrace requires.

    Parameters
    ----------
    may_stop : bool
        Whether SIGSTOP may be used instead of ptrace. A process stopped by it stays stopped if this one is killed.

    Attributes
    ----------
    watched : set of int
        Pids that run under ptrace.
    traced : set of int
        Pids held by ptrace.
    stopped : set of int
        Pids held by SIGSTOP.
    withheld : dict of int to int
        The signal that is delivered first when a process held by ptrace continues, by pid.
    """

    def __init__(self, may_stop: bool = True) -> None:
        self.may_stop = may_stop
        self.watched: set[int] = set()
        self.traced: set[int] = set()
        self.stopped: set[int] = set()
        self.withheld: dict[int, int] = {}

    def watch(self, pids: Iterable[int]) -> None:
        """Watch processes; those that are watched or held already, or cannot be traced, are skipped.

        Parameters
        ----------
        pids : iterable of int
            The processes.
        """
        for pid in pids:
            if pid not in self.watched | self.traced | self.stopped and _ptrace(_PTRACE_SEIZE, pid) == 0:
                self.watched.add(pid)

    def on_stopped(self, pid: int, status: int) -> int:
        """Continue a watched process, unless it was stopped by a signal that is about to take effect.

        Parameters
        ----------
        pid : int
            A process that has stopped under ptrace.
        status : int
            The status that waitpid returned for it.

        Returns
        -------
        int
            The signal: the caller calls `let_pass` or `hold`. 0: there is nothing to do.
        """
        number, is_event = os.WSTOPSIG(status), status >> 16 == _EVENT_STOP
        if pid in self.traced and not is_event:
            self.withheld[pid] = number
        if pid not in self.watched:
            return 0
        if not is_event:
            self.withheld[pid] = number
            return number
        _ptrace(_PTRACE_LISTEN if number in _STOPPING else _PTRACE_CONT, pid)
        return 0

    def let_pass(self, pid: int) -> None:
        """Continue a watched process with the signal that has stopped it.

        Parameters
        ----------
        pid : int
            The process.
        """
        _ptrace(_PTRACE_CONT, pid, self.withheld.pop(pid, 0))

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
            if pid in self.watched or _ptrace(_PTRACE_SEIZE, pid) == 0:
                self.watched.discard(pid)
                self.traced.add(pid)
                if pid not in self.withheld and (number := _interrupt(pid)):
                    self.withheld[pid] = number
            elif self.may_stop and _signal(pid, signal.SIGSTOP):
                self.stopped.add(pid)

    def release(self, pids: Iterable[int] | None = None) -> None:
        """Let processes continue: signals that were sent to them meanwhile are delivered first.

        Parameters
        ----------
        pids : iterable of int, optional
            Default: all that are held.
        """
        for pid in list(self.traced | self.stopped) if pids is None else pids:
            if pid in self.traced:
                self.traced.discard(pid)
                _detach(pid, self.withheld.pop(pid, 0))
            if pid in self.stopped:
                self.stopped.discard(pid)
                _signal(pid, signal.SIGCONT)

    def forget(self, pid: int) -> None:
        """Forget a process that has been reaped.

        Parameters
        ----------
        pid : int
            The process.
        """
        for pids in (self.watched, self.traced, self.stopped):
            pids.discard(pid)
        self.withheld.pop(pid, None)


def _interrupt(pid: int) -> int:
    """Stop the main thread of a traced process; return the signal that it was about to get, 0 if none."""
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while _ptrace(_PTRACE_INTERRUPT, pid) == 0 and time.monotonic() < deadline:
        try:
            stop = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return 0
        if stop is not None:
            return 0 if stop.si_status >> 8 == _EVENT_STOP else stop.si_status
        time.sleep(0.001)
    return 0


def _detach(pid: int, number: int) -> None:
    # The kernel does not report the end of a traced process to its parent until the tracer has reaped it.
    if _ptrace(_PTRACE_DETACH, pid, number) != 0 and not _is_child(pid):
        try:
            os.waitpid(pid, os.WNOHANG | _WALL)
        except ChildProcessError:
            pass


def _is_child(pid: int) -> bool:
    fields = procfs.stat_fields(pid)
    return bool(fields) and int(fields[1]) == os.getpid()


def _ptrace(request: int, pid: int, number: int = 0) -> int:
    return light_stdlib.c_function("ptrace")(request, pid, 0, number)


def _signal(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except OSError:  # it has ended, or belongs to another user
        return False
    return True
