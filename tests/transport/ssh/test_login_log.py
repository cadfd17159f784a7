"""At which step a login failed."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from torchfab.core.errors import HostError
from torchfab.transport.ssh import login_log, step_timeout

REFUSED = OSError(111, "Connection refused")


def connection(gateway: Any = None, stalled: str = "", **transport: Any) -> SimpleNamespace:
    """Return what a connection looks like after it failed."""
    attributes = {"remote_version": "", "initial_kex_done": False, **transport}
    client = SimpleNamespace(get_transport=lambda: SimpleNamespace(**attributes) if transport else None)
    return SimpleNamespace(gateway=gateway, client=client, step_timeout=SimpleNamespace(stalled_step=stalled))


GREETED: dict[str, Any] = {"remote_version": "SSH-2.0-x"}
KEYED: dict[str, Any] = {**GREETED, "initial_kex_done": True}


@pytest.mark.parametrize(
    ("step", "failed", "error"),
    [
        ("resolve", connection(), socket.gaierror(-2, "Name or service not known")),
        ("TCP", connection(), REFUSED),
        ("ProxyCommand", connection("nc %h %p"), REFUSED),
        ("jump host", connection(connection()), REFUSED),
        ("banner", connection(remote_version=""), REFUSED),
        ("key exchange", connection(**GREETED), REFUSED),
        ("host key", connection(**KEYED), HostError("its host key is not known")),
        ("authentication", connection(**KEYED), REFUSED),
        ("key exchange", connection(stalled=step_timeout.KEY_EXCHANGE), REFUSED),
        ("authentication", connection(stalled=step_timeout.LOGIN), REFUSED),
    ],
)
def test_the_step_follows_from_the_error_and_the_progress(step: str, failed: SimpleNamespace, error: Exception) -> None:
    assert login_log.failed_step(failed, error) == step


def test_the_log_shows_the_error_of_every_address(caplog: pytest.LogCaptureFixture) -> None:
    error = OSError("no address")
    error.errors = {("::1", 22, 0, 0): REFUSED, ("10.0.0.1", 22): "No route"}  # type: ignore[attr-defined]
    with caplog.at_level("DEBUG", "torchfab"):
        login_log.log_failure(connection(), error, 0.5)
    text = "FAILED at step TCP after 0.500 s: ::1 port 22: [Errno 111] Connection refused; 10.0.0.1 port 22: No route"
    assert caplog.messages == [text]


def test_the_log_shows_only_the_program_of_a_proxy_command(caplog: pytest.LogCaptureFixture) -> None:
    command = "ncat --proxy-auth me:pass gate 22"
    problem = HostError("its jump host gate: its ProxyCommand failed", f"try it by hand: {command}")
    with caplog.at_level("DEBUG", "torchfab"):
        login_log.log_no_session(connection(gateway=connection(gateway=command)), problem)
    assert caplog.messages == ["no session: its jump host gate: its ProxyCommand failed; fix: try it by hand: ncat"]
