"""Sessions that stay open for several requests, with real local programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.transport.requests import RawRequest
from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.specs import Node
from torchfab.transport import session_pool, ssh
from torchfab.transport.messages.doctor import ClockRequest
from torchfab.transport.session import NodeError, Session
from torchfab.transport.session_pool import Response, SessionPool

LOCAL = Node(0, "localhost")
NOWHERE = Node(1, "host.invalid")


def clock(node: Node) -> ClockRequest:
    return ClockRequest()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The hosts of the opened sessions, in order."""
    hosts: list[str] = []
    before = ssh.open_session

    def open_session(connection: ssh.NodeConnection, settings: ConnectionSettings) -> Any:
        hosts.append(connection.node.host)
        return before(connection, settings)

    monkeypatch.setattr(session_pool, "open_session", open_session)
    return hosts


@pytest.fixture
def sessions() -> Iterator[SessionPool]:
    with SessionPool([LOCAL, NOWHERE], ConnectionSettings(connect_timeout_s=1)) as opened:
        yield opened


def test_several_requests_to_a_node_use_one_connection(sessions: SessionPool, opened: list[str]) -> None:
    times = []
    for _ in range(3):
        answer = dict(sessions.request(clock, 10, [LOCAL]))[LOCAL]
        assert isinstance(answer, Response)
        times.append(answer.value.time)
    assert opened == ["localhost"]
    assert times == sorted(times)
    assert sessions.connect_s[0] > 0


def test_a_failed_node_keeps_its_error_and_is_not_retried(sessions: SessionPool, opened: list[str]) -> None:
    first = dict(sessions.request(clock, 10))
    second = dict(sessions.request(clock, 10))
    assert isinstance(first[LOCAL], Response)
    assert isinstance(second[LOCAL], Response)
    assert isinstance(first[NOWHERE], HostError)
    assert first[NOWHERE] is second[NOWHERE]
    assert sorted(opened) == ["host.invalid", "localhost"]


def test_a_failed_node_is_retried_with_reconnect(sessions: SessionPool, opened: list[str]) -> None:
    for _ in range(2):
        list(sessions.request(clock, 10, [NOWHERE], reconnect=True))
    assert opened == ["host.invalid", "host.invalid"]


def test_a_broken_session_is_an_error_and_can_be_reconnected(sessions: SessionPool, opened: list[str]) -> None:
    assert isinstance(dict(sessions.request(clock, 10, [LOCAL]))[LOCAL], Response)
    sessions._open[0].channel.process.kill()  # type: ignore[attr-defined]
    assert isinstance(dict(sessions.request(clock, 10, [LOCAL]))[LOCAL], TorchfabError)
    assert isinstance(dict(sessions.request(clock, 10, [LOCAL], reconnect=True))[LOCAL], Response)
    assert opened == ["localhost", "localhost"]


def test_a_problem_of_a_node_keeps_the_session_open(sessions: SessionPool, opened: list[str]) -> None:
    result = dict(sessions.request(lambda _: RawRequest(fields={"op": "no such"}), 10, [LOCAL]))[LOCAL]
    assert isinstance(result, NodeError)
    assert isinstance(dict(sessions.request(clock, 10, [LOCAL]))[LOCAL], Response)
    assert opened == ["localhost"]


def test_map_sends_several_requests_over_the_open_session(sessions: SessionPool) -> None:
    def twice(node: Node, session: Session) -> list[float]:
        return [session.request(ClockRequest(), 10).time for _ in range(2)]

    found = dict(sessions.map(twice, [LOCAL]))[LOCAL]
    assert isinstance(found, list)
    assert len(found) == 2


def test_no_program_is_left_after_the_block() -> None:
    with SessionPool([LOCAL], ConnectionSettings()) as sessions:
        list(sessions.request(clock, 10))
        process = sessions._open[0].channel.process  # type: ignore[attr-defined]
        assert process.poll() is None
    assert process.poll() is not None
