"""Create Fabric connections from ssh's configuration: user, port, keys, jump hosts and host key policy."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from typing import Any, TypeVar

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.console import write_err
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.specs import Node
from torchfab.transport.ssh import agent, config, host_keys, login_log
from torchfab.transport.ssh.connection import Connection, NodeConnection, new_config, unopened_connection
from torchfab.transport.ssh.host_keys import Rules
from torchfab.transport.ssh.paramiko_transport import Client
from torchfab.transport.ssh.route import Route, key_files, route_to

AnyConnection = TypeVar("AnyConnection", bound=Connection)
_log = logging.getLogger(__name__)


def connections(nodes: Sequence[Node], settings: ConnectionSettings) -> list[NodeConnection]:
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
    list of NodeConnection
        In the order of the nodes. The connection of `localhost`, and one without a usable route, cannot be opened.

    Raises
    ------
    TorchfabError
        ssh's configuration cannot be read.
    """
    if all(node.is_local for node in nodes):
        return [unopened_connection(node) for node in nodes]
    if settings.ssh_config and not os.path.isfile(settings.ssh_config):
        raise TorchfabError(f"{settings.ssh_config}: there is no such ssh config file", "check fab -S")
    options = config.read(settings.ssh_config)
    client = config.ClientIdentity(new_config().user, socket.gethostname())
    return [unopened_connection(node) if node.is_local else _to_node(node, options, client, settings) for node in nodes]


def _to_node(
    node: Node, options: Sequence[config.Option], client: config.ClientIdentity, settings: ConnectionSettings
) -> NodeConnection:
    try:
        route = route_to(options, node.host, client, node.user, node.port)
        connection = _connection(NodeConnection, route, settings, settings.identities)
    except HostError as error:
        return unopened_connection(node, error)
    connection.node = node
    return connection


def _connection(
    kind: type[AnyConnection], route: Route, settings: ConnectionSettings, identities: Sequence[str] = ()
) -> AnyConnection:
    jump_host = _connection(Connection, route.jumps[0], settings) if route.jumps else None
    chosen_s = settings.connect_timeout_s if settings.timeout_is_given else route.connect_timeout_s
    timeout_s = chosen_s or settings.connect_timeout_s
    keys = key_files(route, identities)
    connection = kind(
        route.host,
        user=route.user,
        port=route.port,
        config=new_config(),
        gateway=jump_host or route.proxy_command or False,
        connect_timeout=max(1, round(timeout_s)),
        forward_agent=False,
        connect_kwargs={
            **dict.fromkeys(("banner_timeout", "auth_timeout", "channel_timeout"), timeout_s),
            "key_filename": [key for key in keys if os.path.isfile(key)],
            "look_for_keys": False,  # `key_files` includes the default keys if none is configured
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
        The connections to its jump hosts, the nearest to this machine first, then the host's own.
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
        Its name as configured, with the port unless it is 22.
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
    connection.is_secured = True
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
    """Close a connection and those to its jump hosts. A failed one, too: until it is closed, sshd counts it.

    Parameters
    ----------
    connection : Connection or None
        Nothing is done for None.
    """
    for hop in reversed(hops(connection)) if connection else ():
        hop.client.close()
