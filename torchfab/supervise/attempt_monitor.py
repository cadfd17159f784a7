"""Watch one attempt until the supervisor must act: it has ended, failed, hangs, or has lost a node.

Logs come over one connection per node, filtered on the node to lines that contain a step unless they are shown. A TCP
connection over a dead link reports nothing for a quarter of an hour, so the status of all nodes is also polled over new
requests every few seconds.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Literal

from torchfab import runtimes
from torchfab.core import stall
from torchfab.core.events import BacklogRead, ContactLost, Event, Lines
from torchfab.core.format import duration
from torchfab.core.lazy_dataclass import dataclass
from torchfab.core.status import JobStatus, NodeStatus, State
from torchfab.monitoring.job_watcher import Printer
from torchfab.monitoring.status_poller import StatusPoller
from torchfab.monitoring.status_tracker import StatusTracker
from torchfab.records import Record
from torchfab.supervise.model import Policy

# `steps` after another word is a setting, not progress: `Total optimization steps = 500`, `--warmup-steps=10`.
STEP = r"(?i)(?:\b(?:global_?)?step|(?<![a-z][ -])\b(?:global[_ ]?)?steps)\b[\"']?\s*[=:]\s*(\d{1,15})\b"
_STEP = re.compile(STEP)
_POLL_S = 15.0
_BAD_STATES = ("failed", "lost", "stopped")

TriggerKind = Literal["ended", "failed", "stall", "lost", "stop"]


@dataclass(frozen=True)
class Trigger:
    """Why the supervisor must act.

    Parameters
    ----------
    kind : str
        `ended`; `failed`: ranks may still run; `stall`; `lost`: nodes are out of reach; `stop`: `fab stop` was run.
    status : JobStatus
        The job's last known status.
    step : int, optional
        The largest step in the logs. None if they contain no steps.
    silent_s : float
        For a stall: seconds since the last log line of any rank.
    """

    kind: TriggerKind
    status: JobStatus
    step: int | None
    silent_s: float = 0.0


def step_in(text: str) -> int | None:
    """Find the largest step in a log line.

    Parameters
    ----------
    text : str
        The line.

    Returns
    -------
    int or None
        None if it contains no step.
    """
    steps = [int(digits) for digits in _STEP.findall(text)]
    return max(steps, default=None)


@dataclass
class AttemptMonitor:
    """Watches one attempt.

    Parameters
    ----------
    record : Record
        The attempt.
    policy : Policy
        The time limits for silence and for nodes out of reach.
    failure_grace_s : float
        Seconds that the other nodes get to end by themselves after a failure.
    stop_requested : callable
        Returns whether `fab stop` was run.
    report : callable
        Called on new steps, and when nodes become unreachable or reachable again, with the event, its text and details.
    printer : Printer, optional
        Prints the log lines. Default None: they are not shown.
    """

    record: Record
    policy: Policy
    failure_grace_s: float
    stop_requested: Callable[[], bool]
    report: Callable[..., None]
    printer: Printer | None = None
    step: int | None = None
    away: dict[int, float] = field(default_factory=dict)  # since when a node is out of reach, by rank
    silent_s: float = 0.0
    stalled: bool = False
    tracker: StatusTracker = field(init=False)
    poller: StatusPoller = field(init=False)

    def __post_init__(self) -> None:
        self.tracker = StatusTracker(self.record, unreported_state=State.STARTING)
        self.poller = StatusPoller(lambda: runtimes.load(self.record.runtime).status(self.record))
        limits_s = [self.policy.lost_s / 4, *([self.policy.stall_s / 4] if self.policy.stall_s else [])]
        self.poll_interval_s = max(1.0, min(_POLL_S, *limits_s))

    def wait(self) -> Trigger:
        """Watch until the supervisor must act.

        Returns
        -------
        Trigger
            Why it must act.
        """
        request = {"follow": True, "lines": None, "ranks": None, "grep": None if self.printer else STEP}
        stream = runtimes.load(self.record.runtime).follow(self.record, request)
        with contextlib.closing(stream):
            for event in stream:
                self._handle(event)
                if polled := self.poller.poll(self.poll_interval_s):
                    self._handle_status(polled)
                if kind := self._classify():
                    break
            else:
                kind = "ended"
        if self.printer:
            self.printer.finish()
        return Trigger(kind, self.tracker.status(), self.step, self.silent_s)

    # ---- input: log events and polled status

    def _handle(self, event: Event) -> None:
        self.tracker.apply(event)
        if isinstance(event, Lines):
            self._read_steps(text for _, _, text in event.lines)
            if self.printer:
                self.printer.add(event)
        elif isinstance(event, ContactLost):
            self.poller.due_at = min(self.poller.due_at, time.monotonic())
        if self.printer:
            if isinstance(event, BacklogRead):
                self.printer.backlog_read.add(event.node.rank)
            self.printer.print_due(len(self.record.nodes))

    def _read_steps(self, texts: Iterable[str]) -> None:
        step = max((found for text in texts if (found := step_in(text)) is not None), default=None)
        if step is not None and (self.step is None or step > self.step):
            self.step = step
            self.report("step", "", step=step)

    def _handle_status(self, answer: JobStatus) -> None:
        self.tracker.apply_polled(answer)
        for node in answer.nodes:
            self._update_away(node)
        quiet = stall.detect_stall(answer, self.policy.stall_s)
        self.stalled, self.silent_s = quiet is not None and not quiet.unreachable, quiet.seconds if quiet else 0.0

    def _update_away(self, node: NodeStatus) -> None:
        host, since = node.node.label, self.away.get(node.node.rank)
        if node.state == "unreachable" and since is None:
            self.away[node.node.rank] = time.monotonic()
            self.report("out of reach", f"{host} cannot be reached: {node.reason}", host=host)
        elif node.state != "unreachable" and since is not None:
            del self.away[node.node.rank]
            self.report("back", f"{host} is reachable again after {duration(time.monotonic() - since)}", host=host)

    # ---- output: whether the supervisor must act

    def _classify(self) -> TriggerKind | None:
        if self.stop_requested():
            return "stop"
        known = self.tracker.status()
        if known.has_failed:
            waited = self.tracker.failed_for_s
            done = all(node.has_ended or node.state == "unreachable" for node in known.nodes)
            return "failed" if waited > self.failure_grace_s or (done and waited > 1.0) else None
        if self._has_ended_without(known):
            return "ended"
        if self._lost() and self._left(known) < self.record.min_nodes:
            return "lost"
        return "stall" if self.stalled else None

    def _lost(self) -> list[int]:
        """Return the ranks of the nodes that were out of reach for too long while the job ran there."""
        now = time.monotonic()
        # What happens to a node after it has reported the end of the job does not matter.
        running = {rank: since for rank, since in self.away.items() if not self.tracker.has_reported_end(rank)}
        return [rank for rank, since in running.items() if now - since >= self.policy.lost_s]

    def _left(self, known: JobStatus) -> int:
        """Count the nodes that an elastic job can continue on."""
        lost = self._lost()
        return sum(node.state not in _BAD_STATES and node.node.rank not in lost for node in known.nodes)

    def _has_ended_without(self, known: JobStatus) -> bool:
        """Test whether enough nodes have succeeded and all others are out of reach."""
        good = [node for node in known.nodes if node.has_ended and node.state == "succeeded"]
        away = [rank for rank in self.away if not self.tracker.has_reported_end(rank)]
        return bool(away) and len(good) >= self.record.min_nodes and len(good) + len(away) == len(known.nodes)
