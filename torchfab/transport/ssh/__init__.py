"""SSH: connections to nodes, and one interpreter on each for all phases of a command.

`NodeGroup` has the connections of a command, `open_session` starts the program on one of them. `localhost` is
served the same way by a local process. A caller that only needs connections does not load the program's messages.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError
from torchfab.core.log_context import log_host
from torchfab.transport.ssh.connection import NodeConnection
from torchfab.transport.ssh.group import NodeGroup

if TYPE_CHECKING:
    from torchfab.transport.session import Session

__all__ = ["NodeConnection", "NodeGroup", "open_session"]


def open_session(connection: NodeConnection, settings: ConnectionSettings) -> Session:
    """Connect to a node and start torchfab's program there.

    Parameters
    ----------
    connection : NodeConnection
        A member of a `NodeGroup`.
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
    with log_host(connection.node.label):
        return _open_session(connection, settings)


def _open_session(connection: NodeConnection, settings: ConnectionSettings) -> Session:
    from torchfab.transport.session import Session
    from torchfab.transport.ssh import login_log
    from torchfab.transport.ssh.channels import LocalChannel, SSHChannel
    from torchfab.transport.ssh.errors import explain

    if connection.error is not None:  # the ssh configuration has no usable route to the host
        login_log.log_no_session(connection, connection.error)
        raise connection.error
    is_local = connection.node.is_local
    started = time.monotonic()
    try:
        channel = LocalChannel() if is_local else SSHChannel(connection, settings)
        try:
            return Session(connection.node, channel, settings.answer_timeout_s)
        except BaseException:
            channel.close()
            raise
    except Exception as error:
        problem = error if isinstance(error, HostError) else explain(error, connection, time.monotonic() - started)
        if not is_local:  # only now: the transport holds what the server allows
            from torchfab.transport.ssh import connect

            connect.close_connection(connection)
        problem.address = problem.address or ("" if is_local else connection.host)
        login_log.log_no_session(connection, problem)
        if problem is error:
            raise
        raise problem from error
