"""End process trees so that every rank can save: one SIGTERM to each rank, and to no process above or below it.

1. The launcher processes above the ranks are held (`torchfab.remote.job.launcher_hold`).
2. Each rank gets the signal once. Its data loaders and helpers, which are its children, get none.
3. When the ranks of a tree have ended, its topmost process gets SIGTERM, and the held ones continue, so that they end.

In a tree without ranks, the topmost process gets the signal. The caller kills the rest after the grace period.
"""

from __future__ import annotations

import os

from torchfab.remote import procfs
from torchfab.remote.job.launcher_hold import Hold
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class GracefulEnd:
    """End the trees below a process.

    Parameters
    ----------
    is_rank : callable
        Takes a pid and returns whether that process is a rank.
    may_stop : bool
        As in `Hold`.
    before_release : callable, optional
        Called before held launchers continue: they reap their ranks, after which the exit codes are lost.

    Attributes
    ----------
    number : int
        The signal for the ranks.
    signaled : dict of (int, int) to int
        The signal that each process got, by pid and start time.
    unfinished : dict of (int, int) to list of str
        The killed ranks that had a handler, by pid and start time, with the files that each had open for writing.
    """

    def __init__(
        self,
        is_rank: Callable[[int], bool],
        may_stop: bool = True,
        before_release: Callable[[], None] = lambda: None,
    ) -> None:
        self.is_rank, self.before_release = is_rank, before_release
        self.number: int = signal.SIGTERM
        self.hold = Hold(may_stop)
        self.signaled: dict[tuple[int, int], int] = {}
        self.unfinished: dict[tuple[int, int], list[str]] = {}

    def ranks_below(self, tops: Iterable[int]) -> list[int]:
        """Return the running ranks at and below some processes.

        Parameters
        ----------
        tops : iterable of int
            The topmost processes.

        Returns
        -------
        list of int
            Their pids.
        """
        return [pid for top in tops for pid in procfs.find_below(top, self.is_rank) if procfs.is_running(pid)]

    def advance(self, tops: Iterable[int], may_end: bool = True) -> bool:
        """Signal the processes that were not signaled yet; call it again after each end of a rank.

        Parameters
        ----------
        tops : iterable of int
            The topmost processes: those that have not ended are signaled.
        may_end : bool
            False: launchers stay held, and processes without ranks get no signal yet.

        Returns
        -------
        bool
            Whether ranks still run.
        """
        has_ranks = False
        for top in tops:
            ranks = self.ranks_below([top])
            if ranks:
                has_ranks = True
                self.hold.hold(launchers_above(top, ranks))
                for pid in ranks:
                    self._signal(pid, self.number)
            elif may_end:
                self._end_tree(top)
        return has_ranks

    def assume_signaled(self, pids: Iterable[int]) -> None:
        """Record that processes were already sent the signal by another program, so that they get no second one.

        Parameters
        ----------
        pids : iterable of int
            The processes.
        """
        for pid in pids:
            self.signaled.setdefault((pid, procfs.start_time(pid)), self.number)

    def note_unfinished(self, pids: Iterable[int], folder: str) -> None:
        """Record, before ranks are killed, which are still in their signal handler, and the files that they write.

        Parameters
        ----------
        pids : iterable of int
            The processes that are about to be killed.
        folder : str
            The job's folder, whose files are logs.
        """
        from torchfab.remote.job import open_files  # imported here: most ranks end by themselves

        for pid in pids:
            key = (pid, procfs.start_time(pid))
            number = self.signaled.get(key)
            if number is not None and key not in self.unfinished and procfs.handles(pid, number):
                self.unfinished[key] = open_files.written_by([pid, *procfs.descendants([pid])], folder)

    def _end_tree(self, top: int) -> None:
        held = self.hold.traced | self.hold.stopped
        if held:
            below = [pid for pid in [top, *procfs.descendants([top])] if pid in held]
            # SIGTERM is pending in the held process, so that it is handled before the end of the ranks is noticed:
            # otherwise an agent would restart them.
            if self.hold.withheld.get(top) != signal.SIGTERM:
                self._signal(top, signal.SIGTERM)
            self.before_release()
            self.hold.release(below)
        else:
            self._signal(top, self.number)

    def _signal(self, pid: int, number: int) -> None:
        key = (pid, procfs.start_time(pid))
        if key not in self.signaled:
            self.signaled[key] = number
            try:
                os.kill(pid, number)
            except OSError:  # it has ended
                pass


def launchers_above(top: int, ranks: Iterable[int]) -> list[int]:
    """Return the processes above ranks, up to and with `top`.

    Parameters
    ----------
    top : int
        The topmost process.
    ranks : iterable of int
        Ranks at or below it.

    Returns
    -------
    list of int
        Their pids, each once, topmost first for each rank; none for a rank that is the top itself.
    """
    return list(dict.fromkeys(pid for rank in ranks for pid in _between(top, rank)))


def _between(top: int, rank: int) -> list[int]:
    """Return the processes above a rank, up to and with `top`, topmost first; none if the rank itself is the top."""
    found: list[int] = []
    pid = rank
    while pid not in (top, 0, 1):
        fields = procfs.stat_fields(pid)
        if not fields:
            return []
        pid = int(fields[1])
        found.insert(0, pid)
    return found
