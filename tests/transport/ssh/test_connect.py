"""What a connection goes over."""

from __future__ import annotations

import os
import signal

from torchfab.transport.ssh.connect import ProxySocket


def test_ctrl_c_does_not_end_a_proxy_command_over_which_the_nodes_are_still_to_be_told() -> None:
    proxy = ProxySocket.start("sh -c 'echo ready; read word; echo $word'")
    proxy.settimeout(30)
    try:
        assert proxy.recv(100) == b"ready\n"
        os.kill(proxy.process.pid, signal.SIGINT)
        proxy.sendall(b"alive\n")
        assert proxy.recv(100) == b"alive\n"
    finally:
        proxy.close()
