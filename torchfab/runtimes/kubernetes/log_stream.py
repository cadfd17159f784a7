"""Follow a job on Kubernetes: the logs of its pods, and its status whenever that changes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

from torchfab.core.errors import TorchfabError
from torchfab.core.events import BacklogRead, ContactLost, Event, Lines, StatusChanged, Tick
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus
from torchfab.records import Record
from torchfab.runtimes.kubernetes import archive
from torchfab.runtimes.kubernetes.client import Cluster, ClusterError
from torchfab.runtimes.kubernetes.log_lines import Line, PodLogReader
from torchfab.runtimes.kubernetes.query import load_snapshot, selector
from torchfab.runtimes.kubernetes.status import JobSnapshot, Object, has_started, index_of, is_running, job_status

_POLL_S = 0.05
_MIN_REFRESH_S = 0.5  # a burst of changes causes one refresh
_MAX_REFRESH_S = 10.0  # refresh even if the watch reports no change
_RETRY_S = 2.0
_LAST_LINES_S = 10.0  # how long to wait for the last log lines after the job has ended
_MARGIN_S = 10  # overlap of two connections to one log; duplicates are dropped


@dataclass
class _Log:
    """The log of one pod; its own thread reads it."""

    node: Node
    pod: str
    reader: PodLogReader
    backlog_read: bool = False
    done: bool = False


@dataclass
class Follower:
    """Follow a job: its events come from `events`.

    Parameters
    ----------
    record : Record
        The job.
    request : Mapping
        `follow`, `lines`, `ranks`, `grep`.
    cluster : Cluster, optional
        The cluster; None for a stopped job, whose archive is read instead.
    nodes : sequence of Node
        The nodes to follow.
    """

    record: Record
    request: Mapping[str, Any]
    cluster: Cluster | None
    nodes: Sequence[Node]
    logs: dict[str, _Log] = field(default_factory=dict)
    queued: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    changed: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    last: JobStatus | None = None
    ended_at: float | None = None
    lost: bool = False

    def events(self) -> Iterator[Event]:
        """Yield the job's events.

        Returns
        -------
        iterator of Event
            Ends when the job has ended and its logs are read, or without `follow` when the existing lines are read.
        """
        snapshot, stopped = load_snapshot(self.cluster, self.record, with_lines=False)
        if not self.request["follow"] or self.cluster is None:
            yield from self._existing(snapshot, stopped)
            return
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield from self._apply(snapshot, stopped)
            yield from self._follow()
        finally:
            self.closed.set()

    # ---- existing lines only

    def _existing(self, snapshot: JobSnapshot, stopped: float | None) -> Iterator[Event]:
        found = job_status(self.record.nodes, snapshot, self.record.details, stopped)
        yield StatusChanged(found)
        for node in self.nodes:
            for pod in snapshot.pods_of(node.rank):
                log = self._log(node, pod)
                if self._wants_lines and has_started(pod):
                    yield Lines(node, log.reader.read_backlog(self._open_existing(log)))
            yield BacklogRead(node)

    def _open_existing(self, log: _Log) -> Iterator[bytes]:
        if self.cluster is None:
            yield from archive.load_log(self.record, log.pod) or ()
        else:
            yield from self.cluster.log(log.pod, follow=False, **self._tail())

    @property
    def _wants_lines(self) -> bool:
        return bool(self.request["lines"] != 0)

    def _tail(self) -> dict[str, int]:
        """Return an estimate of how many lines of a pod's log contain the last lines of each of its ranks."""
        if self.request["lines"] is None or self.request["ranks"] is not None or self.request["grep"]:
            return {}
        return {"tailLines": self.request["lines"] * (self.record.details["ranks_per_node"] + 1)}

    def _log(self, node: Node, pod: Object) -> _Log:
        first = node.rank * self.record.details["ranks_per_node"]
        return _Log(node, pod["metadata"]["name"], PodLogReader(first, self.request))

    # ---- live events

    def _follow(self) -> Iterator[Event]:
        refreshed = time.monotonic()
        while not self._is_done():
            idle = True
            while not self.queued.empty():
                idle = False
                yield self.queued.get()
            since = time.monotonic() - refreshed
            idle_s = _MIN_REFRESH_S if self.changed.is_set() else _RETRY_S if self.lost else _MAX_REFRESH_S
            if since > idle_s:
                self.changed.clear()
                refreshed = time.monotonic()
                yield from self._refresh()
            if idle:
                time.sleep(_POLL_S)
                yield Tick()
        while not self.queued.empty():
            yield self.queued.get()

    def _is_done(self) -> bool:
        if self.ended_at is None:
            return False
        return all(log.done for log in self.logs.values()) or time.monotonic() - self.ended_at > _LAST_LINES_S

    def _refresh(self) -> Iterator[Event]:
        try:
            yield from self._apply(*load_snapshot(self.cluster, self.record, with_lines=False))
            self.lost = False
        except ClusterError as error:
            yield from self._report_lost(error)

    def _apply(self, snapshot: JobSnapshot, stopped: float | None) -> Iterator[Event]:
        found = job_status(self.record.nodes, snapshot, self.record.details, stopped)
        self._start_logs(snapshot)
        if found != self.last:
            self.last = found
            yield StatusChanged(found)
        if found.has_ended and self.ended_at is None:
            self.ended_at = time.monotonic()

    def _start_logs(self, snapshot: JobSnapshot) -> None:
        ranks = {node.rank: node for node in self.nodes}
        for pod in snapshot.pods:
            name, node = pod["metadata"]["name"], ranks.get(index_of(pod))
            if node and self._wants_lines and has_started(pod) and name not in self.logs:
                self.logs[name] = log = self._log(node, pod)
                threading.Thread(target=self._read, args=(log,), daemon=True).start()

    def _report_lost(self, error: TorchfabError) -> Iterator[Event]:
        if not self.lost:
            self.lost = True
            yield ContactLost(self.nodes[0], error)

    # ---- threads

    def _watch(self) -> None:
        """Set `changed` whenever a pod changes. The watch only wakes the reader, which queries the state again.

        A watch that expires (410) or breaks therefore costs one query, and no change is missed.
        """
        assert self.cluster is not None
        while not self.closed.is_set():
            try:
                for _ in self.cluster.changes(selector(self.record)):
                    self.changed.set()
                    if self.closed.is_set():
                        return
            except Exception:
                self.closed.wait(_RETRY_S)
            self.changed.set()

    def _read(self, log: _Log) -> None:
        """Read a pod's log to its end, over any number of connections."""
        lost, received = False, time.monotonic()
        while not self.closed.is_set() and not log.done:
            try:
                for lines in self._read_connection(log, int(time.monotonic() - received) + _MARGIN_S):
                    received, lost = time.monotonic(), False
                    self.queued.put(Lines(log.node, lines))
                log.done = self.ended_at is not None or self._has_ended(log)
            except ClusterError as error:
                log.done = error.status == 404  # the pod was deleted together with its log
                if not lost and not log.done:
                    lost = True
                    self.queued.put(ContactLost(log.node, error))
            self.closed.wait(0.0 if log.done else _RETRY_S if lost else _POLL_S)
        self.changed.set()

    def _read_connection(self, log: _Log, since_s: int) -> Iterator[Sequence[Line]]:
        """Yield the lines of one connection: the first starts with the existing lines, later ones with new lines."""
        assert self.cluster is not None
        if not log.backlog_read:
            if lines := log.reader.read_backlog(self._open_existing(log)):
                yield lines
            log.backlog_read = True
            self.queued.put(BacklogRead(log.node))
        for line in log.reader.new_lines(self.cluster.log(log.pod, follow=True, sinceSeconds=since_s)):
            yield [line]

    def _has_ended(self, log: _Log) -> bool:
        assert self.cluster is not None
        pod = self.cluster.get("Pod", log.pod)
        return pod is None or not is_running(pod)
