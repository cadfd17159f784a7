"""Watch one attempt until something must be done about it: it has ended, failed, hangs, or has lost a node.

The logs come over one connection per node, of them only the lines that tell a step unless they are shown. A connection
over a link that is down says nothing for a quarter of an hour: so all nodes are asked anew every few seconds as well.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torchfab import runtimes
from torchfab.core import stall
from torchfab.core.errors import TorchfabError
from torchfab.core.events import BacklogRead, ContactLost, Event, Lines, NodeEnded
from torchfab.core.status import JobStatus, NodeStatus
from torchfab.monitoring.watcher import Printer
from torchfab.records import Record
from torchfab.supervise.model import Policy

# Of several steps that a word stands before (`Total optimization steps = 500`, `--warmup-steps=10`) it is a setting.
STEP = r"(?i)(?:\b(?:global_?)?step|(?<![a-z][ -])\b(?:global[_ ]?)?steps)\b[\"']?\s*[=:]\s*(\d{1,15})\b"
_STEP = re.compile(STEP)
_POLL_S = 15.0
_BAD = ("failed", "lost", "stopped")

TriggerKind = Literal["ended", "failed", "stall", "lost", "stop"]


@dataclass(frozen=True)
class Trigger:
    """What must be acted upon.

    Parameters
    ----------
    what : str
        `ended`; `failed`: parts of it may still run; `stall`; `lost`: nodes are out of reach; `stop`: it was asked for.
    status : JobStatus
        How the job is, as far as is known.
    step : int, optional
        The largest step that its logs told.
    silent_s : float
        For a stall: for how long nobody has logged.
    """

    kind: TriggerKind
    status: JobStatus
    step: int | None
    silent_s: float = 0.0


def step_in(text: str) -> int | None:
    """Return the largest step that a log line tells; None where it tells none."""
    found = [int(digits) for digits in _STEP.findall(text)]
    return max(found, default=None)


@dataclass
class AttemptMonitor:
    """Watch one attempt.

    Parameters
    ----------
    record : Record
        The attempt.
    policy : Policy
        What is long for a silence, and for a node out of reach.
    failure_grace_s : float
        When it has failed: how long the other nodes get to end by themselves.
    stop_asked : callable
        Whether somebody has asked to stop the job.
    told : callable
        Told of steps, and of nodes out of reach and back: event, words, details.
    printer : Printer, optional
        Where its log lines go. Default: nowhere.
    """

    record: Record
    policy: Policy
    failure_grace_s: float
    stop_asked: Callable[[], bool]
    report: Callable[..., None]
    printer: Printer | None = None
    step: int | None = None
    ended: dict[int, NodeStatus] = field(default_factory=dict)
    polled: dict[int, NodeStatus] = field(default_factory=dict)
    away: dict[int, float] = field(default_factory=dict)
    failed_at: float | None = None
    silent_s: float = 0.0
    stalled: bool = False
    polling: bool = False
    poll_at: float = field(default_factory=time.monotonic)
    answers: queue.SimpleQueue[JobStatus | Exception] = field(default_factory=queue.SimpleQueue)

    def wait(self) -> Trigger:
        """Return when something must be done."""
        request = {"follow": True, "lines": None, "ranks": None, "grep": None if self.printer else STEP}
        stream = runtimes.load(self.record.runtime).follow(self.record, request)
        with contextlib.closing(stream):
            for event in stream:
                self._take(event)
                self._poll()
                if what := self._judge():
                    break
            else:
                what = "ended"
        if self.printer:
            self.printer.live = self.printer.live or not self.printer.waiting
            self.printer.flush()
        return Trigger(what, self.status(), self.step, self.silent_s)

    def status(self) -> JobStatus:
        """Return what is known so far; a node that was not heard of is taken to start."""
        nodes = [self.ended.get(each.rank) or self.polled.get(each.rank) for each in self.record.nodes]
        known = [found or NodeStatus(node, "starting") for found, node in zip(nodes, self.record.nodes, strict=True)]
        return JobStatus(tuple(known), self.record.min_nodes)

    # ---- what comes in

    def _take(self, event: Event) -> None:
        if isinstance(event, Lines):
            self._read(text for _, _, text in event.lines)
            if self.printer:
                self.printer.add(event)
        elif isinstance(event, NodeEnded):
            self.ended[event.status.node.rank] = event.status
        elif isinstance(event, ContactLost):
            self.poll_at = min(self.poll_at, time.monotonic())
        if self.printer:
            if isinstance(event, BacklogRead):
                self.printer.past_of.add(event.node.rank)
            self.printer.pace(len(self.record.nodes))

    def _read(self, texts: Iterable[str]) -> None:
        step = max((found for text in texts if (found := step_in(text)) is not None), default=None)
        if step is not None and (self.step is None or step > self.step):
            self.step = step
            self.report("step", "", step=step)

    def _poll(self) -> None:
        while not self.answers.empty():
            self.polling = False
            self._take_status(self.answers.get())
        if not self.polling and time.monotonic() >= self.poll_at:
            self.polling = True
            threading.Thread(target=self._poll_now, daemon=True).start()

    def _poll_now(self) -> None:
        try:
            self.answers.put(runtimes.load(self.record.runtime).status(self.record))
        except Exception as error:
            self.answers.put(error)

    def _take_status(self, answer: JobStatus | Exception) -> None:
        often = [self.policy.lost_s / 4, *([self.policy.stall_s / 4] if self.policy.stall_s else [])]
        self.poll_at = time.monotonic() + max(1.0, min(_POLL_S, *often))
        if isinstance(answer, TorchfabError):
            return
        if isinstance(answer, Exception):
            raise answer
        for node in answer.nodes:
            self.polled[node.node.rank] = node
            self._reach(node)
        quiet = stall.find(answer, self.policy.stall_s)
        self.stalled, self.silent_s = quiet is not None and not quiet.unheard, quiet.seconds if quiet else 0.0

    def _reach(self, node: NodeStatus) -> None:
        host, since = node.node.label, self.away.get(node.node.rank)
        if node.state == "unreachable" and since is None:
            self.away[node.node.rank] = time.monotonic()
            self.report("out of reach", f"{host} cannot be reached: {node.reason}", host=host)
        elif node.state != "unreachable" and since is not None:
            del self.away[node.node.rank]
            self.report("back", f"{host} is back after {time.monotonic() - since:.0f} s", host=host)

    # ---- what it means

    def _judge(self) -> TriggerKind | None:
        if self.stop_asked():
            return "stop"
        known = self.status()
        if known.has_failed:
            self.failed_at = self.failed_at or time.monotonic()
            waited = time.monotonic() - self.failed_at
            done = all(node.has_ended or node.state == "unreachable" for node in known.nodes)
            return "failed" if waited > self.failure_grace_s or (done and waited > 1.0) else None
        if self._has_ended_without(known):
            return "ended"
        if self._lost() and self._left(known) < self.record.min_nodes:
            return "lost"
        return "stall" if self.stalled else None

    def _lost(self) -> list[int]:
        now = time.monotonic()
        return [
            rank for rank, since in self.away.items() if now - since >= self.policy.lost_s and not self._is_done(rank)
        ]

    def _is_done(self, rank: int) -> bool:
        """Say whether the job has ended on a node, as that told itself: what becomes of the node then is no matter."""
        return rank in self.ended and self.ended[rank].has_ended

    def _left(self, known: JobStatus) -> int:
        """Return how many nodes the job may go on with: an elastic one does so without those that are lost."""
        lost = self._lost()
        return sum(node.state not in _BAD and node.node.rank not in lost for node in known.nodes)

    def _has_ended_without(self, known: JobStatus) -> bool:
        """Say whether enough nodes have succeeded, and all others are lost."""
        good = [node for node in known.nodes if node.has_ended and node.state == "succeeded"]
        away = [node for node in known.nodes if node.node.rank in self.away and not self._is_done(node.node.rank)]
        return bool(away) and len(good) >= self.record.min_nodes and len(good) + len(away) == len(known.nodes)


def as_details(sight: Trigger) -> Mapping[str, Any]:
    """Return a sight for the record."""
    return {"what": sight.kind, "state": sight.status.state, "step": sight.step}
