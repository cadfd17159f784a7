"""Create Fabric connections from ssh's configuration: user, port, keys, jump hosts and host key policy."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import fabric
import paramiko

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.console import write_err
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.log_context import program_of
from torchfab.core.specs import Node
from torchfab.transport.ssh import agent, config, host_keys, login_log
from torchfab.transport.ssh import route as routes
from torchfab.transport.ssh.host_keys import Rules
from torchfab.transport.ssh.paramiko_transport import Client
from torchfab.transport.ssh.route import Route
from torchfab.transport.ssh.step_timeout import StepTimeout

_log = logging.getLogger(__name__)


class Connection(fabric.Connection):  # type: ignore[misc]  # fabric ships no types
    """A Fabric connection that follows a `Route` instead of Fabric's own reading of ssh's configuration.

    Attributes
    ----------
    route : Route
        The route to the host.
    timeout_s : float
        For each step of connecting.
    keys : tuple of str
        Paths of the private keys to log in with; some may not exist.
    proxy : ProxySocket
        The socket to the ProxyCommand, where there is one.
    step_timeout : StepTimeout
        The time limits of its steps; None until it is opened.
    """

    # Fabric stores an attribute that the class does not declare in its configuration, and looks it up there: a third of
    # the cost of a connection.
    inline_ssh_env: bool = False
    authentication = SimpleNamespace(strategy_class=None)

    route: Route | None = None
    timeout_s: float = 0.0
    keys: tuple[str, ...] = ()
    proxy: ProxySocket | None = None
    step_timeout: StepTimeout | None = None

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
        Held while the command is ended: paramiko's thread closes the socket, too.
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

        Ctrl-C in this terminal does not reach the command: after it, the connection is still needed to roll back a
        half-finished launch on the nodes.

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
        self.process.wait()
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").split("\n")
        default = "" if code is None else f"it ended with code {code}"
        self.last_error = next((line.strip() for line in reversed(lines) if line.strip()), default)
        _log.debug("ProxyCommand: pid %d ended: %s", self.process.pid, self.last_error or "no message")
        self.stderr.close()


def connections(nodes: Sequence[Node], settings: ConnectionSettings) -> dict[int, Connection | HostError | None]:
    """Create an unopened connection per node; call this before any thread is started.

    A fabric.Config is not thread-safe, so every connection has its own.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes to connect to.
    settings : ConnectionSettings
        How to reach them.

    Returns
    -------
    dict of int to Connection, HostError or None
        By node rank: None for `localhost`; an error where ssh's configuration has no usable route to the host.

    Raises
    ------
    TorchfabError
        ssh's configuration cannot be read.
    """
    by_rank: dict[int, Connection | HostError | None] = {node.rank: None for node in nodes}
    remote = [node for node in nodes if not node.is_local]
    if not remote:
        return by_rank
    if settings.ssh_config and not os.path.isfile(settings.ssh_config):
        raise TorchfabError(f"{settings.ssh_config}: there is no such ssh config file", "check fab -S")
    options = config.read(settings.ssh_config)
    client = config.ClientIdentity(_config().user, socket.gethostname())
    for node in remote:
        try:
            route = routes.route_to(options, node.host, client, node.user, node.port)
            by_rank[node.rank] = _connection(route, settings, settings.identities)
        except HostError as error:
            by_rank[node.rank] = error
    return by_rank


def _config() -> Any:
    # A new Config costs half as much as a clone, for which Fabric copies all settings.
    return fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig())


def _connection(route: Route, settings: ConnectionSettings, identities: Sequence[str] = ()) -> Connection:
    jump_host = _connection(route.jumps[0], settings) if route.jumps else None
    chosen_s = settings.connect_timeout_s if settings.timeout_is_given else route.connect_timeout_s
    timeout_s = chosen_s or settings.connect_timeout_s
    keys = routes.key_files(route, identities)
    connection = Connection(
        route.host,
        user=route.user,
        port=route.port,
        config=_config(),
        gateway=jump_host or route.proxy_command or False,
        connect_timeout=max(1, round(timeout_s)),
        forward_agent=False,
        connect_kwargs={
            **dict.fromkeys(("banner_timeout", "auth_timeout", "channel_timeout"), timeout_s),
            "key_filename": [key for key in keys if os.path.isfile(key)],
            "look_for_keys": False,  # `key_files` includes the default keys where none is configured
        },
    )
    connection.route, connection.timeout_s, connection.keys, connection.client = route, timeout_s, keys, Client()
    return connection


def hops(connection: Any) -> list[Any]:
    """Return the chain of connections to a host.

    Parameters
    ----------
    connection : Connection
        The connection to the host.

    Returns
    -------
    list of Connection
        Those to its jump hosts, the nearest to this machine first, then the host's own.
    """
    gateway = connection.gateway
    return [*(hops(gateway) if isinstance(gateway, Connection) else ()), connection]


def hop_label(connection: Connection) -> str:
    """Return the display name of a jump host.

    Parameters
    ----------
    connection : Connection
        The connection to it.

    Returns
    -------
    str
        Its name as configured, with the port unless that is 22.
    """
    route = connection.route
    assert route is not None
    return route.name if route.port == 22 else f"{route.name}:{route.port}"


def configure_security(connection: Connection) -> Rules:
    """Set the host key policy and the ssh agent of a connection, before it is opened.

    Parameters
    ----------
    connection : Connection
        Not open yet.

    Returns
    -------
    Rules
        The host key rules for its host.

    Raises
    ------
    HostError
        ssh's configuration of the host is not valid.
    """
    assert connection.route is not None
    login_log.log_route(connection)
    rules = host_keys.load_rules(connection.route)
    connection.client.set_missing_host_key_policy(host_keys.HostKeyPolicy(rules, write_err))
    connection.connect_kwargs["transport_factory"] = host_keys.transport_factory(rules)
    connection.client._agent = agent.agent_for(connection.route, connection.keys)
    return rules


def fetch_host_key(connection: Connection) -> tuple[Rules, Any]:
    """Fetch the host key of a host without logging in; the connections to its jump hosts must be open.

    Parameters
    ----------
    connection : Connection
        The connection to the host, not open.

    Returns
    -------
    tuple of Rules and paramiko.PKey
        The host key rules for the host, and the key that it presented.
    """
    rules = configure_security(connection)
    address = (connection.host, connection.port)
    timeout_s = connection.timeout_s
    _log.debug("host key: fetching it from %s port %d, without a login", *address)
    sock = connection.open_gateway() if connection.gateway else socket.create_connection(address, timeout_s)
    transport = host_keys.transport_factory(rules)(sock)
    try:
        transport.banner_timeout = timeout_s
        transport.start_client(timeout=timeout_s)
        return rules, transport.get_remote_server_key()
    finally:
        transport.close()


def close_connection(connection: Connection | None) -> None:
    """Close a connection and those to its jump hosts, also one that failed: until then sshd counts it.

    Parameters
    ----------
    connection : Connection or None
        Nothing is done for None.
    """
    for hop in reversed(hops(connection)) if connection else ():
        hop.client.close()
