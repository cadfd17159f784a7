"""The hang alarm of whoever watches a job: told once per silence on stderr, and again when the job logs again."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable

from torchfab.core import stall
from torchfab.core.console import write_err
from torchfab.core.errors import TorchfabError
from torchfab.core.status import JobStatus, duration

_LOOK_AGAIN_S = 60.0  # while it is silent, and lines may come that we did not ask for (--rank, --grep)


class Alarm:
    """Notice that a job has fallen silent.

    The lines that one watches may be few of all (`--rank`, `--grep`), and their times are another clock's. So when none
    has come for a while the job itself is asked, in the background: what it says decides.

    Parameters
    ----------
    name : str
        The job's name.
    stall_s : float
        After how many seconds of silence the alarm is told; 0: never.
    ask : callable
        Returns how the job is.
    """

    def __init__(self, name: str, stall_s: float, ask: Callable[[], JobStatus]) -> None:
        self.name, self.stall_s, self.ask = name, stall_s, ask
        self.look_at = time.monotonic() + stall_s
        self.newest = 0.0
        self.silent_since: float | None = None  # as told, by the monotonic clock
        self.asking = False
        self.answers: queue.SimpleQueue[JobStatus | Exception] = queue.SimpleQueue()

    def hear(self, times: Iterable[float], live: bool) -> None:
        """Take note of log lines.

        Parameters
        ----------
        times : iterable of float
            When they were written, by their node's clock; when that was long ago, the job is asked the sooner.
        live : bool
            Whether they were written just now.
        """
        newest = max(times, default=None)
        if newest is None:
            return
        self.newest = max(self.newest, newest)
        age_s = 0.0 if live else min(max(0.0, time.time() - self.newest), self.stall_s)
        self.look_at = time.monotonic() + self.stall_s - age_s
        if live:
            self._resume(0.0)

    def pace(self) -> None:
        """Ask the job when it is time to, and tell what it says."""
        if self.stall_s <= 0:
            return
        while not self.answers.empty():
            self.asking = False
            self._take(self.answers.get())
        if not self.asking and time.monotonic() >= self.look_at:
            self.asking = True
            threading.Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        try:
            self.answers.put(self.ask())
        except Exception as error:  # whoever watches it hears of that as well
            self.answers.put(error)

    def _take(self, answer: JobStatus | Exception) -> None:
        now = time.monotonic()
        self.look_at = now + min(self.stall_s, _LOOK_AGAIN_S)
        if isinstance(answer, TorchfabError):
            return
        if isinstance(answer, Exception):
            raise answer
        quiet = stall.quiet(answer)
        if quiet is None:
            self.silent_since = None
        elif quiet.seconds < self.stall_s:
            self.look_at = now + self.stall_s - quiet.seconds
            self._resume(quiet.seconds)
        elif self.silent_since is None:
            self.silent_since = now - quiet.seconds
            write_err(stall.words(quiet, self.name))

    def _resume(self, age_s: float) -> None:
        if self.silent_since is not None:
            silent_s = time.monotonic() - age_s - self.silent_since
            self.silent_since = None
            write_err(f"{self.name}: it logs again, after {duration(silent_s)} of silence")
