"""End the processes that a process of the job leaves behind at its end: TERM, the grace period, KILL."""

from __future__ import annotations

import os
import time

from torchfab.remote import procfs
from torchfab.remote.job.containment import Containment
from torchfab.remote.job.graceful_end import GracefulEnd
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_CHAIN_TRIES = 1000
# How long processes may take to end after SIGKILL; one that waits for a broken disk or device never ends.
_UNENDABLE_S = 10.0


class CleanUp:
    """End all processes that descend from one process of the job.

    Parameters
    ----------
    find_children : callable
        Returns the pids of the supervisor's children that descend from the process.
    ending : GracefulEnd
        Records which signal each process was sent.
    containment : Containment
        The process's control group.

    Attributes
    ----------
    left : list of str
        Descriptions of the processes that it left behind.
    killed : dict of int to str
        Processes that had to be killed: description by pid.
    foreign : list of dict
        Processes that cannot be ended, as `torchfab.remote.job.process_search.identify` returns them.
    """

    def __init__(self, find_children: Callable[[], list[int]], ending: GracefulEnd, containment: Containment) -> None:
        self.find_children, self.ending, self.containment = find_children, ending, containment
        self.deadline = 0.0
        self.left: list[str] = []
        self.killed: dict[int, str] = {}
        self.foreign: list[dict[str, Any]] = []

    def begin(self, deadline: float) -> None:
        """Record the processes that are left.

        Parameters
        ----------
        deadline : float
            When they are killed, by time.monotonic().
        """
        self.deadline = deadline
        self.ending.number = signal.SIGTERM
        if not self._is_empty(self.find_children()):
            self.left = [procfs.describe(pid) for pid in self.remaining()]

    def advance(self) -> bool:
        """Signal the processes that were not signaled yet; after the deadline, kill them.

        Returns
        -------
        bool
            Whether the clean-up is finished: no process is left, or those that are left cannot be ended.
        """
        children = self.find_children()
        if self._is_empty(children):
            return True
        # Topmost processes first: the processes below them are helpers, which become topmost when those have ended.
        self.ending.advance(pid for pid in children if procfs.is_running(pid))
        return time.monotonic() > self.deadline and self._kill_all()

    def _is_empty(self, children: list[int]) -> bool:
        return not children and not self.containment.members()

    def remaining(self) -> list[int]:
        """Return the processes that are left, including children that /proc does not show (hidepid).

        Returns
        -------
        list of int
            Their pids.
        """
        children = self.find_children()
        found = [pid for pid in children if procfs.is_running(pid) or procfs.is_foreign(pid)]
        return list(dict.fromkeys([*found, *procfs.descendants(children), *self.containment.members()]))

    def _kill_all(self) -> bool:
        remaining = self.remaining()
        self.kill([pid for pid in remaining if not procfs.is_foreign(pid)])
        self.containment.kill()
        self._kill_chain()
        if not remaining or (time.monotonic() <= self.deadline + _UNENDABLE_S and not self._are_foreign(remaining)):
            return False
        from torchfab.remote.job.process_search import identify  # imported here: few jobs have such processes

        self.foreign = [identify(pid) for pid in remaining]  # sudo, or a broken disk: only reported
        return True

    def _are_foreign(self, pids: list[int]) -> bool:
        return all(map(procfs.is_foreign, pids)) and not self.containment.members()

    def kill(self, pids: list[int], may_continue: bool = True) -> None:
        """Kill processes, and record them in `killed`.

        Parameters
        ----------
        pids : list of int
            The processes.
        may_continue : bool
            Whether held launchers continue at once. Default True.
        """
        for pid in pids:
            self.killed.setdefault(pid, procfs.describe(pid))
        signal_all(pids, signal.SIGKILL)
        if may_continue:
            self.ending.hold.release()

    def _kill_chain(self) -> None:
        """Kill processes that fork and exit faster than a search of /proc takes: each becomes a child of this one."""
        before: list[int] = []
        for _ in range(_CHAIN_TRIES):
            pids = [pid for pid in self.find_children() if not procfs.is_foreign(pid)]
            if not pids or pids == before:
                break
            signal_all(pids, signal.SIGKILL)
            for pid in pids:
                _reap(pid)
            before = pids


def signal_all(pids: list[int], number: int) -> None:
    """Send a signal to processes; those that have ended are skipped.

    Parameters
    ----------
    pids : list of int
        The processes.
    number : int
        The signal.
    """
    for pid in pids:
        try:
            os.kill(pid, number)
        except OSError:  # it has ended
            pass


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass
