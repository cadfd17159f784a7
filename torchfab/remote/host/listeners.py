"""Find the ports on which a program of this user listens, such as tensorboard."""

from __future__ import annotations

import os
import socket
import struct

from torchfab.remote import procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_LISTEN = "0A"
_ANY = ("0.0.0.0", "::", "::ffff:0.0.0.0")


def find(request: dict[str, Any]) -> dict[str, Any]:
    """Return the ports on which a program listens.

    Parameters
    ----------
    request : dict
        `program`: its name, as a command or as a Python module with a `main`.

    Returns
    -------
    dict
        `listeners`, each with `port`, `address` (`localhost` if it listens on all addresses), `pid` and `command`.
    """
    found = []
    for pid in procfs.all_pids():
        argv = procfs.command_line(pid)
        if runs(argv, request["program"]):
            inodes = _sockets(pid)
            ports = sorted({each[:2] for each in listening() if each[2] in inodes})
            found += [
                {"port": port, "address": address, "pid": pid, "command": " ".join(argv)} for address, port in ports
            ]
    return {"listeners": found}


def runs(argv: list[str], program: str) -> bool:
    """Return whether a command line runs a program: `tensorboard`, `python -m tensorboard.main`.

    Parameters
    ----------
    argv : list of str
        The command line.
    program : str
        The name.

    Returns
    -------
    bool
    """
    return any(
        os.path.basename(word) == program
        or (word in (program, f"{program}.main") and "-m" in argv[:4])
        or word.endswith(f"/{program}/main.py")
        for word in argv[:4]
    )


def _sockets(pid: int) -> set[str]:
    """Return the inodes of the sockets that a process has open; none for a process of another user."""
    folder = f"/proc/{pid}/fd"
    found: set[str] = set()
    try:
        names = os.listdir(folder)
    except OSError:
        return found
    for name in names:
        try:
            target = os.readlink(f"{folder}/{name}")
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found


def listening() -> list[tuple[str, int, str]]:
    """Return the TCP sockets that listen on this machine.

    Returns
    -------
    list of tuple
        Address, port and inode.
    """
    found = []
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/net/{name}") as file:
                lines = file.read().splitlines()[1:]
        except OSError:  # a kernel without IPv6
            continue
        found += [each for line in lines if (each := parse_line(line)) is not None]
    return found


def parse_line(line: str) -> tuple[str, int, str] | None:
    """Parse a line of /proc/net/tcp or tcp6.

    Parameters
    ----------
    line : str
        The line.

    Returns
    -------
    tuple or None
        Address (`localhost` for all addresses), port and inode; None for a socket that does not listen.
    """
    fields = line.split()
    if len(fields) < 10 or fields[3] != _LISTEN:
        return None
    raw, _, port = fields[1].partition(":")
    words = [struct.pack("=I", int(raw[at : at + 8], 16)) for at in range(0, len(raw), 8)]
    address = socket.inet_ntop(socket.AF_INET if len(words) == 1 else socket.AF_INET6, b"".join(words))
    return "localhost" if address in _ANY else address, int(port, 16), fields[9]
