"""Connection classes: Fabric's own, extended by a `Route` from ssh's configuration and by the node."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import fabric
import paramiko

from torchfab.core.errors import HostError
from torchfab.core.log_context import program_of
from torchfab.core.specs import Node

if TYPE_CHECKING:
    from torchfab.transport.ssh.route import Route
    from torchfab.transport.ssh.step_timeout import StepTimeout

_log = logging.getLogger(__name__)
# How long a ProxyCommand may take to end after SIGTERM.
_ENDS_WITHIN_S = 2.0


class Connection(fabric.Connection):  # type: ignore[misc]  # fabric ships no types
    """A Fabric connection that follows a `Route` instead of Fabric's own reading of ssh's configuration.

    Attributes
    ----------
    route : Route
        The route to the host; None for `localhost`, which is reached without ssh.
    error : HostError
        The reason why ssh's configuration has no usable route to the host; `open` raises it.
    is_secured : bool
        Whether the host key policy is set.
    prepare : callable
        Called first by `open`, unless it is secured: logs in to the jump hosts and sets the host key policy.
    timeout_s : float
        Time limit of each step of connecting, in seconds.
    keys : tuple of str
        Paths of the private keys to log in with; some may not exist.
    proxy : ProxySocket
        The socket to the ProxyCommand, if there is one.
    step_timeout : StepTimeout
        The time limits of its steps; None until it is opened.
    """

    # Fabric stores an attribute that the class does not declare in its configuration, and looks it up there: a third of
    # the cost of a connection.
    inline_ssh_env: bool = False
    authentication = SimpleNamespace(strategy_class=None)

    error: HostError | None = None
    route: Route | None = None
    is_secured: bool = False
    prepare: Callable[[Any], None] | None = None
    timeout_s: float = 0.0
    keys: tuple[str, ...] = ()
    proxy: ProxySocket | None = None
    step_timeout: StepTimeout | None = None

    def open(self) -> Any:
        """Connect and log in, through the jump hosts, with the host key policy of ssh's configuration.

        Raises
        ------
        HostError
            There is no usable route, or a jump host cannot be logged in to.
        """
        if self.error is not None:
            raise self.error
        if self.prepare is not None and not self.is_secured:
            self.prepare(self)
        return super().open()

    def open_gateway(self) -> Any:
        """Open the jump host's channel or the ProxyCommand that carries this connection.

        Returns
        -------
        Channel or ProxySocket
            A socket-like object.
        """
        if isinstance(self.gateway, str):
            assert self.route is not None
            location = self.route.options.location("proxycommand")
            _log.debug("ProxyCommand: starting %s (%s)", program_of(self.gateway), location)
            self.proxy = ProxySocket.start(self.gateway)
            _log.debug("ProxyCommand: pid %d", self.proxy.process.pid)
            return self.proxy
        _log.debug("jump host: opening a channel from %s to %s port %d", self.gateway.host, self.host, self.port)
        return super().open_gateway()


class NodeConnection(Connection):
    """The connection to a node of a command.

    Attributes
    ----------
    node : Node
        The node.
    """

    node = Node(0, "")  # replaced at once; declared for Fabric, as above

    def _identity(self) -> Any:
        # With Fabric's own identity, two nodes on one host would be one key of a GroupResult.
        return (self.node.rank, *super()._identity())

    def run(self, command: str, **kwargs: Any) -> Any:
        """Run a command on the node, as `fabric.Connection.run` does; without ssh if it is `localhost`.

        Parameters
        ----------
        command : str
            The command, as shell.
        **kwargs
            As for `fabric.Connection.run`.

        Returns
        -------
        fabric.Result
            The result of the command.
        """
        return self.local(command, **kwargs) if self.node.is_local else super().run(command, **kwargs)


class ProxySocket(socket.socket):
    """A socket to a ProxyCommand.

    paramiko's own class busy-loops when the command has ended, and does not run it in a shell.

    Attributes
    ----------
    process : subprocess.Popen
        The command.
    stderr : file
        A temporary file with its stderr.
    close_lock : threading.Lock
        Held while the command is being ended: paramiko's thread closes the socket, too.
    last_error : str
        The last line of stderr, or the exit code; set by `close`.
    """

    process: subprocess.Popen[bytes]
    stderr: Any
    close_lock: threading.Lock
    last_error = ""

    @classmethod
    def start(cls, command: str) -> ProxySocket:
        """Run a ProxyCommand as OpenSSH does, in the user's shell.

        Ctrl-C in this terminal does not reach the command: the connection is still needed to roll back an unfinished
        launch on the nodes.

        Parameters
        ----------
        command : str
            The command, with its tokens expanded.

        Returns
        -------
        ProxySocket
            Connected to the command's stdin and stdout.
        """
        ours, theirs = socket.socketpair()
        proxy = cls(fileno=ours.detach())
        proxy.stderr, proxy.close_lock = tempfile.TemporaryFile(), threading.Lock()
        argv = [os.environ.get("SHELL", "/bin/sh"), "-c", f"trap '' INT; exec {command}"]
        with theirs:
            proxy.process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=proxy.stderr)
        return proxy

    def close(self) -> None:
        """Close the socket, end the command, and keep the last line of its stderr."""
        super().close()
        with self.close_lock:
            if not self.stderr.closed:
                self._end()

    def _end(self) -> None:
        code = self.process.poll()
        self.process.terminate()
        try:
            self.process.wait(_ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:  # it ignores SIGTERM
            self.process.kill()
            self.process.wait()
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").split("\n")
        default = "" if code is None else f"it ended with code {code}"
        self.last_error = next((line.strip() for line in reversed(lines) if line.strip()), default)
        _log.debug("ProxyCommand: pid %d ended: %s", self.process.pid, self.last_error or "no message")
        self.stderr.close()


def new_config() -> Any:
    """Return an empty Fabric configuration.

    Returns
    -------
    fabric.Config
        One for each connection: it is not thread-safe.
    """
    # A new Config costs half as much as a clone, for which Fabric copies all settings.
    return fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig())


def unopened_connection(node: Node, error: HostError | None = None) -> NodeConnection:
    """Return a connection that cannot be opened: for `localhost`, or for a host without a usable route.

    Parameters
    ----------
    node : Node
        The node.
    error : HostError, optional
        What `open` raises. Default: none.

    Returns
    -------
    NodeConnection
        The connection.
    """
    connection = NodeConnection("localhost", config=new_config())
    connection.host, connection.node, connection.error = node.host, node, error
    return connection
