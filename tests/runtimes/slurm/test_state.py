"""What Slurm and the job's folder tell, as states, reasons and exit codes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.status import JobStatus
from torchfab.monitoring.job_status import describe_failure
from torchfab.records import Record
from torchfab.runtimes.slurm.state import job_status
from torchfab.transport.messages.slurm import SlurmStatus

RECORD = Record(
    *(Path("jobs/gpt2"), "gpt2", "gpt2-0a1b2c3d", "slurm", "slurm", 0.0, ("train.py",), (), "/srv/.torchfab", 4, 2),
    *(ConnectionSettings(), {}, {"slurm_id": "17", "folder": "/srv/.torchfab/jobs/gpt2-0a1b2c3d"}),
)


def told(state: str, **more: Any) -> dict[str, Any]:
    base = {"why": "None", "restarts": 0, "exit": "0:0", "limit": "01:00:00", "start": "", "hosts": ["n1", "n2"]}
    return {"state": state, **base, **more}


def process(state: str, *codes: int | None, time: float = 50.0, **more: Any) -> dict[str, Any]:
    usual = {"local_rank": 0, "world_size": 2, "attempt": 0, "start_time": 1, "started": 20.0}
    ranks = [
        {**usual, "rank": rank, "pid": 100 + rank, "ended": None if code is None else time, "code": code}
        for rank, code in enumerate(codes)
    ]
    ended = None if state == "running" else time
    base = {"name": "agent", "reason": "", "pid": 99, "started": 10.0, "ended": ended, "signal": None, "warned": None}
    code: dict[str, Any] = {
        "code": None if state == "running" else int(state != "succeeded"),
        "last_line": None,
        "reported": [],
    }
    return {**base, **code, "state": state, "ranks": ranks, **more}


def node(rank: int, *processes: Mapping[str, Any], stop: float | None = None) -> dict[str, Any]:
    status: dict[str, Any] = {"processes": list(processes), "exists": True, "stop_asked": stop, "now": 60.0}
    return {"rank": rank, "host": f"n{rank + 1}", "status": status if processes else None}


def job(slurm: Mapping[str, Any], *nodes: Mapping[str, Any], **more: Any) -> JobStatus:
    stop = next((each["status"]["stop_asked"] for each in nodes if each["status"]), None)
    answer = {"slurm": slurm, "nodes": nodes, "exists": True, "stop_asked": stop, "said": "", "now": 60.0, **more}
    return job_status(RECORD, msgspec.convert(answer, SlurmStatus), 60.0, 60.0)


def summary(found: JobStatus) -> tuple[str, bool, int | None, str]:
    return found.state, found.has_ended, found.exit_code, describe_failure(found) if found.has_failed else found.reason


@pytest.mark.parametrize(
    ("why", "more", "words"),
    [
        ("Resources", {}, "waits for nodes to become free (Resources)"),
        ("Priority", {}, "jobs with a higher priority are before it (Priority)"),
        ("None", {}, "Slurm has not considered it yet"),
        ("ReqNodeNotAvail, UnavailableNodes:n2", {}, "a node that it needs is not available (ReqNodeNotAvail)"),
        ("QOSMaxGRESPerUser", {}, "a limit of its quality of service is reached (QOSMaxGRESPerUser)"),
        ("AssocGrpCpuLimit", {}, "a limit of its account or user is reached (AssocGrpCpuLimit)"),
        ("JobHeldUser", {}, "held by its user; to release it: scontrol release 17 (JobHeldUser)"),
        ("Something_New", {}, "Something New"),
        (
            "BeginTime",
            {"restarts": 1, "start": "2026-11-20T21:00:00"},
            "may not begin before 2026-11-20T21:00:00 (BeginTime); it was requeued once",
        ),
        ("Resources", {"restarts": 3}, "waits for nodes to become free (Resources); it was requeued 3 times"),
    ],
)
def test_pending_job_has_a_reason(why: str, more: dict[str, Any], words: str) -> None:
    assert summary(job(told("PENDING", why=why, hosts=[], **more))) == ("pending", False, None, words)


def test_running_job_takes_its_state_from_its_nodes() -> None:
    running = node(0, process("running", None, None))
    assert summary(job(told("RUNNING"), running, node(1))) == ("starting", False, None, "")
    assert summary(job(told("RUNNING"), running, running)) == ("running", False, None, "")
    done = node(0, process("succeeded", 0, 0))
    assert summary(job(told("RUNNING"), done, node(1, process("succeeded", 0)))) == ("succeeded", False, None, "")


def test_completing_job_has_not_failed_as_it_may_be_requeued() -> None:
    failed = node(0, process("failed", -15, -15))
    assert summary(job(told("COMPLETING"), failed)) == ("running", False, None, "Slurm is ending it")


def test_failed_rank_is_reported_before_slurm_ends_the_job() -> None:
    found = job(told("RUNNING"), node(0, process("failed", 0, 7)), node(1, process("running", None)))
    assert summary(found) == ("failed", False, 7, "rank 1 on n1 failed first (exit code 7)")


FAILED = (node(0, process("failed", -15, -15)), node(1, process("failed", -15)))
END_CASES = {
    "done": (told("COMPLETED"), [node(0, process("succeeded", 0))], ("succeeded", True, 0, "")),
    "a rank": (
        told("FAILED", exit="7:0"),
        [node(0, process("failed", 7, -15))],
        ("failed", True, 7, "rank 0 on n1 failed first (exit code 7)"),
    ),
    "time": (told("TIMEOUT"), FAILED, ("failed", True, 143, "the time limit of 01:00:00 was reached")),
    "time, and nothing known": (
        told("TIMEOUT", exit="0:15"),
        [],
        ("failed", True, 143, "the time limit of 01:00:00 was reached"),
    ),
    "memory": (
        told("OUT_OF_MEMORY", exit="0:125"),
        [node(0, process("failed", -9))],
        ("failed", True, 137, "it used more memory than it had requested (--sbatch-arg=--mem=... requests more)"),
    ),
    "node": (told("NODE_FAIL"), [*FAILED], ("lost", True, 143, "a node failed")),
    "node, early": (told("NODE_FAIL"), [node(0), node(1)], ("lost", True, 1, "a node failed")),
    "preempted": (told("PREEMPTED"), [*FAILED], ("lost", True, 143, "it was preempted by another job")),
    "scancel": (
        told("CANCELLED"),
        [*FAILED],
        ("stopped", True, 143, "it was cancelled with scancel, not with fab stop"),
    ),
    "warned": (
        told("FAILED", exit="138:0"),
        [node(0, process("failed", 138, 138, warned="SIGUSR1"))],
        ("failed", True, 138, "the time limit of 01:00:00 was near: the ranks got SIGUSR1, and ended"),
    ),
}


@pytest.mark.parametrize(("slurm", "nodes", "expected"), END_CASES.values(), ids=END_CASES)
def test_final_states_are_distinguished(
    slurm: dict[str, Any], nodes: list[Any], expected: tuple[str, bool, int, str]
) -> None:
    assert summary(job(slurm, *nodes)) == expected


def test_job_asked_to_stop_is_stopped_whatever_slurm_reports() -> None:
    stopped = node(0, process("stopped", -15, -15), stop=40.0)
    for state in ("CANCELLED", "FAILED"):
        found = job(told(state, exit="143:0"), stopped)
        assert (found.state, found.exit_code, found.reason) == ("stopped", 143, "")
    late = node(0, process("failed", 7, time=30.0), stop=40.0)  # it had failed before
    for state in ("CANCELLED", "FAILED"):  # after a failure, `wait` cancels the rest
        assert summary(job(told(state, exit="7:0"), late))[:3] == ("failed", True, 7)
    unstarted = node(0, process("lost", None, reason="never started"), stop=40.0)
    assert job(told("CANCELLED"), unstarted).state == "stopped"


def test_failed_batch_script_shows_its_output() -> None:
    found = job(told("FAILED", exit="1:0", hosts=[]), said="line 30: HF_TOKEN: is taken from the environment of sbatch")
    words = (
        "the batch script ended with code 1 before torchrun began: line 30: HF_TOKEN: is taken from the environment of"
    )
    assert summary(found)[:3] == ("failed", True, 1)
    assert found.reason.startswith(words)


def test_purged_job_takes_its_state_from_its_folder() -> None:
    done = [node(rank, process("succeeded", 0)) for rank in range(2)]
    forgotten = {"state": ""}
    assert summary(job(forgotten, *done)) == ("succeeded", True, 0, "")
    assert summary(job(forgotten, done[0], node(1, process("failed", 3)))) == (
        *("failed", True, 3),
        "rank 0 on n2 failed first (exit code 3)",
    )
    assert summary(job(forgotten, done[0], node(1)))[:3] == ("lost", True, 1)
    assert "no longer exists" in job(forgotten, exists=False).reason


def test_unreachable_cluster_does_not_end_the_job() -> None:
    found = job({"error": "Unable to contact slurm controller"})
    assert summary(found) == (
        *("unreachable", False, None),
        "Slurm cannot be queried: Unable to contact slurm controller",
    )
