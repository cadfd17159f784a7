"""Servers that temporarily refuse this machine's address: recognised, waited for, and explained."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import paramiko
import pytest

from tests.integration.faults_injected import server
from torchfab.transport.ssh import penalties
from torchfab.transport.ssh.errors import explain
from torchfab.transport.ssh.paramiko_transport import Transport
from torchfab.transport.ssh.penalties import PenalizedError


@pytest.fixture
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make all waits short."""
    monkeypatch.setattr(penalties, "_PAUSES_S", (0.01, 0.02, 0.03))


def connect(port: int) -> None:
    transport = Transport(socket.create_connection(("127.0.0.1", port), 10))
    try:
        transport.start_client(timeout=10)
    finally:
        transport.close()


def test_the_line_of_a_penalty_is_recognised() -> None:
    with server(b"Not allowed at this time\r\n", hang_up=True) as port, pytest.raises(PenalizedError):
        connect(port)


@pytest.mark.parametrize("greeting", [b"", b"Exceeded MaxStartups\r\n", b"HTTP/1.1 400 Bad Request\r\n"])
def test_other_refusals_are_no_penalty(greeting: bytes) -> None:
    with server(greeting, hang_up=True) as port, pytest.raises((paramiko.SSHException, OSError, EOFError)) as caught:
        connect(port)
    assert not isinstance(caught.value, PenalizedError)


@pytest.mark.usefixtures("_short_pauses")
def test_a_penalty_is_waited_for_and_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    left = [PenalizedError(), PenalizedError()]

    def attempt() -> str:
        if left:
            raise left.pop()
        return "in"

    assert penalties.wait_out(attempt, "node1") == "in"
    said = "node1: its sshd temporarily refuses this address (PerSourcePenalties); waits up to 0 s\n"
    assert capsys.readouterr().err == said


@pytest.mark.usefixtures("_short_pauses")
def test_a_penalty_that_stays_is_an_error_with_its_fix() -> None:
    tries = []

    def attempt() -> None:
        tries.append(1)
        raise PenalizedError

    with pytest.raises(PenalizedError) as caught:
        penalties.wait_out(attempt, "node1")
    assert len(tries) == 4
    problem = explain(caught.value, SimpleNamespace(host="h", port=22), 60.0)
    assert "h port 22 temporarily refuses this machine's address" in problem.message
    assert "PerSourcePenaltyExemptList" in problem.fix


def test_other_errors_are_raised_at_once() -> None:
    def attempt() -> None:
        raise paramiko.SSHException("other")

    with pytest.raises(paramiko.SSHException, match="other"):
        penalties.wait_out(attempt, "node1")
