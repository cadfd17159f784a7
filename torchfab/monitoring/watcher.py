"""Watching a job: its logs on stdout, what happens to it on stderr, its exit code at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchfab import runtimes
from torchfab.core import status
from torchfab.core.console import write_err, write_out
from torchfab.core.events import BacklogRead, ContactLost, Event, Lines, NodeEnded, StatusChanged
from torchfab.core.inventory import fold
from torchfab.core.log_lines import Line, batches, fold_lines
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus
from torchfab.monitoring.stall_alarm import Alarm
from torchfab.records import Record

NO_LINES: Mapping[str, Any] = {"follow": True, "lines": 0, "ranks": [], "grep": None}
_LIVE_WINDOW_S = 0.25
_PAST_PATIENCE_S = 3.0
_SUPERSEDED_S = 2.0
_NEWS_S = 1.0  # nodes that end together are not told apart


@dataclass
class Printer:
    """Print log lines as they come: the past of all nodes merged by time, then what follows in short batches."""

    folding: bool = True
    waiting: list[Line] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    past_of: set[int] = field(default_factory=set)
    live: bool = False

    def add(self, event: Lines) -> None:
        """Take lines in."""
        host = event.node.label
        self.waiting += [Line(host, label, when, text) for label, when, text in event.lines]

    def pace(self, nodes: int) -> None:
        """Print what is due: the past once every node has told its own, or has kept us waiting for too long."""
        waited = time.monotonic() - self.since
        if not self.live and (len(self.past_of) >= nodes or waited > _PAST_PATIENCE_S):
            self.flush()
            self.live = True
        elif self.live and self.waiting and waited > _LIVE_WINDOW_S:
            self.flush()

    def flush(self) -> None:
        """Print all that waits."""
        groups = batches(self.waiting) if not self.live else [self.waiting]
        for group in groups:
            if group:
                write_out("\n".join(map(str, fold_lines(group, self.folding))))
        self.waiting, self.since = [], time.monotonic()


@dataclass
class Watch:
    """See a job to its end.

    Parameters
    ----------
    record : Record
        The job.
    printer : Printer
        Where its log lines go.
    failure_grace_s : float, optional
        When too many nodes have failed: how long the others get to end by themselves, before they are stopped. None:
        they are left alone.
    retries : bool
        Whether a node with which contact is lost is tried again; here for the words only.
    stall_s : float
        After how many seconds without a log line it says that the job may hang; 0: never.
    """

    record: Record
    printer: Printer
    failure_grace_s: float | None = None
    retries: bool = True
    stall_s: float = 0.0
    ended: dict[int, status.NodeStatus] = field(default_factory=dict)
    lost: dict[int, float] = field(default_factory=dict)
    failed_at: float | None = None
    told: bool = False
    stopped: bool = False
    seen: status.JobStatus | None = None
    looked: float = field(default_factory=time.monotonic)
    alarm: Alarm = field(init=False)

    def __post_init__(self) -> None:
        runtime = runtimes.load(self.record.runtime)
        self.alarm = Alarm(self.record.name, self.stall_s, lambda: runtime.status(self.record))

    def run(self, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> status.JobStatus:
        """Print until the job has ended on all nodes; return how it ended."""
        runtime = runtimes.load(self.record.runtime)
        for event in runtime.follow(self.record, request, nodes):
            self._take(event)
            self.printer.pace(len(self.nodes if nodes is None else nodes) or 1)
            self.alarm.pace()
            self._judge(runtime.stop)
            if self._is_superseded() or (self.stopped and len(self.ended) >= len(self.nodes)):
                break
        self.printer.live = self.printer.live or not self.printer.waiting
        self.printer.flush()
        return self.status()

    def _is_superseded(self) -> bool:
        """Say whether the job was launched again under its name: a node of this attempt may never be heard of again."""
        if time.monotonic() - self.looked < _SUPERSEDED_S:
            return False
        self.looked = time.monotonic()
        return self.record.is_superseded()

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The job's nodes, as far as they are known: a scheduler gives them late."""
        return self.record.nodes or tuple(node.node for node in (self.seen.nodes if self.seen else ()))

    def status(self) -> status.JobStatus:
        """Return what is known so far; a node that has not ended is taken to run."""
        if self.seen is not None:
            return self.seen
        nodes = [self.ended.get(node.rank, status.NodeStatus(node, "running")) for node in self.record.nodes]
        return status.JobStatus(tuple(nodes), self.record.min_nodes)

    def _take(self, event: Event) -> None:
        if isinstance(event, Lines):
            self.lost.pop(event.node.rank, None)
            self.printer.add(event)
            self.alarm.hear((when for _, when, _ in event.lines), self.printer.live)
        elif isinstance(event, BacklogRead):
            self.lost.pop(event.node.rank, None)
            self.printer.past_of.add(event.node.rank)
        elif isinstance(event, NodeEnded):
            self.printer.past_of.add(event.status.node.rank)
            self.ended[event.status.node.rank] = event.status
        elif isinstance(event, StatusChanged):
            self._see(event.status)
        elif isinstance(event, ContactLost) and event.node.rank not in self.lost:
            self.lost[event.node.rank] = time.monotonic()
            self.printer.past_of.add(event.node.rank)
            write_err(f"{event.node.label}: {event.error.message}" + (" (trying again)" if self.retries else ""))

    def _see(self, found: JobStatus) -> None:
        """Take in how a scheduler's job is; say on stderr why it waits, and when it no longer does."""
        before = self.seen
        self.seen = found
        if not found.has_failed:  # it may have failed before, and been run again
            self.failed_at, self.told = None, False
        self.lost.clear()
        self.ended = {node.node.rank: node for node in found.nodes if node.has_ended}
        news = before is None or (before.state, before.reason) != (found.state, found.reason)
        if found.state in ("pending", "unreachable") and news:
            write_err(f"{self.record.name}: {found.state} ({found.reason or 'no reason is given'})")
        elif before is not None and before.state == "pending" and found.nodes:
            write_err(f"{self.record.name}: runs on {fold([node.node.label for node in found.nodes])}")

    def _judge(self, stop: Callable[..., Any]) -> None:
        """When the job has failed, do not wait for nodes that will never know: stop them, after a grace."""
        if self.failure_grace_s is None or self.stopped:
            return
        known = self.status()
        if not known.has_failed or known.has_ended or known.was_stopped:
            return
        self.failed_at = self.failed_at or time.monotonic()
        waited = time.monotonic() - self.failed_at
        if waited > _NEWS_S and not self.told:
            self.told = True
            write_err(
                f"{self.record.name}: {describe_failure(known)}; the other nodes get {self.failure_grace_s:g} s to end"
            )
        if waited > self.failure_grace_s:
            self.stopped = True
            self._stop_rest(stop)

    def _stop_rest(self, stop: Callable[..., Any]) -> None:
        rest = [node for node in self.nodes if node.rank not in self.ended]
        if not rest:
            return
        write_err(f"{self.record.name}: stopping it on {fold([node.label for node in rest])}")
        self.record.note("stopped after a failure", hosts=[node.label for node in rest])
        for report in stop(self.record, self.record.grace_s, rest):
            if report.error or report.left:
                self.ended[report.node.rank] = status.NodeStatus(report.node, "unreachable", "it may still run there")


def describe_failure(job: status.JobStatus) -> str:
    """Return in words what failed first, or why a scheduler ended it."""
    if job.reason:
        return job.reason
    first = job.first_failure
    return str(first) if first else f"job is {job.state}"
