"""Stream the load of a node at an interval until the launch machine disconnects: GPUs, CPUs, memory, and a job."""

from __future__ import annotations

import os
import time

from torchfab.remote import job_files
from torchfab.remote.host import gpu_usage, host_usage
from torchfab.remote.job import log_reader, status, step_rate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from torchfab.remote.server import Server

_FIRST_INTERVAL_S = 0.5  # between the first two samples, which give the first rates
_MAX_READS = 20  # blocks of 256 KiB per file and interval; a job that logs faster is not followed exactly


def handle(request: dict[str, Any], server: Server) -> dict[str, Any]:
    """Send `{"load": ...}` each interval.

    Parameters
    ----------
    request : dict
        `interval_s` (seconds); and, to include a job, its keys as `job_files.folder_of` takes them. They must be in
        the request itself, because the server redacts the secrets of the job that a request names.
    server : Server
        Sends the frames.

    Returns
    -------
    dict
        Empty.
    """
    job = JobProbe(request) if "job_id" in request else None
    before = host_usage.read_counters()
    disconnected = server.is_disconnected(min(_FIRST_INTERVAL_S, request["interval_s"]))
    while not disconnected:
        now = host_usage.read_counters()
        load = {**host_usage.rates(before, now), **gpu_usage.collect(), "time": time.time()}
        server.send({"load": {**load, "job": job.probe() if job else None}})
        before = now
        disconnected = server.is_disconnected(request["interval_s"])
    return {}


class JobProbe:
    """Probe one job on this node repeatedly: its status and its rates.

    Parameters
    ----------
    request : dict
        `node_dir`, `job_id`, `node_rank`.
    """

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.folder = job_files.folder_of(request)
        self.rate = step_rate.StepRate()
        self.reader: log_reader.Reader | None = None

    def probe(self) -> dict[str, Any] | None:
        """Return the job's status and rates.

        Returns
        -------
        dict or None
            `status`, and the keys of `StepRate.report`; None if the job was never on this node.
        """
        if not os.path.isdir(self.folder):
            return None
        self._read()
        job_status = status.status(self.folder, self.request["job_id"], self.request["node_rank"])
        return {"status": job_status, **self.rate.report(time.time())}

    def _read(self) -> None:
        if self.reader is None:
            self.reader = log_reader.Reader(self.folder, {"lines": 100, "ranks": None, "grep": None})
            self.rate.feed(self.reader.read_backlog())
            return
        for _ in range(_MAX_READS):
            lines = self.reader.read_new(final=False)
            if not lines:
                return
            self.rate.feed(lines)
