"""The logs of a job on the tmux runtime: one stream per node, over one connection each, read on where one broke off."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torchfab.core import status
from torchfab.core.errors import HostError
from torchfab.core.events import BacklogRead, ContactLost, Event, EventStream, Lines, NodeEnded, Tick
from torchfab.core.specs import Node, session_name
from torchfab.records import Record
from torchfab.transport.fanout import fan_out
from torchfab.transport.pool import problem_in
from torchfab.transport.session import Session
from torchfab.transport.ssh import connections, open_session

_POLL_S = 0.05
_RETRY_S = 5.0


def address(record: Record, node: Node) -> dict[str, Any]:
    """Return what names a job on a node."""
    return {
        "job_id": record.job_id,
        "node_dir": record.node_dir,
        "node_rank": node.rank,
        "mask_key": record.mask_key,
        "session": session_name(record.name, node.rank),
    }


class _Stream:
    """The log stream of one node: its session, while there is one, and how far it has been read."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.session: Session | None = None
        self.offsets: dict[str, int] = {}
        # Lines whose offsets have not come yet: told with them, or not at all, so that no line is ever told twice.
        self.waiting: list[Sequence[Any]] = []
        self.asked = 0.0
        self.retry_at: float | None = None
        self.done = False


def follow(record: Record, request: Mapping[str, Any], nodes: Sequence[Node] | None = None) -> EventStream:
    """Yield what the logs of a job hold and receive, and how it ends on each node; one connection per node.

    A node with which contact is lost is tried again every few seconds, and read on where it was left. A Tick is yielded
    when there is nothing to tell, so that the caller stays awake.

    Parameters
    ----------
    request : Mapping
        `follow`, `lines`, `ranks`, `grep`: as `torchfab.remote.job.log_reader.Reader` takes them.
    """
    streams = [_Stream(node) for node in (record.nodes if nodes is None else nodes)]
    opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]] = queue.SimpleQueue()
    try:
        _open_in_background(streams, record, opened)
        while not all(stream.done for stream in streams):
            events = [*_take_opened(opened, record, request), *_take_frames(streams)]
            yield from events
            _retry(streams, record, opened)
            if not events:
                time.sleep(_POLL_S)
                yield Tick()
    finally:
        for stream in streams:
            if stream.session is not None:
                stream.session.close()


def _open_in_background(
    streams: Sequence[_Stream], record: Record, opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]]
) -> None:
    made = connections([stream.node for stream in streams], record.settings)

    def act(stream: _Stream) -> Session:
        return open_session(stream.node, made[stream.node.rank], record.settings)

    def consume() -> None:
        for result in fan_out(streams, act, record.settings.fanout):
            opened.put(result)

    threading.Thread(target=consume, daemon=True).start()


def _take_opened(
    opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]], record: Record, request: Mapping[str, Any]
) -> Iterator[Event]:
    while not opened.empty():
        stream, result = opened.get()
        try:
            if isinstance(result, Exception):
                raise result
            stream.session, stream.asked = result, time.time()
            offsets = {"offsets": stream.offsets} if stream.offsets else {}
            stream.session.post({**address(record, stream.node), **request, **offsets, "op": "logs"})
        except Exception as error:
            yield _lose(stream, error)


def _lose(stream: _Stream, error: Exception) -> ContactLost:
    if stream.session is not None:
        stream.session.close()
        stream.session = None
    stream.waiting = []
    stream.retry_at = time.monotonic() + _RETRY_S
    problem = problem_in(error)
    assert problem is not None
    return ContactLost(stream.node, problem)


def _retry(
    streams: Sequence[_Stream], record: Record, opened: queue.SimpleQueue[tuple[_Stream, Session | Exception]]
) -> None:
    due = [stream for stream in streams if stream.retry_at is not None and time.monotonic() > stream.retry_at]
    for stream in due:
        stream.retry_at = None
    if due:
        _open_in_background(due, record, opened)


def _take_frames(streams: Sequence[_Stream]) -> Iterator[Event]:
    for stream in streams:
        if stream.session is None or stream.done:
            continue
        try:
            for frame in stream.session.take():
                yield from _events_of(stream, frame)
        except HostError as error:
            if not stream.done:
                yield _lose(stream, error)


def _events_of(stream: _Stream, frame: Mapping[str, Any]) -> Iterator[Event]:
    stream.waiting += frame.get("lines", ())
    if "offsets" in frame:
        yield Lines(stream.node, stream.waiting)
        stream.offsets, stream.waiting = frame["offsets"], []
    if "past" in frame:
        yield BacklogRead(stream.node)
    if "end" in frame:
        stream.done = True
        now = time.time()
        yield NodeEnded(status.from_answer(stream.node, frame["end"], now, now))
    problem = problem_in(frame)
    if problem is not None:
        stream.done = True
        yield NodeEnded(status.NodeStatus(stream.node, "unreachable", problem.message))
