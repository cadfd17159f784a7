"""A conversation over a pipe of which the test holds the other end: who waits for what, and who gets it."""

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


class Wire:
    """A pipe; what is written is seen, and what `say` is given arrives."""

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

    def asked(self) -> int:
        """Return the number of the next request that is sent."""
        return int(json.loads(self.written.get(timeout=10))["number"])

    def say(self, **answer: Any) -> None:
        text = json.dumps(answer).encode()
        self.arriving.put(b"\x1e%d\n%s" % (len(text), text))


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def session(wire: Wire) -> Session:
    made = Session(Node(0, "node1"), wire)
    wire.written.get(timeout=10)  # the program
    return made


class Asking(threading.Thread):
    """Asks in a thread of its own, and keeps the answer or the error."""

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
        self.join(20)
        assert not self.is_alive()
        return self.result


def test_who_waits_for_an_answer_sleeps(session: Session, wire: Wire) -> None:
    """A look up now and then, for each of a thousand hosts, is a core."""
    asking = Asking(session)
    number = wire.asked()
    threading.Event().wait(0.5)
    assert wire.reads == 1
    wire.say(of=number)
    assert asking.get() == {"of": number}


def test_the_answer_to_what_was_asked_last_reaches_its_asker_also_where_another_still_waits(
    session: Session, wire: Wire
) -> None:
    first = Asking(session)
    wire.asked()
    second = Asking(session)
    number = wire.asked()
    wire.say(of=number)
    assert second.get() == {"of": number}
    assert "asked something else" in str(first.get())


def test_the_answer_that_comes_after_all_to_what_was_asked_first_is_not_taken_for_the_second_one(
    session: Session, wire: Wire
) -> None:
    first = Asking(session)
    early = wire.asked()
    second = Asking(session)
    late = wire.asked()
    wire.say(of=early)
    first.get()
    wire.say(of=late)
    assert second.get() == {"of": late}


def test_who_waits_behind_another_has_its_own_time_out(session: Session, wire: Wire) -> None:
    first = Asking(session)
    wire.asked()
    second = Asking(session, 0.1)
    number = wire.asked()
    assert "gave no answer within 0.1 s" in str(second.get())
    wire.say(of=number)
    first.get()


def test_both_are_told_when_the_connection_is_lost(session: Session, wire: Wire) -> None:
    first = Asking(session)
    wire.asked()
    second = Asking(session)
    wire.asked()
    session.close()
    wire.close()  # each reads the end, as from a pipe
    assert {type(first.get()), type(second.get())} == {HostError}


def test_requests_are_sent_first_and_waited_for_later(session: Session, wire: Wire) -> None:
    pending = session.post(COMMIT)
    wire.say(of=pending.number)
    assert session.wait(pending, 5) == {"of": pending.number}
