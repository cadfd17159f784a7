"""One supervisor per job, and locks between a relaunch and a stop."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from torchfab.core.errors import UsageError
from torchfab.supervise import lease


def test_a_second_supervisor_is_refused_and_the_first_is_named(tmp_path: Path) -> None:
    assert lease.holder(tmp_path) is None
    first = lease.SupervisorLease(tmp_path, "supervise-x")
    held = lease.holder(tmp_path)
    assert held is not None
    with pytest.raises(UsageError, match=f"has a supervisor already: pid {held['pid']} since .*, in tmux: supervise-x"):
        lease.SupervisorLease(tmp_path)
    first.release()
    assert lease.holder(tmp_path) is None
    lease.SupervisorLease(tmp_path).release()


def test_a_relaunch_after_a_stop_request_sees_it(tmp_path: Path) -> None:
    with lease.stopping(tmp_path):
        pass
    with lease.restarting(tmp_path):
        assert lease.stop_requested(tmp_path)


def test_stop_waits_for_a_relaunch_in_progress(tmp_path: Path) -> None:
    order = []

    def stop() -> None:
        with lease.stopping(tmp_path):
            order.append("stop")

    with lease.restarting(tmp_path):
        thread = threading.Thread(target=stop)
        thread.start()
        while not lease.stop_requested(tmp_path):
            pass
        order.append("launched")
    thread.join(60)
    assert order == ["launched", "stop"]
