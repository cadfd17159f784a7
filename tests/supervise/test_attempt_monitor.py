"""One attempt is watched until the supervisor must act."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from tests.core.test_status import NOW, node, process, rank
from tests.factories import make_nodes
from tests.supervise.factories import POLICY
from tests.support import fuzzed
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError
from torchfab.core.events import ContactLost, Event, Lines, NodeEnded, Tick
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus, State
from torchfab.records import Record
from torchfab.runtimes import tmux
from torchfab.supervise.attempt_monitor import AttemptMonitor, Trigger, step_in
from torchfab.supervise.model import Policy

NODES = make_nodes("node0", "node1")

# ---- steps


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("step=10/40 loss=6.7", 10),
        ("Step: 7", 7),
        ('{"global_step": 12, "loss": 1}', 12),
        ("{'step': 3}", 3),
        ("steps=5, step=9", 9),
        ("timestep=4", None),
        ("footstep 3", None),
        ("step_ms=12.5", None),
        ("step=1e9999999999999999999999", None),
        ("step=99999999999999999999", None),
        ("steps: 10 loss: 2.5", 10),
        ("[deepspeed] steps: 10 loss: 2.5", 10),
        ("train step: 5", 5),
        ("  Gradient Accumulation steps = 4", None),
        ("  Total optimization steps = 500", None),
        ("step=7 of max steps: 500", 7),
        ("--warmup-steps=100", None),
        ("", None),
    ],
)
def test_step_in_a_log_line(text: str, step: int | None) -> None:
    assert step_in(text) == step


@fuzzed(st.text())
def test_step_in_accepts_any_line(text: str) -> None:
    step = step_in(text)
    assert step is None or step >= 0


def make_record(nodes: Sequence[Node], min_nodes: int) -> Record:
    job = (Path("jobs/x"), "x", "x-0a1b2c3d", "per-node", "tmux", 0.0, ("x.py",), tuple(nodes), "/x", 3, min_nodes)
    return Record(*job, ConnectionSettings(), {}, {})


# ---- nodes that reported the end of the job and are out of reach afterwards


def make_monitor(*states: str, min_nodes: int) -> AttemptMonitor:
    """Return a monitor of 3 nodes: the first two are out of reach, the first ones ended in these states."""
    nodes = tuple(Node(index, f"n{index}") for index in range(3))
    monitor = AttemptMonitor(make_record(nodes, min_nodes), POLICY, 0.0, lambda: False, lambda *_, **__: None)
    for index, state in enumerate(states):
        monitor.tracker.apply(NodeEnded(NodeStatus(nodes[index], State(state))))
    monitor.tracker.apply_polled(JobStatus((NodeStatus(nodes[2], State.RUNNING),), 1))
    monitor.away = dict.fromkeys((0, 1), time.monotonic() - 1000)
    return monitor


def test_a_node_switched_off_after_success_is_not_lost() -> None:
    assert make_monitor("succeeded", "succeeded", min_nodes=3)._classify() is None
    assert make_monitor("succeeded", min_nodes=3)._classify() == "lost"


def test_an_absent_succeeded_node_does_not_replace_a_running_one() -> None:
    assert make_monitor("succeeded", "succeeded", min_nodes=2)._classify() is None


# ---- watching


@dataclass
class Cluster:
    """A runtime whose events and status a test sets; after the events, time passes until the watch ends."""

    events: Sequence[Event] = ()
    status: JobStatus = field(default_factory=lambda: job_of(process("running"), process("running")))
    stop_requested: bool = False
    reports: list[str] = field(default_factory=list)

    def follow(self, *_: Any) -> Iterator[Event]:
        yield from self.events
        end = time.monotonic() + 20
        while time.monotonic() < end and sum(isinstance(event, NodeEnded) for event in self.events) < len(NODES):
            yield Tick()
            time.sleep(0.005)

    def watch(self, policy: Policy = POLICY, grace_s: float = 0.0) -> Trigger:
        def report(kind: str, *_: Any, **__: Any) -> None:
            self.reports.append(kind)

        monitor = AttemptMonitor(make_record(NODES, 2), policy, grace_s, lambda: self.stop_requested, report)
        monitor.poll_interval_s = 0.01
        return monitor.wait()


def job_of(*processes: Mapping[str, Any]) -> JobStatus:
    """Return the status of a job with one process on each node."""
    return JobStatus(tuple(node(index, each) for index, each in enumerate(processes)), len(processes))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    monkeypatch.setattr(tmux, "follow", made.follow)
    monkeypatch.setattr(tmux, "status", lambda _: made.status)
    return made


def test_the_end_of_all_nodes_ends_the_watch_with_the_largest_step(cluster: Cluster) -> None:
    lines = Lines(NODES[0], [[0, 1.0, "step=7"], [0, 2.0, "step=5"]])
    cluster.events = [lines, *(NodeEnded(node(index, process("succeeded"))) for index in (0, 1))]
    found = cluster.watch()
    assert (found.kind, found.status.state, found.step) == ("ended", "succeeded", 7)
    assert cluster.reports == ["step"]


def test_a_failure_is_reported_after_the_grace_of_the_other_nodes(cluster: Cluster) -> None:
    cluster.events = [NodeEnded(node(0, process("failed", rank(0, code=7, ended=940.0))))]
    begun = time.monotonic()
    found = cluster.watch(grace_s=0.3)
    assert time.monotonic() - begun > 0.3
    assert (found.kind, found.status.exit_code) == ("failed", 7)
    assert [each.state for each in found.status.nodes] == ["failed", "running"]


def test_a_failure_that_only_a_poll_shows_is_seen_too(cluster: Cluster) -> None:
    cluster.status = job_of(process("running"), process("failed", rank(1, code=7, ended=940.0)))
    assert cluster.watch().kind == "failed"


def test_a_hang_is_reported_with_its_duration(cluster: Cluster) -> None:
    silent = process("running", started=NOW - 900, last_line={"time": NOW - 400, "text": "step 9", "label": 0})
    cluster.status = job_of(silent, silent)
    found = cluster.watch(Policy(stall_s=300))
    assert (found.kind, found.silent_s) == ("stall", 400)


def test_a_node_out_of_reach_for_too_long_is_lost(cluster: Cluster) -> None:
    cluster.events = [ContactLost(NODES[1], HostError("no answer"))]
    nodes = (node(0, process("running")), NodeStatus(NODES[1], State.UNREACHABLE, "no answer"))
    cluster.status = JobStatus(nodes, 2)
    assert cluster.watch(Policy(lost_s=0.05, stall_s=0)).kind == "lost"
    assert cluster.reports == ["out of reach"]


def test_a_stop_request_takes_precedence(cluster: Cluster) -> None:
    cluster.stop_requested = True
    cluster.events = [NodeEnded(node(0, process("failed", rank(0, code=7, ended=940.0))))]
    assert cluster.watch().kind == "stop"
