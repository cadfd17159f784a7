"""Connections: one to a node, and one interpreter on it, for all phases of a command.

The room of all that reaches a machine. `connecting` and what it stands on need Fabric and paramiko, and are imported by
a command that reaches another machine only. `localhost` goes the same way through a local process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError
from torchfab.core.specs import Node
from torchfab.transport.session import Session
from torchfab.transport.ssh.channels import LocalChannel, SSHChannel
from torchfab.transport.ssh.errors import explain


def open_session(node: Node, connection: Any, settings: ConnectionSettings) -> Session:
    """Connect to a node and start the conversation.

    Parameters
    ----------
    node : Node
        The node.
    connection : Connection, HostError or None
        As `connections` gives it; None for `localhost`.

    Raises
    ------
    HostError
        With the cause and its fix.
    """
    if isinstance(connection, HostError):  # ssh's configuration knows no way there
        raise connection
    begun = time.monotonic()
    try:
        pipe = LocalChannel() if connection is None else SSHChannel(connection, settings)
        try:
            return Session(node, pipe, settings.answer_timeout_s)
        except BaseException:
            pipe.close()
            raise
    except Exception as error:
        if connection is not None:
            from torchfab.transport.ssh import connect

            connect.hang_up(connection)
        problem = error if isinstance(error, HostError) else explain(error, connection, time.monotonic() - begun)
        problem.address = problem.address or (connection.host if connection else "")
        if problem is error:
            raise
        raise problem from error


def connections(nodes: Sequence[Node], settings: ConnectionSettings) -> dict[int, Any]:
    """Return what `open_session` takes, per node; see `ssh.connecting`. Called before any thread is started."""
    if all(node.is_local for node in nodes):
        return {node.rank: None for node in nodes}
    from torchfab.transport.ssh import connect

    return dict(connect.connections(nodes, settings))
