"""Ask many nodes the same thing at once: one connection each, and every node's answer or error on its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torchfab.errors import HostError, TorchfabError
from torchfab.fanout import fan_out
from torchfab.job import Node
from torchfab.settings import Settings
from torchfab.ssh import connections, open_session

Request: TypeAlias = Mapping[str, Any]


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


def ask_all(
    nodes: Sequence[Node],
    settings: Settings,
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
            asked = time.time()
            value = session.ask(request(node) if callable(request) else request, timeout_s)
            return Answer(value, asked, time.time(), connect_s)
        finally:
            session.close()

    for node, result in fan_out(nodes, act, settings.fanout):
        yield node, _or_problem(result)


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
    return HostError("\n".join(texts))
