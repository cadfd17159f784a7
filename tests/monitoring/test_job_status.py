"""How a job ended, in one line."""

from __future__ import annotations

import pytest

from tests.core.test_status import node, process, rank
from tests.monitoring.test_job_watcher import record  # noqa: F401  # a fixture
from torchfab.core.status import JobStatus, State, Verdict
from torchfab.monitoring.job_status import end_message
from torchfab.records import Record

NEXT = "fab why gpt2 | fab logs gpt2"


@pytest.mark.parametrize(
    ("code", "words"),
    [(7, f"(exit code 7); {NEXT} --rank 0"), (-9, f"(SIGKILL); exit code 137; {NEXT} --rank 0")],
)
def test_the_exit_code_is_said_once(record: Record, code: int, words: str) -> None:  # noqa: F811
    status = JobStatus((node(0, process("failed", rank(0, code=code, ended=940.0))),), 1)
    assert end_message(record, status).endswith(words)


def test_an_unknown_exit_code_is_not_said(record: Record) -> None:  # noqa: F811
    status = JobStatus((), 1, Verdict(State.RUNNING, reason="Slurm is ending it"))
    assert end_message(record, status) == f"job gpt2 failed: Slurm is ending it; {NEXT}"
