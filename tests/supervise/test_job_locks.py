"""One supervisor per job, and locks between a relaunch and a stop."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from torchfab.core.errors import UsageError
from torchfab.supervise import job_locks


def test_a_second_supervisor_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    assert job_locks.holder(tmp_path) is None
    first = job_locks.SupervisorLock(tmp_path, "supervise-x")
    held = job_locks.holder(tmp_path)
    assert held is not None
    with pytest.raises(UsageError, match=f"already has a supervisor: pid {held['pid']} since .*, in tmux: supervise-x"):
        job_locks.SupervisorLock(tmp_path)
    first.release()
    assert job_locks.holder(tmp_path) is None
    job_locks.SupervisorLock(tmp_path).release()


def test_a_relaunch_after_a_stop_request_sees_it(tmp_path: Path) -> None:
    with job_locks.stopping(tmp_path):
        pass
    with job_locks.restarting(tmp_path):
        assert job_locks.stop_requested(tmp_path)


def test_stop_waits_for_a_relaunch_in_progress(tmp_path: Path) -> None:
    order = []

    def stop() -> None:
        with job_locks.stopping(tmp_path):
            order.append("stop")

    with job_locks.restarting(tmp_path):
        thread = threading.Thread(target=stop)
        thread.start()
        while not job_locks.stop_requested(tmp_path):
            pass
        order.append("launched")
    thread.join(60)
    assert order == ["launched", "stop"]
