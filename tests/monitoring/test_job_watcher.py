"""Following a job to its end: its logs on stdout, what happens to it on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.core.test_status import node, process, rank
from tests.factories import make_nodes
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError
from torchfab.core.events import BacklogRead, ContactLost, Event, Lines, NodeEnded, StatusChanged, Tick
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus, NodeStatus, State, Verdict
from torchfab.monitoring import job_watcher
from torchfab.monitoring.job_status import describe_failure
from torchfab.monitoring.job_watcher import JobWatcher, Printer
from torchfab.records import Record
from torchfab.runtimes import tmux

NODES = make_nodes("node0", "node1")
NO_ANSWER = HostError("no answer from node1")
REQUEST = {"follow": True, "lines": None, "ranks": None, "grep": None}


@pytest.fixture
def record(tmp_path: Path) -> Record:
    job = (tmp_path, "gpt2", "gpt2-0a1b2c3d", "per-node", "tmux", 0.0, ("x.py",), NODES, "/x", 2, 2)
    return Record(*job, ConnectionSettings(), {}, {})


@pytest.fixture
def feed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that sets the events of the runtime."""

    def set_events(*events: Event) -> None:
        def follow(*_: Any) -> Iterator[Event]:
            yield from events

        monkeypatch.setattr(tmux, "follow", follow)

    return set_events


def ended(index: int, state: str = "succeeded", code: int = 0) -> NodeEnded:
    return NodeEnded(node(index, process(state, rank(index, code=code, ended=940.0))))


def test_the_backlog_is_merged_by_time_and_equal_lines_are_folded(
    record: Record, feed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(
        Lines(NODES[0], [[0, 1.0, "start"], [0, 3.0, "step 2"]]),
        Lines(NODES[1], [[1, 1.0, "start"], [1, 2.0, "step 1"]]),
        *(BacklogRead(each) for each in NODES),
        *(ended(each.rank) for each in NODES),
    )
    status = JobWatcher(record, Printer()).run(REQUEST)
    assert status.state == "succeeded"
    assert capsys.readouterr().out.splitlines() == [
        "node[0-1] [0-1] start",
        "node1 [1] step 1",
        "node0 [0] step 2",
    ]


def test_a_lost_node_is_reported_once_until_it_is_back(
    record: Record, feed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = ContactLost(NODES[1], NO_ANSWER)
    feed(lost, lost, Lines(NODES[1], [[1, 2.0, "step 1"]]), lost, *(ended(each.rank) for each in NODES))
    JobWatcher(record, Printer()).run(REQUEST)
    assert capsys.readouterr().err.splitlines() == ["node1: no answer from node1 (trying again)"] * 2


def test_existing_lines_are_printed_without_waiting_for_a_lost_node(
    record: Record, feed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    feed(Lines(NODES[0], [[0, 1.0, "start"]]), ContactLost(NODES[1], NO_ANSWER), ended(0), Tick())
    assert not JobWatcher(record, Printer(), retries=False).print_existing(REQUEST)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("node0 [0] start\n", "node1: no answer from node1\n")
    feed(*(ended(each.rank) for each in NODES))
    assert JobWatcher(record, Printer(), retries=False).print_existing(REQUEST)


def test_the_other_nodes_are_stopped_after_the_grace(
    record: Record, feed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped: list[str] = []

    def stop(_record: Record, _grace_s: float, rest: Sequence[Node]) -> list[Any]:
        stopped.extend(each.label for each in rest)
        return []

    monkeypatch.setattr(tmux, "stop", stop)
    feed(ended(0, "failed", 7), Tick(), Tick())
    status = JobWatcher(record, Printer(), failure_grace_s=0.0).run(REQUEST)
    assert stopped == ["node1"]
    assert (status.state, status.exit_code) == ("failed", 7)
    assert "gpt2: stopping it on node1" in capsys.readouterr().err
    assert [event["event"] for event in record.events()] == ["stopped after a failure"]


def test_after_a_stop_the_scheduler_tells_how_the_job_ended(
    record: Record, feed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tmux, "stop", lambda *_: [])
    nodes = tuple(ended(each.rank, "failed", 7).status for each in NODES)
    ending = StatusChanged(JobStatus(nodes, 2, Verdict(State.RUNNING, reason="Slurm is ending it")))
    over = StatusChanged(JobStatus(nodes, 2, Verdict(State.FAILED, ended=True, code=7)))
    feed(ended(0, "failed", 7), ending, ended(1, "failed", 7), Tick(), over)
    status = JobWatcher(record, Printer(), failure_grace_s=0.0).run(REQUEST)
    assert (status.state, status.exit_code) == ("failed", 7)


def test_a_job_that_is_launched_again_is_not_followed_further(
    record: Record, feed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_watcher, "_SUPERSEDED_CHECK_S", 0.0)
    monkeypatch.setattr(Record, "is_superseded", lambda _: True)
    feed(Tick(), ended(0, "failed", 7))
    assert JobWatcher(record, Printer()).run(REQUEST).state == "running"


def test_a_scheduler_job_reports_why_it_waits_and_where_it_runs(
    record: Record, feed: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pending = JobStatus((), 2, Verdict(State.PENDING, reason="Resources"))
    running = JobStatus(tuple(NodeStatus(each, State.RUNNING) for each in NODES), 2, Verdict(State.RUNNING))
    feed(*(StatusChanged(each) for each in (pending, pending, running, running)))
    assert JobWatcher(record, Printer()).run(REQUEST) is running
    assert capsys.readouterr().err.splitlines() == ["gpt2: pending (Resources)", "gpt2: runs on node[0-1]"]


def test_a_failure_is_described_by_the_scheduler_or_the_first_rank() -> None:
    failed = node(0, process("failed", rank(3, code=-9, ended=940.0)))
    assert describe_failure(JobStatus((failed,), 1, Verdict(State.FAILED, True, "TIMEOUT"))) == "TIMEOUT"
    assert describe_failure(JobStatus((failed,), 1)) == "rank 3 on node0 failed first (SIGKILL)"
    assert describe_failure(JobStatus((NodeStatus(NODES[0], State.LOST),), 1)) == "job is lost"
