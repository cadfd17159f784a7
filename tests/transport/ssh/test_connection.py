"""The socket to a ProxyCommand."""

from __future__ import annotations

import os
import signal

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
