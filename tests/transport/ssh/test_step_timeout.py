"""A stalled connection is closed in time and its step recorded; a connection in time is not touched."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from torchfab.transport.ssh import step_timeout
from torchfab.transport.ssh.step_timeout import StepTimeout


def client(**values: Any) -> SimpleNamespace:
    transport = SimpleNamespace(**{"remote_version": "", "initial_kex_done": False, **values})
    return SimpleNamespace(get_transport=lambda: transport)


def test_handshake_step_names_the_current_step() -> None:
    assert step_timeout.handshake_step(SimpleNamespace(get_transport=lambda: None)) == ""
    assert step_timeout.handshake_step(client()) == step_timeout.BANNER
    assert step_timeout.handshake_step(client(remote_version="SSH-2.0-x")) == step_timeout.KEY_EXCHANGE
    assert step_timeout.handshake_step(client(remote_version="SSH-2.0-x", initial_kex_done=True)) == step_timeout.LOGIN


def test_a_stalled_step_closes_the_connection_and_is_recorded() -> None:
    closed = threading.Event()
    timeout = StepTimeout(closed.set, lambda: step_timeout.LOGIN)
    with timeout.at_most(0.01):
        assert closed.wait(60)
    assert timeout.stalled_step == step_timeout.LOGIN


@pytest.mark.parametrize("step", [step_timeout.CHANNEL, step_timeout.COMMAND])
def test_an_explicit_step_is_recorded(step: str) -> None:
    closed = threading.Event()
    timeout = StepTimeout(closed.set, lambda: step_timeout.LOGIN)
    with timeout.at_most(0.01, step):
        assert closed.wait(60)
    assert timeout.stalled_step == step


def test_a_step_that_ends_or_fails_in_time_is_not_closed() -> None:
    timeout = StepTimeout(lambda: pytest.fail("it was in time"), lambda: "")
    with timeout.at_most(60):
        pass
    with pytest.raises(ValueError, match="no"), timeout.at_most(60):
        raise ValueError("no")
    assert timeout.stalled_step == ""
