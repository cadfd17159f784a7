"""The network interfaces of this machine, read by ioctl: /sys may show those of another network namespace."""

from __future__ import annotations

import fcntl
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# netdevice(7)
_FLAGS, _ADDRESS, _MTU = 0x8913, 0x8915, 0x8921
_UP = 1


def list_interfaces() -> list[dict[str, Any]]:
    """List all network interfaces.

    Returns
    -------
    list of dict
        `name`, `up`, `mtu` (None if unknown), `addresses`.
    """
    found = []
    inet6 = _inet6()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            flags, mtu = _ioctl(probe, _FLAGS, name), _ioctl(probe, _MTU, name)
            address = _ioctl(probe, _ADDRESS, name)
            addresses = [socket.inet_ntoa(address[4:8])] if address else []
            found.append(
                {
                    "name": name,
                    "up": bool(flags and struct.unpack_from("h", flags)[0] & _UP),
                    "mtu": struct.unpack_from("i", mtu)[0] if mtu else None,
                    "addresses": [*addresses, *inet6.get(name, [])],
                }
            )
    return found


def _ioctl(probe: socket.socket, request: int, name: str) -> bytes:
    try:
        result = fcntl.ioctl(probe, request, struct.pack("16s16x", name.encode()))
    except OSError:  # the interface has no address, or no longer exists
        return b""
    return result[16:]


def _inet6() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    try:
        with open("/proc/net/if_inet6") as file:
            for line in file:
                fields = line.split()
                found.setdefault(fields[5], []).append(socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[0])))
    except OSError:  # this kernel has no IPv6
        pass
    return found
