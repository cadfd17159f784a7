"""Following a job through the attempts that its supervisor launches."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.core.test_status import node, process, rank
from tests.factories import make_nodes
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.events import Event, Lines, NodeEnded
from torchfab.core.log_lines import Line
from torchfab.monitoring.job_watcher import NO_LOG_LINES, JobWatcher, Printer
from torchfab.records import Record
from torchfab.runtimes import tmux
from torchfab.supervise import supervisor_status
from torchfab.supervise.follower import JobFollower

NODES = make_nodes("node0")


class Recorder(Printer):
    """Keeps the texts of all attempts."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__(folding=False)
        self.texts = texts

    def write(self, lines: Any) -> None:
        self.texts += [line.text for line in lines if isinstance(line, Line)]

    def fresh(self) -> Printer:
        return Recorder(self.texts)


@pytest.fixture
def record(tmp_path: Path) -> Record:
    job = (tmp_path, "gpt2", "gpt2-0a1b2c3d", "per-node", "tmux", 0.0, ("x.py",), NODES, "/x", 1, 1)
    return Record(*job, ConnectionSettings(), {}, {})


def attempts(monkeypatch: pytest.MonkeyPatch, *codes: int) -> None:
    """Set the exit codes of the attempts, each of which logs its number."""

    def follow(record: Record, *_: Any) -> Iterator[Event]:
        code = codes[record.attempt - 1]
        yield Lines(NODES[0], [[0, 1.0, f"attempt {record.attempt}"]])
        yield NodeEnded(node(0, process("failed" if code else "succeeded", rank(0, code, 940.0))))

    def next_attempt(record: Record) -> Generator[None, None, Record | None]:
        yield
        return replace(record, attempt=record.attempt + 1) if record.attempt < len(codes) else None

    monkeypatch.setattr(tmux, "follow", follow)
    monkeypatch.setattr(supervisor_status, "next_attempt", next_attempt)


def followed(record: Record) -> tuple[JobFollower, list[str]]:
    texts: list[str] = []
    follower = JobFollower(JobWatcher(record, Recorder(texts), failure_grace_s=5.0, stall_s=9.0))
    for _ in follower.steps(NO_LOG_LINES):
        pass
    return follower, texts


def test_the_attempts_of_a_supervisor_are_followed_one_after_the_other(
    record: Record, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts(monkeypatch, 7, 0)
    follower, texts = followed(record)
    assert texts == ["attempt 1", "attempt 2"]
    assert (follower.record.attempt, follower.watch.failure_grace_s, follower.watch.stall_s) == (2, 5.0, 9.0)
    assert (follower.final_status().state, record.last_seen()["state"]) == ("succeeded", "succeeded")
    assert capsys.readouterr().err == "gpt2: attempt 2, launched by its supervisor\n"


def test_a_job_that_succeeds_waits_for_no_supervisor(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts(monkeypatch, 0, 7)
    assert followed(record)[1] == ["attempt 1"]


def test_a_caller_that_stops_to_iterate_leaves_the_job(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts(monkeypatch, 7)
    follower = JobFollower(JobWatcher(record, Recorder([])))
    steps = follower.steps(NO_LOG_LINES)
    next(steps)
    steps.close()
    assert record.events() == ()
