"""Stream the logs of all nodes of a Slurm job from the folder that they share, and the status of the job."""

from __future__ import annotations

import os
import time

from torchfab.remote import job_files
from torchfab.remote.job import log_files
from torchfab.remote.job.log_reader import Reader, read_lines, split_into_frames
from torchfab.remote.slurm import job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torchfab.remote.server import Server

    Line = list[Any]

BATCH = "slurm"  # the label of the output of the batch script and srun
_POLL_S = 0.2
# slurmctld serves many users: query it each second during the first minute and near the end, else every 5 seconds.
_STARTUP_S, _SHORT_QUERY_S, _LONG_QUERY_S = 60.0, 1.0, 5.0


class Stream:
    """Send the logs in frames until the job has ended: `{"node", "lines"}`, `{"offsets"}`, `{"seen"}`, `{"end"}`.

    Parameters
    ----------
    request : dict
        As for `torchfab.remote.slurm.job.status`, and `follow`, `lines`, `ranks`, `grep`, `offsets`.
    send : callable
        Sends one frame.
    """

    def __init__(self, request: dict[str, Any], send: Callable[[Any], None]) -> None:
        self.request, self.send = request, send
        self.offsets: dict[str, int] = dict(request.get("offsets") or {})
        self.readers: dict[int, Reader] = {}
        self.batch_log = os.path.join(request["folder"], job.LOG)
        self.started_at = time.monotonic()
        self.queried_at = 0.0
        self.last_sent: Any = None

    def run(self, is_disconnected: Callable[[], bool]) -> None:
        """Stream until the job has ended or the launch machine disconnects.

        Parameters
        ----------
        is_disconnected : callable
            Returns whether the launch machine has disconnected.
        """
        job_status = self._query()
        if not self.offsets:
            self._send_backlog()
        self.send({"past": True})
        follow, sizes = self.request["follow"], self._sizes()
        while not is_disconnected():
            if self._is_due():
                job_status = self._query()
            ended = not follow or has_ended(job_status)
            # Once the job has ended, read once more: everything written before is complete by then.
            has_read = self._send_new(final=ended)
            # Without `follow`, stop at the sizes found at the start, even if the job never stops writing.
            if (ended and not has_read) or (not follow and self._has_read(sizes)):
                break
            if not has_read:
                time.sleep(_POLL_S)
        self.send({"end": job.status(self.request)})

    # ---- status of the job

    def _is_due(self) -> bool:
        now = time.monotonic()
        is_starting = now - self.started_at < _STARTUP_S
        interval_s = _SHORT_QUERY_S if is_starting or self._all_have_exit_records() else _LONG_QUERY_S
        return now - self.queried_at > interval_s

    def _all_have_exit_records(self) -> bool:
        folders = [job.node_folder(self.request["folder"], rank) for rank in range(self.request["nodes"])]
        return all(os.path.exists(os.path.join(each, job.AGENT, job_files.EXIT)) for each in folders)

    def _query(self) -> dict[str, Any]:
        job_status = job.status(self.request)
        self.queried_at = time.monotonic()
        node_statuses = [node["status"] for node in job_status["nodes"] if node["status"]]
        states = [[process["state"] for process in each["processes"]] for each in node_statuses]
        if (current := (job_status["slurm"], states)) != self.last_sent:
            self.last_sent = current
            self.send({"seen": job_status})
        return job_status

    # ---- lines

    def _reader(self, rank: int) -> Reader:
        if rank not in self.readers:
            folder = job.node_folder(self.request["folder"], rank)
            # Only the node's own offsets: those of other nodes would become outdated here and overwrite newer ones.
            offsets = {path: end for path, end in self.offsets.items() if path.startswith(f"{folder}/")}
            self.readers[rank] = Reader(folder, {**self.request, "offsets": offsets})
        return self.readers[rank]

    def _send_backlog(self) -> None:
        for rank in range(self.request["nodes"]):
            self._send_lines(rank, self._reader(rank).read_backlog())
        if self._wants_batch():
            end = log_files.size(self.batch_log)
            lines = self._batch_lines(0, end, final=False)
            count = self.request["lines"]
            self._send_lines(0, lines if count is None else lines[len(lines) - min(count, len(lines)) :])

    def _send_new(self, final: bool) -> bool:
        """Send new lines; return whether anything was read, including lines that the request filters out."""
        before = self._read_so_far()
        for rank in range(self.request["nodes"]):
            self._send_lines(rank, self._reader(rank).read_new(final))
        if self._wants_batch():
            start, end = self.offsets.get(self.batch_log, 0), log_files.size(self.batch_log)
            self._send_lines(0, self._batch_lines(start, end, final))
        return self._read_so_far() != before

    def _read_so_far(self) -> dict[str, int]:
        return {**self.offsets, **{path: end for each in self.readers.values() for path, end in each.offsets.items()}}

    def _sizes(self) -> dict[str, int]:
        """Return the size of each requested file, in bytes by path."""
        sizes = {self.batch_log: log_files.size(self.batch_log)} if self._wants_batch() else {}
        for rank in range(self.request["nodes"]):
            sizes.update(self._reader(rank).sizes())
        return sizes

    def _has_read(self, sizes: dict[str, int]) -> bool:
        offsets = self._read_so_far()
        return all(offsets.get(path, 0) >= size for path, size in sizes.items())

    def _wants_batch(self) -> bool:
        return self.request["ranks"] is None

    def _batch_lines(self, start: int, end: int, final: bool) -> list[Line]:
        try:
            when = os.stat(self.batch_log).st_mtime
        except OSError:  # the job has not started
            return []
        lines: list[Line] = []
        for offset, text in read_lines(self.batch_log, start, end, final):
            self.offsets[self.batch_log] = offset
            lines.append([BATCH, when, text])
        pattern = self._reader(0).grep
        return [line for line in lines if pattern is None or pattern.search(line[2])]

    def _send_lines(self, rank: int, lines: list[Line]) -> None:
        for part in split_into_frames(lines):
            self.send({"node": rank, "lines": part})
        if lines:
            for reader in self.readers.values():
                self.offsets.update(reader.offsets)
            self.send({"offsets": self.offsets})


def handle(request: dict[str, Any], server: Server) -> dict[str, Any]:
    """Stream the logs of a Slurm job.

    Parameters
    ----------
    request : dict
        As for `Stream`.
    server : Server
        Sends the frames.

    Returns
    -------
    dict
        Empty.
    """
    Stream(request, server.send).run(server.is_disconnected)
    return {}


def has_ended(job_status: dict[str, Any]) -> bool:
    """Check whether, according to Slurm, the job does not run and will not run again.

    Parameters
    ----------
    job_status : dict
        As `torchfab.remote.slurm.job.status` returns it.

    Returns
    -------
    bool
        False also if Slurm cannot be queried.
    """
    slurm = job_status["slurm"]
    return "error" not in slurm and (slurm["state"] in job.FINAL or not slurm["state"])
