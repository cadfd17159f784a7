"""The network interfaces of this machine."""

from __future__ import annotations

import socket

from torchfab.remote.host import interfaces


def test_all_interfaces_are_listed_and_loopback_has_its_address() -> None:
    found = {each["name"]: each for each in interfaces.list_interfaces()}
    assert sorted(found) == sorted(name for _, name in socket.if_nameindex())
    assert found["lo"]["up"] is True
    assert "127.0.0.1" in found["lo"]["addresses"]
    assert found["lo"]["mtu"] >= 1280
