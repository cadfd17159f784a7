"""Streams from many nodes: one connection each, which is reopened 5 seconds after it is lost."""

from __future__ import annotations

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from msgspec import Struct

from torchfab.config.connection_settings import ConnectionSettings
from torchfab.core.errors import HostError, TorchfabError
from torchfab.core.specs import Node
from torchfab.transport.messages import Request
from torchfab.transport.session import Session
from torchfab.transport.session_pool import as_error
from torchfab.transport.ssh import NodeConnection, NodeGroup, open_session

FrameType = TypeVar("FrameType", bound=Struct)
_RETRY_S = 5.0
_log = logging.getLogger(__name__)


class _Stream:
    """The stream of one node: its session while connected, else the time to reconnect."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.session: Session | None = None
        self.last_frame = 0.0
        self.retry_at = math.inf
        self.is_finished = False


class NodeStreams(Generic[FrameType]):
    """Send one streaming request to every node, and read the frames of the answers.

    Parameters
    ----------
    nodes : sequence of Node
        The nodes.
    settings : ConnectionSettings
        How to reach them.
    request : callable
        Returns the request for a node; called again after each reconnection.
    silent_s : float
        Reconnect to a node that has sent no frame for this many seconds. Default: never.

    Raises
    ------
    TorchfabError
        ssh's configuration cannot be read.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        settings: ConnectionSettings,
        request: Callable[[Node], Request[FrameType]],
        silent_s: float = math.inf,
    ) -> None:
        self.settings, self.request, self.silent_s = settings, request, silent_s
        self._streams = {node.rank: _Stream(node) for node in nodes}
        self._opened: queue.SimpleQueue[tuple[NodeConnection, Session | Exception]] = queue.SimpleQueue()
        self._open(list(self._streams.values()))

    @property
    def are_finished(self) -> bool:
        """Whether all streams are finished."""
        return all(stream.is_finished for stream in self._streams.values())

    def poll(self) -> Iterator[tuple[Node, Sequence[FrameType] | TorchfabError]]:
        """Yield the frames and errors that have arrived since the last call.

        Yields
        ------
        tuple of Node and sequence of Struct, or of Node and TorchfabError
            A node with its new frames, at least one; or with the reason why its connection was lost.
        """
        while not self._opened.empty():
            connection, result = self._opened.get()
            yield from self._begin(self._streams[connection.node.rank], result)
        for stream in self._streams.values():
            yield from self._read(stream)
        now = time.monotonic()
        self._open([stream for stream in self._streams.values() if now > stream.retry_at])

    def finish(self, node: Node) -> None:
        """Read no more of a node's stream, and do not connect again.

        Parameters
        ----------
        node : Node
            The node.
        """
        self._streams[node.rank].is_finished = True
        self._streams[node.rank].retry_at = math.inf

    def reconnect(self, node: Node) -> None:
        """Close the connection to a node, and connect again in 5 seconds.

        Parameters
        ----------
        node : Node
            The node.
        """
        stream = self._streams[node.rank]
        if stream.session is not None:
            # In the background: closing a connection takes time if the host is down.
            threading.Thread(target=stream.session.close, daemon=True).start()
            stream.session = None
        stream.retry_at = time.monotonic() + _RETRY_S
        _log.debug("stream: reconnecting in %g s", _RETRY_S, extra={"host": node.label})

    def close(self) -> None:
        """Close all connections."""
        for stream in self._streams.values():
            if stream.session is not None:
                stream.session.close()

    def _open(self, streams: Sequence[_Stream]) -> None:
        # In the background: a host that does not respond must not delay the others.
        if not streams:
            return
        for stream in streams:
            stream.retry_at = math.inf
        group = NodeGroup([stream.node for stream in streams], self.settings)

        def work() -> None:
            for result in group.as_completed(lambda connection: open_session(connection, self.settings)):
                self._opened.put(result)

        threading.Thread(target=work, daemon=True).start()

    def _begin(self, stream: _Stream, result: Session | Exception) -> Iterator[tuple[Node, TorchfabError]]:
        try:
            if isinstance(result, Exception):
                raise result
            stream.session, stream.last_frame = result, time.monotonic()
            result.post(self.request(stream.node))
        except Exception as error:
            yield self._lose(stream, error)

    def _read(self, stream: _Stream) -> Iterator[tuple[Node, Sequence[FrameType] | TorchfabError]]:
        if stream.session is None or stream.is_finished:
            return
        try:
            frames = stream.session.read_frames()
            if not frames and time.monotonic() - stream.last_frame > self.silent_s:
                raise HostError(f"no data for {self.silent_s:g} s", "check that the node is still up")
        except HostError as error:
            yield self._lose(stream, error)
            return
        if frames:
            stream.last_frame = time.monotonic()
            yield stream.node, frames

    def _lose(self, stream: _Stream, error: Exception) -> tuple[Node, TorchfabError]:
        problem = as_error(error)
        _log.debug("stream: lost: %s", problem.message, extra={"host": stream.node.label})
        self.reconnect(stream.node)
        return stream.node, problem
