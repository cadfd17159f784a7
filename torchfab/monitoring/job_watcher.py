"""Follow a job to its end: its logs on stdout, its events on stderr, its exit code at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import field
from operator import itemgetter
from typing import Any

from torchfab import runtimes
from torchfab.core.agent_report import AgentReportFilter
from torchfab.core.console import write_err, write_verbatim
from torchfab.core.events import BacklogRead, ContactLost, Event, Lines, NodeEnded, StatusChanged
from torchfab.core.inventory import fold
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.log_lines import Line, batches, lines_of_host, render_lines
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus, State
from torchfab.monitoring.first_failure import with_first_failure
from torchfab.monitoring.job_status import describe_failure
from torchfab.monitoring.stack_dump import describe_collectives
from torchfab.monitoring.stall_alarm import StallAlarm
from torchfab.monitoring.status_tracker import StatusTracker
from torchfab.records import Record

NO_LOG_LINES: Mapping[str, Any] = {"follow": True, "lines": 0, "ranks": [], "grep": None}
_LIVE_WINDOW_S = 0.25
_BACKLOG_TIMEOUT_S = 3.0
_SUPERSEDED_CHECK_S = 2.0
_ANNOUNCE_S = 1.0  # nodes that end within it count as ended together


@dataclass
class Printer:
    """Prints log lines: first the backlog of all nodes, merged by time, then new lines in short batches.

    Parameters
    ----------
    folding : bool
        Whether equal lines of several ranks are printed as one. Default True.
    reports : bool
        Whether torchrun's own traceback and report after a failure are printed. Default False: one line instead.
    """

    folding: bool = True
    reports: bool = False
    waiting: list[Line] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)
    backlog_read: set[int] = field(default_factory=set)
    live: bool = False
    report_filter: AgentReportFilter = field(default_factory=AgentReportFilter)

    def add(self, event: Lines) -> None:
        """Buffer log lines.

        Parameters
        ----------
        event : Lines
            Lines of one node.
        """
        lines = lines_of_host(event.node.label, event.lines)
        self.waiting += lines if self.reports else self.report_filter.read(lines)

    def print_due(self, nodes: int) -> None:
        """Print the buffered lines that are due. The backlog is due once all nodes have sent theirs, or after 3 s.

        Parameters
        ----------
        nodes : int
            The number of nodes that send a backlog.
        """
        waited = time.monotonic() - self.since
        if not self.live and (len(self.backlog_read) >= nodes or waited > _BACKLOG_TIMEOUT_S):
            self.flush()
            self.live = True
        elif self.live and self.waiting and waited > _LIVE_WINDOW_S:
            self.flush()

    def flush(self) -> None:
        """Print all buffered lines."""
        groups = batches(self.waiting) if not self.live else [self.waiting]
        for group in groups:
            if group:
                self.write(group)
        self.waiting, self.since = [], time.monotonic()

    def write(self, lines: Sequence[Line]) -> None:
        """Print some lines.

        Parameters
        ----------
        lines : sequence of Line
            Lines in the order of printing; equal lines of several ranks may be folded.
        """
        write_verbatim(render_lines(lines, self.folding))

    def fresh(self) -> Printer:
        """Return a printer for the next attempt of a job.

        Returns
        -------
        Printer
        """
        return Printer(self.folding, self.reports)

    def finish(self) -> None:
        """Print the remaining lines at the end of the logs."""
        self.live = self.live or not self.waiting
        self.waiting += self.report_filter.release()
        self.flush()


@dataclass
class JobWatcher:
    """Follows a job to its end.

    Parameters
    ----------
    record : Record
        The job.
    printer : Printer
        Prints its log lines.
    failure_grace_s : float, optional
        After a failure, seconds that the other nodes get to end by themselves before they are stopped. Default None:
        they are not stopped.
    retries : bool
        Whether the runtime reconnects after it loses a node. Only used in messages. Default True.
    stall_s : float
        Seconds without a log line after which the stall alarm is raised. Default 0: never.
    """

    record: Record
    printer: Printer
    failure_grace_s: float | None = None
    retries: bool = True
    stall_s: float = 0.0
    lines_read: int = 0
    lost: set[int] = field(default_factory=set)  # ranks of the nodes that cannot be reached at the moment
    failure_announced: bool = False
    stopped: bool = False
    stop_failed: bool = False
    superseded_checked_at: float = field(default_factory=time.monotonic)
    tracker: StatusTracker = field(init=False)
    alarm: StallAlarm = field(init=False)

    def __post_init__(self) -> None:
        runtime = runtimes.load(self.record.runtime)
        self.tracker = StatusTracker(self.record, unreported_state=State.RUNNING)
        self.alarm = StallAlarm(
            self.record.name,
            self.stall_s,
            lambda: runtime.status(self.record),
            lambda: describe_collectives(self.record),
        )

    def run(self, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> JobStatus:
        """Print logs and events until the job has ended on all nodes.

        Parameters
        ----------
        request : Mapping
            Which log lines to show, as for the runtime's `follow`.
        nodes : sequence of Node, optional
            The nodes to follow. Default None: all.

        Returns
        -------
        JobStatus
            The final status of the job.
        """
        for _ in self.steps(request, nodes):
            pass
        return self.tracker.status()

    def steps(self, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> Generator[None, None, None]:
        """Print logs and events until the job has ended on all nodes, in steps of at most 50 ms without an event.

        Parameters
        ----------
        request : Mapping
            Which log lines to show, as for the runtime's `follow`.
        nodes : sequence of Node, optional
            The nodes to follow. Default None: all.

        Yields
        ------
        None
            After each event. A caller may stop iterating; the job is not affected.
        """
        runtime = runtimes.load(self.record.runtime)
        events = runtime.follow(self.record, request, nodes)
        try:
            for event in events:
                self._handle(event)
                self.printer.print_due(len(self.tracker.nodes if nodes is None else nodes) or 1)
                self.alarm.poll()
                self._stop_after_failure(runtime.stop)
                if self._is_superseded() or self._is_stopped():
                    break
                yield
        finally:
            events.close()
        self.printer.finish()

    def print_existing(self, request: Mapping[str, Any]) -> bool:
        """Print the log lines that exist, without waiting for new ones.

        Parameters
        ----------
        request : Mapping
            Which log lines to show, as for the runtime's `follow`.

        Returns
        -------
        bool
            Whether all nodes were reached.
        """
        for event in runtimes.load(self.record.runtime).follow(self.record, request):
            self._handle(event)
            if self.lost and len(self.lost) + len(self.tracker.ended) >= len(self.record.nodes):
                break
        self.printer.finish()
        return not self.lost

    def _is_stopped(self) -> bool:
        """Return whether all nodes have ended after a stop, and their scheduler knows how, unless the stop failed."""
        scheduler = self.tracker.scheduler_status
        is_known = scheduler is None or scheduler.has_ended or self.stop_failed
        return self.stopped and is_known and len(self.tracker.ended) >= len(self.tracker.nodes)

    def _is_superseded(self) -> bool:
        """Check every 2 s whether the job was launched again: nodes may then never report the end of this attempt."""
        if time.monotonic() - self.superseded_checked_at < _SUPERSEDED_CHECK_S:
            return False
        self.superseded_checked_at = time.monotonic()
        return self.record.is_superseded()

    def _handle(self, event: Event) -> None:
        before = self.tracker.scheduler_status
        self.tracker.apply(event)
        if isinstance(event, Lines):
            self.lost.discard(event.node.rank)
            self.lines_read += len(event.lines)
            self.printer.add(event)
            self.alarm.feed(map(itemgetter(1), event.lines), self.printer.live)
        elif isinstance(event, BacklogRead):
            self.lost.discard(event.node.rank)
            self.printer.backlog_read.add(event.node.rank)
        elif isinstance(event, NodeEnded):
            self.printer.backlog_read.add(event.status.node.rank)
        elif isinstance(event, StatusChanged):
            self._report_changes(before, event.status)
        elif isinstance(event, ContactLost) and event.node.rank not in self.lost:
            self.lost.add(event.node.rank)
            self.printer.backlog_read.add(event.node.rank)
            write_err(f"{event.node.label}: {event.error.message}" + (" (trying again)" if self.retries else ""))

    def _report_changes(self, before: JobStatus | None, current: JobStatus) -> None:
        """Report on stderr why a scheduler's job is pending, and when it starts."""
        self.lost.clear()
        self.failure_announced = self.failure_announced and current.has_failed
        changed = before is None or (before.state, before.reason) != (current.state, current.reason)
        if current.state in ("pending", "unreachable") and changed:
            write_err(f"{self.record.name}: {current.state} ({current.reason or 'no reason is given'})")
        elif before is not None and before.state == "pending" and current.nodes:
            write_err(f"{self.record.name}: runs on {fold([node.node.label for node in current.nodes])}")

    def _stop_after_failure(self, stop: Callable[..., Any]) -> None:
        """Stop the remaining nodes of a failed job after the grace, since they may never notice the failure."""
        if self.failure_grace_s is None or self.stopped:
            return
        known = self.tracker.status()
        if not known.has_failed or known.has_ended or known.was_stopped:
            return
        waited = self.tracker.failed_for_s
        if waited > _ANNOUNCE_S and not self.failure_announced:
            self.failure_announced = True
            known = with_first_failure(self.record, known)
            write_err(
                f"{self.record.name}: {describe_failure(known)}; the other nodes get {self.failure_grace_s:g} s to end"
            )
        if waited > self.failure_grace_s:
            self.stopped = True
            self._stop_rest(stop)

    def _stop_rest(self, stop: Callable[..., Any]) -> None:
        rest = [node for node in self.tracker.nodes if node.rank not in self.tracker.ended]
        if not rest:
            return
        write_err(f"{self.record.name}: stopping it on {fold([node.label for node in rest])}")
        self.record.note("stopped after a failure", hosts=[node.label for node in rest])
        for report in stop(self.record, self.record.grace_s, rest):
            if report.error or report.left:
                self.stop_failed = True
                unclear = NodeStatus(report.node, State.UNREACHABLE, "it may still run there")
                self.tracker.apply(NodeEnded(unclear))
