"""The stall alarm of commands that follow a job: one message on stderr when it falls silent, one when it logs again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

from torchfab.core import stall
from torchfab.core.console import write_err
from torchfab.core.format import duration
from torchfab.core.status import JobStatus
from torchfab.monitoring.status_poller import StatusPoller

_RECHECK_S = 60.0  # during a silence: new lines may be hidden by --rank and --grep


class StallAlarm:
    """Detects that a job has fallen silent.

    The log lines that arrive here may be a subset of all (`--rank`, `--grep`), and their times come from another clock.
    When none has arrived for a while, the alarm therefore requests the job's status in the background and checks that.

    Parameters
    ----------
    name : str
        The job's name.
    stall_s : float
        Seconds of silence after which the alarm is raised. 0: never.
    status : callable
        Requests and returns the job's status.
    explain : callable
        Returns lines that explain the silence. It runs in a thread when the alarm is raised. Default: no lines.
    """

    def __init__(
        self,
        name: str,
        stall_s: float,
        status: Callable[[], JobStatus],
        explain: Callable[[], Iterable[str]] = lambda: (),
    ) -> None:
        self.name, self.stall_s, self.explain = name, stall_s, explain
        self.poller = StatusPoller(status, due_at=time.monotonic() + stall_s)
        self.newest = 0.0
        self.silent_since: float | None = None  # set while the alarm is raised; monotonic clock

    def feed(self, times: Iterable[float], live: bool) -> None:
        """Record the arrival of log lines.

        Parameters
        ----------
        times : iterable of float
            When they were written, by their node's clock. The older they are, the sooner the job's status is requested.
        live : bool
            Whether they were written just now.
        """
        newest = max(times, default=None)
        if newest is None:
            return
        self.newest = max(self.newest, newest)
        age_s = 0.0 if live else min(max(0.0, time.time() - self.newest), self.stall_s)
        self.poller.due_at = time.monotonic() + self.stall_s - age_s
        if live:
            self._clear(0.0)

    def poll(self) -> None:
        """Request the job's status when it is due, and raise or clear the alarm by the last one. Call this often."""
        if self.stall_s > 0 and (answer := self.poller.poll(min(self.stall_s, _RECHECK_S))):
            self._handle(answer)

    def _handle(self, answer: JobStatus) -> None:
        now = time.monotonic()
        quiet = stall.measure_silence(answer)
        if quiet is None:
            self.silent_since = None
        elif quiet.seconds < self.stall_s:
            self.poller.due_at = now + self.stall_s - quiet.seconds
            self._clear(quiet.seconds)
        elif self.silent_since is None:
            self.silent_since = now - quiet.seconds
            write_err(stall.render_warning(quiet, self.name))
            threading.Thread(target=self._explain, daemon=True).start()

    def _explain(self) -> None:
        for line in self.explain():
            write_err(f"  {line}")

    def _clear(self, age_s: float) -> None:
        """Report that the job logs again, if the alarm was raised."""
        if self.silent_since is not None:
            silent_s = time.monotonic() - age_s - self.silent_since
            self.silent_since = None
            write_err(f"{self.name}: it logs again, after {duration(silent_s)} of silence")
