"""End the other ranks of a node gracefully when one of them has failed, before its launcher learns of it.

By itself a launcher signals them and their data loaders at once, and kills them after a time of its own. The supervisor
watches the launchers above the ranks (`torchfab.remote.job.launcher_hold`). One that is about to learn of a failed
rank, or gets a signal that would make it end its ranks, is held until they have ended. Then it continues, with that
signal: it restarts the ranks, or ends.
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

# Signals that make a launcher end its ranks. SIGURG comes from the launcher itself, before it ends them for reasons of
# its own (see `torchfab.launchers.torchrun_agent`); where nothing watches it, SIGURG does nothing.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGURG)
_REASONS = {signal.SIGCHLD: "failed", signal.SIGURG: "closing"}


class PeerEnd:
    """Whether the ranks of a process are being ended because one has failed, and how far that has got.

    Parameters
    ----------
    spec : dict
        The process's spec: `grace_s`, and `stop_by_file` where others signal all processes of the job at once.
    ranks : RankTracker
        Its ranks.
    ending : GracefulEnd
        Which processes have got which signal.

    Attributes
    ----------
    kill_at : float or None
        When the ranks that are left are killed, by time.monotonic(); None while none are being ended.
    reason : str
        Why they are being ended, or were last: "failed" (one of them), "closing" (the launcher was about to end them),
        or the signal that a launcher got.
    ended : dict of int to str
        Why each rank was ended, by pid.
    """

    def __init__(self, spec: dict[str, Any], ranks: RankTracker, ending: GracefulEnd) -> None:
        self.grace_s, self.is_all_signaled = float(spec["grace_s"]), bool(spec.get("stop_by_file"))
        self.ranks, self.ending = ranks, ending
        self.kill_at: float | None = None
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
            What waitpid has returned for it.
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

    def look(self, top: int) -> None:
        """Begin when a rank has failed, where launchers cannot be watched.

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
            # Ranks that have started since are the launcher's next attempt.
            if running != [top] and begun and max(rank["ended"] for rank in new) > max(begun):
                self._begin(_REASONS[signal.SIGCHLD])

    def _begin(self, reason: str) -> None:
        if self.kill_at is None:
            self.reason = reason
            self.ending.number = signal.SIGTERM
            self.kill_at = time.monotonic() + self.grace_s

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
            The ranks that are left after the grace period: the caller kills them.
        """
        if self.kill_at is None:
            return []
        running = self.ending.ranks_below([top])
        self.ended.update(dict.fromkeys(running, self.reason))
        if not self.ending.advance([top], may_end=False):
            self.kill_at = None
            self.ending.before_release()
            self.ending.hold.release()
            return []
        return running if time.monotonic() > self.kill_at else []
