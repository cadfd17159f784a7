"""Identify this machine, so that two names of one machine are detected before two nodes run on it."""

from __future__ import annotations

import os

from torchfab.remote import light_stdlib, procfs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_NAMESPACES = ("mnt", "net", "pid", "uts")


def identify() -> dict[str, Any]:
    """Identify this machine, or this container.

    Returns
    -------
    dict
        `id`: a digest that is equal for two sessions on one machine only; `ssh_port`: the sshd port through which
        this session was opened, None for a local process.
    """
    return {"id": _digest(), "ssh_port": ssh_port(os.environ)}


def ssh_port(environ: Mapping[str, str]) -> int | None:
    """Return the sshd port through which a session was opened.

    Parameters
    ----------
    environ : Mapping of str to str
        The environment of the session.

    Returns
    -------
    int or None
        None for a session without SSH.
    """
    fields = environ.get("SSH_CONNECTION", "").split()
    return procfs.int_or_none(fields[3]) if len(fields) == 4 else None


def _digest() -> str:
    # Machines that were resumed from one snapshot have equal boot ids, but not equal addresses. Containers on one
    # machine have namespaces of their own. Another home is another user, or a rehearsal.
    parts = [procfs.boot_id(), os.uname().nodename, os.path.expanduser("~"), *_namespaces(), *_addresses()]
    return str(light_stdlib.sha256("\0".join(parts).encode(errors="surrogateescape")).hexdigest())[:32]


def _namespaces() -> list[str]:
    found = []
    for name in _NAMESPACES:
        try:
            found.append(os.readlink(f"/proc/self/ns/{name}"))
        except OSError:
            pass
    return found


def _addresses() -> list[str]:
    """Return the IPv4 addresses of this network namespace."""
    try:
        with open("/proc/net/fib_trie") as file:
            lines = [line.split() for line in file]
    except OSError:
        return []
    pairs = zip(lines, lines[1:])
    return sorted({words[-1] for words, after in pairs if after[-1:] == ["LOCAL"] and words[:1] == ["|--"]})
