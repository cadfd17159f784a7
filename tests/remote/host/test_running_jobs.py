"""The jobs that run on this machine."""

from __future__ import annotations

import subprocess
import sys

import pytest

from torchfab.remote import procfs
from torchfab.remote.host import running_jobs

SLEEP = "import time; print(flush=True); time.sleep(60)"


@pytest.mark.parametrize("supervised", [False, True])
def test_processes_are_counted_by_the_job_in_their_environment(supervised: bool) -> None:
    job_id = "listed-0a1b2c3d"
    words = (f"/x/jobs/{job_id}/node-0/node.py",) if supervised else ()
    argv = (sys.executable, "-c", SLEEP, *words)
    with subprocess.Popen(argv, env={procfs.JOB_ID: job_id}, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            process.stdout.readline()
            (found,) = [each for each in running_jobs.list_jobs() if each["job_id"] == job_id]
        finally:
            process.kill()
    assert (found["processes"], found["supervised"]) == (1, supervised)
    assert found["example"].startswith(f"{process.pid} ({sys.executable} ")
    assert job_id not in [each["job_id"] for each in running_jobs.list_jobs()]
