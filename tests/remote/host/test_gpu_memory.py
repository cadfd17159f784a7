"""Memory of GPUs that a restart must wait for, and memory that is none of its business."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.remote.place import python
from torchfab.remote import procfs
from torchfab.remote.host import gpu_memory, gpu_usage

ENDED = 2**22 + 1  # above the largest pid that Linux gives


def gpu(*pids: int, memory: float = 71000.0, index: int = 0) -> dict[str, Any]:
    processes = [{"pid": pid, "memory": 70000.0, "name": "python"} for pid in pids]
    return {"index": index, "uuid": f"GPU-{index}a", "memory": memory, "processes": processes}


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that says what is held on these GPUs."""

    def ask(*gpus: dict[str, Any], since: float = 0.0, devices: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        monkeypatch.setattr(gpu_usage, "collect", lambda: {"gpus": list(gpus), "problem": ""})
        answer = gpu_memory.handle({"since": since, "devices": list(devices), "name": "gpt2"})
        found: list[dict[str, Any]] = answer["held"]
        return found

    return ask


@pytest.fixture
def process(request: pytest.FixtureRequest) -> Iterator[int]:
    """A process with the environment that the test's parameter gives."""
    with subprocess.Popen(python("import time; time.sleep(600)"), env=getattr(request, "param", {})) as child:
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():  # the kernel has not set it up yet
            time.sleep(0.01)
        yield child.pid
        child.kill()


def test_memory_of_a_process_that_has_ended_is_held(held: Any) -> None:
    (found,) = held(gpu(ENDED))
    assert found == {"index": 0, "memory_mib": 70000.0, "by": f"{ENDED}, which has ended"}


def test_only_the_jobs_devices_count(held: Any) -> None:
    gpus = (gpu(ENDED, index=0), gpu(ENDED, index=1))
    assert [each["index"] for each in held(*gpus)] == [0, 1]
    assert [each["index"] for each in held(*gpus, devices=("1",))] == [1]
    assert [each["index"] for each in held(*gpus, devices=("GPU-0",))] == [0]


def test_memory_without_any_process_is_held_above_what_a_driver_takes(held: Any) -> None:
    assert held(gpu(memory=600.0)) == []
    assert held(gpu(memory=5000.0))[0]["by"] == "no visible process"
    assert held({**gpu(), "memory": None}) == []


def test_an_older_process_shares_the_gpu_with_the_job(held: Any, process: int) -> None:
    assert held(gpu(process), since=time.time() + 60) == []
    assert held(gpu(process), since=time.time() - 60)[0]["by"] == procfs.describe(process)


@pytest.mark.parametrize("process", [{procfs.JOB_ID: "other-12345678"}], indirect=True)
def test_another_job_is_not_waited_for(held: Any, process: int) -> None:
    assert held(gpu(process)) == []


@pytest.mark.parametrize("process", [{procfs.JOB_ID: "gpt2-12345678"}], indirect=True)
def test_an_earlier_attempt_is_waited_for(held: Any, process: int) -> None:
    assert held(gpu(process), since=time.time() + 60)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")
def test_another_user_is_not_waited_for(held: Any) -> None:
    with subprocess.Popen(["sleep", "600"], user=65534) as child:
        assert held(gpu(child.pid)) == []
        child.kill()
