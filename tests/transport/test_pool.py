"""Sessions kept open over several questions, with real programs behind local pipes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.specs import Node
from torchfab.transport import pool, ssh
from torchfab.transport.pool import Answer, SessionPool

CLOCK = {"op": "clock"}
LOCAL = Node(0, "localhost")
NOWHERE = Node(1, "host.invalid")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the hosts of the sessions that were opened, in order."""
    hosts: list[str] = []
    before = ssh.open_session

    def open_session(connection: ssh.NodeConnection, settings: ConnectionSettings) -> Any:
        hosts.append(connection.node.host)
        return before(connection, settings)

    monkeypatch.setattr(pool, "open_session", open_session)
    return hosts


@pytest.fixture
def sessions() -> Iterator[SessionPool]:
    with SessionPool([LOCAL, NOWHERE], ConnectionSettings(connect_timeout_s=1)) as made:
        yield made


def test_a_node_is_connected_to_once_however_often_it_is_asked(sessions: SessionPool, opened: list[str]) -> None:
    times = []
    for _ in range(3):
        answer = dict(sessions.request(CLOCK, 10, [LOCAL]))[LOCAL]
        assert isinstance(answer, Answer)
        times.append(answer.value["time"])
    assert opened == ["localhost"]
    assert times == sorted(times)
    assert sessions.connect_s[0] > 0


def test_the_node_that_failed_is_among_the_answers_and_is_not_tried_again(
    sessions: SessionPool, opened: list[str]
) -> None:
    first = dict(sessions.request(CLOCK, 10))
    second = dict(sessions.request(CLOCK, 10))
    assert isinstance(first[LOCAL], Answer)
    assert isinstance(second[LOCAL], Answer)
    assert isinstance(first[NOWHERE], HostError)
    assert first[NOWHERE] is second[NOWHERE]
    assert sorted(opened) == ["host.invalid", "localhost"]


def test_the_node_that_failed_is_tried_again_on_request(sessions: SessionPool, opened: list[str]) -> None:
    for _ in range(2):
        list(sessions.request(CLOCK, 10, [NOWHERE], reconnect=True))
    assert opened == ["host.invalid", "host.invalid"]


def test_a_conversation_that_was_cut_off_is_an_error_and_then_begun_anew(
    sessions: SessionPool, opened: list[str]
) -> None:
    assert isinstance(dict(sessions.request(CLOCK, 10, [LOCAL]))[LOCAL], Answer)
    sessions._open[0].channel.process.kill()  # type: ignore[attr-defined]
    assert isinstance(dict(sessions.request(CLOCK, 10, [LOCAL]))[LOCAL], TorchfabError)
    assert isinstance(dict(sessions.request(CLOCK, 10, [LOCAL], reconnect=True))[LOCAL], Answer)
    assert opened == ["localhost", "localhost"]


def test_a_problem_that_a_node_tells_does_not_end_the_conversation(sessions: SessionPool, opened: list[str]) -> None:
    told = dict(sessions.request({"op": "no such"}, 10, [LOCAL]))[LOCAL]
    assert isinstance(told, HostError)
    assert isinstance(dict(sessions.request(CLOCK, 10, [LOCAL]))[LOCAL], Answer)
    assert opened == ["localhost"]


def test_several_questions_in_one_go_are_asked_over_the_open_session(sessions: SessionPool) -> None:
    def twice(node: Node, session: Any) -> list[float]:
        return [session.ask(CLOCK, 10)["time"] for _ in range(2)]

    found = dict(sessions.map(twice, [LOCAL]))[LOCAL]
    assert isinstance(found, list)
    assert len(found) == 2


def test_no_program_is_left_when_the_block_has_ended() -> None:
    with SessionPool([LOCAL], ConnectionSettings()) as sessions:
        list(sessions.request(CLOCK, 10))
        process = sessions._open[0].channel.process  # type: ignore[attr-defined]
        assert process.poll() is None
    assert process.poll() is not None
