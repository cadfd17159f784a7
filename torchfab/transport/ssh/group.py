"""The connections to the nodes of a command, as a Fabric group whose members work in parallel.

    group = NodeGroup(nodes, settings)
    for connection, result in group.as_completed(act):      as they finish
    results = group.map(act)                                all, as a fabric.GroupResult
    group.run("uname -r")                                   what every Fabric group can do

`torchfab.transport.fanout` runs the threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import fabric
from fabric.exceptions import GroupException
from fabric.group import GroupResult

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.specs import Node
from torchfab.transport.fanout import fan_out
from torchfab.transport.ssh.connection import NodeConnection, unopened_connection

Result = TypeVar("Result")


class NodeGroup(fabric.ThreadingGroup):  # type: ignore[misc]  # fabric ships no types
    """A `fabric.ThreadingGroup` of `NodeConnection`s, with a bounded number of threads.

    Fabric's own group starts a thread for every member. Here at most `limit` threads work, or up to 4 times as many
    while no host responds. Create it before any thread is started.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes; one without a usable route becomes a connection that raises when it is opened.
    settings : ConnectionSettings
        How to reach them; `fanout` is the number of threads.

    Raises
    ------
    TorchfabError
        ssh's configuration cannot be read.
    """

    def __init__(self, nodes: Sequence[Node], settings: ConnectionSettings) -> None:
        super().__init__()
        self.limit = settings.fanout
        self.extend(_connections(nodes, settings))

    @classmethod
    def from_connections(cls, connections: Iterable[NodeConnection], limit: int = 64) -> NodeGroup:
        """Return a group of existing connections.

        Parameters
        ----------
        connections : iterable of NodeConnection
            The members.
        limit : int
            The number of threads. Default 64.

        Returns
        -------
        NodeGroup
            The group.
        """
        group = cls.__new__(cls)
        group.limit = limit
        group.extend(connections)
        return group

    def as_completed(
        self, act: Callable[[NodeConnection], Result]
    ) -> Iterator[tuple[NodeConnection, Result | Exception]]:
        """Call `act` with each connection, in parallel.

        Parameters
        ----------
        act : callable
            Called with a connection, in a thread.

        Yields
        ------
        tuple of NodeConnection and Any
            Each connection with the result of `act` or the exception that it raised, in the order of completion.
        """
        return fan_out(self, act, self.limit)

    def map(self, act: Callable[[NodeConnection], Result]) -> GroupResult:
        """Call `act` with each connection, in parallel, and wait for all.

        Parameters
        ----------
        act : callable
            Called with a connection, in a thread.

        Returns
        -------
        fabric.GroupResult
            By connection: the result of `act`, or the exception that it raised; see `succeeded` and `failed`.
        """
        results = GroupResult()
        results.update(self.as_completed(act))
        return results

    def _do(self, method: str, *args: Any, **kwargs: Any) -> GroupResult:
        # `run`, `sudo`, `put` and `get` of every Fabric group call this method.
        results = self.map(lambda connection: getattr(connection, method)(*args, **kwargs))
        if results.failed:
            raise GroupException(results)
        return results


def _connections(nodes: Sequence[Node], settings: ConnectionSettings) -> list[NodeConnection]:
    if all(node.is_local for node in nodes):
        return [unopened_connection(node) for node in nodes]
    from torchfab.transport.ssh import connect, login  # they read ssh's configuration

    made = connect.connections(nodes, settings)
    for connection in made:
        connection.prepare = login.prepare
    return made
