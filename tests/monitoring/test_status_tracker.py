"""What is known of a job from its events and its polled status."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.core.test_status import node, process, rank
from tests.factories import make_nodes
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.events import BacklogRead, Lines, NodeEnded, NodeFailed, StatusChanged, Tick
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus, State, Verdict
from torchfab.monitoring.status_tracker import StatusTracker
from torchfab.records import Record

NODES = make_nodes("node0", "node1")


def make_tracker(nodes: tuple[Node, ...] = NODES) -> StatusTracker:
    job = (Path("jobs/x"), "x", "x-0a1b2c3d", "per-node", "tmux", 0.0, ("x.py",), nodes, "/x", 2, len(nodes))
    return StatusTracker(Record(*job, ConnectionSettings(), {}, {}), State.RUNNING)


def ended(index: int, state: str = "succeeded", code: int = 0) -> NodeStatus:
    return node(index, process(state, rank(index, code=code, ended=940.0)))


def states(tracker: StatusTracker) -> list[str]:
    return [each.state for each in tracker.status().nodes]


def test_a_node_without_a_report_has_the_given_state() -> None:
    tracker = make_tracker()
    for event in (Tick(), BacklogRead(NODES[0]), Lines(NODES[0], [[0, 1.0, "step 1"]])):
        tracker.apply(event)
    assert states(tracker) == ["running", "running"]
    assert tracker.failed_for_s == 0.0


def test_the_job_has_ended_when_all_nodes_have_reported_it() -> None:
    tracker = make_tracker()
    tracker.apply(NodeEnded(ended(0)))
    assert (tracker.has_reported_end(0), tracker.has_reported_end(1)) == (True, False)
    assert states(tracker) == ["succeeded", "running"]
    tracker.apply(NodeEnded(ended(1)))
    assert tracker.status().has_ended
    assert tracker.status().exit_code == 0


def test_a_reported_end_takes_precedence_over_a_polled_status() -> None:
    tracker = make_tracker()
    tracker.apply(NodeEnded(ended(0)))
    unreachable = tuple(NodeStatus(each, State.UNREACHABLE, "no answer") for each in NODES)
    tracker.apply_polled(JobStatus(unreachable, 2))
    assert states(tracker) == ["succeeded", "unreachable"]
    assert not tracker.has_reported_end(1)


@pytest.mark.parametrize("is_polled", [True, False])
def test_the_time_since_the_first_failure_is_measured(is_polled: bool) -> None:
    tracker = make_tracker()
    if is_polled:
        tracker.apply_polled(JobStatus((ended(0, "failed", 7),), 2))
    else:
        tracker.apply(NodeEnded(ended(0, "failed", 7)))
    time.sleep(0.01)
    before = tracker.failed_for_s
    assert before >= 0.01
    tracker.apply(NodeEnded(ended(1, "failed", 1)))
    assert tracker.failed_for_s >= before


def test_a_failure_counts_while_other_ranks_of_its_node_run() -> None:
    tracker = make_tracker()
    tracker.apply(NodeFailed(ended(0, "failed", 7)))
    assert tracker.failed_for_s > 0
    assert not tracker.has_reported_end(0)
    tracker.apply(NodeEnded(ended(0, "failed", 9)))
    assert tracker.has_reported_end(0)


def test_the_status_of_a_scheduler_replaces_all_others() -> None:
    tracker = make_tracker(())
    assert tracker.nodes == ()
    running = NodeStatus(NODES[1], State.RUNNING)
    tracker.apply(StatusChanged(JobStatus((ended(0, "failed", 7), running), 2, Verdict(State.FAILED))))
    assert tracker.nodes == NODES
    assert tracker.ended.keys() == {0}
    assert tracker.failed_for_s > 0.0
    requeued = JobStatus((), 2, Verdict(State.PENDING, reason="Resources"))
    tracker.apply(StatusChanged(requeued))
    assert (tracker.nodes, tracker.ended, tracker.failed_for_s) == ((), {}, 0.0)
    assert tracker.status() is requeued
