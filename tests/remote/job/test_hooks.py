"""`--before` and `--after` on a node."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from torchfab.remote import job_files
from torchfab.remote.job import hooks


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """The job's folder."""
    (tmp_path / "job").mkdir()
    return tmp_path / "job"


def request_of(job: Path, command: str, timeout_s: float = 20) -> dict[str, Any]:
    return {"command": command, "timeout_s": timeout_s, "process": {"name": "agent", "cwd": str(job.parent)}}


def before(job: Path, command: str, timeout_s: float = 20, disturbed: bool = False) -> str:
    def is_disturbed(pause_s: float) -> bool:
        time.sleep(pause_s)
        return disturbed

    env = {"PATH": os.environ["PATH"], "A": "two  words", "RANK": "3", "LOCAL_RANK": "1"}
    return hooks.before(str(job), request_of(job, command, timeout_s), env, is_disturbed)


def ended(job: Path, name: str, **end: Any) -> None:
    """Record a process that has ended; without values, one that runs."""
    (job / name).mkdir()
    job_files.write_json(str(job / name / job_files.SPEC), {"after": "true"})
    if end:
        job_files.write_json(str(job / name / job_files.EXIT), end)


def test_a_hook_runs_in_the_workdir_with_the_jobs_environment_but_no_rank(job: Path) -> None:
    assert before(job, 'echo "$A, ${RANK-none}, ${LOCAL_RANK-none}, $(pwd)"; echo oops >&2') == ""
    log = job / "agent" / job_files.BEFORE_LOG
    assert log.read_text() == f"two  words, none, none, {job.parent}\noops\n"
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_failure_has_the_status_and_the_end_of_the_output(job: Path) -> None:
    assert before(job, "echo begun; exit 23") == "--before failed: it ended with status 23\n    begun"
    assert before(job, "kill -9 $$").startswith("--before failed: it ended with status 137")


def test_a_hook_that_takes_too_long_is_killed_with_its_children(job: Path) -> None:
    pid_file = job / "pid"
    text = before(job, f"sleep 60 & echo $! > '{pid_file}'; wait", timeout_s=0.5)
    assert text == "--before failed: it did not end within 0.5 s"
    assert eventually_gone(int(pid_file.read_text()))


def test_a_hook_ends_when_the_launch_machine_disconnects(job: Path) -> None:
    assert before(job, "sleep 60", disturbed=True) == "--before failed: it took too long"


def eventually_gone(pid: int) -> bool:
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_the_exit_code_is_that_of_the_first_failure(job: Path) -> None:
    ended(job, "rank-0", code=1, time=5.0)
    ended(job, "rank-1", code=-9, time=3.0)
    ended(job, "rank-2", code=0, time=1.0)
    assert hooks.exit_code(str(job)) == 137


def test_a_stop_waits_for_a_hook_only_where_there_is_one(job: Path) -> None:
    assert hooks.stop_s(str(job)) == 0
    ended(job, "agent")
    assert hooks.stop_s(str(job)) == hooks.STOPPED_S
