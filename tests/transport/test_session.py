"""A session over a pipe whose other end is the test: which thread gets which answer."""

from __future__ import annotations

import json
import queue
import threading
from typing import Any

import pytest

from tests.transport.requests import RawRequest
from torchfab.core.errors import HostError
from torchfab.core.specs import Node
from torchfab.transport.session import Session

COMMIT = RawRequest(fields={"op": "commit"})


class TestChannel:
    """A channel: the test reads what the session writes, and `send` delivers answers to the session."""

    __test__ = False  # not a class of tests

    def __init__(self) -> None:
        self.written: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.arriving: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.reads = 0

    def write(self, data: bytes) -> None:
        self.written.put(data)

    def read(self, timeout_s: float) -> bytes | None:
        self.reads += 1
        try:
            return self.arriving.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            return None

    def exit_status(self) -> tuple[int | None, str]:
        return None, ""

    def close(self) -> None:
        self.arriving.put(b"")

    def next_number(self) -> int:
        """Return the number of the next request of the session."""
        return int(json.loads(self.written.get(timeout=60))["number"])

    def send(self, **answer: Any) -> None:
        text = json.dumps(answer).encode()
        self.arriving.put(b"\x1e%d\n%s" % (len(text), text))


@pytest.fixture
def channel() -> TestChannel:
    return TestChannel()


@pytest.fixture
def session(channel: TestChannel) -> Session:
    opened = Session(Node(0, "node1"), channel)
    channel.written.get(timeout=60)  # the program
    return opened


class RequestThread(threading.Thread):
    """Sends a request in its own thread, and keeps the answer or the error."""

    def __init__(self, session: Session, timeout_s: float = 20.0) -> None:
        super().__init__(daemon=True)
        self.session, self.timeout_s = session, timeout_s
        self.result: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.session.request(COMMIT, self.timeout_s)
        except HostError as error:
            self.result = error

    def get(self) -> Any:
        self.join(60)
        assert not self.is_alive()
        return self.result


def test_a_waiting_thread_sleeps(session: Session, channel: TestChannel) -> None:
    """Polling now and then, for each of a thousand hosts, takes a whole core."""
    thread = RequestThread(session)
    number = channel.next_number()
    threading.Event().wait(0.5)
    assert channel.reads == 1
    channel.send(of=number)
    assert thread.get() == {"of": number}


def test_the_last_request_gets_its_answer_while_an_earlier_one_waits(session: Session, channel: TestChannel) -> None:
    first = RequestThread(session)
    channel.next_number()
    second = RequestThread(session)
    number = channel.next_number()
    channel.send(of=number)
    assert second.get() == {"of": number}
    assert "another request was sent" in str(first.get())


def test_a_late_first_answer_is_not_taken_for_the_second(session: Session, channel: TestChannel) -> None:
    first = RequestThread(session)
    early = channel.next_number()
    second = RequestThread(session)
    late = channel.next_number()
    channel.send(of=early)
    first.get()
    channel.send(of=late)
    assert second.get() == {"of": late}


def test_a_thread_that_waits_for_another_has_its_own_timeout(session: Session, channel: TestChannel) -> None:
    first = RequestThread(session)
    channel.next_number()
    second = RequestThread(session, 0.1)
    number = channel.next_number()
    assert "gave no answer within 0.1 s" in str(second.get())
    channel.send(of=number)
    first.get()


def test_all_threads_get_an_error_when_the_connection_is_lost(session: Session, channel: TestChannel) -> None:
    first = RequestThread(session)
    channel.next_number()
    second = RequestThread(session)
    channel.next_number()
    session.close()
    channel.close()  # each thread reads the end, as from a pipe
    assert {type(first.get()), type(second.get())} == {HostError}


def test_an_answer_can_be_waited_for_after_the_request(session: Session, channel: TestChannel) -> None:
    pending = session.post(COMMIT)
    channel.send(of=pending.number)
    assert session.wait(pending, 60) == {"of": pending.number}
