"""The stall alarm: one message when a job falls silent, one when it logs again."""

from __future__ import annotations

import queue
import time

import pytest

from tests.core.test_stall import job, running
from torchfab.core.status import JobStatus
from torchfab.monitoring.stall_alarm import StallAlarm


class Watched:
    """A job with a given silence, watched by an alarm with a threshold of 0.2 s."""

    def __init__(self, stall_s: float = 0.2) -> None:
        self.requests: queue.SimpleQueue[float] = queue.SimpleQueue()
        self.age_s = 0.0
        self.alarm = StallAlarm("gpt2", stall_s, self.status, lambda: ["collectives: rank 1 is late"])

    def status(self) -> JobStatus:
        self.requests.put(time.monotonic())
        return job(running(0, self.age_s))

    def pace(self, requests: int) -> None:
        """Run the alarm until it has sent so many status requests and handled their answers."""
        end = time.monotonic() + 20
        while self.requests.qsize() < requests or self.alarm.poller.is_waiting:
            assert time.monotonic() < end, f"{self.requests.qsize()} requests were sent, not {requests}"
            self.alarm.poll()
            time.sleep(0.01)


def test_a_silence_and_its_end_are_reported_once(capfd: pytest.CaptureFixture[str]) -> None:
    watched = Watched()
    watched.age_s = 500.0
    watched.pace(requests=3)  # it continues to send requests, without a new warning
    stderr = capfd.readouterr().err
    assert stderr.count("no rank has logged for 8 min 20 s") == 1
    assert stderr.count("  collectives: rank 1 is late\n") == 1
    watched.alarm.feed([time.time()], live=True)
    watched.alarm.feed([time.time()], live=True)
    assert capfd.readouterr().err.count("it logs again, after 8 min") == 1


def test_lines_that_are_not_shown_prevent_the_alarm(capfd: pytest.CaptureFixture[str]) -> None:
    watched = Watched()
    watched.age_s = 0.0
    watched.pace(requests=2)
    assert capfd.readouterr().err == ""


def test_the_end_of_a_silence_is_reported_without_shown_lines(capfd: pytest.CaptureFixture[str]) -> None:
    watched = Watched()
    watched.age_s = 500.0
    watched.pace(requests=1)
    watched.age_s = 0.1
    watched.pace(requests=3)
    assert "it logs again" in capfd.readouterr().err


def test_no_status_request_while_lines_arrive(capfd: pytest.CaptureFixture[str]) -> None:
    watched = Watched(stall_s=60.0)
    watched.alarm.poller.due_at = 0.0  # the next request is due
    watched.alarm.feed([time.time()], live=True)
    watched.alarm.poll()
    assert watched.requests.empty()
    assert capfd.readouterr().err == ""


def test_a_long_silence_before_the_start_is_checked_at_once() -> None:
    watched = Watched(stall_s=50.0)
    watched.alarm.feed([time.time() - 3600], live=False)
    watched.pace(requests=1)


def test_a_disabled_alarm_sends_no_request() -> None:
    watched = Watched(stall_s=0.0)
    watched.alarm.poll()
    assert not watched.alarm.poller.is_waiting
    assert watched.requests.empty()
