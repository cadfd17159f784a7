"""Patience with a connection that stalls: it is closed in time, with the step; who is in time is left alone."""

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


def test_the_step_of_a_handshake_is_told() -> None:
    assert step_timeout.handshake_step(SimpleNamespace(get_transport=lambda: None)) == ""
    assert step_timeout.handshake_step(client()) == step_timeout.BANNER
    assert step_timeout.handshake_step(client(remote_version="SSH-2.0-x")) == step_timeout.KEY_EXCHANGE
    assert step_timeout.handshake_step(client(remote_version="SSH-2.0-x", initial_kex_done=True)) == step_timeout.LOGIN


def test_a_step_that_takes_too_long_is_hung_up_and_named() -> None:
    closed = threading.Event()
    timeout = StepTimeout(closed.set, lambda: step_timeout.LOGIN)
    with timeout.at_most(0.01):
        assert closed.wait(10)
    assert timeout.stalled_step == step_timeout.LOGIN


@pytest.mark.parametrize("step", [step_timeout.CHANNEL, step_timeout.COMMAND])
def test_a_step_that_is_told_is_named(step: str) -> None:
    closed = threading.Event()
    timeout = StepTimeout(closed.set, lambda: step_timeout.LOGIN)
    with timeout.at_most(0.01, step):
        assert closed.wait(10)
    assert timeout.stalled_step == step


def test_a_step_that_ends_in_time_is_left_alone_also_when_it_fails() -> None:
    timeout = StepTimeout(lambda: pytest.fail("it was in time"), lambda: "")
    with timeout.at_most(60):
        pass
    with pytest.raises(ValueError, match="no"), timeout.at_most(60):
        raise ValueError("no")
    assert timeout.stalled_step == ""
