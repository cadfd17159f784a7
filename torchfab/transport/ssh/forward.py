"""Forward a port of this machine's loopback address to a port of a node, through the connection to it."""

from __future__ import annotations

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import paramiko

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError, UsageError
from torchfab.core.log_context import log_host
from torchfab.core.specs import Node
from torchfab.transport.ssh import connect
from torchfab.transport.ssh.connection import NodeConnection
from torchfab.transport.ssh.errors import explain
from torchfab.transport.ssh.group import NodeGroup
from torchfab.transport.ssh.login import log_in, prepare

LOOPBACK = "127.0.0.1"
_PROHIBITED, _REFUSED = 1, 2  # reasons of a failed channel: RFC 4254, section 5.1
_CHECK_S = 1.0  # how often to check that the connection is up
_BLOCK_BYTES = 1 << 15
_log = logging.getLogger(__name__)


class NothingListensError(HostError):
    """Nothing listens on the port of the node."""


def listen(port: int, remote_port: int) -> socket.socket:
    """Listen on a port of this machine's loopback address.

    Parameters
    ----------
    port : int
        The port.
    remote_port : int
        The port of the node, for the error.

    Returns
    -------
    socket

    Raises
    ------
    UsageError
        The port is in use, or this user may not listen on it.
    """
    try:
        return socket.create_server((LOOPBACK, port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            problem = f"port {port} of this machine is in use"
        else:
            problem = f"port {port} of this machine cannot be used: {error.strerror}"
        other = (
            10000 + (remote_port + 1) % 10000 if port == 10000 + remote_port % 10000 else 10000 + remote_port % 10000
        )
        raise UsageError(problem, f"choose another one: fab forward {other}:{remote_port}") from None


class Tunnel:
    """Connections to one port of a node.

    Parameters
    ----------
    node : Node
        The node.
    settings : ConnectionSettings
        How to reach it.
    address, port : str, int
        The address and port to connect to from the node.

    Raises
    ------
    HostError
        The node cannot be reached.
    """

    def __init__(self, node: Node, settings: ConnectionSettings, address: str, port: int) -> None:
        self.node, self.settings, self.address, self.port = node, settings, address, port
        self.connection: NodeConnection | None = None
        if not node.is_local:
            (self.connection,) = NodeGroup([node], settings)
            with log_host(node.label):
                self._log_in(self.connection)

    def _log_in(self, connection: NodeConnection) -> None:
        if connection.error is not None:
            raise connection.error
        started = time.monotonic()
        try:
            prepare(connection)
            log_in(connection)
        except HostError:
            raise
        except Exception as error:
            connect.close_connection(connection)
            raise explain(error, connection, time.monotonic() - started) from error
        connection.transport.set_keepalive(15)

    @property
    def is_open(self) -> bool:
        """Whether the connection to the node is up."""
        return self.connection is None or bool(self.connection.transport.is_active())

    def connect(self) -> Any:
        """Connect to the port.

        Returns
        -------
        socket or paramiko.Channel

        Raises
        ------
        NothingListensError
            Nothing listens on the port.
        HostError
            The node's sshd does not forward ports, or the connection was lost.
        """
        silent = NothingListensError(f"nothing listens on port {self.port} there")
        try:
            if self.connection is None:
                return socket.create_connection((self.address, self.port), self.settings.connect_timeout_s)
            target, origin = (self.address, self.port), (LOOPBACK, 0)
            timeout_s = self.settings.connect_timeout_s
            return self.connection.transport.open_channel("direct-tcpip", target, origin, timeout=timeout_s)
        except paramiko.ChannelException as error:
            if error.code == _PROHIBITED:
                problem = "its sshd does not forward ports"
                raise HostError(problem, "AllowTcpForwarding in its sshd_config, or PermitOpen") from error
            raise silent from error
        except ConnectionRefusedError as error:
            raise silent from error
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise HostError(f"port {self.port} there cannot be reached: {error or type(error).__name__}") from error

    def close(self) -> None:
        """Close the connection to the node."""
        connect.close_connection(self.connection)


def serve(listener: socket.socket, tunnel: Tunnel, report: Callable[[HostError], None]) -> None:
    """Carry every connection to the listener through the tunnel, until the connection to the node is lost.

    Parameters
    ----------
    listener : socket
        The result of `listen`.
    tunnel : Tunnel
        The tunnel.
    report : callable
        Called with the error of a connection that could not be carried.

    Raises
    ------
    HostError
        The connection to the node was lost.
    """
    listener.settimeout(_CHECK_S)
    while tunnel.is_open:
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        client.setblocking(True)
        threading.Thread(target=_carry, args=(client, tunnel, report), daemon=True).start()
    raise HostError("the connection was lost", "check that the node is still up, then run the command again")


def _carry(client: socket.socket, tunnel: Tunnel, report: Callable[[HostError], None]) -> None:
    try:
        remote = tunnel.connect()
    except HostError as error:
        client.close()
        report(error)
        return
    _log.debug("forward: a connection to port %d", tunnel.port, extra={"host": tunnel.node.label})
    remote.settimeout(None)
    back = threading.Thread(target=_pump, args=(remote, client), daemon=True)
    back.start()
    _pump(client, remote)
    back.join()
    client.close()
    remote.close()


def _pump(source: Any, target: Any) -> None:
    """Copy bytes until the end of the source, then close the target for writing."""
    try:
        while data := source.recv(_BLOCK_BYTES):
            target.sendall(data)
    except (OSError, EOFError):  # the other side has closed the connection
        pass
    try:
        if isinstance(target, socket.socket):
            target.shutdown(socket.SHUT_WR)
        else:
            target.shutdown_write()
    except (OSError, EOFError):
        pass
