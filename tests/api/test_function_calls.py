"""What `launch(function)` returns or raises when its job has ended, over nodes that answer from values."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

import torchfab
from tests.api.test_handle import DONE, FAILED, NODES, RUNNING, answers, project
from tests.factories import make_facts, make_job
from torchfab.api import function_calls, handle
from torchfab.api.handle import Job
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import FunctionError, HostError, HostsFailedError, JobFailedError, TorchfabError, UsageError
from torchfab.launchers import per_node
from torchfab.records.launch_request import LaunchRequest
from torchfab.runtimes import tmux_call_results
from torchfab.runtimes.tmux_call_results import Outcome
from torchfab.transport.messages.calls import CallFailure, RankOutcome

__all__ = ["project"]  # a fixture


@pytest.fixture
def job(project: Path) -> Job:
    """A job that runs a function."""
    command = function_calls.command_of(len, ("ab",), {}, 1.0)
    made = make_job(
        script=command.script, is_program=True, files=command.files, options=per_node.options(per_node.Flags())
    )
    ctx = handle.open_context()
    LaunchRequest(made, vars(per_node.Flags()), NODES, (), 2).save(ctx.records.claim(made.name))
    ctx.records.write(per_node.plan(made, NODES, (), make_facts(1, 1)), "tmux", 800.0, ConnectionSettings())
    ctx.records.end_launch(made.name)
    return torchfab.job("gpt2")


def left(monkeypatch: pytest.MonkeyPatch, *values: Any) -> None:
    """Set what each rank left: an exception with its time, None for nothing, or its result."""
    outcomes = {}
    for rank, value in enumerate(values):
        if isinstance(value, tuple) and isinstance(value[1], BaseException):
            raised = value[1]
            failure = CallFailure(time=value[0], type=type(raised).__name__, message=str(raised), traceback="Trace\nX")
            outcomes[rank] = Outcome(NODES[rank], RankOutcome(rank=rank, files={"failure": 1}, failure=failure))
        elif value is not None:
            outcomes[rank] = Outcome(NODES[rank], RankOutcome(rank=rank, files={"result": 1}))

    def fetch(_: Any, wanted: dict[int, Outcome], kind: str, folder: Path) -> dict[int, Path]:
        assert folder.stat().st_mode & 0o777 == 0o700
        paths = {rank: folder / f"{kind}-{rank}" for rank in wanted}
        for rank, path in paths.items():
            value = values[rank] if kind == "result" else values[rank][1]
            path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value))
        return paths

    monkeypatch.setattr(tmux_call_results, "outcomes", lambda _: outcomes)
    monkeypatch.setattr(tmux_call_results, "fetch", fetch)


def test_results_are_in_the_order_of_ranks_and_their_files_are_gone(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, DONE)
    left(monkeypatch, {"loss": 1.5}, {"loss": 1.7})
    assert job.results() == ({"loss": 1.5}, {"loss": 1.7})
    assert list(job.info.folder.glob("results-*")) == []


def test_the_exception_of_the_rank_that_failed_first_is_raised(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, FAILED)  # rank 1
    left(monkeypatch, (1.0, ConnectionError("peer closed")), (2.0, ValueError("bad batch\nand more")))
    with pytest.raises(FunctionError) as caught:
        job.results()
    error = caught.value
    assert (error.rank, error.host, error.traceback) == (1, "node1", "Trace\nX")
    assert str(error) == "rank 1 on node1 raised ValueError: bad batch\n\nOn node1, rank 1:\nTrace\nX"
    assert repr(error.__cause__) == "ValueError('bad batch\\nand more')"
    assert isinstance(error, JobFailedError)


def test_a_rank_that_was_killed_is_a_failure_of_the_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, FAILED)
    left(monkeypatch, (1.0, ConnectionError("peer closed")), None)
    with pytest.raises(JobFailedError, match="job gpt2 failed: rank 1 on node1 failed first") as caught:
        job.results()
    assert not isinstance(caught.value, FunctionError)


def test_nodes_that_do_not_tell_leave_the_failure_of_the_job(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, FAILED)
    monkeypatch.setattr(tmux_call_results, "outcomes", refuse)
    with pytest.raises(JobFailedError, match="rank 1 on node1 failed first"):
        job.results()
    answers(monkeypatch, DONE)
    with pytest.raises(HostsFailedError, match="node1: refused"):
        job.results()


def refuse(_: object) -> dict[int, Outcome]:
    raise HostsFailedError("1 of 2 hosts did not say", {"node1": HostError("node1: refused")})


def test_a_result_that_cannot_be_unpickled_names_its_rank(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, DONE)
    left(monkeypatch, 1, b"cno_such_module\nname\n.")
    with pytest.raises(TorchfabError, match="the result of rank 1 on node1 cannot be unpickled here: ModuleNotFound"):
        job.results()
    left(monkeypatch, 1, None)
    with pytest.raises(TorchfabError, match="job gpt2 succeeded, but rank 1 left no result"):
        job.results()


def test_results_may_take_longer_than_one_waits(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, RUNNING)
    with pytest.raises(TimeoutError, match="it continues"):
        job.results(timeout=0.1)


def test_a_script_returns_no_results(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    LaunchRequest(make_job(), vars(per_node.Flags()), NODES, (), 2).save(job.info.folder)
    with pytest.raises(UsageError, match=r"job gpt2 runs train\.py --lr, which returns no results"):
        job.results()


def test_functions_need_a_launcher_over_hosts(project: Path) -> None:
    with pytest.raises(UsageError, match="launcher 'slurm' runs scripts and programs, not functions"):
        torchfab.launch(len, launcher="slurm")
    with pytest.raises(UsageError, match="args and kwargs are for functions only"):
        torchfab.launch(["x.py"], args=(1,))
