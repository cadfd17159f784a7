"""End the other ranks of a node gracefully when one has failed, before its launcher detects the failure.

A launcher would signal them and their data loaders at once, and kill them after its own timeout. Therefore the
supervisor watches the launchers above the ranks (`torchfab.remote.job.launcher_hold`). A launcher that is about to
detect a failed rank, or gets a signal that would make it end its ranks, is held until they have ended. Then it
continues, with that signal: it restarts the ranks, or ends.
"""

from __future__ import annotations

import time

from torchfab.remote import light_stdlib, procfs
from torchfab.remote.job.graceful_end import GracefulEnd, launchers_above
from torchfab.remote.job.rank_tracker import RankTracker
from torchfab.remote.light_stdlib import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Signals that make a launcher end its ranks. The launcher sends SIGURG to itself before it ends them for other reasons
# (see `torchfab.launchers.torchrun_agent`); if it is not watched, SIGURG has no effect.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGURG)
# A scheduler that signals all processes of the job may have ended the rank that failed: its signal to the supervisor
# and the other ranks comes within this time, and they need no other.
_SCHEDULER_S = 1.0
_REASONS = {signal.SIGCHLD: "failed", signal.SIGURG: "closing"}


class PeerEnd:
    """The end of the ranks of a process after one has failed, and its progress.

    Parameters
    ----------
    spec : dict
        The process's spec: `grace_s`, and `stop_by_file` if another program signals all processes of the job at once.
    ranks : RankTracker
        Its ranks.
    ending : GracefulEnd
        Records which signal each process was sent.

    Attributes
    ----------
    kill_at : float or None
        When the remaining ranks are killed, by time.monotonic(); None while no ranks are being ended.
    reason : str
        Why they are being ended, or were ended last: "failed" (a rank failed), "closing" (the launcher was about to end
        them), or the signal that was sent to a launcher.
    ended : dict of int to str
        Why each rank was ended, by pid.
    """

    def __init__(self, spec: dict[str, Any], ranks: RankTracker, ending: GracefulEnd) -> None:
        self.grace_s, self.is_all_signaled = float(spec["grace_s"]), bool(spec.get("stop_by_file"))
        self.ranks, self.ending = ranks, ending
        self.kill_at: float | None = None
        self.signal_at = 0.0
        self.reason = ""
        self.ended: dict[int, str] = {}
        self.seen = 0  # failed ranks

    def watch(self, top: int) -> None:
        """Watch the launchers above the running ranks.

        Parameters
        ----------
        top : int
            The topmost process.
        """
        self.ending.hold.watch(launchers_above(top, self.ending.ranks_below([top])))

    def on_stopped(self, top: int, pid: int, status: int) -> None:
        """Hold a watched launcher if it would end its ranks now; else continue it.

        Parameters
        ----------
        top : int
            The topmost process.
        pid : int
            A process that has stopped under ptrace.
        status : int
            The status that waitpid returned for it.
        """
        number = self.ending.hold.on_stopped(pid, status)
        if number == 0:
            return
        running = self.ending.ranks_below([top])
        if not running or not (number in _ENDING or (number == signal.SIGCHLD and self._has_failed_rank(pid))):
            self.ending.hold.let_pass(pid)
            return
        if self.is_all_signaled and number == signal.SIGTERM:
            self.ending.assume_signaled(running)
        self.ending.hold.hold([pid])
        self._begin(_REASONS.get(number) or light_stdlib.signal_name(number))

    def check_ranks(self, top: int) -> None:
        """End the other ranks when one has failed; used if launchers cannot be watched.

        Parameters
        ----------
        top : int
            The topmost process.
        """
        failed = [rank for rank in self.ranks.ranks if rank["code"]]
        new, self.seen = failed[self.seen :], len(failed)
        if new and not self.ending.hold.watched and self.kill_at is None:
            running = self.ending.ranks_below([top])
            begun = [rank["started"] or 0.0 for rank in self.ranks.ranks if rank["pid"] in running]
            # Ranks that have started since then belong to the launcher's next attempt.
            if running != [top] and begun and max(rank["ended"] for rank in new) > max(begun):
                self._begin(_REASONS[signal.SIGCHLD])

    def _begin(self, reason: str) -> None:
        if self.kill_at is None:
            self.reason = reason
            self.ending.number = signal.SIGTERM
            self.signal_at = time.monotonic() + (_SCHEDULER_S if self.is_all_signaled else 0.0)
            self.kill_at = self.signal_at + self.grace_s

    def _has_failed_rank(self, launcher: int) -> bool:
        self.ranks.find_new()
        known = {rank["pid"] for rank in self.ranks.ranks}
        return any(procfs.exit_code_of_zombie(pid) for pid in procfs.children(launcher) if pid in known)

    def advance(self, top: int) -> list[int]:
        """Signal the ranks; once all have ended, let the launchers continue. Nothing happens before a failure.

        Parameters
        ----------
        top : int
            The topmost process, which runs.

        Returns
        -------
        list of int
            The ranks that remain after the grace period: the caller kills them.
        """
        if self.kill_at is None or time.monotonic() < self.signal_at:
            return []
        running = self.ending.ranks_below([top])
        self.ended.update(dict.fromkeys(running, self.reason))
        if not self.ending.advance([top], may_end=False):
            self.kill_at = None
            self.ending.before_release()
            self.ending.hold.release()
            return []
        return running if time.monotonic() > self.kill_at else []
