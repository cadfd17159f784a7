"""Ask many nodes the same thing at once: one connection each, and every node's answer or error on its own.

`ask_all` asks once; `Sessions` keeps the connections open over several questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.specs import Node
from torchfab.transport.fanout import fan_out
from torchfab.transport.session import Session
from torchfab.transport.ssh import NodeConnection, NodeGroup, open_session

Request: TypeAlias = Mapping[str, Any]
Result = TypeVar("Result")
_MOST_PROBLEMS, _LONGEST_PROBLEM = 50, 10_000  # characters


@dataclass(frozen=True)
class Answer:
    """What a node answered, and when.

    Parameters
    ----------
    value : Mapping
        The answer.
    asked, answered : float
        When the question left and the answer came, by this machine's clock, in seconds since the epoch.
    connect_s : float
        How long it took until the node could be asked: TCP, key exchange, login.
    """

    value: Mapping[str, Any]
    asked: float
    answered: float
    connect_s: float = 0.0

    def skew_s(self, there: float) -> float:
        """Return how far a clock is ahead of ours that read `there` when the node answered; known to half a trip."""
        return there - (self.asked + self.answered) / 2


def request_all(
    nodes: Sequence[Node],
    settings: ConnectionSettings,
    request: Request | Callable[[Node], Request],
    timeout_s: float,
) -> Iterator[tuple[Node, Answer | TorchfabError]]:
    """Send a request to every node over a connection of its own, in parallel.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes.
    settings : ConnectionSettings
        How to reach them.
    request : Mapping, or callable
        The request, with its `op`; or what returns the request for a node.
    timeout_s : float
        Time limit for the answer, in seconds, in addition to the time limits of the connection.

    Yields
    ------
    tuple of Node and Answer or TorchfabError
        Each node with its answer, or with the reason why there is none, in the order of completion.
    """

    def act(connection: NodeConnection) -> Answer:
        started = time.monotonic()
        session = open_session(connection, settings)
        connect_s = time.monotonic() - started
        try:
            return _ask(connection.node, session, request, timeout_s, connect_s)
        finally:
            session.close()

    for connection, result in NodeGroup(nodes, settings).as_completed(act):
        yield connection.node, _answer_or_problem(result)


class SessionPool:
    """An open session with each of many nodes, for several requests, until the `with` block ends.

        with SessionPool(nodes, settings) as sessions:
            clocks = dict(sessions.request({"op": "clock"}, timeout_s=10))
            links = dict(sessions.request(lambda node: {"op": "reach", ...}, timeout_s=10))

    A node is connected to at its first request. A node that failed (no connection, no answer in time, a connection that
    broke) gets no further request, which would delay the next round: its error takes the place of its answers.

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
        request: Request | Callable[[Node], Request],
        timeout_s: float,
        nodes: Sequence[Node] | None = None,
        reconnect: bool = False,
    ) -> Iterator[tuple[Node, Answer | TorchfabError]]:
        """Send a request to every node, or to some, in parallel.

        Parameters
        ----------
        request : Mapping, or callable
            The request, with its `op`; or what returns the request for a node.
        timeout_s : float
            Time limit for the answer, in seconds, in addition to the time limits of the connection.
        nodes : sequence of Node, optional
            Default: all.
        reconnect : bool
            Connect again to nodes that have failed before. Default False.

        Yields
        ------
        tuple of Node and Answer or TorchfabError
            Each node with its answer, or with the reason why there is none, in the order of completion.
        """

        def act(node: Node, session: Session) -> Answer:
            return _ask(node, session, request, timeout_s, self.connect_s[node.rank])

        for node, result in self.map(act, nodes, reconnect):
            yield node, _answer_or_problem(result)

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
        problem = error if isinstance(error, TorchfabError) else HostError(f"{type(error).__name__}: {error}")
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


def _ask(
    node: Node, session: Session, request: Request | Callable[[Node], Request], timeout_s: float, connect_s: float
) -> Answer:
    asked = time.time()
    value = session.ask(request(node) if callable(request) else request, timeout_s)
    return Answer(value, asked, time.time(), connect_s)


def _answer_or_problem(result: Answer | Exception) -> Answer | TorchfabError:
    problem = problem_in(result if isinstance(result, Exception) else result.value)
    if problem is not None:
        return problem
    assert isinstance(result, Answer)
    return result


def problem_in(answer: Mapping[str, Any] | Exception) -> TorchfabError | None:
    """Return what a node complains of, or why it did not answer; None when all is well."""
    if isinstance(answer, TorchfabError):
        return answer
    if isinstance(answer, Exception):
        return HostError(f"{type(answer).__name__}: {answer}")
    problems = answer.get("problems", ())
    if not problems:
        return None
    texts = [each["what"] + (f"\n  fix: {each['fix']}" if each["fix"] else "") for each in problems]
    return HostError("\n".join(text[:_LONGEST_PROBLEM] for text in texts[:_MOST_PROBLEMS]))
