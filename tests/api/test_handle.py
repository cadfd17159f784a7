"""A job as an object: what its methods return and raise, over a runtime that answers from values."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

import torchfab
from tests.core.test_status import line, node, process, rank
from tests.factories import make_facts, make_job, make_nodes
from torchfab.api import handle
from torchfab.api.handle import Job
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import (
    HostError,
    HostsFailedError,
    JobFailedError,
    JobNameError,
    TorchfabError,
    UsageError,
    WaitTimeoutError,
)
from torchfab.core.events import BacklogRead, ContactLost, Event, Lines, NodeEnded, Tick
from torchfab.core.specs import Node
from torchfab.core.status import JobStatus
from torchfab.launchers import per_node
from torchfab.records import Record
from torchfab.runtimes import RankSignal, SignalReport, StopReport, tmux
from torchfab.supervise import job_locks
from torchfab.why.evidence import Evidence, NodeEvidence

NODES = make_nodes("node0", "node1")
DONE = JobStatus(tuple(node(at, process("succeeded", rank(at, 0, 940.0))) for at in range(2)), 2)
FAILED = JobStatus((node(0, process("succeeded", rank(0, 0, 940.0))), node(1, process("failed", rank(1, 7, 930.0)))), 2)
RUNNING = JobStatus(tuple(node(at, process("running", rank(at), last_line=line(990, "step 3"))) for at in range(2)), 2)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with settings, which is the current folder."""
    (tmp_path / "torchfab.yaml").write_text("records: records\nfailure_grace_s: 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FABRIC_TORCHFAB_RECORDS", raising=False)
    return tmp_path


@pytest.fixture
def job(project: Path) -> Job:
    """A job that was launched from there, in the clone without its settings."""
    ctx = handle.open_context()
    made = make_job(options=per_node.options(per_node.Flags()))
    ctx.records.claim(made.name)
    ctx.records.write(per_node.plan(made, NODES, (), make_facts(1, 1)), "tmux", 800.0, ConnectionSettings())
    ctx.records.end_launch(made.name)
    return torchfab.job("gpt2")


def answers(monkeypatch: pytest.MonkeyPatch, status: JobStatus, *events: Event) -> None:
    """Set what the nodes answer, and the events of the log streams; without end, if the job runs."""

    def follow(*_: Any) -> Iterator[Event]:
        yield from events
        while status is RUNNING and not any(isinstance(event, NodeEnded) for event in events):
            yield Tick()
        yield from map(NodeEnded, status.nodes)

    monkeypatch.setattr(tmux, "follow", follow)
    monkeypatch.setattr(tmux, "status", lambda _: status)
    evidence = Evidence("gpt2", 800.0, status, tuple(NodeEvidence(each) for each in status.nodes))
    monkeypatch.setattr(tmux, "evidence", lambda _: evidence)


def test_the_status_is_a_frozen_value(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, RUNNING)
    found = job.status()
    assert (found.state, found.ended, found.exit_code, found.ok) == ("running", False, None, False)
    assert [(each.host, each.last_line, each.ranks[0].pid) for each in found.nodes] == [
        ("node0", "step 3", 100),
        ("node1", "step 3", 101),
    ]
    with pytest.raises(FrozenInstanceError):
        found.job = "x"  # type: ignore[misc]


def test_waiting_returns_how_the_job_ended(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, DONE)
    assert job.wait().ok
    assert job.wait(check=True).exit_code == 0
    assert (job.info.state, job.info.ended) == ("succeeded", True)


def test_a_failure_is_a_value_or_with_check_an_exception(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, FAILED)
    found = job.wait()
    assert found.first_failure
    assert (found.state, found.exit_code, found.first_failure.rank, found.first_failure.host) == (
        *("failed", 7),
        *(1, "node1"),
    )
    with pytest.raises(JobFailedError) as caught:
        job.wait(check=True)
    assert str(caught.value).startswith("job gpt2 failed: rank 1 on node1 failed first (")
    assert str(caught.value).endswith("exit code 7); fab why gpt2 | fab logs gpt2 --rank 1")
    assert caught.value.exit_code == 7
    assert capsys.readouterr() == ("", "")


def test_a_job_that_does_not_end_in_time_goes_on(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, RUNNING)
    with pytest.raises(TimeoutError, match=r"job gpt2 has not ended within 0\.1 s; it continues"):
        job.wait(timeout=0.1)
    assert issubclass(WaitTimeoutError, TorchfabError)
    assert not job.info.ended


def test_logs_are_typed_lines_in_the_order_of_time(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: tuple[Event, ...] = (
        Lines(NODES[0], [[0, 1.0, "start"], [0, 3.0, "step 2"], ["agent", 4.0, "end"]]),
        Lines(NODES[1], [[1, 1.0, "start"], [1, 2.0, "step 1"]]),
        *map(BacklogRead, NODES),
    )
    answers(monkeypatch, DONE, *lines)
    found = list(job.logs(follow=True))
    assert [(each.host, each.rank, each.time, each.text) for each in found] == [
        ("node0", 0, 1.0, "start"),
        ("node1", 1, 1.0, "start"),
        ("node1", 1, 2.0, "step 1"),
        ("node0", 0, 3.0, "step 2"),
        ("node0", None, 4.0, "end"),
    ]
    assert list(map(str, job.logs())) == list(map(str, found))
    assert str(found[-1]) == "node0 [agent] end"


def test_logs_of_nodes_that_do_not_answer_are_an_error_after_the_lines(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = ContactLost(NODES[1], HostError("no answer"))
    answers(monkeypatch, RUNNING, Lines(NODES[0], [[0, 1.0, "start"]]), lost, NodeEnded(RUNNING.nodes[0]))
    lines = job.logs()
    assert next(lines).text == "start"
    with pytest.raises(TorchfabError, match="not all nodes of job gpt2 could be asked for their logs"):
        next(lines)


@pytest.mark.parametrize("ranks", [5, "5", [0, 5], range(4, 6)])
def test_a_rank_that_the_job_has_not_is_an_error_at_once(job: Job, ranks: Any) -> None:
    with pytest.raises(UsageError, match="job gpt2 has the ranks 0-1, and no rank"):
        job.logs(rank=ranks)


def test_why_is_a_value_and_the_text_of_the_command(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, FAILED)
    found = job.why()
    assert (found.rank, found.host, found.state) == (1, "node1", "failed")
    assert str(found).startswith("job gpt2 failed: ")
    assert found.details["first"]["code"] == 7


def stops(monkeypatch: pytest.MonkeyPatch, *reports: StopReport) -> list[float]:
    graces: list[float] = []

    def stop(_record: Record, grace_s: float) -> tuple[StopReport, ...]:
        graces.append(grace_s)
        return reports

    monkeypatch.setattr(tmux, "stop", stop)
    return graces


def test_a_stop_says_what_it_did(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, DONE)
    graces = stops(monkeypatch, *(StopReport(each, 3, ended_ranks=1, killed_ranks=each.rank) for each in NODES))
    found = job.stop(grace=3)
    assert (found.hosts, found.ended_ranks, found.killed_ranks) == (("node0", "node1"), 2, 1)
    job.stop()
    assert graces == [3, 10.0]
    assert job_locks.stop_requested(job.info.folder)


def test_a_stop_that_is_not_proved_is_an_error(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, DONE)
    stops(monkeypatch, StopReport(NODES[0]), StopReport(NODES[1], error=HostError("node1: refused")))
    with pytest.raises(HostsFailedError) as caught:
        job.stop()
    assert str(caught.value) == (
        "1 of 2 nodes could not be reached to stop the job\n"
        "  fix: when they are reachable again: fab stop gpt2\n  node1: node1: refused"
    )
    stops(monkeypatch, StopReport(NODES[0]), StopReport(NODES[1], 1, left=("4711 (sleep)",)))
    with pytest.raises(TorchfabError, match=r"not all of its processes could be ended: node1: 4711 \(sleep\)"):
        job.stop()


def test_a_block_stops_the_job_at_its_end_if_it_runs(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, RUNNING)
    graces = stops(monkeypatch, *(StopReport(each, 3) for each in NODES))
    with job as same:
        assert same is job
    assert graces == [10.0]
    answers(monkeypatch, DONE)
    with job:
        pass
    assert graces == [10.0]


def test_ctrl_c_leaves_the_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, RUNNING)
    graces = stops(monkeypatch)

    def interrupted(*_: Any) -> Iterator[Event]:
        yield Tick()
        raise KeyboardInterrupt

    monkeypatch.setattr(tmux, "follow", interrupted)
    with pytest.raises(KeyboardInterrupt):
        job.wait()
    assert graces == []


def test_methods_work_in_any_thread(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, DONE)
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(job.wait().state)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["succeeded"] * 3


def test_methods_work_where_an_event_loop_runs(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, DONE)

    async def cell() -> list[str]:
        return [str(job.wait().state), str((await asyncio.to_thread(job.wait)).state)]

    assert asyncio.run(cell()) == ["succeeded", "succeeded"]


def test_jobs_lists_what_was_launched_here(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, RUNNING)
    (found,) = torchfab.jobs()
    assert (found.name, found.state, found.hosts, found.script) == (
        *("gpt2", "running"),
        *(("node0", "node1"), ("train.py", "--lr", "3e-4")),
    )
    assert torchfab.job().name == "gpt2"
    assert repr(job) == "<torchfab job gpt2: per-node, 2 ranks on node0, node1>"
    with pytest.raises(JobNameError, match="no job 'x' was launched from here\n  fix: jobs known here: gpt2"):
        torchfab.job("x")


def test_a_project_is_named_or_found_upwards(job: Job, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "src").mkdir()
    monkeypatch.chdir(project / "src")
    assert torchfab.job("gpt2").name == "gpt2"
    monkeypatch.chdir("/")
    assert torchfab.job("gpt2", project=project / "src").name == "gpt2"
    with pytest.raises(UsageError, match="project: there is no folder"):
        torchfab.job("gpt2", project=project / "no")


def test_settings_that_are_not_valid_are_errors(project: Path) -> None:
    (project / "torchfab.yaml").write_text("record: x\n")
    with pytest.raises(UsageError, match=r"torchfab\.yaml:1: record names no setting; did you mean records"):
        torchfab.jobs()
    (project / "torchfab.yaml").write_text("fanout: many\n")
    with pytest.raises(UsageError, match="fanout must be a number of at least 1, got 'many'"):
        torchfab.jobs()
    (project / "torchfab.yaml").write_text("a: [\n")
    with pytest.raises(UsageError, match="is not YAML"):
        torchfab.jobs()


# ---- what commands do too


def test_a_notice_returns_the_ranks_that_got_it(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []

    def deliver(record: Record, name: str, ranks: Any) -> tuple[SignalReport, ...]:
        sent.append((name, ranks))
        return (SignalReport(NODES[0], (RankSignal(1, "handled", True), RankSignal(0, "handled", False))),)

    monkeypatch.setattr(tmux, "signal", deliver)
    assert job.signal("usr1", rank=[0, 1]) == (1,)
    assert sent == [("SIGUSR1", [0, 1])]
    with pytest.raises(UsageError, match="SIGTERM ends ranks: it is not a notice"):
        job.signal("TERM")
    with pytest.raises(UsageError, match="the ranks 0-1, and no rank 7"):
        job.signal(rank=7)


def test_a_job_that_runs_is_not_removed(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tmux, "status", lambda _: RUNNING)
    with pytest.raises(UsageError, match="job gpt2 has not ended"):
        job.remove()
    monkeypatch.setattr(tmux, "status", lambda _: DONE)
    monkeypatch.setattr(tmux, "forget", lambda _: {})
    job.remove()
    assert torchfab.jobs() == ()


def test_a_port_of_this_machine_is_forwarded_for_the_time_of_a_block(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = (Node(0, "localhost"), None)
        monkeypatch.setattr(tmux, "machines", lambda _: [here])
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with job.forward(f"{port}:{server.getsockname()[1]}") as url:
            assert url == f"http://127.0.0.1:{port}"
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(b"hello")
                accepted, _ = server.accept()
                with accepted:
                    assert accepted.recv(5) == b"hello"
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), 1)
