"""The logs of a Slurm job, of all its nodes, read from the folder that they share; and how the job goes meanwhile."""

from __future__ import annotations

import os
import time

from torchfab.remote import files
from torchfab.remote.job import log_files
from torchfab.remote.job.log_reader import Reader, in_frames, read_lines
from torchfab.remote.slurm import job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from torchfab.remote.server import Conversation

    Line = list[Any]

BATCH = "slurm"  # the label of what the batch script and srun say
_POLL_S = 0.2
_YOUNG_S, _ASK_OFTEN_S, _ASK_SELDOM_S = 60.0, 1.0, 5.0  # slurmctld serves many people


class Stream:
    """Send the logs in frames, until the job has ended: `{"node", "lines"}`, `{"offsets"}`, `{"seen"}`, `{"end"}`.

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
        self.begun = time.monotonic()
        self.asked = 0.0
        self.told: Any = None

    def run(self, gone: Callable[[], bool]) -> None:
        """Stream until the job has ended, or `gone` says that nobody listens."""
        found = self._look()
        if not self.offsets:
            self._send_past()
        self.send({"past": True})
        follow, sizes = self.request["follow"], self._sizes()
        while not gone():
            if self._is_due():
                found = self._look()
            ended = not follow or has_ended(found)
            # Read once more after the end was seen: what was written before it is all there.
            has_read = self._send_news(final=ended)
            # Unless it is followed, a job that never stops to write is not read for ever.
            if (ended and not has_read) or (not follow and self._has_read(sizes)):
                break
            if not has_read:
                time.sleep(_POLL_S)
        self.send({"end": job.status(self.request)})

    # ---- how the job is

    def _is_due(self) -> bool:
        now = time.monotonic()
        pause = _ASK_OFTEN_S if now - self.begun < _YOUNG_S or self._all_wrote_an_end() else _ASK_SELDOM_S
        return now - self.asked > pause

    def _all_wrote_an_end(self) -> bool:
        folders = [job.node_folder(self.request["folder"], rank) for rank in range(self.request["nodes"])]
        return all(os.path.exists(os.path.join(each, job.AGENT, files.EXIT)) for each in folders)

    def _look(self) -> dict[str, Any]:
        found = job.status(self.request)
        self.asked = time.monotonic()
        states = [[each["state"] for each in node["status"]["processes"]] for node in found["nodes"] if node["status"]]
        if (told := (found["slurm"], states)) != self.told:
            self.told = told
            self.send({"seen": found})
        return found

    # ---- lines

    def _reader(self, rank: int) -> Reader:
        if rank not in self.readers:
            folder = job.node_folder(self.request["folder"], rank)
            # Its own alone: what it would keep of the others' grows old, and would be told as theirs.
            offsets = {path: end for path, end in self.offsets.items() if path.startswith(f"{folder}/")}
            self.readers[rank] = Reader(folder, {**self.request, "offsets": offsets})
        return self.readers[rank]

    def _send_past(self) -> None:
        for rank in range(self.request["nodes"]):
            self._send_lines(rank, self._reader(rank).past())
        if self._wants_batch():
            end = log_files.size(self.batch_log)
            lines = self._batch_lines(0, end, final=False)
            count = self.request["lines"]
            self._send_lines(0, lines if count is None else lines[len(lines) - min(count, len(lines)) :])

    def _send_news(self, final: bool) -> bool:
        """Send what is new; say whether anything was read, wanted or not."""
        before = self._read_so_far()
        for rank in range(self.request["nodes"]):
            self._send_lines(rank, self._reader(rank).news(final))
        if self._wants_batch():
            start, end = self.offsets.get(self.batch_log, 0), log_files.size(self.batch_log)
            self._send_lines(0, self._batch_lines(start, end, final))
        return self._read_so_far() != before

    def _read_so_far(self) -> dict[str, int]:
        return {**self.offsets, **{path: end for each in self.readers.values() for path, end in each.offsets.items()}}

    def _sizes(self) -> dict[str, int]:
        """Return the size of each wanted file, in bytes."""
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
        except OSError:  # the job has not begun
            return []
        lines: list[Line] = []
        for offset, text in read_lines(self.batch_log, start, end, final):
            self.offsets[self.batch_log] = offset
            lines.append([BATCH, when, text])
        pattern = self._reader(0).grep
        return [line for line in lines if pattern is None or pattern.search(line[2])]

    def _send_lines(self, rank: int, lines: list[Line]) -> None:
        for part in in_frames(lines):
            self.send({"node": rank, "lines": part})
        if lines:
            for reader in self.readers.values():
                self.offsets.update(reader.offsets)
            self.send({"offsets": self.offsets})


def answer_logs(request: dict[str, Any], link: Conversation) -> dict[str, Any]:
    """Stream the logs of a Slurm job."""
    Stream(request, link.send).run(link.hung_up)
    return {}


def has_ended(found: dict[str, Any]) -> bool:
    """Say whether Slurm says that nothing of the job runs or will run again."""
    told = found["slurm"]
    return "error" not in told and (told["state"] in job.FINAL or not told["state"])
