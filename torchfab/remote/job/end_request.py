"""The requested end of one process: first its ranks, then their launcher, then KILL for the rest."""

from __future__ import annotations

import os
import time

from torchfab.remote import job_files, light_stdlib
from torchfab.remote.job.graceful_end import GracefulEnd
from torchfab.remote.job.rank_tracker import RankTracker
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# How long launchers may take to end after their ranks; less if the grace period ends earlier, but never less than the
# second number.
_LAUNCHERS_S, _LAUNCHERS_MIN_S = 10.0, 3.0


class EndRequest:
    """The request to end a process, and its progress.

    Parameters
    ----------
    folder : str
        The process's folder.
    spec : dict
        Its spec: `grace_s`; `stop_by_file` if a file requests the end, because signals reach all processes; and
        `failed`, another file that does: a node of the job writes it when it has failed.
    ranks : RankTracker
        Its ranks.

    Attributes
    ----------
    signal : str or None
        The first signal that requested the end; None before.
    kill_at : float or None
        When the remaining processes are killed, by time.monotonic(): the machine's clock may be set meanwhile.
    ending : GracefulEnd
        Records which signal each process was sent.
    """

    def __init__(self, folder: str, spec: dict[str, Any], ranks: RankTracker) -> None:
        self.folder, self.spec, self.ranks = folder, spec, ranks
        self.signal: str | None = None
        self.requested = 0.0
        self.kill_at: float | None = None
        self.ending = GracefulEnd(ranks.is_rank, before_release=ranks.record_ends)
        self.ranks_ended: float | None = None  # when the last rank ended after the request

    def request(self, number: int) -> None:
        """Request the end, or shorten the grace period of an earlier request.

        Parameters
        ----------
        number : int
            The signal for the ranks.
        """
        kill_at = time.monotonic() + self.grace_s()
        if self.signal is None:
            self.signal, self.requested = light_stdlib.signal_name(number), time.time()
            self.ending.number = number
            self.kill_at = kill_at
            if self.spec.get("stop_by_file") and not self._is_requested_by_file():
                self.ending.assume_signaled(self.ranks.running())  # Slurm has signaled every process of the job
        elif self.ranks_ended is None:  # the latest request may allow less time
            self.kill_at = min(kill_at, self.kill_at or kill_at)

    def advance(self, pid: int) -> None:
        """Signal the ranks, then, once all have ended, their launcher; nothing happens before a request.

        Parameters
        ----------
        pid : int
            The process, which runs.
        """
        if self.signal is None and self.spec.get("stop_by_file") and self._is_requested_by_file():
            self.request(signal.SIGTERM)
        if self.signal is None:
            return
        may_end = self._may_launchers_end()
        had_ranks = bool(self.ending.hold.traced or self.ending.hold.stopped)
        if self.ending.advance([pid], may_end):
            return
        now = time.monotonic()
        if self.ranks_ended is None:
            self.ranks_ended = now
            _touch(os.path.join(self.folder, job_files.RANKS_ENDED))
            if not may_end and self.kill_at is not None:
                self.kill_at += _LAUNCHERS_MIN_S  # ranks of other nodes may use their whole grace period
        if had_ranks and may_end and self.kill_at is not None:
            self.kill_at = now + min(_LAUNCHERS_S, max(_LAUNCHERS_MIN_S, self.kill_at - now))

    def is_overdue(self) -> bool:
        """Return whether the grace period is over."""
        return self.kill_at is not None and time.monotonic() > self.kill_at

    def _is_requested_by_file(self) -> bool:
        stop = os.path.join(os.path.dirname(self.folder), job_files.STOP)
        return os.path.exists(stop) or os.path.exists(self.spec.get("failed", ""))

    def _may_launchers_end(self) -> bool:
        """Return whether launchers may end: not while a stop waits for ranks of other nodes, which may need them."""
        return not self._stop().get("ranks_first")

    def grace_s(self) -> float:
        """Return the grace period: that of the stop, or that of the launch.

        Returns
        -------
        float
            Seconds.
        """
        return float(self._stop().get("grace_s", self.spec["grace_s"]))

    def _stop(self) -> dict[str, Any]:
        return job_files.read_json(os.path.join(os.path.dirname(self.folder), job_files.STOP)) or {}

    def rank_ends(self, killed: dict[int, str]) -> dict[str, Any]:
        """Return how the ranks ended after the request: by themselves or killed, and the time that the former took.

        Parameters
        ----------
        killed : dict of int to str
            Processes that had to be killed, by pid.

        Returns
        -------
        dict
            `ended`, `killed`: numbers of ranks; `seconds`; `unfinished`: how many of the killed ones were still in
        their signal handler; `writing`: the files that these had open for writing.
        """
        ranks = [rank for rank in self.ranks.ranks if (rank["pid"], rank["start_time"]) in self.ending.signaled]
        by_kill = [rank for rank in ranks if rank["pid"] in killed]
        ended = [rank["ended"] for rank in ranks if rank not in by_kill and rank["ended"]]
        seconds = max(0.0, max(ended, default=self.requested) - self.requested)
        unfinished = [self.ending.unfinished.get((rank["pid"], rank["start_time"])) for rank in by_kill]
        return {
            "ended": len(ranks) - len(by_kill),
            "killed": len(by_kill),
            "seconds": seconds,
            "unfinished": sum(each is not None for each in unfinished),
            "writing": [path for each in unfinished for path in each or []],
        }


def _touch(path: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
    except OSError:  # a full disk: a stop then waits for the end of the launcher
        pass
