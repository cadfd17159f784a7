"""The ssh agent that a host's configuration names, with the keys that it allows."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path

import paramiko
from paramiko.agent import AgentKey, AgentSSH

from torchfab.transport.ssh.route import Route


class Agent(AgentSSH):
    """An agent at a path, which shows some of its keys; paramiko's own knows only SSH_AUTH_SOCK, and shows all.

    Parameters
    ----------
    path : str
        Its socket; empty, or of nobody who listens: an agent without keys.
    only : sequence of bytes, optional
        Public keys; None for all that it has.
    """

    def __init__(self, path: str, only: Sequence[bytes] | None = None) -> None:
        super().__init__()
        self.only = only
        connection = _connected(path)
        if connection is not None:
            self._connect(connection)  # type: ignore[attr-defined]

    def get_keys(self) -> tuple[AgentKey, ...]:
        """Return its keys."""
        return tuple(key for key in super().get_keys() if self.only is None or key.asbytes() in self.only)

    def close(self) -> None:
        """Hang up."""
        self._close()  # type: ignore[attr-defined]


def _connected(path: str) -> socket.socket | None:
    if not path:
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError:  # an agent that is gone, as OpenSSH passes over it
        connection.close()
        return None
    return connection


def agent_for(route: Route, keys: Sequence[str]) -> Agent:
    """Return the agent for a host: IdentityAgent's, with IdentitiesOnly only the keys that are named."""
    only = [blob for key in keys if (blob := _public(key))] if route.options.is_on("identitiesonly") else None
    return Agent(_path(route), only)


def _path(route: Route) -> str:
    named = route.options.text("identityagent", "SSH_AUTH_SOCK")
    if named.lower() == "none":
        return ""
    if named == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK", "")
    if named.startswith("$") and not named.startswith("${"):
        return os.environ.get(named[1:], "")
    return route.path(named, "IdentityAgent")


def _public(key: str) -> bytes:
    """Return the public half of a key file, from the file beside it; empty where there is none."""
    path = Path(key if key.endswith(".pub") else f"{key}.pub")
    try:
        return paramiko.pkey.PublicBlob.from_file(str(path)).key_blob
    except (OSError, ValueError):
        return b""
