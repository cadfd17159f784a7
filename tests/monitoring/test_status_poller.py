"""Status requests in the background: when they are sent, and what becomes of their answers."""

from __future__ import annotations

import threading
import time

import pytest

from torchfab.core.errors import HostError
from torchfab.core.status import JobStatus
from torchfab.monitoring.status_poller import StatusPoller

STATUS = JobStatus((), 1)


def wait_for_answer(poller: StatusPoller, interval_s: float = 60.0) -> JobStatus | None:
    """Poll until the answer of the request that is under way was handed over."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        answer = poller.poll(interval_s)
        if answer is not None or not poller.is_waiting:
            return answer
        time.sleep(0.005)
    raise TimeoutError


def test_a_request_runs_in_the_background_and_its_answer_comes_once() -> None:
    released = threading.Event()

    def request() -> JobStatus:
        assert released.wait(60)
        return STATUS

    poller = StatusPoller(request)
    assert poller.poll(60) is None
    assert poller.poll(60) is None
    assert poller.is_waiting
    released.set()
    assert wait_for_answer(poller) is STATUS
    assert poller.poll(60) is None
    assert not poller.is_waiting


def test_one_request_runs_at_a_time_and_the_next_one_after_the_interval() -> None:
    sent: list[float] = []

    def request() -> JobStatus:
        sent.append(time.monotonic())
        return STATUS

    poller = StatusPoller(request)
    poller.poll(60)
    assert wait_for_answer(poller) is STATUS
    poller.poll(60)
    assert (len(sent), poller.is_waiting) == (1, False)
    assert poller.due_at > time.monotonic() + 50
    poller.due_at = 0.0
    poller.poll(60)
    assert wait_for_answer(poller) is STATUS
    assert len(sent) == 2


def test_no_request_is_sent_before_it_is_due() -> None:
    poller = StatusPoller(lambda: STATUS, due_at=time.monotonic() + 60)
    assert poller.poll(60) is None
    assert not poller.is_waiting


def test_a_failed_request_is_repeated_after_the_interval() -> None:
    def request() -> JobStatus:
        raise HostError("no answer")

    poller = StatusPoller(request)
    poller.poll(60)
    assert wait_for_answer(poller) is None
    assert poller.due_at > time.monotonic() + 50


def test_an_unexpected_error_is_raised_where_it_is_polled() -> None:
    def request() -> JobStatus:
        raise KeyError("a bug")

    poller = StatusPoller(request)
    poller.poll(60)
    with pytest.raises(KeyError, match="a bug"):
        wait_for_answer(poller)
