"""The socket to a ProxyCommand."""

from __future__ import annotations

import os
import signal
import time

import pytest

from torchfab.transport.ssh import connection
from torchfab.transport.ssh.connection import ProxySocket


def test_ctrl_c_does_not_end_the_proxy_command() -> None:
    proxy = ProxySocket.start("sh -c 'echo ready; read word; echo $word'")
    proxy.settimeout(30)
    try:
        assert proxy.recv(100) == b"ready\n"
        os.kill(proxy.process.pid, signal.SIGINT)
        proxy.sendall(b"alive\n")
        assert proxy.recv(100) == b"alive\n"
    finally:
        proxy.close()


def test_a_proxy_command_that_ignores_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_ENDS_WITHIN_S", 0.2)
    proxy = ProxySocket.start("sh -c 'trap \"\" TERM; echo ready; while :; do sleep 0.1; done'")
    proxy.settimeout(30)
    assert proxy.recv(100) == b"ready\n"
    begun = time.monotonic()
    proxy.close()
    assert time.monotonic() - begun < 10
    assert proxy.process.returncode == -signal.SIGKILL
