"""The request to end a process: its grace period, also while the machine's clock is set."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from torchfab.remote.job.end_request import EndRequest
from torchfab.remote.job.rank_tracker import RankTracker


@pytest.mark.parametrize("jump_s", [3600.0, -3600.0])
def test_the_grace_period_does_not_depend_on_the_machines_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_s: float
) -> None:
    request = EndRequest(str(tmp_path), {"grace_s": 0.3}, RankTracker(str(tmp_path), 0))
    truth = time.time
    request.request(signal.SIGTERM)
    monkeypatch.setattr(time, "time", lambda: truth() + jump_s)
    assert not request.is_overdue()
    time.sleep(0.4)
    assert request.is_overdue()
