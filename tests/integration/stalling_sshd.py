"""SSH servers on 127.0.0.1 that accept a connection and stall at one step."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import paramiko
from paramiko import common

STEPS = ("banner", "key exchange", "login", "channel", "command", "input", "output")


class StallingServer(paramiko.ServerInterface):
    """A server that accepts everything up to its step, then blocks until `over` is set."""

    def __init__(self, step: str, over: threading.Event) -> None:
        self.step, self.over = step, over

    def _reach(self, step: str) -> None:
        if step == self.step:
            self.over.wait()

    def get_allowed_auths(self, username: str) -> str:
        """Allow keys only."""
        return "publickey"

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """Accept every key."""
        self._reach("login")
        return int(common.AUTH_SUCCESSFUL)

    def check_channel_request(self, kind: str, chanid: int) -> int:
        """Open every channel."""
        self._reach("channel")
        return int(common.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        """Report success without starting anything."""
        self._reach("command")
        return True


@contextlib.contextmanager
def stalling_server(step: str) -> Iterator[int]:
    """Serve SSH up to a step (`STEPS`); return the port.

    `input`: what is sent is taken until the window is full; `output`: it is all taken, and nothing comes back.
    """
    over = threading.Event()
    key = paramiko.ECDSAKey.generate()
    listener = socket.create_server(("127.0.0.1", 0))
    served: list[Any] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            served.append(connection)
            if step == "key exchange":
                connection.sendall(b"SSH-2.0-Stalling\r\n")
            elif step != "banner":
                served.append(_serve(connection, key, step, over))

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        over.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()
        for each in served:
            each.close()


def _serve(connection: socket.socket, key: paramiko.PKey, step: str, over: threading.Event) -> paramiko.Transport:
    window = 32768 if step == "input" else 16 * 1024 * 1024
    transport = paramiko.Transport(connection, default_window_size=window)
    transport.add_server_key(key)
    transport.start_server(threading.Event(), StallingServer(step, over))
    return transport
