"""What a node does, told each interval until the launch machine hangs up: GPUs, CPUs, memory, and the job on it."""

from __future__ import annotations

import os
import time

from torchfab.remote import files
from torchfab.remote.host import gpu_usage, host_usage
from torchfab.remote.job import log_reader, step_rate
from torchfab.remote.job import status as life

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from torchfab.remote.server import Conversation

_FIRST_S = 0.5  # between the first two looks, from which the first rates come
_MOST_READS = 20  # of 256 KiB a file: a job that logs faster than that is not worth keeping up with


def stream(request: dict[str, Any], link: Conversation) -> dict[str, Any]:
    """Send `{"load": ...}` each interval.

    Parameters
    ----------
    request : dict
        `interval_s`, and of a job that is to be looked at what names it here, as `files.folder_of` takes it. (That its
        names stand in the request itself is what hides its secrets: see `wire`.)
    """
    job = JobLook(request) if "job_id" in request else None
    before = host_usage.look()
    waiting = link.hung_up(min(_FIRST_S, request["interval_s"]))
    while not waiting:
        now = host_usage.look()
        load = {**host_usage.rates(before, now), **gpu_usage.look(), "time": time.time()}
        link.send({"load": {**load, "job": job.tell() if job else None}})
        before = now
        waiting = link.hung_up(request["interval_s"])
    return {}


class JobLook:
    """Look at one job on this node again and again: how it is, and at which pace it logs."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.folder = files.folder_of(request)
        self.pace = step_rate.Pace()
        self.reader: log_reader.Reader | None = None

    def tell(self) -> dict[str, Any] | None:
        """Return its status and its pace; None where it was never on this node."""
        if not os.path.isdir(self.folder):
            return None
        self._read()
        status = life.status(self.folder, self.request["job_id"], self.request["node_rank"])
        return {"status": status, **self.pace.tell(time.time())}

    def _read(self) -> None:
        if self.reader is None:
            self.reader = log_reader.Reader(self.folder, {"lines": 100, "ranks": None, "grep": None})
            self.pace.take(self.reader.past())
            return
        for _ in range(_MOST_READS):
            lines = self.reader.news(final=False)
            if not lines:
                return
            self.pace.take(lines)
