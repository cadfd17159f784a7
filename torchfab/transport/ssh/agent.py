"""The ssh agent from a host's ssh configuration, limited to the keys that the configuration allows."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import paramiko
from paramiko.agent import AgentKey, AgentSSH

from torchfab.transport.ssh.route import Route

_log = logging.getLogger(__name__)


class Agent(AgentSSH):
    """An ssh agent at a given path that offers a subset of its keys.

    paramiko's own class supports SSH_AUTH_SOCK only, and offers all keys.

    Parameters
    ----------
    path : str
        The agent's socket. If it is empty, or no agent listens there, the agent has no keys.
    allowed_keys : sequence of bytes, optional
        Public keys to offer; None for all that the agent has.
    """

    def __init__(self, path: str, allowed_keys: Sequence[bytes] | None = None) -> None:
        super().__init__()
        self.allowed_keys = allowed_keys
        connection = _connect(path)
        if connection is not None:
            self._connect(connection)  # type: ignore[attr-defined]

    def get_keys(self) -> tuple[AgentKey, ...]:
        """Return the keys of the agent that are allowed.

        Returns
        -------
        tuple of AgentKey
            In the agent's order.
        """
        allowed, keys = self.allowed_keys, super().get_keys()
        offered = tuple(key for key in keys if allowed is None or key.asbytes() in allowed)
        _log.debug("agent: it has %d keys; %d of them may be offered to this host", len(keys), len(offered))
        return offered

    def close(self) -> None:
        """Close the connection to the agent."""
        self._close()  # type: ignore[attr-defined]


def _connect(path: str) -> socket.socket | None:
    if not path:
        _log.debug("agent: none is configured (SSH_AUTH_SOCK, IdentityAgent)")
        return None
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:  # the agent does not run any more; OpenSSH ignores that, too
        _log.debug("agent: none answers at %s: %s", path, error)
        connection.close()
        return None
    _log.debug("agent: connected to %s", path)
    return connection


def agent_for(route: Route, keys: Sequence[str]) -> Agent:
    """Connect to the agent for a host, according to IdentityAgent and IdentitiesOnly.

    Parameters
    ----------
    route : Route
        The route to the host.
    keys : sequence of str
        Paths of the private keys for the host; with IdentitiesOnly, the agent offers only these.

    Returns
    -------
    Agent
        The agent; it has no keys if none runs.
    """
    only_named = route.options.is_enabled("identitiesonly")
    allowed_keys = [blob for key in keys if (blob := _read_public_key(key))] if only_named else None
    return Agent(_socket_path(route), allowed_keys)


def _socket_path(route: Route) -> str:
    identity_agent = route.options.value("identityagent", "SSH_AUTH_SOCK")
    if identity_agent.lower() == "none":
        return ""
    if identity_agent == "SSH_AUTH_SOCK":
        return os.environ.get("SSH_AUTH_SOCK", "")
    if identity_agent.startswith("$") and not identity_agent.startswith("${"):
        return os.environ.get(identity_agent[1:], "")
    return route.path(identity_agent, "IdentityAgent")


def _read_public_key(key: str) -> bytes:
    """Return the public half of a key file, from the `.pub` file beside it; empty if there is none."""
    path = Path(key if key.endswith(".pub") else f"{key}.pub")
    try:
        return paramiko.pkey.PublicBlob.from_file(str(path)).key_blob
    except (OSError, ValueError):
        return b""
