"""Fabric's connections, made of what ssh's configuration says: who is asked for which key, through whom, as whom."""

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
from torchfab.core.specs import Node
from torchfab.transport.ssh import agent, config, host_keys
from torchfab.transport.ssh import route as routes
from torchfab.transport.ssh.host_keys import Rules
from torchfab.transport.ssh.paramiko_transport import Client
from torchfab.transport.ssh.route import Route
from torchfab.transport.ssh.step_timeout import StepTimeout


class Connection(fabric.Connection):  # type: ignore[misc]  # fabric ships no types
    """Fabric's, which follows a route instead of Fabric's own reading of ssh's configuration.

    Attributes
    ----------
    route : Route
        The way to the host.
    timeout_s : float
        For each step of connecting.
    keys : tuple of str
        The private keys to log in with; some may not be there.
    proxy : ProxySocket
        What the connection goes over, where that is a ProxyCommand.
    patience : Patience
        What ends its steps, once it is being opened.
    """

    # What is no attribute of the class, Fabric writes into its configuration, and looks up there: a third of the cost.
    inline_ssh_env: bool = False
    authentication = SimpleNamespace(strategy_class=None)

    route: Route | None = None
    timeout_s: float = 0.0
    keys: tuple[str, ...] = ()
    proxy: ProxySocket | None = None
    patience: StepTimeout | None = None

    def open_gateway(self) -> Any:
        """Return what is talked over instead of a connection of our own."""
        if isinstance(self.gateway, str):
            self.proxy = ProxySocket.of(self.gateway)
            return self.proxy
        return super().open_gateway()


class ProxySocket(socket.socket):
    """A socket to a ProxyCommand; paramiko's own spins when the command has ended, and knows no shell."""

    process: subprocess.Popen[bytes]
    errors: Any
    closing: threading.Lock  # paramiko's thread closes it too
    last_words = ""

    @classmethod
    def of(cls, command: str) -> ProxySocket:
        """Run a command as OpenSSH does, by the user's shell; Ctrl-C in this terminal is for us alone.

        Else the way to the nodes would be gone when they are told to take back what they have begun.
        """
        ours, theirs = socket.socketpair()
        made = cls(fileno=ours.detach())
        made.errors, made.closing = tempfile.TemporaryFile(), threading.Lock()
        argv = [os.environ.get("SHELL", "/bin/sh"), "-c", f"trap '' INT; exec {command}"]
        with theirs:
            made.process = subprocess.Popen(argv, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=made.errors)
        return made

    def close(self) -> None:
        """Hang up, end the command, and keep the last line that it wrote to stderr."""
        super().close()
        with self.closing:
            if not self.errors.closed:
                self._end()

    def _end(self) -> None:
        code = self.process.poll()
        self.process.terminate()
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors="replace").split("\n")
        silence = "" if code is None else f"it ended with code {code}"
        self.last_words = next((line.strip() for line in reversed(lines) if line.strip()), silence)
        self.errors.close()


def connections(nodes: Sequence[Node], settings: ConnectionSettings) -> dict[int, Connection | HostError | None]:
    """Return a connection per node, not opened yet; None for `localhost`. Called before any thread is started.

    A fabric.Config is not safe between threads, so every connection has its own. A host to which ssh's configuration
    knows no way gets the error instead.

    Raises
    ------
    TorchfabError
        ssh's configuration cannot be read.
    """
    made: dict[int, Connection | HostError | None] = {node.rank: None for node in nodes}
    remote = [node for node in nodes if not node.is_local]
    if not remote:
        return made
    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False
    if settings.ssh_config and not os.path.isfile(settings.ssh_config):
        raise TorchfabError(f"{settings.ssh_config}: there is no such ssh config file", "check fab -S")
    options = config.read(settings.ssh_config)
    asker = config.ClientIdentity(_config().user, socket.gethostname())
    for node in remote:
        try:
            route = routes.route_to(options, node.host, asker, node.user, node.port)
            made[node.rank] = _connection(route, settings, settings.identities)
        except HostError as error:
            made[node.rank] = error
    return made


def _config() -> Any:
    # A new one costs half of a clone, for which Fabric copies all that it was given.
    return fabric.Config(lazy=True, ssh_config=paramiko.SSHConfig())


def _connection(route: Route, settings: ConnectionSettings, identities: Sequence[str] = ()) -> Connection:
    through = _connection(route.jumps[0], settings) if route.jumps else None
    patience_s = settings.connect_timeout_s if settings.timeout_is_given else route.connect_timeout_s
    timeout_s = patience_s or settings.connect_timeout_s
    keys = routes.key_files(route, identities)
    made = Connection(
        route.host,
        user=route.user,
        port=route.port,
        config=_config(),
        gateway=through or route.proxy_command or False,
        connect_timeout=max(1, round(timeout_s)),
        forward_agent=False,
        connect_kwargs={
            **dict.fromkeys(("banner_timeout", "auth_timeout", "channel_timeout"), timeout_s),
            "key_filename": [key for key in keys if os.path.isfile(key)],
            "look_for_keys": False,  # those are among the keys already, where none is named
        },
    )
    made.route, made.timeout_s, made.keys, made.client = route, timeout_s, keys, Client()
    return made


def hops(connection: Any) -> list[Any]:
    """Return the connections through which a host is reached, the host's own last."""
    gateway = connection.gateway
    return [*(hops(gateway) if isinstance(gateway, Connection) else ()), connection]


def label(connection: Connection) -> str:
    """Return a jump host's name for people."""
    route = connection.route
    assert route is not None
    return route.name if route.port == 22 else f"{route.name}:{route.port}"


def guard(connection: Connection) -> Rules:
    """Make a connection refuse who shows a key that is not the host's, and use the agent that its host allows.

    Raises
    ------
    HostError
        ssh's configuration of the host says what cannot be.
    """
    assert connection.route is not None
    rules = host_keys.rules_of(connection.route)
    connection.client.set_missing_host_key_policy(host_keys.HostKeyPolicy(rules, write_err))
    connection.connect_kwargs["transport_factory"] = host_keys.transport_factory(rules)
    connection.client._agent = agent.agent_for(connection.route, connection.keys)
    return rules


def host_key(connection: Connection) -> tuple[Rules, Any]:
    """Return the key that a host shows, and the rules for it, without logging in there; hosts before it are open."""
    rules = guard(connection)
    address = (connection.host, connection.port)
    timeout_s = connection.timeout_s
    way = connection.open_gateway() if connection.gateway else socket.create_connection(address, timeout_s)
    transport = host_keys.transport_factory(rules)(way)
    try:
        transport.banner_timeout = timeout_s
        transport.start_client(timeout=timeout_s)
        return rules, transport.get_remote_server_key()
    finally:
        transport.close()


def hang_up(connection: Connection | None) -> None:
    """Close a connection and those that it goes through, also one that came to nothing: sshd counts it till then."""
    for hop in reversed(hops(connection)) if connection else ():
        hop.client.close()
