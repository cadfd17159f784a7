"""The claim of a job's name during its launch, and the output of a launch."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.factories import folder, make_job, make_nodes
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import TorchfabError
from torchfab.core.specs import NodePlan, Plan
from torchfab.launching import interrupts, transaction
from torchfab.launching.transaction import announce, claimed_name, has_started
from torchfab.records import Records


@pytest.fixture
def records(tmp_path: Path) -> Records:
    return Records(tmp_path / "jobs")


def fail(records: Records, error: BaseException, started: bool = False) -> None:
    """Claim a name, write the record of a job, and fail."""
    (node,) = make_nodes("a")
    plan = Plan(make_job(), (NodePlan(node, folder(0), ()),), 1)
    with claimed_name(records, "gpt2"):
        record = records.write(plan, "tmux", time.time(), ConnectionSettings())
        if started:
            record.note("started", attempt=1)
        raise error


def test_a_failed_launch_releases_the_name(records: Records) -> None:
    with pytest.raises(TorchfabError, match="no tmux"):
        fail(records, TorchfabError("no tmux"))
    assert records.all() == []
    with claimed_name(records, "gpt2") as path:
        assert path.is_dir()


def test_the_name_is_kept_if_the_job_may_run_on_a_host(records: Records) -> None:
    error = TorchfabError("1 host did not answer")
    error.uncertain_hosts = ("a",)
    with pytest.raises(TorchfabError):
        fail(records, error)
    assert [record.name for record in records.all()] == ["gpt2"]


def test_the_name_is_kept_if_the_job_has_started(records: Records) -> None:
    with pytest.raises(KeyboardInterrupt):
        fail(records, KeyboardInterrupt(), started=True)
    assert has_started(records, "gpt2")
    assert not has_started(records, "another")


def test_fab_stop_interrupts_a_launch_but_not_later_commands(records: Records) -> None:
    with pytest.raises(KeyboardInterrupt), claimed_name(records, "gpt2"):
        os.kill(os.getpid(), interrupts.STOP_SIGNAL)
    assert signal.getsignal(interrupts.STOP_SIGNAL) is signal.SIG_IGN


def test_a_launch_prints_its_values_and_the_next_commands(capsys: pytest.CaptureFixture[str]) -> None:
    announce("gpt2", "2 ranks on 1 node, submitted", {"folder": "/x", "workdir": "/y"}, ("logs --follow", "stop"))
    assert capsys.readouterr().out.splitlines() == [
        "job gpt2: 2 ranks on 1 node, submitted",
        "  folder   /x",
        "  workdir  /y",
        "next: fab logs --follow gpt2 | fab stop gpt2",
    ]


def test_a_name_that_a_launch_made_up_gets_a_suffix_if_it_is_taken(records: Records) -> None:
    now = 1_800_000_000.0
    made_up = f"train-{transaction.time_stamp(now)}"
    found = []
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            names = transaction.names_to_try(made_up, now)
            found.append(stack.enter_context(claimed_name(records, *names)).name)
    assert found == [made_up, f"{made_up}-2", f"{made_up}-3"]


def test_a_name_that_was_given_gets_no_suffix() -> None:
    assert transaction.names_to_try("gpt2", 1_800_000_000.0) == ("gpt2",)
