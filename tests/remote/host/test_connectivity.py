"""Connections from one node to another."""

from __future__ import annotations

import socket
from typing import NoReturn

import pytest

from torchfab.remote.host import connectivity


def test_connect_reports_a_timeout_on_python_3_9(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OldTimeout(OSError):
        """`socket.timeout` of Python 3.9, which is not a TimeoutError."""

    def silent(*_: object) -> NoReturn:
        raise OldTimeout("timed out")

    monkeypatch.setattr(socket, "timeout", OldTimeout)
    monkeypatch.setattr(socket, "create_connection", silent)
    assert connectivity.connect(["192.0.2.1"], 29500, "hello", 0.1)["outcome"] == "timeout"
