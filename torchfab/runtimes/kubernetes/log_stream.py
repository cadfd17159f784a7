"""Following a job: the logs of its pods as they come, and how it is whenever that changes."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchfab.core.errors import TorchfabError
from torchfab.core.events import BacklogRead, ContactLost, Event, Lines, StatusChanged, Tick
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus
from torchfab.records import Record
from torchfab.runtimes.kubernetes import archive
from torchfab.runtimes.kubernetes.client import Cluster, ClusterError
from torchfab.runtimes.kubernetes.log_lines import Line, Reader
from torchfab.runtimes.kubernetes.query import look, selector
from torchfab.runtimes.kubernetes.status import Object, Seen, has_started, index_of, is_running, job_status

_POLL_S = 0.05
_PACE_S = 0.5  # changes that come in a burst are looked at once
_LOOK_S = 10.0  # also when the watch is silent
_RETRY_S = 2.0
_LAST_LINES_S = 10.0  # how long the end of a log is waited for, once its pod has ended
_MARGIN_S = 10


@dataclass
class _Log:
    """The log of one pod as it is read, in a thread of its own."""

    node: Node
    pod: str
    reader: Reader
    past_read: bool = False
    done: bool = False


@dataclass
class Follower:
    """Yield the events of a job.

    Parameters
    ----------
    record : Record
        The job.
    request : Mapping
        `follow`, `lines`, `ranks`, `grep`.
    cluster : Cluster, optional
        Where it is; None once it was stopped, and only what was kept of it is left.
    nodes : sequence of Node
        Which of its nodes to follow.
    """

    record: Record
    request: Mapping[str, Any]
    cluster: Cluster | None
    nodes: Sequence[Node]
    logs: dict[str, _Log] = field(default_factory=dict)
    told: queue.SimpleQueue[Event] = field(default_factory=queue.SimpleQueue)
    changed: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    last: JobStatus | None = None
    ended_at: float | None = None
    lost: bool = False

    def events(self) -> Iterator[Event]:
        """Yield lines, states and ticks until the job has ended and its logs were read."""
        seen, stopped = look(self.cluster, self.record, with_lines=False)
        if not self.request["follow"] or self.cluster is None:
            yield from self._past(seen, stopped)
            return
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield from self._take(seen, stopped)
            yield from self._live()
        finally:
            self.closed.set()

    # ---- the past alone

    def _past(self, seen: Seen, stopped: float | None) -> Iterator[Event]:
        found = job_status(self.record.nodes, seen, self.record.details, stopped)
        yield StatusChanged(found)
        for node in self.nodes:
            for pod in seen.pods_of(node.rank):
                log = self._log(node, pod)
                if self._wants_lines and has_started(pod):
                    yield Lines(node, log.reader.past(self._open_past(log)))
            yield BacklogRead(node)

    def _open_past(self, log: _Log) -> Iterator[bytes]:
        if self.cluster is None:
            yield from archive.kept_log(self.record, log.pod) or ()
        else:
            yield from self.cluster.log(log.pod, follow=False, **self._tail())

    @property
    def _wants_lines(self) -> bool:
        return bool(self.request["lines"] != 0)

    def _tail(self) -> dict[str, int]:
        """Return how many lines of a pod hold the last lines of each of its ranks, most likely."""
        if self.request["lines"] is None or self.request["ranks"] is not None or self.request["grep"]:
            return {}
        return {"tailLines": self.request["lines"] * (self.record.details["ranks_per_node"] + 1)}

    def _log(self, node: Node, pod: Object) -> _Log:
        first = node.rank * self.record.details["ranks_per_node"]
        return _Log(node, pod["metadata"]["name"], Reader(first, self.request))

    # ---- live

    def _live(self) -> Iterator[Event]:
        looked = time.monotonic()
        while not self._is_over():
            quiet = True
            while not self.told.empty():
                quiet = False
                yield self.told.get()
            since = time.monotonic() - looked
            if (self.changed.is_set() and since > _PACE_S) or since > _LOOK_S:
                self.changed.clear()
                looked = time.monotonic()
                yield from self._look()
            if quiet:
                time.sleep(_POLL_S)
                yield Tick()
        while not self.told.empty():
            yield self.told.get()

    def _is_over(self) -> bool:
        if self.ended_at is None:
            return False
        return all(log.done for log in self.logs.values()) or time.monotonic() - self.ended_at > _LAST_LINES_S

    def _look(self) -> Iterator[Event]:
        try:
            yield from self._take(*look(self.cluster, self.record, with_lines=False))
            self.lost = False
        except ClusterError as error:
            yield from self._lose(error)

    def _take(self, seen: Seen, stopped: float | None) -> Iterator[Event]:
        found = job_status(self.record.nodes, seen, self.record.details, stopped)
        self._start_logs(seen)
        if found != self.last:
            self.last = found
            yield StatusChanged(found)
        if found.has_ended and self.ended_at is None:
            self.ended_at = time.monotonic()

    def _start_logs(self, seen: Seen) -> None:
        ranks = {node.rank: node for node in self.nodes}
        for pod in seen.pods:
            name, node = pod["metadata"]["name"], ranks.get(index_of(pod))
            if node and self._wants_lines and has_started(pod) and name not in self.logs:
                self.logs[name] = log = self._log(node, pod)
                threading.Thread(target=self._read, args=(log,), daemon=True).start()

    def _lose(self, error: TorchfabError) -> Iterator[Event]:
        if not self.lost:
            self.lost = True
            yield ContactLost(self.nodes[0], error)

    # ---- threads

    def _watch(self) -> None:
        """Say when a pod changes: the watch is a bell, and what rang it is looked at afresh.

        So one that expires (410), or breaks, costs nothing but a look: nothing can be missed.
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
        """Read a pod's log to its end, over as many connections as that takes."""
        told, received = False, time.monotonic()
        while not self.closed.is_set() and not log.done:
            try:
                for lines in self._connection(log, int(time.monotonic() - received) + _MARGIN_S):
                    received, told = time.monotonic(), False
                    self.told.put(Lines(log.node, lines))
                log.done = self.ended_at is not None or self._has_ended(log)
            except ClusterError as error:
                log.done = error.status == 404  # the pod has gone, and its log with it
                if not told and not log.done:
                    told = True
                    self.told.put(ContactLost(log.node, error))
            self.closed.wait(0.0 if log.done else _RETRY_S if told else _POLL_S)
        self.changed.set()

    def _connection(self, log: _Log, since_s: int) -> Iterator[Sequence[Line]]:
        """Yield the lines of one connection: of the first one the past, of the others what is new since."""
        assert self.cluster is not None
        if not log.past_read:
            if lines := log.reader.past(self._open_past(log)):
                yield lines
            log.past_read = True
            self.told.put(BacklogRead(log.node))
        for line in log.reader.take(self.cluster.log(log.pod, follow=True, sinceSeconds=since_s)):
            yield [line]

    def _has_ended(self, log: _Log) -> bool:
        assert self.cluster is not None
        pod = self.cluster.get("Pod", log.pod)
        return pod is None or not is_running(pod)
