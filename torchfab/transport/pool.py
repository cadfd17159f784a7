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
from torchfab.transport.ssh import connections, open_session

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
    """Ask every node; yield each with its answer, or with why there is none, as they come.

    Parameters
    ----------
    request : Mapping, or callable
        What is asked, `op` in it; or what makes that of the node.
    timeout_s : float
        For the answer, beyond the connection's own time-outs.
    """
    opened = connections(nodes, settings)

    def act(node: Node) -> Answer:
        begun = time.monotonic()
        session = open_session(node, opened[node.rank], settings)
        connect_s = time.monotonic() - begun
        try:
            return _ask(node, session, request, timeout_s, connect_s)
        finally:
            session.close()

    for node, result in fan_out(nodes, act, settings.fanout):
        yield node, _or_problem(result)


class SessionPool:
    """One conversation with each of many nodes, kept open over several questions until the `with` block ends.

        with Sessions(nodes, settings) as sessions:
            facts = dict(sessions.ask({"op": "facts"}, timeout_s=10))
            links = dict(sessions.ask(lambda node: {"op": "reach", ...}, timeout_s=10))

    A node is connected to when it is asked first. One that failed (no connection, no answer in time, a conversation cut
    off) is not asked again: it would delay the next round too. Its error stands in for its answers.

    Parameters
    ----------
    nodes : sequence of Node
        Whom to ask.
    settings : ConnectionSettings
        How to reach them.

    Attributes
    ----------
    connect_s : dict of int to float
        By node rank, how long it took until the node could be asked: TCP, key exchange, login.
    """

    def __init__(self, nodes: Sequence[Node], settings: ConnectionSettings) -> None:
        self.nodes, self.settings = tuple(nodes), settings
        self.connect_s: dict[int, float] = {}
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
        """Ask every node, or some; yield each with its answer, or with why there is none, as they come.

        Parameters
        ----------
        request : Mapping, or callable
            What is asked, `op` in it; or what makes that of the node.
        timeout_s : float
            For the answer, beyond the connection's own time-outs.
        nodes : sequence of Node, optional
            Default: all.
        again : bool
            Connect anew to nodes that have failed before. Default False.
        """

        def act(node: Node, session: Session) -> Answer:
            return _ask(node, session, request, timeout_s, self.connect_s[node.rank])

        for node, result in self.map(act, nodes, reconnect):
            yield node, _or_problem(result)

    def map(
        self, act: Callable[[Node, Session], Result], nodes: Sequence[Node] | None = None, reconnect: bool = False
    ) -> Iterator[tuple[Node, Result | TorchfabError]]:
        """Call `act` with every node and its open session, all at once; yield each with the result, or the error.

        For what is more than one question: `act` may ask as often as it likes.
        """
        wanted = self.nodes if nodes is None else tuple(nodes)
        if reconnect:
            self._failed.clear()
        new = [node for node in wanted if node.rank not in self._open and node.rank not in self._failed]
        made = connections(new, self.settings)

        def work(node: Node) -> Result:
            if node.rank in self._failed:
                raise self._failed[node.rank]
            if node.rank not in self._open:
                self._connect(node, made[node.rank])
            return act(node, self._open[node.rank])

        for node, result in fan_out(wanted, work, self.settings.fanout):
            yield node, self._fail(node, result) if isinstance(result, Exception) else result

    def _connect(self, node: Node, connection: Any) -> None:
        begun = time.monotonic()
        self._open[node.rank] = open_session(node, connection, self.settings)
        self.connect_s[node.rank] = time.monotonic() - begun

    def _fail(self, node: Node, error: Exception) -> TorchfabError:
        problem = error if isinstance(error, TorchfabError) else HostError(f"{type(error).__name__}: {error}")
        self._failed[node.rank] = problem
        session = self._open.pop(node.rank, None)
        if session is not None:
            session.close()
        return problem

    def close(self) -> None:
        """Hang up everywhere."""
        left, self._open = list(self._open.values()), {}
        for _ in fan_out(left, Session.close, self.settings.fanout):
            pass


def _ask(
    node: Node, session: Session, request: Request | Callable[[Node], Request], timeout_s: float, connect_s: float
) -> Answer:
    asked = time.time()
    value = session.ask(request(node) if callable(request) else request, timeout_s)
    return Answer(value, asked, time.time(), connect_s)


def _or_problem(result: Answer | Exception) -> Answer | TorchfabError:
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
