"""SSH connections: one connection and one Python interpreter per node, shared by all phases of a command.

All code that connects to other machines is in this package. `connect` and the modules below it need Fabric and
paramiko, and are imported only by a command that reaches another machine. `localhost` uses a local process behind the
same interface.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError
from torchfab.core.log_context import log_host
from torchfab.core.specs import Node
from torchfab.transport.session import Session
from torchfab.transport.ssh import login_log
from torchfab.transport.ssh.channels import LocalChannel, SSHChannel
from torchfab.transport.ssh.errors import explain


def open_session(node: Node, connection: Any, settings: ConnectionSettings) -> Session:
    """Connect to a node and start torchfab's program there.

    Parameters
    ----------
    node : Node
        The node.
    connection : Connection, HostError or None
        As `connections` returns it; None for `localhost`.
    settings : ConnectionSettings
        Timeouts, and the interpreter on the node.

    Returns
    -------
    Session
        An open session with the node.

    Raises
    ------
    HostError
        The connection failed; the error has the cause and its fix.
    """
    if isinstance(connection, HostError):  # ssh's configuration has no usable route to the host
        raise connection
    started = time.monotonic()
    try:
        with log_host(node.label):
            channel = LocalChannel() if connection is None else SSHChannel(connection, settings)
        try:
            return Session(node, channel, settings.answer_timeout_s)
        except BaseException:
            channel.close()
            raise
    except Exception as error:
        if connection is not None:
            from torchfab.transport.ssh import connect

            connect.close_connection(connection)
        problem = error if isinstance(error, HostError) else explain(error, connection, time.monotonic() - started)
        problem.address = problem.address or (connection.host if connection else "")
        with log_host(node.label):
            login_log.log_no_session(connection, problem)
        if problem is error:
            raise
        raise problem from error


def connections(nodes: Sequence[Node], settings: ConnectionSettings) -> dict[int, Any]:
    """Return an unopened connection per node; call this before any thread is started.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes to connect to.
    settings : ConnectionSettings
        How to reach them.

    Returns
    -------
    dict of int to Connection, HostError or None
        By node rank; see `connect.connections`.
    """
    if all(node.is_local for node in nodes):
        return {node.rank: None for node in nodes}
    from torchfab.transport.ssh import connect

    return dict(connect.connections(nodes, settings))
