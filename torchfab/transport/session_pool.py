"""Requests to many nodes in parallel: one connection each, and an answer or an error for every node.

`request_all` sends one request; a `SessionPool` keeps the connections open for several.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Generic, TypeVar

from msgspec import Struct

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.specs import Node
from torchfab.transport.fanout import fan_out
from torchfab.transport.messages import Request
from torchfab.transport.session import NodeError, Session
from torchfab.transport.ssh import NodeConnection, NodeGroup, open_session

Result = TypeVar("Result")
Answer = TypeVar("Answer", bound=Struct)


class Response(Struct, Generic[Answer], frozen=True):
    """The answer of a node, with its times.

    Parameters
    ----------
    value : Struct
        The answer.
    sent, received : float
        When the request was sent and the answer received, by this machine's clock, in seconds since the epoch.
    connect_s : float
        How long it took to connect: TCP, key exchange, login; in seconds.
    """

    value: Answer
    sent: float
    received: float
    connect_s: float = 0.0


def request_all(
    nodes: Sequence[Node],
    settings: ConnectionSettings,
    request: Callable[[Node], Request[Answer]],
    timeout_s: float,
) -> Iterator[tuple[Node, Response[Answer] | TorchfabError]]:
    """Send a request to every node over a connection of its own, in parallel.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes.
    settings : ConnectionSettings
        How to reach them.
    request : callable
        Returns the request for a node.
    timeout_s : float
        Time limit for the answer, in seconds, in addition to the time limits of the connection.

    Yields
    ------
    tuple of Node and Response or TorchfabError
        Each node with its answer, or with the reason why there is none, in the order of completion.
    """

    def act(connection: NodeConnection) -> Response[Answer]:
        started = time.monotonic()
        session = open_session(connection, settings)
        connect_s = time.monotonic() - started
        try:
            return _request(connection.node, session, request, timeout_s, connect_s)
        finally:
            session.close()

    for connection, result in NodeGroup(nodes, settings).as_completed(act):
        yield connection.node, as_error(result) if isinstance(result, Exception) else result


class SessionPool:
    """An open session with each of many nodes, for several requests, until the `with` block ends.

        with SessionPool(nodes, settings) as sessions:
            clocks = dict(sessions.request(lambda node: ClockRequest(), timeout_s=10))
            probes = dict(sessions.request(lambda node: ProbeRequest(...), timeout_s=10))

    A node is connected to at its first request. A node that failed (no connection, no answer in time, a lost
    connection) gets no further request, which would delay the next round: its error is returned instead.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes.
    settings : ConnectionSettings
        How to reach them.

    Attributes
    ----------
    connect_s : dict of int to float
        By node rank, how long it took to connect: TCP, key exchange, login; in seconds.

    Raises
    ------
    TorchfabError
        ssh's configuration cannot be read.
    """

    def __init__(self, nodes: Sequence[Node], settings: ConnectionSettings) -> None:
        self.nodes, self.settings = tuple(nodes), settings
        self.connect_s: dict[int, float] = {}
        self._connections = self._connect(self.nodes)
        self._open: dict[int, Session] = {}
        self._failed: dict[int, TorchfabError] = {}

    def __enter__(self) -> SessionPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def request(
        self,
        request: Callable[[Node], Request[Answer]],
        timeout_s: float,
        nodes: Sequence[Node] | None = None,
        reconnect: bool = False,
    ) -> Iterator[tuple[Node, Response[Answer] | TorchfabError]]:
        """Send a request to every node, or to some, in parallel.

        Parameters
        ----------
        request : callable
            Returns the request for a node.
        timeout_s : float
            Time limit for the answer, in seconds, in addition to the time limits of the connection.
        nodes : sequence of Node, optional
            Default: all.
        reconnect : bool
            Connect again to nodes that have failed before. Default False.

        Yields
        ------
        tuple of Node and Response or TorchfabError
            Each node with its answer, or with the reason why there is none, in the order of completion.
        """

        def act(node: Node, session: Session) -> Response[Answer]:
            return _request(node, session, request, timeout_s, self.connect_s[node.rank])

        yield from self.map(act, nodes, reconnect)

    def map(
        self, act: Callable[[Node, Session], Result], nodes: Sequence[Node] | None = None, reconnect: bool = False
    ) -> Iterator[tuple[Node, Result | TorchfabError]]:
        """Call `act` with every node, or with some, and its open session, in parallel.

        Parameters
        ----------
        act : callable
            Called in a thread; it may send several requests.
        nodes : sequence of Node, optional
            Default: all.
        reconnect : bool
            Connect again to nodes that have failed before. Default False.

        Yields
        ------
        tuple of Node and Any or TorchfabError
            Each node with the result of `act`, or with the error, in the order of completion.
        """
        selected = self.nodes if nodes is None else tuple(nodes)
        if reconnect:
            self._connections |= self._connect([node for node in self.nodes if node.rank in self._failed])
            self._failed.clear()

        def work(connection: NodeConnection) -> Result:
            rank = connection.node.rank
            if rank in self._failed:
                raise self._failed[rank]
            if rank not in self._open:
                self._open_session(connection, rank)
            return act(connection.node, self._open[rank])

        members = [self._connections[node.rank] for node in selected]
        group = NodeGroup.from_connections(members, self.settings.fanout)
        for connection, result in group.as_completed(work):
            node = connection.node
            yield node, self._fail(node, result) if isinstance(result, Exception) else result

    def _connect(self, nodes: Sequence[Node]) -> dict[int, NodeConnection]:
        connections = NodeGroup(nodes, self.settings)
        return {node.rank: connection for node, connection in zip(nodes, connections, strict=True)}

    def _open_session(self, connection: NodeConnection, rank: int) -> None:
        started = time.monotonic()
        self._open[rank] = open_session(connection, self.settings)
        self.connect_s[rank] = time.monotonic() - started

    def _fail(self, node: Node, error: Exception) -> TorchfabError:
        problem = as_error(error)
        if isinstance(error, NodeError):
            return problem  # the session works
        self._failed[node.rank] = problem
        session = self._open.pop(node.rank, None)
        if session is not None:
            session.close()
        return problem

    def close(self) -> None:
        """Close all sessions, in parallel."""
        sessions, self._open = list(self._open.values()), {}
        for _ in fan_out(sessions, Session.close, self.settings.fanout):
            pass


def _request(
    node: Node, session: Session, request: Callable[[Node], Request[Answer]], timeout_s: float, connect_s: float
) -> Response[Answer]:
    sent = time.time()
    value = session.request(request(node), timeout_s)
    return Response(value, sent, time.time(), connect_s)


def as_error(error: Exception) -> TorchfabError:
    """Return an error as torchfab's.

    Parameters
    ----------
    error : Exception
        Any error of a connection or a session.

    Returns
    -------
    TorchfabError
        The same, or a HostError with its type and message.
    """
    return error if isinstance(error, TorchfabError) else HostError(f"{type(error).__name__}: {error}")
