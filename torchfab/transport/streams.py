"""A feed: what many nodes tell again and again, over one connection each that is opened anew where it breaks."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.specs import Node
from torchfab.transport.fanout import fan_out
from torchfab.transport.pool import problem_in
from torchfab.transport.session import Session
from torchfab.transport.ssh import connections, open_session

News: TypeAlias = tuple[Node, Mapping[str, Any] | TorchfabError]
_RETRY_S = 5.0
_log = logging.getLogger(__name__)


@dataclass
class _Line:
    """The connection to one node, while there is one; else when to try again."""

    node: Node
    session: Session | None = None
    heard: float = 0.0
    retry_at: float | None = None


class NodeStreams:
    """Ask every node for a stream once, and read what comes.

    Parameters
    ----------
    nodes : sequence of Node
        Whom to ask.
    settings : ConnectionSettings
        How to reach them.
    request : callable
        Returns what a node is asked; its `op` is one of those that stream.
    silent_s : float
        A node that has said nothing for so long is given up, and tried again.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        settings: ConnectionSettings,
        request: Callable[[Node], Mapping[str, Any]],
        silent_s: float,
    ) -> None:
        self.settings, self.request, self.silent_s = settings, request, silent_s
        self.lines = [_Line(node) for node in nodes]
        self.opened: queue.SimpleQueue[tuple[_Line, Session | Exception]] = queue.SimpleQueue()
        self._open(self.lines)

    def news(self) -> Iterator[News]:
        """Yield what has come since the last call: a frame of a node, or why there is none any more."""
        while not self.opened.empty():
            line, result = self.opened.get()
            yield from self._begin(line, result)
        for line in self.lines:
            if line.session is not None:
                yield from self._read(line, line.session)
        due = [line for line in self.lines if line.retry_at is not None and time.monotonic() > line.retry_at]
        self._open(due)

    def close(self) -> None:
        """Hang up everywhere."""
        for line in self.lines:
            if line.session is not None:
                line.session.close()

    def _open(self, lines: Sequence[_Line]) -> None:
        """Connect in the background: a host that does not answer keeps nobody waiting."""
        if not lines:
            return
        for line in lines:
            line.retry_at = None
        made = connections([line.node for line in lines], self.settings)

        def act(line: _Line) -> Session:
            return open_session(line.node, made[line.node.rank], self.settings)

        def work() -> None:
            for result in fan_out(lines, act, self.settings.fanout):
                self.opened.put(result)

        threading.Thread(target=work, daemon=True).start()

    def _begin(self, line: _Line, result: Session | Exception) -> Iterator[News]:
        try:
            if isinstance(result, Exception):
                raise result
            line.session, line.heard = result, time.monotonic()
            result.post(self.request(line.node))
        except Exception as error:
            yield line.node, self._lose(line, error)

    def _read(self, line: _Line, session: Session) -> Iterator[News]:
        try:
            frames = session.take()
            if not frames and time.monotonic() - line.heard > self.silent_s:
                raise HostError(f"it has said nothing for {self.silent_s:g} s", "see whether the node is still up")
        except HostError as error:
            yield line.node, self._lose(line, error)
            return
        for frame in frames:
            line.heard = time.monotonic()
            problem = problem_in(frame)
            yield line.node, frame if problem is None else self._lose(line, problem)

    def _lose(self, line: _Line, error: Exception) -> TorchfabError:
        if line.session is not None:
            # In the background: a connection whose other end has gone may take its time.
            threading.Thread(target=line.session.close, daemon=True).start()
            line.session = None
        line.retry_at = time.monotonic() + _RETRY_S
        problem = problem_in(error)
        assert problem is not None
        _log.debug(
            "stream: lost (%s); reconnecting in %g s", problem.message, _RETRY_S, extra={"host": line.node.label}
        )
        return problem
